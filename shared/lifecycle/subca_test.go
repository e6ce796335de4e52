package lifecycle_test

import (
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"testing"
	"time"

	"certctl/shared/issuer/localca"
	"certctl/shared/pki"
)

// enterprise is a CA above ours.
func enterprise(t testing.TB) (*x509.Certificate, crypto.Signer) {
	t.Helper()
	root, key, err := localca.NewRoot(localca.Authority{Subject: pkix.Name{CommonName: "enterprise root"}, TTL: 24 * 365 * time.Hour, PathLen: 1}, time.Now())
	must(t, err)
	return root, key
}

// signSubCA answers a sub-CA's request.
func signSubCA(t testing.TB, der []byte, root *x509.Certificate, key crypto.Signer) *x509.Certificate {
	t.Helper()
	csr, err := x509.ParseCertificateRequest(der)
	must(t, err)
	must(t, csr.CheckSignature())
	tmpl := &x509.Certificate{SerialNumber: pki.NewSerial(), Subject: csr.Subject, NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(24 * 90 * time.Hour),
		BasicConstraintsValid: true, IsCA: true, MaxPathLenZero: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign, SubjectKeyId: pki.KeyID(csr.PublicKey)}
	out, err := x509.CreateCertificate(rand.Reader, tmpl, root, csr.PublicKey, key)
	must(t, err)
	c, err := x509.ParseCertificate(out)
	must(t, err)
	return c
}
