package localca

import (
	"certctl/shared/issuer/localca/certlint"
	"crypto"
	"crypto/x509"
	"crypto/x509/pkix"
	"io"
	"sync"
	"testing"
	"time"

	"certctl/shared/issuer"
	"certctl/shared/issuer/issuertest"
	"certctl/shared/pki"
)

// counter is a CA key that counts the different digests it was asked to sign: one per certificate.
type counter struct {
	crypto.Signer
	mu      sync.Mutex
	digests map[string]bool
}

// Deterministic: the wrapped key is one of the standard library's.
func (c *counter) Deterministic() {}

func (c *counter) Sign(random io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.digests[string(digest)] = true
	return c.Signer.Sign(random, digest, opts)
}

func (c *counter) made() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.digests)
}

func newGeneration(t testing.TB, a Authority) Generation {
	t.Helper()
	if a.Subject.CommonName == "" {
		a.Subject = pkix.Name{CommonName: "certctl test CA"}
	}
	if a.TTL == 0 {
		a.TTL = 24 * 365 * time.Hour
	}
	cert, key, err := NewRoot(a, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return Generation{Cert: cert, Signer: key}
}

func TestConformance(t *testing.T) {
	for _, alg := range []pki.KeyAlgorithm{pki.ECDSAP256, pki.ECDSAP384, pki.RSA2048} {
		t.Run(string(alg), func(t *testing.T) {
			t.Parallel()
			issuertest.Run(t, func(t *testing.T) issuertest.Harness { return harness(t, alg) })
		})
	}
}

func harness(t *testing.T, alg pki.KeyAlgorithm) issuertest.Harness {
	gen := newGeneration(t, Authority{Algorithm: alg})
	key := &counter{Signer: gen.Signer, digests: map[string]bool{}}
	gen.Signer = key
	roots := x509.NewCertPool()
	roots.AddCert(gen.Cert)
	return issuertest.Harness{
		New: func(t *testing.T) issuer.Issuer {
			ca, err := New(Config{Lint: certlint.Check, Generation: gen, URLs: testURLs()})
			if err != nil {
				t.Fatal(err)
			}
			return ca
		},
		Roots: roots, TTL: 24 * time.Hour, StopsBeforeSave: true,
		Made: func(*testing.T) int { return key.made() },
	}
}

func testURLs() URLs {
	return URLs{
		CRL:       func(int16) string { return "http://pki.example.com/.well-known/pki/crl/iss_1/1" },
		OCSP:      "http://pki.example.com/.well-known/pki/ocsp/iss_1",
		CAIssuers: "http://pki.example.com/.well-known/pki/ca/iss_1",
	}
}
