package pki

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"io"
	"strings"
	"testing"
	"time"
)

// opaque hides a key's type, as a key service does, and remembers whether it was given randomness.
type opaque struct {
	crypto.Signer
	random *bool
}

func (o opaque) Sign(random io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	*o.random = random != nil
	return o.Signer.Sign(random, digest, opts)
}

// promising is an opaque key that says it signs deterministically.
type promising struct{ opaque }

func (promising) Deterministic() {}

func draftFor(t testing.TB, a KeyAlgorithm) (testCA, []byte) {
	t.Helper()
	ca := newTestCA(t, a)
	leaf, _ := ca.leaf(t, mustNames(t, "a.example.com"), nil)
	return ca, leaf.RawTBSCertificate
}

func TestSignTBSGivesTheSameValidBytesEveryTime(t *testing.T) {
	t.Parallel()
	for _, a := range []KeyAlgorithm{ECDSAP256, ECDSAP384, ECDSAP521, RSA2048, Ed25519} {
		ca, tbs := draftFor(t, a)
		first, err := SignTBS(tbs, ca.key)
		if err != nil {
			t.Fatal(a, err)
		}
		again, err := SignTBS(tbs, ca.key)
		if err != nil || !bytes.Equal(first, again) {
			t.Errorf("%s: a repeated signature differs, %v", a, err)
		}
		cert, err := x509.ParseCertificate(first)
		if err != nil {
			t.Fatal(a, err)
		}
		if err := cert.CheckSignatureFrom(ca.cert); err != nil {
			t.Errorf("%s: %v", a, err)
		}
		if !bytes.Equal(cert.RawTBSCertificate, tbs) {
			t.Errorf("%s: other bytes than the given ones were signed", a)
		}
		if out, ok := judge(t, "openssl", "verify", "-CAfile", certFile(t, ca.cert), certFile(t, cert)); !ok {
			t.Errorf("%s: OpenSSL: %s", a, out)
		}
	}
}

func TestOpaqueSignersGetRandomnessUnlessTheyPromiseDeterminism(t *testing.T) {
	t.Parallel()
	ca, tbs := draftFor(t, ECDSAP256)
	var random bool
	if _, err := SignTBS(tbs, opaque{ca.key, &random}); err != nil || !random {
		t.Error("a key service was given no randomness", err)
	}
	der, err := SignTBS(tbs, promising{opaque{ca.key, &random}})
	if err != nil || random {
		t.Error("a deterministic signer was given randomness", err)
	}
	if plain, err := SignTBS(tbs, ca.key); err != nil || !bytes.Equal(plain, der) {
		t.Error("the wrapped key signs differently", err)
	}
}

func TestSignTBSRefusesAnotherAlgorithmAndGarbage(t *testing.T) {
	t.Parallel()
	_, tbs := draftFor(t, ECDSAP256)
	if _, err := SignTBS(tbs, mustKey(t, ECDSAP384)); err == nil {
		t.Error("a TBS that names ecdsa-with-SHA256 was signed with P-384")
	}
	for _, garbage := range [][]byte{nil, {0x30, 0}, []byte("x"), append(bytes.Clone(tbs), 0), tbs[:20]} {
		if _, err := SignTBS(garbage, mustKey(t, ECDSAP256)); err == nil {
			t.Errorf("%d octets of garbage were signed", len(garbage))
		}
		if _, err := ParseTBS(garbage); err == nil {
			t.Errorf("%d octets of garbage were read", len(garbage))
		}
	}
}

func TestProveKeyFindsAnotherKey(t *testing.T) {
	t.Parallel()
	for _, a := range []KeyAlgorithm{ECDSAP256, ECDSAP384, RSA2048, Ed25519} {
		ca := newTestCA(t, a)
		if err := ProveKey(ca.cert, ca.key); err != nil {
			t.Errorf("%s: %v", a, err)
		}
		if err := ProveKey(ca.cert, mustKey(t, a)); err == nil {
			t.Errorf("%s: another key was taken for the CA's", a)
		}
	}
}

func TestExtensionsAreReadByOpenSSL(t *testing.T) {
	t.Parallel()
	ca := newTestCA(t, ECDSAP256)
	leaf, _ := ca.leaf(t, mustNames(t, "a.example.com"), func(c *x509.Certificate) {
		c.ExtraExtensions = append(c.ExtraExtensions, MustStaple(), OCSPNoCheck(), NoRevAvail())
	})
	if !HasMustStaple(leaf) || !HasOCSPNoCheck(leaf) || !HasNoRevAvail(leaf) || HasNoRevAvail(ca.cert) {
		t.Error("the extensions are not found again")
	}
	out, _ := judge(t, "openssl", "x509", "-in", certFile(t, leaf), "-noout", "-text")
	for _, want := range []string{"status_request", "OCSP No Check"} {
		if !strings.Contains(out, want) {
			t.Errorf("OpenSSL does not show %q in %s", want, out)
		}
	}
	if !strings.Contains(out, "2.5.29.56") && !strings.Contains(out, "No Revocation Available") {
		t.Errorf("OpenSSL does not show noRevAvail in %s", out)
	}
	if !ShortLived(59*time.Minute) || ShortLived(time.Hour) {
		t.Error("short-lived does not mean under one hour")
	}
}

func BenchmarkSignTBS(b *testing.B) {
	ca, tbs := draftFor(b, ECDSAP256)
	for b.Loop() {
		if _, err := SignTBS(tbs, ca.key); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkCreateCertificate(b *testing.B) {
	ca := newTestCA(b, ECDSAP256)
	leaf, _ := ca.leaf(b, mustNames(b, "a.example.com"), nil)
	for b.Loop() {
		if _, err := x509.CreateCertificate(rand.Reader, leaf, ca.cert, leaf.PublicKey, ca.key); err != nil {
			b.Fatal(err)
		}
	}
}
