package cli

import (
	"context"
	"iter"
	"net/url"
	"regexp"
	"strings"
	"time"

	"certctl/shared/client"

	"github.com/spf13/cobra"
)

// kind is a noun that can be named on the command line by its id or by its name.
type kind[T any] struct {
	noun   string // for people
	prefix string // of ids
	plural string // the command that lists them
	all    func(ctx context.Context, c *client.Client, name string) iter.Seq2[T, error]
	id     func(T) string
	name   func(T) string // for completion only when nameless

	nameless bool
}

var (
	certs = kind[client.Certificate]{noun: "certificate", prefix: "crt", plural: "cert", all: func(ctx context.Context, c *client.Client, name string) iter.Seq2[client.Certificate, error] {
		q := url.Values{}
		if name != "" {
			q.Set("name", name)
		}
		return c.Certificates.All(ctx, q)
	}, id: func(v client.Certificate) string { return v.ID }, name: func(v client.Certificate) string { return v.Name }}
	issuers = kind[client.Issuer]{noun: "issuer", prefix: "iss", plural: "issuer", all: func(ctx context.Context, c *client.Client, _ string) iter.Seq2[client.Issuer, error] {
		return c.Issuers.All(ctx, nil)
	}, id: func(v client.Issuer) string { return v.ID }, name: func(v client.Issuer) string { return v.Name }}
	profiles = kind[client.Profile]{noun: "profile", prefix: "prf", plural: "profile", all: func(ctx context.Context, c *client.Client, _ string) iter.Seq2[client.Profile, error] {
		return c.Profiles.All(ctx, nil)
	}, id: func(v client.Profile) string { return v.ID }, name: func(v client.Profile) string { return v.Name }}
	policies = kind[client.RenewalPolicy]{noun: "renewal policy", prefix: "rpl", plural: "policy", all: func(ctx context.Context, c *client.Client, _ string) iter.Seq2[client.RenewalPolicy, error] {
		return c.RenewalPolicies.All(ctx, nil)
	}, id: func(v client.RenewalPolicy) string { return v.ID }, name: func(v client.RenewalPolicy) string { return v.Name }}
	targets = kind[client.Target]{noun: "target", prefix: "tgt", plural: "target", all: func(ctx context.Context, c *client.Client, _ string) iter.Seq2[client.Target, error] {
		return c.Targets.All(ctx, nil)
	}, id: func(v client.Target) string { return v.ID }, name: func(v client.Target) string { return v.Name }}
	agents = kind[client.Agent]{noun: "agent", prefix: "agt", plural: "agent", all: func(ctx context.Context, c *client.Client, _ string) iter.Seq2[client.Agent, error] {
		return c.Agents.All(ctx, nil)
	}, id: func(v client.Agent) string { return v.ID }, name: func(v client.Agent) string { return v.Name }}
	apiKeys = kind[client.Key]{noun: "key", prefix: "key", plural: "key", all: func(ctx context.Context, c *client.Client, _ string) iter.Seq2[client.Key, error] {
		return c.Keys.All(ctx, nil)
	}, id: func(v client.Key) string { return v.ID }, name: func(v client.Key) string { return v.Name }}
	teams = kind[client.Team]{noun: "team", prefix: "team", plural: "team", all: func(ctx context.Context, c *client.Client, _ string) iter.Seq2[client.Team, error] {
		return c.Teams.All(ctx, nil)
	}, id: func(v client.Team) string { return v.ID }, name: func(v client.Team) string { return v.Name }}
	owners = kind[client.Owner]{noun: "owner", prefix: "own", plural: "owner", all: func(ctx context.Context, c *client.Client, _ string) iter.Seq2[client.Owner, error] {
		return c.Owners.All(ctx, nil)
	}, id: func(v client.Owner) string { return v.ID }, name: func(v client.Owner) string { return v.Name }}
	jobs = kind[client.Job]{noun: "job", prefix: "job", plural: "job", all: func(ctx context.Context, c *client.Client, _ string) iter.Seq2[client.Job, error] {
		return c.Jobs.All(ctx, nil)
	}, id: func(v client.Job) string { return v.ID }, name: func(v client.Job) string { return v.Type + " " + v.Status }, nameless: true}
)

var suffix = regexp.MustCompile(`^_[0-7][0-9a-hjkmnp-tv-z]{25}$`)

func (k kind[T]) isID(ref string) bool {
	tail, ok := strings.CutPrefix(ref, k.prefix)
	return ok && suffix.MatchString(tail)
}

// idOf gives the id of what was named by its id or by its name. A name that several share is refused: guessing which one is
// meant could revoke the wrong one.
func (k kind[T]) idOf(s *session, ref string) (string, error) {
	if k.isID(ref) {
		return ref, nil
	}
	if ref == "" {
		return "", usage("an empty text names no %s", k.noun)
	}
	if k.nameless {
		return "", usage("a %s is named by its id, which begins with %s_", k.noun, k.prefix)
	}
	var found []string
	for v, err := range k.all(s.ctx, s.c, ref) {
		if err != nil {
			return "", err
		}
		if strings.EqualFold(k.name(v), ref) {
			found = append(found, k.id(v))
		}
	}
	switch len(found) {
	case 0:
		return "", fail(codeNotFound, "certctl "+k.plural+" list", "there is no %s %q", k.noun, ref)
	case 1:
		return found[0], nil
	}
	return "", usage("%d %ss are called %q; name one by its id: %s", len(found), k.noun, ref, strings.Join(found[:min(len(found), 5)], ", "))
}

// idsOf is idOf for several, nil for none.
func (k kind[T]) idsOf(s *session, refs []string) ([]string, error) {
	var out []string
	for _, ref := range refs {
		id, err := k.idOf(s, ref)
		if err != nil {
			return nil, err
		}
		out = append(out, id)
	}
	return out, nil
}

// into sets *at to the id behind a flag that was given.
func (k kind[T]) into(s *session, ref string, at *string) (err error) {
	if ref != "" {
		*at, err = k.idOf(s, ref)
	}
	return err
}

// nameOf is the name behind an id, or the id itself when it cannot be read: names only adorn.
func nameOf[T any](s *session, id client.Ref, get func(context.Context, string) (T, error), name func(T) string) string {
	if id == "" {
		return "-"
	}
	v, err := get(s.ctx, string(id))
	if err != nil {
		return string(id)
	}
	return name(v) + " (" + string(id) + ")"
}

// completions bound how long the shell waits, and how much it shows.
const (
	completeWithin = 2 * time.Second
	completeMost   = 200
)

// complete offers names, or ids once the word begins like one, as they are on the server at this moment.
func (k kind[T]) complete(a *App, more bool) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, word string) ([]cobra.Completion, cobra.ShellCompDirective) {
		if len(args) > 0 && !more {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		conn, err := a.connection()
		if err != nil {
			return nil, cobra.ShellCompDirectiveError
		}
		c, err := conn.client(a.Version)
		if err != nil {
			return nil, cobra.ShellCompDirectiveError
		}
		ctx, cancel := context.WithTimeout(cmd.Context(), completeWithin)
		defer cancel()
		return k.words(ctx, c, word), cobra.ShellCompDirectiveNoFileComp
	}
}

func (k kind[T]) words(ctx context.Context, c *client.Client, word string) []cobra.Completion {
	byID := k.nameless || strings.HasPrefix(word, k.prefix+"_")
	var out []cobra.Completion
	for v, err := range k.all(ctx, c, "") {
		if err != nil || len(out) == completeMost {
			break
		}
		value, about := k.name(v), k.id(v)
		if byID {
			value, about = about, value
		}
		if strings.HasPrefix(value, word) && !strings.ContainsAny(value, "\t\n") {
			out = append(out, cobra.CompletionWithDesc(value, clean(about)))
		}
	}
	return out
}

// completeFlag offers the noun's names for a flag.
func (k kind[T]) completeFlag(a *App, c *cobra.Command, flag string) {
	complete := k.complete(a, true)
	_ = c.RegisterFlagCompletionFunc(flag, func(cmd *cobra.Command, _ []string, word string) ([]cobra.Completion, cobra.ShellCompDirective) {
		return complete(cmd, nil, word)
	})
}
