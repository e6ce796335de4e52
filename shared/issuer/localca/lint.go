package localca

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"fmt"
	"slices"
	"strings"
	"sync"

	zx509 "github.com/zmap/zcrypto/x509"
	"github.com/zmap/zlint/v3"
	"github.com/zmap/zlint/v3/lint"

	"certctl/shared/fault"
	"certctl/shared/pki"
)

// draft makes a TBSCertificate and lints it. The draft is signed by a throwaway key of the CA's own kind, since lints read
// whole certificates and the CA's key must not sign what has not been linted and recorded.
func (c *CA) draft(t *x509.Certificate, pub crypto.PublicKey, publicTLS bool) ([]byte, error) {
	key, err := throwawayKey(c.gen.Signer.Public())
	if err != nil {
		return nil, err
	}
	parent := *c.gen.Cert
	parent.PublicKey = key.Public()
	der, err := x509.CreateCertificate(rand.Reader, t, &parent, pub, key)
	if err != nil {
		return nil, fmt.Errorf("localca: drafting a certificate: %w", err)
	}
	draft, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("localca: reading the draft: %w", err)
	}
	if bytes.Equal(draft.RawSubject, c.gen.Cert.RawSubject) {
		return nil, fault.BadField("common_name", "must not be the name of the CA")
	}
	if err := c.checkConstraints(draft, &parent); err != nil {
		return nil, err
	}
	if err := lintDraft(der, publicTLS); err != nil {
		return nil, err
	}
	return draft.RawTBSCertificate, nil
}

// checkConstraints refuses names and usages that the CA or its parents exclude: relying parties would refuse them too.
func (c *CA) checkConstraints(draft, parent *x509.Certificate) error {
	if !constrained(c.gen.Cert) && !slices.ContainsFunc(c.gen.Chain, constrained) {
		return nil
	}
	roots, between := x509.NewCertPool(), x509.NewCertPool()
	line := append([]*x509.Certificate{parent}, c.gen.Chain...)
	for _, ca := range line[:len(line)-1] {
		between.AddCert(ca)
	}
	roots.AddCert(line[len(line)-1])
	usages := draft.ExtKeyUsage
	if len(usages) == 0 {
		usages = []x509.ExtKeyUsage{x509.ExtKeyUsageAny}
	}
	for _, u := range usages {
		_, err := draft.Verify(x509.VerifyOptions{
			Roots: roots, Intermediates: between, CurrentTime: draft.NotAfter, KeyUsages: []x509.ExtKeyUsage{u},
		})
		if err != nil {
			return fault.Wrap(err, fault.Denied, "The names or usages are outside what the CA certificate permits.")
		}
	}
	return nil
}

func constrained(c *x509.Certificate) bool {
	return len(c.ExtKeyUsage)+len(c.UnknownExtKeyUsage)+
		len(c.PermittedDNSDomains)+len(c.ExcludedDNSDomains)+len(c.PermittedIPRanges)+len(c.ExcludedIPRanges)+
		len(c.PermittedEmailAddresses)+len(c.ExcludedEmailAddresses)+len(c.PermittedURIDomains)+len(c.ExcludedURIDomains) > 0
}

// throwaway holds one key for each signature algorithm: an RSA key costs 60 ms and more, and any size gives the same TBS.
var throwaway = map[x509.SignatureAlgorithm]func() (crypto.Signer, error){
	x509.SHA256WithRSA:   onceKey(pki.RSA2048),
	x509.ECDSAWithSHA256: onceKey(pki.ECDSAP256),
	x509.ECDSAWithSHA384: onceKey(pki.ECDSAP384),
	x509.ECDSAWithSHA512: onceKey(pki.ECDSAP521),
}

func onceKey(a pki.KeyAlgorithm) func() (crypto.Signer, error) {
	return sync.OnceValues(func() (crypto.Signer, error) { return pki.Generate(a) })
}

func throwawayKey(ca crypto.PublicKey) (crypto.Signer, error) {
	alg, err := pki.SignatureAlgorithm(ca)
	if err != nil {
		return nil, err
	}
	make, ok := throwaway[alg]
	if !ok {
		return nil, fmt.Errorf("localca: a CA cannot sign with %v", alg)
	}
	return make()
}

// rfcSources bind every certificate; forumSources only those of a profile for public TLS.
var (
	rfcSources = lint.SourceList{
		lint.RFC3279, lint.RFC5280, lint.RFC5480, lint.RFC5891, lint.RFC6960, lint.RFC6962, lint.RFC8813,
	}
	forumSources = lint.SourceList{
		lint.CABFBaselineRequirements, lint.MozillaRootStorePolicy, lint.AppleRootStorePolicy, lint.ChromeRootStorePolicy,
	}
)

// unmeetable are lints of the forum that a private CA cannot pass, each with its reason.
var unmeetable = map[string]string{
	"e_sub_cert_certificate_policies_missing": "a private CA has no policy of the forum that it could state",
	"e_sub_cert_cert_policy_empty":            "as above",
	"e_dnsname_not_valid_tld":                 "a private CA names hosts below private top-level domains",
	"e_ext_san_contains_reserved_ip":          "a private CA names hosts in private networks",
}

var (
	rfcLints = sync.OnceValues(func() (lint.Registry, error) { return lintRegistry(rfcSources) })
	allLints = sync.OnceValues(func() (lint.Registry, error) {
		return lintRegistry(append(slices.Clone(rfcSources), forumSources...))
	})
)

func lintRegistry(sources lint.SourceList) (lint.Registry, error) {
	var exclude []string
	for name := range unmeetable {
		exclude = append(exclude, name)
	}
	r, err := lint.GlobalRegistry().Filter(lint.FilterOptions{IncludeSources: sources, ExcludeNames: exclude})
	if err != nil {
		return nil, fmt.Errorf("localca: choosing lints: %w", err)
	}
	return r, nil
}

// lintDraft runs zlint; errors refuse the certificate, warnings and notices do not.
func lintDraft(der []byte, publicTLS bool) error {
	registry, err := rfcLints()
	if publicTLS {
		registry, err = allLints()
	}
	if err != nil {
		return err
	}
	c, err := zx509.ParseCertificate(der)
	if err != nil {
		return fmt.Errorf("localca: reading the draft for linting: %w", err)
	}
	var found []string
	for name, r := range zlint.LintCertificateEx(c, registry).Results {
		if r.Status >= lint.Error {
			found = append(found, name)
		}
	}
	if len(found) == 0 {
		return nil
	}
	slices.Sort(found)
	return fault.New(fault.Invalid, "The certificate would break these rules: %s.", strings.Join(found, ", "))
}
