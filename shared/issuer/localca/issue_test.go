package localca

import (
	"bytes"
	"certctl/shared/issuer/localca/certlint"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"errors"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"certctl/shared/fault"
	"certctl/shared/issuer"
	"certctl/shared/pki"
)

func newCA(t testing.TB, cfg Config) *CA {
	t.Helper()
	if cfg.URLs.CRL == nil {
		cfg.URLs = testURLs()
	}
	ca, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

func keep(context.Context, []byte) error { return nil }

// request is for a new key of the algorithm and the names.
func request(t testing.TB, alg pki.KeyAlgorithm, ttl time.Duration, sans ...string) issuer.Request {
	t.Helper()
	n, err := pki.ParseNames("", sans)
	if err != nil {
		t.Fatal(err)
	}
	key, err := pki.Generate(alg)
	if err != nil {
		t.Fatal(err)
	}
	csr, err := pki.NewCSR(key, n)
	if err != nil {
		t.Fatal(err)
	}
	return issuer.Request{Key: "job", CSR: csr, Names: n, TTL: ttl, Save: keep}
}

func issue(t testing.TB, ca *CA, r issuer.Request) []*x509.Certificate {
	t.Helper()
	res, err := ca.Submit(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	return res.(issuer.Issued).Chain
}

// openssl fails the test where the program is missing; it returns the output and whether it exited with 0.
func openssl(t testing.TB, args ...string) (string, bool) {
	t.Helper()
	if _, err := exec.LookPath("openssl"); err != nil {
		t.Fatalf("openssl is needed; run make setup: %v", err)
	}
	out, err := exec.CommandContext(t.Context(), "openssl", args...).CombinedOutput()
	return string(out), err == nil
}

func write(t testing.TB, name string, data []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestLeafHasEverythingARelyingPartyLooksFor(t *testing.T) {
	t.Parallel()
	for _, alg := range []pki.KeyAlgorithm{pki.ECDSAP256, pki.ECDSAP384, pki.ECDSAP521, pki.RSA2048, pki.RSA3072} {
		t.Run(string(alg), func(t *testing.T) {
			t.Parallel()
			gen := newGeneration(t, Authority{Algorithm: alg})
			before := time.Now()
			r := request(t, pki.RSA2048, 48*time.Hour, "www.example.com", "*.corp.example", "db1", "10.0.0.1", "ops@example.com", "spiffe://example.org/a")
			r.MustStaple = true
			leaf := issue(t, newCA(t, Config{Lint: certlint.Check, Generation: gen}), r)[0]
			u := testURLs()
			if !slices.Equal(leaf.CRLDistributionPoints, []string{u.CRL(0)}) || !slices.Equal(leaf.OCSPServer, []string{u.OCSP}) ||
				!slices.Equal(leaf.IssuingCertificateURL, []string{u.CAIssuers}) {
				t.Errorf("URLs %v %v %v", leaf.CRLDistributionPoints, leaf.OCSPServer, leaf.IssuingCertificateURL)
			}
			if !bytes.Equal(leaf.AuthorityKeyId, gen.Cert.SubjectKeyId) || len(leaf.AuthorityKeyId) != 20 || !bytes.Equal(leaf.SubjectKeyId, pki.KeyID(leaf.PublicKey)) {
				t.Errorf("key ids %x %x", leaf.AuthorityKeyId, leaf.SubjectKeyId)
			}
			if age := before.Sub(leaf.NotBefore); age < 59*time.Second || age > 62*time.Second || leaf.NotAfter.Sub(leaf.NotBefore) != 48*time.Hour {
				t.Errorf("valid from %v ago for %v", age, leaf.NotAfter.Sub(leaf.NotBefore))
			}
			if leaf.KeyUsage != x509.KeyUsageDigitalSignature|x509.KeyUsageKeyEncipherment || leaf.IsCA || !leaf.BasicConstraintsValid {
				t.Errorf("usage %b, CA %v", leaf.KeyUsage, leaf.IsCA)
			}
			if !pki.HasMustStaple(leaf) || pki.HasNoRevAvail(leaf) || leaf.SerialNumber.BitLen() < 64 {
				t.Error("must-staple, noRevAvail or serial is wrong")
			}
			if out, ok := openssl(t, "verify", "-x509_strict", "-CAfile", write(t, "ca.pem", pki.EncodeBundle(gen.Cert)), write(t, "leaf.pem", pki.EncodeBundle(leaf))); !ok {
				t.Error(out)
			}
		})
	}
}

func TestKeyUsageFollowsTheKey(t *testing.T) {
	t.Parallel()
	ca := newCA(t, Config{Lint: certlint.Check, Generation: newGeneration(t, Authority{})})
	ec := issue(t, ca, request(t, pki.ECDSAP256, time.Hour, "a.example.com"))[0]
	client := request(t, pki.RSA2048, time.Hour, "a.example.com")
	client.EKUs = []string{"clientAuth"}
	rsa := issue(t, ca, client)[0]
	if ec.KeyUsage != x509.KeyUsageDigitalSignature || rsa.KeyUsage != x509.KeyUsageDigitalSignature {
		t.Errorf("ECDSA %b, RSA client %b", ec.KeyUsage, rsa.KeyUsage)
	}
	if !slices.Equal(rsa.ExtKeyUsage, []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}) || len(ec.ExtKeyUsage) != 2 {
		t.Errorf("%v %v", rsa.ExtKeyUsage, ec.ExtKeyUsage)
	}
	client.EKUs = []string{"OCSPSigning"}
	if _, err := ca.Submit(t.Context(), client); !fault.Is(err, fault.Invalid) {
		t.Errorf("a leaf may answer for the CA: %v", err)
	}
}

func TestShortLivedLeafHasNoRevocationURLsAndSaysSo(t *testing.T) {
	t.Parallel()
	ca := newCA(t, Config{Lint: certlint.Check, Generation: newGeneration(t, Authority{})})
	r := request(t, pki.ECDSAP256, time.Hour-time.Second, "a.example.com")
	r.MustStaple = true
	short := issue(t, ca, r)[0]
	if len(short.CRLDistributionPoints)+len(short.OCSPServer) > 0 || !pki.HasNoRevAvail(short) || len(short.IssuingCertificateURL) != 1 || pki.HasMustStaple(short) {
		t.Error("a short-lived certificate has revocation URLs, no noRevAvail, no issuer URL, or must be stapled")
	}
	public := request(t, pki.ECDSAP256, time.Hour, "a.example.com")
	public.PublicTLS = true
	for _, r := range []issuer.Request{request(t, pki.ECDSAP256, time.Hour, "a.example.com"), public} {
		if hour := issue(t, ca, r)[0]; pki.HasNoRevAvail(hour) || len(hour.OCSPServer) != 1 || len(hour.CRLDistributionPoints) != 1 {
			t.Error("one hour counts as short-lived")
		}
	}
	tiny := issue(t, ca, request(t, pki.ECDSAP256, time.Minute, "a.example.com"))[0]
	if left := time.Until(tiny.NotAfter); left < 50*time.Second {
		t.Errorf("a certificate for a minute has %v left", left)
	}
}

func TestLeafNeverOutlivesTheCAOrItsParents(t *testing.T) {
	t.Parallel()
	gen := newGeneration(t, Authority{TTL: 3 * time.Hour})
	leaf := issue(t, newCA(t, Config{Lint: certlint.Check, Generation: gen}), request(t, pki.ECDSAP256, 24*time.Hour, "a.example.com"))[0]
	if !leaf.NotAfter.Equal(gen.Cert.NotAfter) || leaf.NotBefore.Before(gen.Cert.NotBefore) {
		t.Errorf("leaf %v to %v, CA %v to %v", leaf.NotBefore, leaf.NotAfter, gen.Cert.NotBefore, gen.Cert.NotAfter)
	}
	late := newCA(t, Config{Lint: certlint.Check, Generation: gen, Now: func() time.Time { return time.Now().Add(4 * time.Hour) }})
	if _, err := late.Submit(t.Context(), request(t, pki.ECDSAP256, time.Hour, "a.example.com")); !fault.Is(err, fault.Denied) {
		t.Errorf("an expired CA issues: %v", err)
	}
	if err := late.Test(t.Context()); err == nil {
		t.Error("an expired CA passes its test")
	}
}

func TestPublicTLSIsHeldToTheForumsRules(t *testing.T) {
	t.Parallel()
	ca := newCA(t, Config{Lint: certlint.Check, Generation: newGeneration(t, Authority{TTL: 10000 * time.Hour})})
	year := request(t, pki.ECDSAP256, 400*24*time.Hour, "a.example.com")
	issue(t, ca, year)
	year.PublicTLS = true
	saved := false
	year.Save = func(context.Context, []byte) error { saved = true; return nil }
	_, err := ca.Submit(t.Context(), year)
	if !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "valid_time_longer") || saved {
		t.Errorf("400 days are fit for public TLS: %v (saved: %v)", err, saved)
	}
	private := request(t, pki.ECDSAP256, 24*time.Hour, "db1", "host.corp", "10.0.0.1")
	private.PublicTLS = true
	issue(t, ca, private)
}

func TestNameConstraintsOfTheCAAreKept(t *testing.T) {
	t.Parallel()
	ca := newCA(t, Config{Lint: certlint.Check, Generation: newGeneration(t, Authority{
		PermittedDNS: []string{"example.com"}, ExcludedDNS: []string{"secret.example.com"}, PermittedIPs: []netip.Prefix{netip.MustParsePrefix("10.1.2.3/8")},
	})})
	for _, sans := range [][]string{{"a.example.com"}, {"example.com", "10.9.9.9"}} {
		issue(t, ca, request(t, pki.ECDSAP256, time.Hour, sans...))
	}
	for _, sans := range [][]string{{"a.example.org"}, {"a.example.com", "x.secret.example.com"}, {"11.0.0.1"}} {
		r := request(t, pki.ECDSAP256, time.Hour, sans...)
		r.Save = func(context.Context, []byte) error { t.Error("saved"); return nil }
		if _, err := ca.Submit(t.Context(), r); !fault.Is(err, fault.Denied) {
			t.Errorf("%v: %v", sans, err)
		}
	}
}

func TestALeafCannotTakeTheNameOfTheCA(t *testing.T) {
	t.Parallel()
	gen := newGeneration(t, Authority{})
	ca := newCA(t, Config{Lint: certlint.Check, Generation: gen})
	r := request(t, pki.ECDSAP256, time.Hour, "a.example.com")
	r.Names.CommonName = gen.Cert.Subject.CommonName
	if _, err := ca.Submit(t.Context(), r); !fault.Is(err, fault.Invalid) {
		t.Error(err)
	}
}

func TestSavedTBSIsSignedAsItIsWhateverHasChanged(t *testing.T) {
	t.Parallel()
	old := newGeneration(t, Authority{})
	r := request(t, pki.ECDSAP256, time.Hour, "a.example.com")
	var saved []byte
	r.Save = func(_ context.Context, cp []byte) error { saved = cp; return nil }
	first := issue(t, newCA(t, Config{Lint: certlint.Check, Generation: old}), r)[0]

	next, err := Rekey(old, pki.ECDSAP384, 24*time.Hour, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	changed := Config{Lint: certlint.Check, Generation: next, Older: []Generation{old}, URLs: URLs{OCSP: "http://elsewhere.example/"}, Now: func() time.Time { return time.Now().Add(time.Hour) }}
	changed.URLs.CRL = func(int16) string { return "http://elsewhere.example/crl" }
	r.Checkpoint = saved
	r.Save = func(context.Context, []byte) error { t.Error("a checkpoint was saved over the first"); return nil }
	if again := issue(t, newCA(t, changed), r)[0]; !again.Equal(first) {
		t.Error("the saved TBS was not signed as it is")
	}
	changed.Older = nil
	if _, err := newCA(t, changed).Submit(t.Context(), r); !fault.Is(err, fault.Conflict) {
		t.Errorf("without the old key: %v", err)
	}
	if !json.Valid(saved) || !bytes.Contains(saved, []byte(pki.FormatSerial(first.SerialNumber))) {
		t.Error("the checkpoint is no JSON or does not tell the serial")
	}
}

func TestSavedTBSOfOtherNamesOrACAIsNotSigned(t *testing.T) {
	t.Parallel()
	gen := newGeneration(t, Authority{})
	key := &counter{Signer: gen.Signer, digests: map[string]bool{}}
	gen.Signer = key
	ca := newCA(t, Config{Lint: certlint.Check, Generation: gen})
	r := request(t, pki.ECDSAP256, time.Hour, "a.example.com")
	r.Save = func(_ context.Context, cp []byte) error { r.Checkpoint = cp; return errors.New("killed") }
	if _, err := ca.Submit(t.Context(), r); err == nil {
		t.Fatal("signed although Save failed")
	}
	other, err := pki.ParseNames("b.example.com", nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Names = other
	if _, err := ca.Submit(t.Context(), r); !errors.Is(err, errForeignCheckpoint) {
		t.Errorf("names: %v", err)
	}
	forCA := request(t, pki.ECDSAP256, time.Hour, "a.example.com")
	if forCA.CSR, err = pki.NewCSR(gen.Signer, forCA.Names); err != nil {
		t.Fatal(err)
	}
	signedCSR := key.made()
	for _, tbs := range [][]byte{gen.Cert.RawTBSCertificate, subCATBS(t, gen, forCA)} {
		if forCA.Checkpoint, err = json.Marshal(checkpoint{TBS: tbs}); err != nil {
			t.Fatal(err)
		}
		if _, err := ca.Submit(t.Context(), forCA); !errors.Is(err, errForeignCheckpoint) {
			t.Errorf("a CA's TBS: %v", err)
		}
	}
	forCA.Checkpoint, forCA.Save = nil, nil
	if _, err := ca.Submit(t.Context(), forCA); err == nil {
		t.Error("signed without a Save")
	}
	if key.made() != signedCSR {
		t.Errorf("%d certificates were signed", key.made()-signedCSR)
	}
}

// subCATBS is what a forged checkpoint may hold: the request's names and key with CA:TRUE.
func subCATBS(t *testing.T, gen Generation, r issuer.Request) []byte {
	t.Helper()
	forger, err := pki.Generate(pki.ECDSAP256)
	if err != nil {
		t.Fatal(err)
	}
	parent := *gen.Cert
	parent.PublicKey = forger.Public()
	tmpl := &x509.Certificate{SerialNumber: pki.NewSerial(), NotBefore: time.Now(), NotAfter: time.Now().Add(time.Hour),
		BasicConstraintsValid: true, IsCA: true, KeyUsage: x509.KeyUsageCertSign}
	if err := r.Names.Apply(tmpl); err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, &parent, gen.Signer.Public(), forger)
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return c.RawTBSCertificate
}

func TestAWrongSignatureIsNotGivenOut(t *testing.T) {
	t.Parallel()
	gen, other := newGeneration(t, Authority{}), newGeneration(t, Authority{})
	if _, err := New(Config{Lint: certlint.Check, Generation: Generation{Cert: gen.Cert, Signer: other.Signer}}); err == nil {
		t.Error("a key that does not belong to the certificate was accepted")
	}
	gen.Signer = mixedUp{public: gen.Signer.Public(), Signer: other.Signer}
	ca := newCA(t, Config{Lint: certlint.Check, Generation: gen})
	if _, err := ca.Submit(t.Context(), request(t, pki.ECDSAP256, time.Hour, "a.example.com")); err == nil {
		t.Error("a certificate with a wrong signature was given out")
	}
	if err := ca.Test(t.Context()); !fault.Is(err, fault.Unavailable) {
		t.Errorf("the test does not find the wrong key: %v", err)
	}
}

// mixedUp is a key service that shows one key and signs with another.
type mixedUp struct {
	crypto.Signer
	public crypto.PublicKey
}

func (m mixedUp) Public() crypto.PublicKey { return m.public }

func TestResponderCertificateIsTrustedToAnswerForTheCA(t *testing.T) {
	t.Parallel()
	for _, alg := range []pki.KeyAlgorithm{pki.ECDSAP256, pki.RSA2048} {
		gen := newGeneration(t, Authority{Algorithm: alg})
		ca := newCA(t, Config{Lint: certlint.Check, Generation: gen})
		key, err := pki.Generate(pki.ECDSAP256)
		if err != nil {
			t.Fatal(err)
		}
		r := ResponderRequest{PublicKey: key.Public(), TTL: 7 * 24 * time.Hour}
		r.Save = func(_ context.Context, cp []byte) error { r.Checkpoint = cp; return nil }
		cert, err := ca.ResponderCertificate(t.Context(), r)
		if err != nil {
			t.Fatal(err)
		}
		if !pki.HasOCSPNoCheck(cert) || !slices.Equal(cert.ExtKeyUsage, []x509.ExtKeyUsage{x509.ExtKeyUsageOCSPSigning}) ||
			cert.KeyUsage != x509.KeyUsageDigitalSignature || len(cert.OCSPServer)+len(cert.CRLDistributionPoints)+len(cert.IssuingCertificateURL) > 0 {
			t.Errorf("%+v", cert)
		}
		if again, err := ca.ResponderCertificate(t.Context(), r); err != nil || !again.Equal(cert) {
			t.Errorf("a repeated request gives another certificate: %v", err)
		}
		leaf := issue(t, ca, request(t, pki.ECDSAP256, time.Hour, "a.example.com"))[0]
		askAboutLeaf(t, gen, key, cert, leaf)
	}
}

// askAboutLeaf lets OpenSSL ask a question, answers it, and lets OpenSSL verify the answer.
func askAboutLeaf(t *testing.T, gen Generation, key crypto.Signer, responder, leaf *x509.Certificate) {
	t.Helper()
	caPEM, leafPEM := write(t, "ca.pem", pki.EncodeBundle(gen.Cert)), write(t, "leaf.pem", pki.EncodeBundle(leaf))
	req := filepath.Join(t.TempDir(), "req.der")
	if out, ok := openssl(t, "ocsp", "-issuer", caPEM, "-cert", leafPEM, "-reqout", req); !ok {
		t.Fatal(out)
	}
	der, err := os.ReadFile(req)
	if err != nil {
		t.Fatal(err)
	}
	q, err := pki.ParseOCSPRequest(der)
	if err != nil {
		t.Fatal(err)
	}
	answer, err := pki.SignOCSP(pki.OCSPResponse{ProducedAt: time.Now(), Nonce: q.Nonce, Singles: []pki.OCSPSingle{
		{CertID: q.CertIDs[0].Raw, Status: pki.OCSPGood, ThisUpdate: time.Now(), NextUpdate: time.Now().Add(time.Hour)},
	}}, key, responder)
	if err != nil {
		t.Fatal(err)
	}
	out, ok := openssl(t, "ocsp", "-issuer", caPEM, "-CAfile", caPEM, "-reqin", req, "-cert", leafPEM, "-no_nonce", "-respin", write(t, "resp.der", answer))
	if !ok || !strings.Contains(out, "Response verify OK") || !strings.Contains(out, ": good") {
		t.Error(out)
	}
}

func BenchmarkSubmit(b *testing.B) {
	for _, alg := range []pki.KeyAlgorithm{pki.ECDSAP256, pki.RSA2048} {
		b.Run(string(alg), func(b *testing.B) {
			ca := newCA(b, Config{Lint: certlint.Check, Generation: newGeneration(b, Authority{Algorithm: alg})})
			r := request(b, pki.ECDSAP256, 24*time.Hour, "www.example.com", "api.example.com")
			for b.Loop() {
				issue(b, ca, r)
			}
		})
	}
}
