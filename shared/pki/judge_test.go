package pki

import (
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// now is a whole second, so that times compare equal after a round trip.
var now = time.Date(2026, 11, 25, 12, 0, 0, 0, time.UTC)

// testCA is a self-signed CA that is valid around the real clock, for judges that read it.
type testCA struct {
	cert *x509.Certificate
	key  crypto.Signer
}

func newTestCA(t testing.TB, a KeyAlgorithm) testCA {
	t.Helper()
	key := mustKey(t, a)
	tmpl := &x509.Certificate{
		SerialNumber: NewSerial(), Subject: pkix.Name{CommonName: "pki test CA"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		SubjectKeyId: KeyID(key.Public()),
	}
	return testCA{mustCertify(t, tmpl, tmpl, key.Public(), key), key}
}

func mustKey(t testing.TB, a KeyAlgorithm) crypto.Signer {
	t.Helper()
	key, err := Generate(a)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func mustCertify(t testing.TB, tmpl, parent *x509.Certificate, pub crypto.PublicKey, key crypto.Signer) *x509.Certificate {
	t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, pub, key)
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// leaf certifies a new P-256 key; change may alter the template.
func (ca testCA) leaf(t testing.TB, n Names, change func(*x509.Certificate)) (*x509.Certificate, crypto.Signer) {
	t.Helper()
	key := mustKey(t, ECDSAP256)
	tmpl := &x509.Certificate{SerialNumber: NewSerial(), NotBefore: time.Now().Add(-time.Minute).Truncate(time.Second),
		NotAfter: time.Now().Add(2 * time.Hour).Truncate(time.Second), KeyUsage: x509.KeyUsageDigitalSignature}
	if err := n.Apply(tmpl); err != nil {
		t.Fatal(err)
	}
	if change != nil {
		change(tmpl)
	}
	return mustCertify(t, tmpl, ca.cert, key.Public(), ca.key), key
}

func mustNames(t testing.TB, cn string, sans ...string) Names {
	t.Helper()
	n, err := ParseNames(cn, sans)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// judge runs a third party's program and returns its output and whether it exited with 0.
func judge(t testing.TB, name string, args ...string) (string, bool) {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Fatalf("%s is needed (Debian packages openssl and gnutls-bin; run make setup): %v", name, err)
	}
	out, err := exec.CommandContext(t.Context(), path, args...).CombinedOutput()
	return string(out), err == nil
}

func file(t testing.TB, name string, data []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func certFile(t testing.TB, c *x509.Certificate) string {
	t.Helper()
	return file(t, "cert.pem", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw}))
}
