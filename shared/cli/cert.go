package cli

import (
	"fmt"
	"iter"
	"net/url"
	"os"
	"strings"

	"certctl/shared/client"

	"github.com/spf13/cobra"
)

var certView = view[client.Certificate]{
	id: func(c client.Certificate) string { return c.ID },
	columns: []column[client.Certificate]{
		{"NAME", func(_ *printer, c client.Certificate) string { return c.Name }},
		{"STATUS", func(_ *printer, c client.Certificate) string { return c.Status }},
		{"EXPIRES", func(p *printer, c client.Certificate) string {
			if c.CurrentVersion == nil {
				return "-"
			}
			return p.when(&c.CurrentVersion.NotAfter)
		}},
		{"RENEWS", func(p *printer, c client.Certificate) string { return p.when(c.RenewAt) }},
		{"SERVED", func(_ *printer, c client.Certificate) string { return served(c) }},
		{"ID", func(_ *printer, c client.Certificate) string { return c.ID }},
	},
}

// served counts the targets that were seen to serve the current version: "1/2".
func served(c client.Certificate) string {
	if len(c.Deployments) == 0 || c.CurrentVersion == nil {
		return "-"
	}
	n := 0
	for _, d := range c.Deployments {
		if string(d.ServedVersionID) == c.CurrentVersion.ID {
			n++
		}
	}
	return fmt.Sprintf("%d/%d", n, len(c.Deployments))
}

var statuses = "archived, revoked, renewing, pending, expired, failed, expiring, active"

func certFilters() []filter {
	return []filter{
		{flag: "status", query: "status", help: "one of " + statuses},
		plainFilter("name", "exactly this name"), plainFilter("san", "has this name among its SANs"),
		ref(issuers, "issuer", "issuer_id"), ref(profiles, "profile", "profile_id"), ref(policies, "policy", "renewal_policy_id"),
		ref(owners, "owner", "owner_id"), ref(teams, "team", "team_id"), ref(agents, "agent", "agent_id"), ref(targets, "target", "target_id"),
		{flag: "env", query: "environment", help: "only of this environment"},
		{flag: "tag", query: "tag", help: "has this tag, as name=value", value: func(_ *session, v string) (string, error) {
			k, value, ok := strings.Cut(v, "=")
			if !ok {
				return "", usage("a tag is written name=value")
			}
			return k + ":" + value, nil
		}},
	}
}

func (a *App) certCommand() *cobra.Command {
	list := listVerb(a, lister[client.Certificate]{noun: "certificates", view: certView, filters: certFilters(), sorts: []string{"name", "not_after"},
		example: "  certctl cert list\n  certctl cert list --status expiring --sort not_after\n  certctl cert list --tag tier=edge -o json",
		all: func(s *session, q url.Values) iter.Seq2[client.Certificate, error] {
			return s.c.Certificates.All(s.ctx, q)
		}})
	_ = list.RegisterFlagCompletionFunc("status", cobra.FixedCompletions(strings.Split(statuses, ", "), cobra.ShellCompDirectiveNoFileComp))
	a.completeCertFlags(list)
	get := getVerb(a, certs, certView, "  certctl cert get www.example.com\n  certctl cert get www.example.com -o yaml",
		func(s *session, id string) (client.Certificate, error) { return s.c.Certificates.Get(s.ctx, id) }, certDetails)
	archive := archiveVerb(a, certs, "  certctl cert archive old.example.com --yes", func(s *session, id string) error {
		_, err := s.c.Certificates.Archive(s.ctx, id)
		return err
	})
	archive.Long = "Ends the management of certificates: they are not renewed or deployed any more. What was issued stays known to CRL and OCSP."
	return group("cert", "Certificates: create, renew, deploy, revoke, explain", []string{"certs", "certificate", "certificates"},
		list, get, a.certCreate(), a.certUpdate(), a.certRenew(), a.certDeploy(), a.certRevoke(), a.certUnhold(), a.certBulkRevoke(), archive,
		a.certVersions(), a.certPEM(), a.certExport(), a.certExplain())
}

func (a *App) completeCertFlags(c *cobra.Command) {
	issuers.completeFlag(a, c, "issuer")
	profiles.completeFlag(a, c, "profile")
	policies.completeFlag(a, c, "policy")
	owners.completeFlag(a, c, "owner")
	teams.completeFlag(a, c, "team")
	targets.completeFlag(a, c, "target")
	agents.completeFlag(a, c, "agent")
}

// certDetails are what get shows beside the list's columns.
func certDetails(s *session, c client.Certificate) []detail {
	d := []detail{
		{"common name", orDash(c.CommonName)}, {"sans", strings.Join(c.SANs, ", ")},
		{"issuer", nameOf(s, c.IssuerID, s.c.Issuers.Get, issuers.name)}, {"profile", nameOf(s, c.ProfileID, s.c.Profiles.Get, profiles.name)},
		{"policy", nameOf(s, c.RenewalPolicyID, s.c.RenewalPolicies.Get, policies.name)},
		{"owner", nameOf(s, c.OwnerID, s.c.Owners.Get, owners.name)}, {"team", nameOf(s, c.TeamID, s.c.Teams.Get, teams.name)},
		{"environment", text(c.Environment)}, {"tags", joinTags(c.Tags)}, {"auto-renew", yesNo(c.AutoRenew)},
		{"key held by", custody(s, c)}, {"open job", orDash(string(c.OpenJobID))}, {"reason", text(c.RenewReason)},
	}
	if v := c.CurrentVersion; v != nil {
		d = append(d, detail{"version", v.ID}, detail{"serial", v.Serial}, detail{"key", v.KeyAlgorithm}, detail{"valid from", s.moment(&v.NotBefore)},
			detail{"valid until", s.moment(&v.NotAfter)}, detail{"sha256", v.FingerprintSHA256})
		if v.RevokedAt != nil {
			d = append(d, detail{"revoked", s.moment(v.RevokedAt) + ", " + text(v.RevocationReason)})
		}
	}
	for _, x := range c.Deployments {
		d = append(d, detail{"on target", nameOf(s, client.Ref(x.TargetID), s.c.Targets.Get, targets.name) + ": " + deploymentState(s.printer, c, x)})
	}
	return append(d, detail{"created", s.moment(&c.CreatedAt) + " by " + c.CreatedBy}, detail{"can", orDash(strings.Join(c.Can, ", "))})
}

func custody(s *session, c client.Certificate) string {
	if c.KeyCustody != "agent" {
		return c.KeyCustody
	}
	return "agent " + nameOf(s, c.AgentID, s.c.Agents.Get, agents.name)
}

// deploymentState says in words how far a certificate is on a target.
func deploymentState(p *printer, c client.Certificate, d client.Deployment) string {
	current := client.Ref("")
	if c.CurrentVersion != nil {
		current = client.Ref(c.CurrentVersion.ID)
	}
	s := "nothing is deployed yet"
	switch {
	case current != "" && d.ServedVersionID == current:
		s = "the current version is served"
		if d.TimeToServedSeconds != nil {
			s += fmt.Sprintf(", %.1f s after it was issued", *d.TimeToServedSeconds)
		}
	case current != "" && d.InstalledVersionID == current:
		s = "the current version is installed and was not seen served"
	case d.ServedVersionID != "":
		s = "an older version is served"
	case d.InstalledVersionID != "":
		s = "an older version is installed"
	}
	if d.LastError != nil {
		s += "; last error (" + p.ago(d.UpdatedAt) + " ago): " + *d.LastError
	}
	return s
}

func joinTags(t map[string]string) string {
	var out []string
	for k, v := range t {
		out = append(out, k+"="+v)
	}
	return orDash(strings.Join(sorted(out), ", "))
}

var versionView = view[client.Version]{
	id: func(v client.Version) string { return v.ID },
	columns: []column[client.Version]{
		{"ID", func(_ *printer, v client.Version) string { return v.ID }},
		{"SERIAL", func(_ *printer, v client.Version) string { return v.Serial }},
		{"KEY", func(_ *printer, v client.Version) string { return v.KeyAlgorithm }},
		{"ISSUED", func(p *printer, v client.Version) string { return p.when(&v.CreatedAt) }},
		{"EXPIRES", func(p *printer, v client.Version) string { return p.when(&v.NotAfter) }},
		{"REVOKED", func(_ *printer, v client.Version) string { return text(v.RevocationReason) }},
	},
}

func (a *App) certVersions() *cobra.Command {
	return &cobra.Command{Use: "versions REF", Short: "List what was issued for a certificate", Args: between(1, 1), ValidArgsFunction: certs.complete(a, false),
		Example: "  certctl cert versions www.example.com",
		RunE: a.run(func(s *session, args []string) error {
			id, err := certs.idOf(s, args[0])
			if err != nil {
				return err
			}
			rows, err := collect(s, s.c.Certificates.Versions(s.ctx, id), 0, "versions")
			if err != nil {
				return err
			}
			return list(s.printer, versionView, rows)
		})}
}

func (a *App) certPEM() *cobra.Command {
	c := &cobra.Command{Use: "pem REF", Short: "Print the chain as PEM: leaf, intermediates, no root", Args: between(1, 1), ValidArgsFunction: certs.complete(a, false),
		Example: "  certctl cert pem www.example.com | openssl x509 -noout -subject -enddate\n  certctl cert pem www.example.com --file chain.pem"}
	version := c.Flags().String("version", "", "id of an older version")
	file := c.Flags().StringP("file", "f", "", "write to this file instead of stdout")
	c.RunE = a.run(func(s *session, args []string) error {
		id, err := certs.idOf(s, args[0])
		if err != nil {
			return err
		}
		b, err := s.c.Certificates.PEM(s.ctx, id, *version)
		if err != nil {
			return err
		}
		if *file == "" {
			_, err = s.out.Write(b)
			return err
		}
		if err := os.WriteFile(*file, b, 0o644); err != nil { // #nosec G306 -- certificates are public
			return fmt.Errorf("writing %s: %w", *file, err)
		}
		return nil
	})
	return c
}
