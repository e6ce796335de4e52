package targettest

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"net"
	"testing"
	"time"

	"certctl/shared/target"
)

// CA is a root with one intermediate, for tests.
type CA struct {
	Root, Intermediate *x509.Certificate
	rootKey, key       crypto.Signer
}

// NewCA makes a CA of its own for each call.
func NewCA(t testing.TB) *CA {
	t.Helper()
	ca := &CA{rootKey: newKey(t), key: newKey(t)}
	ca.Root = sign(t, caTemplate("targettest root"), nil, ca.rootKey, ca.rootKey)
	ca.Intermediate = sign(t, caTemplate("targettest intermediate"), ca.Root, ca.key, ca.rootKey)
	return ca
}

// Issue makes a bundle signed by the intermediate. Names that are addresses become IP SANs.
func (ca *CA) Issue(t testing.TB, names ...string) *target.Bundle {
	t.Helper()
	return ca.IssueAt(t, time.Now().Add(-time.Minute), names...)
}

// IssueAt is Issue with a start of validity.
func (ca *CA) IssueAt(t testing.TB, notBefore time.Time, names ...string) *target.Bundle {
	t.Helper()
	key := newKey(t)
	leaf := sign(t, leafTemplate(notBefore, names), ca.Intermediate, key, ca.key)
	return &target.Bundle{Chain: []*x509.Certificate{leaf, ca.Intermediate}, Key: key}
}

// IssueFromRoot is Issue without an intermediate.
func (ca *CA) IssueFromRoot(t testing.TB, names ...string) *target.Bundle {
	t.Helper()
	key := newKey(t)
	leaf := sign(t, leafTemplate(time.Now().Add(-time.Minute), names), ca.Root, key, ca.rootKey)
	return &target.Bundle{Chain: []*x509.Certificate{leaf}, Key: key}
}

func caTemplate(name string) *x509.Certificate {
	return &x509.Certificate{
		Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
}

func leafTemplate(notBefore time.Time, names []string) *x509.Certificate {
	c := &x509.Certificate{
		Subject: pkix.Name{CommonName: names[0]}, NotBefore: notBefore, NotAfter: notBefore.Add(12 * time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, BasicConstraintsValid: true,
	}
	for _, n := range names {
		if ip := net.ParseIP(n); ip != nil {
			c.IPAddresses = append(c.IPAddresses, ip)
		} else {
			c.DNSNames = append(c.DNSNames, n)
		}
	}
	return c
}

func newKey(t testing.TB) crypto.Signer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func sign(t testing.TB, c, parent *x509.Certificate, key, signer crypto.Signer) *x509.Certificate {
	t.Helper()
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		t.Fatal(err)
	}
	c.SerialNumber = serial
	if parent == nil {
		parent = c
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, key.Public(), signer)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// Certify signs a leaf for somebody else's key with the intermediate.
func (ca *CA) Certify(t testing.TB, public crypto.PublicKey, names ...string) []*x509.Certificate {
	t.Helper()
	c := leafTemplate(time.Now().Add(-time.Minute), names)
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		t.Fatal(err)
	}
	c.SerialNumber = serial
	der, err := x509.CreateCertificate(rand.Reader, c, ca.Intermediate, public, ca.key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return []*x509.Certificate{leaf, ca.Intermediate}
}
