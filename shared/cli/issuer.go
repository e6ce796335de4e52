package cli

import (
	"encoding/json"
	"fmt"
	"iter"
	"net/url"

	"certctl/shared/client"

	"github.com/spf13/cobra"
)

var issuerView = view[client.Issuer]{
	id: func(i client.Issuer) string { return i.ID },
	columns: []column[client.Issuer]{
		{"NAME", func(_ *printer, i client.Issuer) string { return i.Name }},
		{"TYPE", func(_ *printer, i client.Issuer) string { return i.Type }},
		{"TEST", func(p *printer, i client.Issuer) string { return tested(p, i.LastTest) }},
		{"AGE", func(p *printer, i client.Issuer) string { return p.ago(i.CreatedAt) }},
		{"ID", func(_ *printer, i client.Issuer) string { return i.ID }},
	},
}

// tested is the newest test in a word.
func tested(p *printer, raw json.RawMessage) string {
	var t *struct {
		OK bool `json:"ok"`
	}
	switch {
	case json.Unmarshal(raw, &t) != nil || t == nil:
		return "-"
	case t.OK:
		return "ok"
	}
	return "failed"
}

var generationView = view[client.Generation]{
	id: func(g client.Generation) string { return g.ID },
	columns: []column[client.Generation]{
		{"NUMBER", func(_ *printer, g client.Generation) string { return fmt.Sprint(g.Number) }},
		{"SUBJECT", func(_ *printer, g client.Generation) string { return g.Subject }},
		{"KEY", func(_ *printer, g client.Generation) string { return g.KeyAlgorithm }},
		{"SOURCE", func(_ *printer, g client.Generation) string { return g.KeySource }},
		{"EXPIRES", func(p *printer, g client.Generation) string { return p.when(&g.NotAfter) }},
		{"CRL", func(p *printer, g client.Generation) string {
			if g.CRLNumber == nil {
				return "-"
			}
			return fmt.Sprintf("number %d, next %s", *g.CRLNumber, p.when(g.CRLNextUpdate))
		}},
		{"ID", func(_ *printer, g client.Generation) string { return g.ID }},
	},
}

func (a *App) issuerCommand() *cobra.Command {
	list := listVerb(a, lister[client.Issuer]{noun: "issuers", view: issuerView, example: "  certctl issuer list",
		all: func(s *session, q url.Values) iter.Seq2[client.Issuer, error] { return s.c.Issuers.All(s.ctx, q) }})
	get := getVerb(a, issuers, issuerView, "  certctl issuer get local", func(s *session, id string) (client.Issuer, error) { return s.c.Issuers.Get(s.ctx, id) },
		func(s *session, i client.Issuer) []detail {
			return []detail{{"config", string(i.Config)}, {"last test", string(i.LastTest)}, {"crl", text(i.CRLURL)}, {"ocsp", text(i.OCSPURL)}, {"ca certificate", text(i.CAURL)}}
		})
	archive := archiveVerb(a, issuers, "  certctl issuer archive old-ca --yes", func(s *session, id string) error { return s.c.Issuers.Archive(s.ctx, id) })
	archive.Long = "Archives issuers that no live certificate uses. Their CRL and OCSP go on."
	return group("issuer", "Issuers: certificate authorities and their generations", []string{"issuers"}, list, get, a.issuerCreate(), a.issuerRename(), a.issuerTest(),
		a.issuerRekey(), a.issuerRenew(), a.issuerGenerations(), a.issuerRequest(), archive)
}

func (a *App) issuerCreate() *cobra.Command {
	var x settings
	c := &cobra.Command{Use: "create NAME", Short: "Configure an issuer", Args: between(1, 1),
		Long: `Configures an issuer. Settings come from --config, --set and --set-file; those of type local are, all optional:
common_name, organization, country, key_algorithm, ttl, path_length, permitted_dns, excluded_dns, permitted_ips, excluded_ips;
request=true for a sub-CA whose request is then fetched with “certctl issuer request”; certificate_pem and key_pem to import.`,
		Example: "  certctl issuer create staging --type local --set common_name=\"Staging CA\" --set ttl=365d\n  certctl issuer create sub --type local --set request=true"}
	x.flags(c)
	kind := c.Flags().String("type", "local", "the kind of CA: local")
	c.RunE = a.run(func(s *session, args []string) error {
		config, err := x.over(s, nil)
		if err != nil {
			return err
		}
		i, err := s.c.Issuers.Create(s.ctx, client.NewIssuer{Name: args[0], Type: *kind, Config: config})
		if err != nil {
			return err
		}
		return one(s.printer, issuerView, i)
	})
	return c
}

// issuerVerb is a verb over one issuer.
func (a *App) issuerVerb(use, short, long, example string, args int, f func(s *session, id string, args []string) error) *cobra.Command {
	return &cobra.Command{Use: use, Short: short, Long: long, Example: example, Args: between(args, args), ValidArgsFunction: issuers.complete(a, false),
		RunE: a.run(func(s *session, args []string) error {
			id, err := issuers.idOf(s, args[0])
			if err != nil {
				return err
			}
			return f(s, id, args[1:])
		})}
}

func (a *App) issuerRename() *cobra.Command {
	return a.issuerVerb("rename REF NAME", "Give an issuer another name", "", "  certctl issuer rename staging staging-ca", 2, func(s *session, id string, args []string) error {
		i, err := s.c.Issuers.Rename(s.ctx, id, args[0])
		if err != nil {
			return err
		}
		return one(s.printer, issuerView, i)
	})
}

func (a *App) issuerTest() *cobra.Command {
	c := a.issuerVerb("test REF", "Test the connection to an issuer", "The worker makes the test; with --wait the exit code tells how it went.", "  certctl issuer test local --wait", 1, func(s *session, id string, _ []string) error {
		j, err := s.c.Issuers.Test(s.ctx, id)
		if err != nil {
			return err
		}
		return s.showJob(j)
	})
	waitFlag(c, "the test ends")
	return c
}

func (a *App) issuerRekey() *cobra.Command {
	return a.issuerVerb("rekey REF", "Give a local CA a new key", "Adds a generation, which signs from now on. Certificates of older generations keep their CRL and responder.",
		"  certctl issuer rekey staging", 1, func(s *session, id string, _ []string) error {
			g, err := s.c.Issuers.Rekey(s.ctx, id)
			if err != nil {
				return err
			}
			return one(s.printer, generationView, g)
		})
}

func (a *App) issuerRenew() *cobra.Command {
	c := a.issuerVerb("renew REF", "Renew a local CA's certificate with the same key", "", "  certctl issuer renew staging --wait", 1, func(s *session, id string, _ []string) error {
		j, err := s.c.Issuers.Renew(s.ctx, id)
		if err != nil {
			return err
		}
		return s.showJob(j)
	})
	waitFlag(c, "it is renewed")
	return c
}

func (a *App) issuerGenerations() *cobra.Command {
	return a.issuerVerb("generations REF", "List a local CA's keys and certificates", "", "  certctl issuer generations local\n  certctl issuer generations local -o json", 1, func(s *session, id string, _ []string) error {
		rows, err := s.c.Issuers.Generations(s.ctx, id)
		if err != nil {
			return err
		}
		return list(s.printer, generationView, rows)
	})
}

func (a *App) issuerRequest() *cobra.Command {
	var answer string
	c := a.issuerVerb("request REF", "Print a sub-CA's certificate request, or answer it", "Prints the open request as PEM, for the CA above. With --answer it hands in the signed certificate, followed by its parents.",
		"  certctl issuer request sub > sub.csr", 1, func(s *session, id string, _ []string) error {
			if answer == "" {
				b, err := s.c.Issuers.Request(s.ctx, id)
				if err == nil {
					_, err = s.out.Write(b)
				}
				return err
			}
			chain, err := readInput(s, answer)
			if err != nil {
				return err
			}
			g, err := s.c.Issuers.Fulfil(s.ctx, id, string(chain))
			if err != nil {
				return err
			}
			return one(s.printer, generationView, g)
		})
	c.Flags().StringVar(&answer, "answer", "", "file with the signed certificate and its parents, PEM; - is stdin")
	return c
}
