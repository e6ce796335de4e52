package cli

import (
	"fmt"
	"slices"
	"strings"

	"certctl/shared/client"

	"github.com/spf13/cobra"
)

func sorted(s []string) []string {
	slices.Sort(s)
	return s
}

// certFields are the flags that create and update share.
type certFields struct {
	name, owner, team, env, policy string
	tags, targets                  []string
}

func (f *certFields) flags(a *App, c *cobra.Command) {
	c.Flags().StringVar(&f.name, "name", "", "what people call it; need not be unique")
	c.Flags().StringVar(&f.owner, "owner", "", "owner (name or id)")
	c.Flags().StringVar(&f.team, "team", "", "team (name or id)")
	c.Flags().StringVar(&f.env, "env", "", "environment, e.g. production")
	c.Flags().StringVar(&f.policy, "policy", "", "renewal policy (name or id)")
	c.Flags().StringArrayVar(&f.tags, "tag", nil, "a tag as name=value; may be repeated")
	c.Flags().StringArrayVar(&f.targets, "target", nil, "where it is served (name or id); may be repeated")
	owners.completeFlag(a, c, "owner")
	teams.completeFlag(a, c, "team")
	policies.completeFlag(a, c, "policy")
	targets.completeFlag(a, c, "target")
}

func (a *App) certCreate() *cobra.Command {
	var f certFields
	c := &cobra.Command{Use: "create NAME…", Short: "Create a certificate for one or more names", Args: between(0, -1),
		Long: `Creates a certificate for the given names and enqueues its first issuance. Names are DNS names, IP addresses, e-mail
addresses and URIs; the first one is also what the certificate is called, unless --name or --common-name say otherwise.

With --wait the command ends when the certificate was issued and its targets have it.`,
		Example: "  certctl cert create www.example.com example.com --wait\n  certctl cert create api.example.com --issuer local --target web1 --owner alice --tag tier=edge --env production\n" +
			"  certctl cert create spare.example.com --no-issue --no-auto-renew -o name"}
	f.flags(a, c)
	sans := c.Flags().StringArray("san", nil, "one more name; may be repeated")
	cn := c.Flags().String("common-name", "", "common name (default: the first name that fits)")
	issuer := c.Flags().String("issuer", "", "issuer (name or id; default: local)")
	profile := c.Flags().String("profile", "", "profile (name or id; default: default)")
	noRenew := c.Flags().Bool("no-auto-renew", false, "do not renew it by itself")
	noIssue := c.Flags().Bool("no-issue", false, "do not issue it yet")
	waitFlag(c, "it is issued and its targets have it")
	issuers.completeFlag(a, c, "issuer")
	profiles.completeFlag(a, c, "profile")
	c.RunE = a.run(func(s *session, args []string) error {
		in := client.NewCertificate{Name: f.name, CommonName: *cn, SANs: append(slices.Clone(args), *sans...)}
		if len(in.SANs) == 0 {
			return usage("give at least one name")
		}
		if *noIssue && waits(s) {
			return usage("--wait has nothing to wait for with --no-issue")
		}
		if *noIssue {
			in.Issue = new(bool)
		}
		if *noRenew {
			in.AutoRenew = new(bool)
		}
		if err := f.fill(s, &in, *issuer, *profile); err != nil {
			return err
		}
		made, err := s.c.Certificates.Create(s.ctx, in)
		if err != nil {
			return err
		}
		return s.certMade(made, string(made.OpenJobID))
	})
	return c
}

// fill resolves what a new certificate refers to.
func (f certFields) fill(s *session, in *client.NewCertificate, issuer, profile string) error {
	var err error
	if len(f.tags) > 0 {
		if in.Tags, err = tags(f.tags); err != nil {
			return err
		}
	}
	if f.env != "" {
		in.Environment = &f.env
	}
	if in.TargetIDs, err = targets.idsOf(s, f.targets); err != nil {
		return err
	}
	for _, step := range []func() error{
		func() error { return issuers.into(s, issuer, &in.IssuerID) }, func() error { return profiles.into(s, profile, &in.ProfileID) },
		func() error { return policies.into(s, f.policy, &in.RenewalPolicyID) },
		func() error { return owners.into(s, f.owner, &in.OwnerID) }, func() error { return teams.into(s, f.team, &in.TeamID) },
	} {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

// certMade shows a certificate, after its job and deployments with --wait. When the waiting fails the id is told, because the
// certificate exists.
func (s *session) certMade(c client.Certificate, job string) error {
	if !waits(s) {
		return one(s.printer, certView, c)
	}
	done, err := s.waitServed(c.ID, job)
	if err != nil {
		s.note("The certificate is %s; certctl cert explain %s says more.", c.ID, c.ID)
		return err
	}
	return one(s.printer, certView, done)
}

func (a *App) certUpdate() *cobra.Command {
	var f certFields
	c := &cobra.Command{Use: "update REF", Short: "Change a certificate's record", Args: between(1, 1), ValidArgsFunction: certs.complete(a, false),
		Long: `Changes a certificate's record. Flags that are not given leave things as they are. Names, issuer, profile and key
custody are fixed; create another certificate for those.

--tag adds or replaces single tags and --untag takes them off; --target replaces all targets, and --no-targets takes them all
off. --owner "" and --team "" take owner and team off.`,
		Example: "  certctl cert update www.example.com --owner alice --tag tier=edge\n  certctl cert update www.example.com --auto-renew=false"}
	f.flags(a, c)
	untag := c.Flags().StringArray("untag", nil, "take this tag off; may be repeated")
	noTargets := c.Flags().Bool("no-targets", false, "take all targets off")
	auto := c.Flags().Bool("auto-renew", true, "renew it by itself")
	c.RunE = a.run(func(s *session, args []string) error {
		id, err := certs.idOf(s, args[0])
		if err != nil {
			return err
		}
		ch, err := f.change(s, id, *untag, *noTargets)
		if err != nil {
			return err
		}
		if c.Flags().Changed("auto-renew") {
			ch.AutoRenew = auto
		}
		if ch == (client.CertificateChange{}) {
			return usage("nothing to change was given")
		}
		got, err := s.c.Certificates.Update(s.ctx, id, ch)
		if err != nil {
			return err
		}
		return one(s.printer, certView, got)
	})
	return c
}

func (f certFields) change(s *session, id string, untag []string, noTargets bool) (ch client.CertificateChange, err error) {
	given := s.cmd.Flags().Changed
	set := func(flag string, v string, at **string) {
		if given(flag) {
			*at = &v
		}
	}
	set("name", f.name, &ch.Name)
	set("env", f.env, &ch.Environment)
	if ch.OwnerID, err = refChange(s, owners, "owner", f.owner); err != nil {
		return ch, err
	}
	if ch.TeamID, err = refChange(s, teams, "team", f.team); err != nil {
		return ch, err
	}
	if given("policy") {
		if ch.RenewalPolicyID, err = refChange(s, policies, "policy", f.policy); err != nil {
			return ch, err
		}
	}
	if given("target") || noTargets {
		ids, err := targets.idsOf(s, f.targets)
		if err != nil {
			return ch, err
		}
		if ids == nil {
			ids = []string{}
		}
		ch.TargetIDs = &ids
	}
	if len(f.tags)+len(untag) > 0 {
		ch.Tags, err = f.retag(s, id, untag)
	}
	return ch, err
}

// refChange is the id behind a flag that was given, "" to take the reference off, nil when the flag was not given.
func refChange[T any](s *session, k kind[T], flag, ref string) (*string, error) {
	if !s.cmd.Flags().Changed(flag) {
		return nil, nil
	}
	if ref == "" {
		return &ref, nil
	}
	id, err := k.idOf(s, ref)
	return &id, err
}

// retag reads the tags, which the API replaces as a whole, and changes single ones.
func (f certFields) retag(s *session, id string, untag []string) (*map[string]string, error) {
	c, err := s.c.Certificates.Get(s.ctx, id)
	if err != nil {
		return nil, err
	}
	out := map[string]string{}
	for k, v := range c.Tags {
		out[k] = v
	}
	set, err := tags(f.tags)
	if err != nil {
		return nil, err
	}
	for k, v := range set {
		out[k] = v
	}
	for _, k := range untag {
		delete(out, k)
	}
	return &out, nil
}

func (a *App) certRenew() *cobra.Command {
	c := &cobra.Command{Use: "renew REF…", Short: "Renew certificates now", Args: between(1, -1), ValidArgsFunction: certs.complete(a, true),
		Long:    "Makes a job that obtains a new version. While a certificate has an open job it is refused (exit code 6), with the job's id.",
		Example: "  certctl cert renew www.example.com --wait\n  certctl cert renew www.example.com -o name"}
	waitFlag(c, "the new version is issued and its targets have it")
	c.RunE = a.run(func(s *session, args []string) error {
		return s.each(args, func(ref string) error {
			id, err := certs.idOf(s, ref)
			if err != nil {
				return err
			}
			j, err := s.c.Certificates.Renew(s.ctx, id)
			if err != nil {
				return err
			}
			if waits(s) {
				return s.certMade(client.Certificate{ID: id}, j.ID)
			}
			return s.showJob(j)
		})
	})
	return c
}

func (a *App) certDeploy() *cobra.Command {
	c := &cobra.Command{Use: "deploy REF…", Short: "Deploy the current version again", Args: between(1, -1), ValidArgsFunction: certs.complete(a, true),
		Long: "Makes one job for each target of the certificate and shows them.", Example: "  certctl cert deploy www.example.com --wait"}
	waitFlag(c, "all targets have it")
	c.RunE = a.run(func(s *session, args []string) error {
		return s.each(args, func(ref string) error {
			id, err := certs.idOf(s, ref)
			if err != nil {
				return err
			}
			ids, err := s.c.Certificates.Deploy(s.ctx, id)
			if err != nil {
				return err
			}
			return s.deployed(id, ids)
		})
	})
	return c
}

func (s *session) deployed(id string, jobs []string) error {
	if len(jobs) == 0 {
		s.note("The certificate has no targets: certctl cert update %s --target NAME", id)
	}
	if waits(s) {
		if err := s.waitAll(jobs...); err != nil {
			return err
		}
		return s.certMade(client.Certificate{ID: id}, "")
	}
	var rows []client.Job
	for _, j := range jobs {
		row, err := s.c.Jobs.Get(s.ctx, j)
		if err != nil {
			return err
		}
		rows = append(rows, row)
	}
	return list(s.printer, jobView, rows)
}

var reasons = []string{"unspecified", "keyCompromise", "cACompromise", "affiliationChanged", "superseded", "cessationOfOperation", "certificateHold", "privilegeWithdrawn", "aACompromise"}

func reasonFlag(c *cobra.Command) *string {
	r := c.Flags().String("reason", "", "RFC 5280 reason: "+strings.Join(reasons, ", "))
	_ = c.MarkFlagRequired("reason")
	_ = c.RegisterFlagCompletionFunc("reason", cobra.FixedCompletions(reasons, cobra.ShellCompDirectiveNoFileComp))
	return r
}

func (a *App) certRevoke() *cobra.Command {
	c := yesFlag(&cobra.Command{Use: "revoke REF…", Short: "Revoke certificates", Args: between(1, -1), ValidArgsFunction: certs.complete(a, true),
		Long: `Revokes the current version, or another one with --version. Only certificateHold can be lifted again (unhold).
keyCompromise blocks the key everywhere and names the other versions that use it.`,
		Example: "  certctl cert revoke www.example.com --reason superseded --yes\n  certctl cert revoke www.example.com --reason certificateHold"})
	reason := reasonFlag(c)
	version := c.Flags().String("version", "", "id of the version (default: the current one)")
	waitFlag(c, "the CA has done it, where it must be asked")
	c.RunE = a.run(func(s *session, args []string) error {
		if *version != "" && len(args) > 1 {
			return usage("--version belongs to one certificate")
		}
		ids, err := certs.idsOf(s, args)
		if err != nil {
			return err
		}
		if err := s.ask(fmt.Sprintf("This revokes %s (%s).", strings.Join(args, ", "), *reason)); err != nil {
			return err
		}
		return s.each(ids, func(id string) error {
			done, j, err := s.c.Certificates.Revoke(s.ctx, id, *reason, *version)
			if err != nil {
				return err
			}
			if j != nil {
				return s.showJob(*j)
			}
			for _, v := range done.SharedKeyVersions {
				s.note("The same key is in version %s of %s: certctl cert revoke %s --reason keyCompromise --version %s", v.ID, v.CertificateID, v.CertificateID, v.ID)
			}
			return one(s.printer, certView, done.Certificate)
		})
	})
	return c
}

func (a *App) certUnhold() *cobra.Command {
	c := &cobra.Command{Use: "unhold REF", Short: "Lift a hold (certificateHold)", Args: between(1, 1), ValidArgsFunction: certs.complete(a, false),
		Example: "  certctl cert unhold www.example.com"}
	version := c.Flags().String("version", "", "id of the version (default: the current one)")
	c.RunE = a.run(func(s *session, args []string) error {
		id, err := certs.idOf(s, args[0])
		if err != nil {
			return err
		}
		got, err := s.c.Certificates.Unhold(s.ctx, id, *version)
		if err != nil {
			return err
		}
		return one(s.printer, certView, got)
	})
	return c
}

var bulkView = view[client.BulkOutcome]{
	id: func(o client.BulkOutcome) string { return o.CertificateID },
	columns: []column[client.BulkOutcome]{
		{"CERTIFICATE", func(_ *printer, o client.BulkOutcome) string { return o.CertificateID }},
		{"OUTCOME", func(_ *printer, o client.BulkOutcome) string { return o.Outcome }},
		{"DETAIL", func(_ *printer, o client.BulkOutcome) string { return orDash(o.Detail) }},
	},
}

func (a *App) certBulkRevoke() *cobra.Command {
	c := yesFlag(&cobra.Command{Use: "bulk-revoke [REF…]", Short: "Revoke many certificates, by name or by filter", Args: between(0, -1), ValidArgsFunction: certs.complete(a, true),
		Long:    "Revokes the current versions of many certificates at once: the named ones, or all that match the filters. For admins. --dry-run shows what would happen.",
		Example: "  certctl cert bulk-revoke --team web --reason cessationOfOperation --dry-run\n  certctl cert bulk-revoke a.example.com b.example.com --reason superseded --yes"})
	reason := reasonFlag(c)
	dry := c.Flags().Bool("dry-run", false, "change nothing")
	filterFlags(c, certFilters())
	a.completeCertFlags(c)
	waitFlag(c, "it is done, where it became a job")
	c.RunE = a.run(func(s *session, args []string) error {
		b := client.Bulk{Reason: *reason, DryRun: *dry}
		var err error
		if b.CertificateIDs, err = certs.idsOf(s, args); err != nil {
			return err
		}
		if b.Filter, err = bulkFilter(s); err != nil {
			return err
		}
		if len(args) == 0 && b.Filter == nil || len(args) > 0 && b.Filter != nil {
			return usage("name certificates or give at least one filter, not both")
		}
		if !b.DryRun {
			if err := s.ask(fmt.Sprintf("This revokes every certificate that matches (%s).", *reason)); err != nil {
				return err
			}
		}
		totals, j, err := s.c.Certificates.BulkRevoke(s.ctx, b)
		if err != nil {
			return err
		}
		if j != nil {
			return s.showJob(*j)
		}
		return s.showTotals(*totals)
	})
	return c
}

// bulkFilter reads the filter flags; nil when none was given.
func bulkFilter(s *session) (*client.BulkFilter, error) {
	q, err := query(s, certFilters())
	if err != nil || len(q) == 0 {
		return nil, err
	}
	return &client.BulkFilter{Status: q.Get("status"), Name: q.Get("name"), SAN: q.Get("san"), IssuerID: q.Get("issuer_id"), ProfileID: q.Get("profile_id"),
		RenewalPolicyID: q.Get("renewal_policy_id"), OwnerID: q.Get("owner_id"), TeamID: q.Get("team_id"), AgentID: q.Get("agent_id"), TargetID: q.Get("target_id"),
		Environment: q.Get("environment"), Tag: q.Get("tag")}, nil
}

func (s *session) showTotals(t client.BulkTotals) error {
	var err error
	if s.form == "json" || s.form == "yaml" {
		err = s.encode(t)
	} else {
		err = list(s.printer, bulkView, t.Results)
	}
	s.note("%d matched, %d revoked, %d skipped, %d failed", t.Matched, t.Revoked, t.Skipped, t.Failed)
	if err == nil && t.Failed > 0 {
		err = fail(codeFailure, "", "%d of %d failed", t.Failed, t.Matched)
	}
	return err
}
