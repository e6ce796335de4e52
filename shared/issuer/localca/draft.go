package localca

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"fmt"
	"slices"
	"sync"

	"certctl/shared/fault"
	"certctl/shared/pki"
)

// Linter judges a certificate before it is signed; package certlint has the one of the house. publicTLS asks for the rules of
// the CA/Browser Forum too.
type Linter func(der []byte, publicTLS bool) error

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
	if err := c.cfg.Lint(der, publicTLS); err != nil {
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
