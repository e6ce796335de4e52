package cli

import (
	"fmt"
	"iter"
	"net/url"
	"strconv"
	"strings"
	"time"

	"certctl/shared/client"

	"github.com/spf13/cobra"
)

var keyView = view[client.Key]{
	id: func(k client.Key) string { return k.ID },
	columns: []column[client.Key]{
		{"NAME", func(_ *printer, k client.Key) string { return k.Name }},
		{"PRINCIPAL", func(_ *printer, k client.Key) string { return k.Principal }},
		{"ROLE", func(_ *printer, k client.Key) string { return k.Role }},
		{"STATUS", keyStatus},
		{"USED", func(p *printer, k client.Key) string { return p.when(k.LastUsedAt) }},
		{"EXPIRES", func(p *printer, k client.Key) string { return p.when(k.ExpiresAt) }},
		{"ID", func(_ *printer, k client.Key) string { return k.ID }},
	},
}

func keyStatus(p *printer, k client.Key) string {
	switch {
	case k.DisabledAt != nil:
		return "disabled"
	case k.ExpiresAt != nil && !k.ExpiresAt.After(p.now()):
		return "expired"
	}
	return "active"
}

var roles = []string{"viewer", "auditor", "operator", "admin"}

func (a *App) keyCommand() *cobra.Command {
	list := listVerb(a, lister[client.Key]{noun: "API keys", view: keyView, filters: []filter{plainFilter("principal", "only of this principal")}, example: "  certctl key list\n  certctl key list --principal alice",
		all: func(s *session, q url.Values) iter.Seq2[client.Key, error] { return s.c.Keys.All(s.ctx, q) }})
	get := getVerb(a, apiKeys, keyView, "  certctl key get ci", func(s *session, id string) (client.Key, error) { return s.c.Keys.Get(s.ctx, id) },
		func(s *session, k client.Key) []detail {
			return []detail{{"created", s.moment(&k.CreatedAt) + " by " + k.CreatedBy}, {"disabled", s.moment(k.DisabledAt)}}
		})
	return group("key", "API keys: create, disable, rotate", []string{"keys"}, list, get, a.keyCreate(), a.keyDisable(), a.keyRotate())
}

func secretFileFlag(c *cobra.Command) *string {
	return c.Flags().String("secret-file", "", "write the secret to this file (0600) instead of stdout")
}

// showSecret shows what is shown once: the secret alone on stdout, so that it can be piped, or the whole answer in JSON or
// YAML; with a file, the secret there and the id on stdout.
func (s *session) showSecret(answer any, id, secret, file string) error {
	if file != "" {
		if err := writePrivate(file, []byte(secret+"\n")); err != nil {
			s.note("The secret of %s could not be written and is lost: disable or rotate it.", id)
			return err
		}
		_, err := fmt.Fprintln(s.out, id)
		return err
	}
	switch s.form {
	case "json", "yaml":
		return s.encode(answer)
	case "name":
		return usage("-o name would lose the secret: use --secret-file with it")
	}
	_, err := fmt.Fprintln(s.out, secret)
	return err
}

func (a *App) keyCreate() *cobra.Command {
	c := &cobra.Command{Use: "create [NAME]", Short: "Create an API key", Args: between(0, 1),
		Long: `Creates an API key and prints its secret once, on stdout. The name is the role unless one is given, and the principal, who
acts with the key, is the name unless --principal says otherwise.

With --direct it is made in the database that CERTCTL_DATABASE_URL names, without a server: that is how the first key of a
shared database is made. The same happens without --direct when CERTCTL_DATABASE_URL is set and no server is configured.`,
		Example: "  certctl key create ci --role operator --principal ci@example.com --expires 90d --secret-file ci.key\n  certctl key create reader --role viewer -o json"}
	role := c.Flags().String("role", "", strings.Join(roles, ", "))
	principal := c.Flags().String("principal", "", "who acts with the key; lower case")
	expires := c.Flags().String("expires", "", "when it ends: a duration such as 90d, or a time (default: never)")
	direct := c.Flags().Bool("direct", false, "write to the database instead of asking a server")
	file := secretFileFlag(c)
	_ = c.MarkFlagRequired("role")
	_ = c.RegisterFlagCompletionFunc("role", cobra.FixedCompletions(roles, cobra.ShellCompDirectiveNoFileComp))
	viaAPI := a.run(func(s *session, args []string) error {
		in := keyFor(args, *principal, *role)
		if *expires != "" {
			at, err := timeOf(*expires, s.now(), +1)
			if err != nil {
				return err
			}
			in.ExpiresAt = &at
		}
		if s.form == "name" && *file == "" {
			return usage("-o name would lose the secret: use --secret-file with it")
		}
		k, err := s.c.Keys.Create(s.ctx, in)
		if err != nil {
			return err
		}
		s.note("Key %s of %s, role %s. The secret is shown this once.", k.ID, k.Principal, k.Role)
		return s.showSecret(k, k.ID, k.Secret, *file)
	})
	viaDatabase := a.offline(func(s *session, args []string) error {
		if *expires != "" {
			return usage("--expires needs a server")
		}
		in := keyFor(args, *principal, *role)
		secret, err := a.Direct(s.ctx, in.Name, in.Principal, in.Role)
		if err != nil {
			return err
		}
		s.note("Key of %s, role %s, made in the database. The secret is shown this once.", in.Principal, in.Role)
		return s.showSecret(map[string]string{"name": in.Name, "principal": in.Principal, "role": in.Role, "secret": secret}, in.Name, secret, *file)
	})
	c.RunE = func(cmd *cobra.Command, args []string) error {
		switch {
		case *direct && a.Direct == nil:
			return usage("this program cannot write to a database: --direct is not offered")
		case *direct || a.onlyDatabase():
			return viaDatabase(cmd, args)
		}
		return viaAPI(cmd, args)
	}
	return c
}

func keyFor(args []string, principal, role string) client.NewKey {
	name := role
	if len(args) > 0 {
		name = args[0]
	}
	return client.NewKey{Name: name, Principal: strings.ToLower(first(principal, name)), Role: role}
}

// onlyDatabase reports whether a database is configured and no server is.
func (a *App) onlyDatabase() bool {
	if a.Direct == nil || first(a.Getenv("CERTCTL_DATABASE_URL"), a.Getenv("CERTCTL_DATABASE_URL_FILE")) == "" {
		return false
	}
	if first(a.flags.url, a.Getenv("CERTCTL_URL"), a.flags.context, a.Getenv("CERTCTL_CONTEXT")) != "" {
		return false
	}
	stored, _, err := a.chosenContext()
	return err == nil && stored == nil
}

// timeOf reads a time (RFC 3339, or a day) or a duration from now, forwards (+1) or backwards (-1).
func timeOf(s string, now time.Time, direction int) (time.Time, error) {
	for _, form := range []string{time.RFC3339, time.DateOnly} {
		if t, err := time.Parse(form, s); err == nil {
			return t, nil
		}
	}
	units := map[byte]time.Duration{'s': time.Second, 'm': time.Minute, 'h': time.Hour, 'd': 24 * time.Hour}
	if len(s) > 1 && len(s) < 8 {
		n, err := strconv.ParseUint(s[:len(s)-1], 10, 31)
		if unit := units[s[len(s)-1]]; err == nil && unit > 0 {
			return now.Add(time.Duration(direction) * time.Duration(n) * unit).UTC().Truncate(time.Second), nil // #nosec G115 -- 31 bits
		}
	}
	return time.Time{}, usage("a time is written 2026-01-31, 2026-01-31T12:00:00Z, or as a duration such as 24h or 90d")
}

func (a *App) keyDisable() *cobra.Command {
	return yesFlag(&cobra.Command{Use: "disable REF…", Short: "Disable API keys", Args: between(1, -1), ValidArgsFunction: apiKeys.complete(a, true),
		Long: "Ends keys at once: they are refused from the next request on, on every instance.", Example: "  certctl key disable ci --yes",
		RunE: a.run(func(s *session, args []string) error {
			ids, err := apiKeys.idsOf(s, args)
			if err != nil {
				return err
			}
			if err := s.ask("This disables " + strings.Join(args, ", ") + "."); err != nil {
				return err
			}
			return s.each(ids, func(id string) error {
				k, err := s.c.Keys.Disable(s.ctx, id)
				if err != nil {
					return err
				}
				return one(s.printer, keyView, k)
			})
		})})
}

func (a *App) keyRotate() *cobra.Command {
	c := &cobra.Command{Use: "rotate REF", Short: "Replace an API key", Args: between(1, 1), ValidArgsFunction: apiKeys.complete(a, false),
		Long: "Makes a new key for the same principal and role and prints its secret once, on stdout. The old one ends after the grace.", Example: "  certctl key rotate ci --grace 1h --secret-file ci.key"}
	grace := c.Flags().String("grace", "", "how long the old secret stays good, e.g. 1h (default 24h, at most 30d)")
	file := secretFileFlag(c)
	c.RunE = a.run(func(s *session, args []string) error {
		if s.form == "name" && *file == "" {
			return usage("-o name would lose the secret: use --secret-file with it")
		}
		id, err := apiKeys.idOf(s, args[0])
		if err != nil {
			return err
		}
		k, err := s.c.Keys.Rotate(s.ctx, id, *grace)
		if err != nil {
			return err
		}
		s.note("Key %s takes the place of %s. The secret is shown this once.", k.ID, id)
		return s.showSecret(k, k.ID, k.Secret, *file)
	})
	return c
}
