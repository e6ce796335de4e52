package cli

import (
	"fmt"
	"iter"
	"net/url"
	"strings"

	"certctl/shared/client"

	"github.com/spf13/cobra"
)

var profileView = view[client.Profile]{
	id: func(v client.Profile) string { return v.ID },
	columns: []column[client.Profile]{
		{"NAME", func(_ *printer, v client.Profile) string { return v.Name }},
		{"KEYS", func(_ *printer, v client.Profile) string { return strings.Join(v.KeyAlgorithms, ",") }},
		{"MAX-TTL", func(_ *printer, v client.Profile) string { return v.MaxTTL }},
		{"APPROVAL", func(_ *printer, v client.Profile) string { return yesNo(v.RequiresApproval) }},
		{"CUSTODY", func(_ *printer, v client.Profile) string { return text(v.KeyCustody) }},
		{"ID", func(_ *printer, v client.Profile) string { return v.ID }},
	},
}

func (a *App) profileCommand() *cobra.Command {
	list := listVerb(a, lister[client.Profile]{noun: "profiles", view: profileView, example: "  certctl profile list",
		all: func(s *session, q url.Values) iter.Seq2[client.Profile, error] { return s.c.Profiles.All(s.ctx, q) }})
	get := getVerb(a, profiles, profileView, "  certctl profile get default", func(s *session, id string) (client.Profile, error) { return s.c.Profiles.Get(s.ctx, id) },
		func(_ *session, v client.Profile) []detail {
			return []detail{{"ekus", strings.Join(v.EKUs, ", ")}, {"name patterns", orDash(strings.Join(v.NamePatterns, ", "))}, {"must-staple", yesNo(v.MustStaple)},
				{"public tls", yesNo(v.PublicTLS)}, {"short-lived", yesNo(v.ShortLived)}}
		})
	archive := archiveVerb(a, profiles, "  certctl profile archive web --yes", func(s *session, id string) error { return s.c.Profiles.Archive(s.ctx, id) })
	return group("profile", "Profiles: what may be issued", []string{"profiles"}, list, get, a.profileCreate(), a.profileUpdate(), archive)
}

// profileFlags put what was given over fields.
func profileFlags(c *cobra.Command) func(f *client.ProfileFields) {
	f := c.Flags()
	algs := f.StringSlice("key-algorithm", nil, "allowed key algorithms, the first for new keys: ecdsa-p256, ecdsa-p384, rsa-2048 …")
	ttl := f.String("max-ttl", "", "longest lifetime, e.g. 47d; under 1h is short-lived")
	ekus := f.StringSlice("eku", nil, "extended key usages (default serverAuth,clientAuth)")
	patterns := f.StringSlice("name-pattern", nil, "permitted names: *.example.com (one label), **.example.com (any depth), a name, or *")
	staple := f.Bool("must-staple", false, "ask for OCSP stapling (RFC 7633)")
	public := f.Bool("public-tls", false, "lint with the CA/Browser Forum's rules too")
	approval := f.Bool("requires-approval", false, "another person must approve each issuance")
	custody := f.String("key-custody", "", "who makes keys: agent, server, or any (decided by the targets)")
	return func(p *client.ProfileFields) {
		over(c, "key-algorithm", *algs, &p.KeyAlgorithms)
		over(c, "max-ttl", *ttl, &p.MaxTTL)
		over(c, "eku", *ekus, &p.EKUs)
		over(c, "name-pattern", *patterns, &p.NamePatterns)
		over(c, "must-staple", *staple, &p.MustStaple)
		over(c, "public-tls", *public, &p.PublicTLS)
		over(c, "requires-approval", *approval, &p.RequiresApproval)
		if c.Flags().Changed("key-custody") {
			p.KeyCustody = custody
			if *custody == "any" || *custody == "" {
				p.KeyCustody = nil
			}
		}
	}
}

// over sets *at when the flag was given.
func over[T any](c *cobra.Command, flag string, v T, at *T) {
	if c.Flags().Changed(flag) {
		*at = v
	}
}

func (a *App) profileCreate() *cobra.Command {
	c := &cobra.Command{Use: "create NAME", Short: "Create a profile", Args: between(1, 1),
		Example: "  certctl profile create web --max-ttl 47d --name-pattern '**.example.com'\n  certctl profile create guarded --requires-approval --key-algorithm ecdsa-p384"}
	fill := profileFlags(c)
	c.RunE = a.run(func(s *session, args []string) error {
		f := client.ProfileFields{Name: args[0], KeyAlgorithms: []string{"ecdsa-p256"}, MaxTTL: "90d"}
		fill(&f)
		p, err := s.c.Profiles.Create(s.ctx, f)
		if err != nil {
			return err
		}
		return one(s.printer, profileView, p)
	})
	return c
}

func (a *App) profileUpdate() *cobra.Command {
	c := &cobra.Command{Use: "update REF", Short: "Change a profile", Args: between(1, 1), ValidArgsFunction: profiles.complete(a, false),
		Long: "Changes what is given and leaves the rest. What was issued stays as it is.", Example: "  certctl profile update web --max-ttl 30d"}
	fill := profileFlags(c)
	name := c.Flags().String("name", "", "another name")
	c.RunE = a.run(func(s *session, args []string) error {
		id, err := profiles.idOf(s, args[0])
		if err != nil {
			return err
		}
		p, err := s.c.Profiles.Get(s.ctx, id)
		if err != nil {
			return err
		}
		f := p.Fields()
		over(c, "name", *name, &f.Name)
		fill(&f)
		if p, err = s.c.Profiles.Replace(s.ctx, id, f); err != nil {
			return err
		}
		return one(s.printer, profileView, p)
	})
	return c
}

var policyView = view[client.RenewalPolicy]{
	id: func(v client.RenewalPolicy) string { return v.ID },
	columns: []column[client.RenewalPolicy]{
		{"NAME", func(_ *printer, v client.RenewalPolicy) string { return v.Name }},
		{"RENEW-AT", func(_ *printer, v client.RenewalPolicy) string { return fmt.Sprintf("%.0f%%", v.RenewAtFraction*100) }},
		{"JITTER", func(_ *printer, v client.RenewalPolicy) string { return fmt.Sprintf("%.0f%%", v.Jitter*100) }},
		{"AUTO", func(_ *printer, v client.RenewalPolicy) string { return yesNo(v.AutoRenew) }},
		{"ID", func(_ *printer, v client.RenewalPolicy) string { return v.ID }},
	},
}

func (a *App) policyCommand() *cobra.Command {
	list := listVerb(a, lister[client.RenewalPolicy]{noun: "renewal policies", view: policyView, example: "  certctl policy list",
		all: func(s *session, q url.Values) iter.Seq2[client.RenewalPolicy, error] {
			return s.c.RenewalPolicies.All(s.ctx, q)
		}})
	get := getVerb(a, policies, policyView, "  certctl policy get default", func(s *session, id string) (client.RenewalPolicy, error) { return s.c.RenewalPolicies.Get(s.ctx, id) },
		func(_ *session, v client.RenewalPolicy) []detail {
			return []detail{{"alerts at", strings.Trim(fmt.Sprint(v.AlertFractions), "[]")}}
		})
	archive := archiveVerb(a, policies, "  certctl policy archive early --yes", func(s *session, id string) error { return s.c.RenewalPolicies.Archive(s.ctx, id) })
	return group("policy", "Renewal policies: when certificates are renewed", []string{"policies", "renewal-policy"}, list, get, a.policyCreate(), a.policyUpdate(), archive)
}

func policyFlags(c *cobra.Command) func(f *client.RenewalPolicyFields) {
	f := c.Flags()
	at := f.Float64("renew-at", 0.67, "when to renew, as a fraction of the lifetime")
	jitter := f.Float64("jitter", 0, "how much earlier at most, as a fraction of the lifetime")
	auto := f.Bool("auto-renew", true, "renew by itself")
	alerts := f.Float64Slice("alert", nil, "when to warn, as fractions of the lifetime")
	return func(p *client.RenewalPolicyFields) {
		over(c, "renew-at", *at, &p.RenewAtFraction)
		over(c, "jitter", *jitter, &p.Jitter)
		over(c, "auto-renew", auto, &p.AutoRenew)
		over(c, "alert", *alerts, &p.AlertFractions)
	}
}

func (a *App) policyCreate() *cobra.Command {
	c := &cobra.Command{Use: "create NAME", Short: "Create a renewal policy", Args: between(1, 1), Example: "  certctl policy create early --renew-at 0.5 --jitter 0.05 --alert 0.8,0.9"}
	fill := policyFlags(c)
	c.RunE = a.run(func(s *session, args []string) error {
		f := client.RenewalPolicyFields{Name: args[0], RenewAtFraction: 0.67}
		fill(&f)
		p, err := s.c.RenewalPolicies.Create(s.ctx, f)
		if err != nil {
			return err
		}
		return one(s.printer, policyView, p)
	})
	return c
}

func (a *App) policyUpdate() *cobra.Command {
	c := &cobra.Command{Use: "update REF", Short: "Change a renewal policy", Args: between(1, 1), ValidArgsFunction: policies.complete(a, false),
		Long: "Changes what is given and leaves the rest. Planned renewals stay until the next issuance.", Example: "  certctl policy update early --renew-at 0.6"}
	fill := policyFlags(c)
	name := c.Flags().String("name", "", "another name")
	c.RunE = a.run(func(s *session, args []string) error {
		id, err := policies.idOf(s, args[0])
		if err != nil {
			return err
		}
		p, err := s.c.RenewalPolicies.Get(s.ctx, id)
		if err != nil {
			return err
		}
		f := p.Fields()
		over(c, "name", *name, &f.Name)
		fill(&f)
		if p, err = s.c.RenewalPolicies.Replace(s.ctx, id, f); err != nil {
			return err
		}
		return one(s.printer, policyView, p)
	})
	return c
}
