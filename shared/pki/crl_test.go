package pki

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io"
	"iter"
	"math/big"
	"runtime"
	"strings"
	"testing"
	"time"

	zx509 "github.com/zmap/zcrypto/x509"
	"github.com/zmap/zlint/v3"
	"github.com/zmap/zlint/v3/lint"
)

func (ca testCA) crlParams() CRLParams {
	return CRLParams{Issuer: ca.cert.RawSubject, AKI: ca.cert.SubjectKeyId, Number: big.NewInt(7),
		ThisUpdate: time.Now().Add(-time.Minute), NextUpdate: time.Now().Add(time.Hour)}
}

func seq(entries ...[]byte) iter.Seq2[[]byte, error] {
	return func(yield func([]byte, error) bool) {
		for _, e := range entries {
			if !yield(e, nil) {
				return
			}
		}
	}
}

func size(entries ...[]byte) (n int64) {
	for _, e := range entries {
		n += int64(len(e))
	}
	return n
}

func mustEntry(t testing.TB, serial *big.Int, at time.Time, r Reason) []byte {
	t.Helper()
	e, err := EncodeCRLEntry(serial, at, r)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func mustCRL(t testing.TB, ca testCA, p CRLParams, entries ...[]byte) []byte {
	t.Helper()
	var out bytes.Buffer
	if err := WriteCRL(&out, p, size(entries...), seq(entries...), ca.key); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func crlFile(t testing.TB, der []byte) string {
	t.Helper()
	return file(t, "crl.pem", pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: der}))
}

func TestCRLIsReadBackByTheStandardLibrary(t *testing.T) {
	t.Parallel()
	for _, a := range []KeyAlgorithm{ECDSAP256, ECDSAP384, RSA2048} {
		ca := newTestCA(t, a)
		p := ca.crlParams()
		p.IDP = &IDP{URI: "http://pki.example.com/crl/1", OnlyUserCerts: true}
		var entries [][]byte
		for i, r := range Reasons() {
			entries = append(entries, mustEntry(t, big.NewInt(int64(1000+i)), now.Add(time.Duration(i)*time.Hour+time.Millisecond), r))
		}
		crl, err := x509.ParseRevocationList(mustCRL(t, ca, p, entries...))
		if err != nil {
			t.Fatal(a, err)
		}
		if err := crl.CheckSignatureFrom(ca.cert); err != nil {
			t.Error(a, err)
		}
		if crl.Number.Cmp(p.Number) != 0 || !bytes.Equal(crl.AuthorityKeyId, ca.cert.SubjectKeyId) || !bytes.Equal(crl.RawIssuer, ca.cert.RawSubject) {
			t.Errorf("%s: number %v, key id %x, issuer %v", a, crl.Number, crl.AuthorityKeyId, crl.Issuer)
		}
		if !crl.ThisUpdate.Equal(p.ThisUpdate.Truncate(time.Second)) || !crl.NextUpdate.Equal(p.NextUpdate.Truncate(time.Second)) {
			t.Errorf("%s: %v to %v", a, crl.ThisUpdate, crl.NextUpdate)
		}
		checkEntries(t, crl)
	}
}

func checkEntries(t *testing.T, crl *x509.RevocationList) {
	t.Helper()
	if len(crl.RevokedCertificateEntries) != len(Reasons()) {
		t.Fatalf("%d entries", len(crl.RevokedCertificateEntries))
	}
	for i, e := range crl.RevokedCertificateEntries {
		r := Reasons()[i]
		if e.SerialNumber.Int64() != int64(1000+i) || e.ReasonCode != int(r) || !e.RevocationTime.Equal(now.Add(time.Duration(i)*time.Hour)) {
			t.Errorf("entry %d: %v %d %v", i, e.SerialNumber, e.ReasonCode, e.RevocationTime)
		}
		if (r == Unspecified) != (len(e.Extensions) == 0) {
			t.Errorf("reason %v has %d extensions", r, len(e.Extensions))
		}
	}
}

func TestEmptyCRLHasNoRevokedCertificatesField(t *testing.T) {
	t.Parallel()
	ca := newTestCA(t, ECDSAP256)
	der := mustCRL(t, ca, ca.crlParams())
	if _, err := x509.ParseRevocationList(der); err != nil {
		t.Fatal(err)
	}
	out, _ := judge(t, "openssl", "crl", "-in", crlFile(t, der), "-noout", "-text", "-CAfile", certFile(t, ca.cert))
	if !strings.Contains(out, "No Revoked Certificates") || !strings.Contains(out, "verify OK") {
		t.Error(out)
	}
	lintCRL(t, der)
}

func TestCRLTimesAreUTCTimeTo2049AndGeneralizedTimeAfter(t *testing.T) {
	t.Parallel()
	utc := mustEntry(t, big.NewInt(1), time.Date(2049, 12, 31, 23, 59, 59, 0, time.UTC), Unspecified)
	general := mustEntry(t, big.NewInt(1), time.Date(2050, 1, 1, 0, 0, 0, 5e8, time.UTC), Unspecified)
	if !bytes.Contains(utc, []byte("\x17\x0d491231235959Z")) || !bytes.Contains(general, []byte("\x18\x0f20500101000000Z")) {
		t.Errorf("%q %q", utc, general)
	}
}

func TestJudgesAcceptTheCRLAndFindTheRevokedCertificate(t *testing.T) {
	t.Parallel()
	for _, a := range []KeyAlgorithm{ECDSAP256, RSA2048} {
		ca := newTestCA(t, a)
		revoked, _ := ca.leaf(t, mustNames(t, "a.example.com"), nil)
		good, _ := ca.leaf(t, mustNames(t, "b.example.com"), nil)
		past := time.Now().Add(-time.Hour)
		der := mustCRL(t, ca, ca.crlParams(), mustEntry(t, revoked.SerialNumber, past, KeyCompromise), mustEntry(t, NewSerial(), past, Superseded))
		caPEM, crlPEM := certFile(t, ca.cert), crlFile(t, der)
		verify := func(c *x509.Certificate) (string, bool) {
			return judge(t, "openssl", "verify", "-crl_check", "-CRLfile", crlPEM, "-CAfile", caPEM, certFile(t, c))
		}
		if out, ok := verify(good); !ok {
			t.Errorf("%s: OpenSSL refuses the good one: %s", a, out)
		}
		if out, ok := verify(revoked); ok || !strings.Contains(out, "certificate revoked") {
			t.Errorf("%s: OpenSSL accepts the revoked one: %s", a, out)
		}
		if out, ok := judge(t, "certtool", "--verify-crl", "--load-ca-certificate", caPEM, "--infile", crlPEM); !ok || !strings.Contains(out, "Verified") {
			t.Errorf("%s: GnuTLS: %s", a, out)
		}
		lintCRL(t, der)
	}
}

// lintCRL fails on what zlint calls an error or a warning.
func lintCRL(t *testing.T, der []byte) {
	t.Helper()
	crl, err := zx509.ParseRevocationList(der)
	if err != nil {
		t.Fatal(err)
	}
	for name, r := range zlint.LintRevocationList(crl).Results {
		if r.Status >= lint.Warn {
			t.Errorf("zlint: %s: %v %s", name, r.Status, r.Details)
		}
	}
}

func TestIDPIsCriticalAndReadByOpenSSL(t *testing.T) {
	t.Parallel()
	ca := newTestCA(t, ECDSAP256)
	p := ca.crlParams()
	p.IDP = &IDP{URI: "http://pki.example.com/crl/1-3", OnlyUserCerts: true}
	der := mustCRL(t, ca, p, mustEntry(t, big.NewInt(5), time.Now(), Unspecified))
	out, _ := judge(t, "openssl", "crl", "-in", crlFile(t, der), "-noout", "-text")
	for _, want := range []string{"Issuing Distribution Point: critical", "URI:http://pki.example.com/crl/1-3", "Only User Certificates"} {
		if !strings.Contains(out, want) {
			t.Errorf("OpenSSL does not show %q in %s", want, out)
		}
	}
	leaf, _ := ca.leaf(t, mustNames(t, "a.example.com"), func(c *x509.Certificate) { c.CRLDistributionPoints = []string{p.IDP.URI} })
	args := []string{"verify", "-crl_check", "-extended_crl", "-CRLfile", crlFile(t, der), "-CAfile", certFile(t, ca.cert)}
	if out, ok := judge(t, "openssl", append(args, certFile(t, leaf))...); !ok {
		t.Errorf("OpenSSL does not take the CRL for the distribution point: %s", out)
	}
	elsewhere, _ := ca.leaf(t, mustNames(t, "a.example.com"), func(c *x509.Certificate) { c.CRLDistributionPoints = []string{"http://pki.example.com/crl/other"} })
	if out, ok := judge(t, "openssl", append(args, certFile(t, elsewhere))...); ok {
		t.Errorf("OpenSSL takes the CRL for another distribution point: %s", out)
	}
}

// many yields n entries without holding them.
func many(n int, entry []byte) iter.Seq2[[]byte, error] {
	return func(yield func([]byte, error) bool) {
		for range n {
			if !yield(entry, nil) {
				return
			}
		}
	}
}

func TestLargeCRLIsStreamedInTwoEqualPasses(t *testing.T) {
	t.Parallel()
	ca := newTestCA(t, ECDSAP256)
	entry := mustEntry(t, NewSerial(), now, KeyCompromise)
	n := 2*crlBuffer/len(entry) + 1
	var out bytes.Buffer
	if err := WriteCRL(&out, ca.crlParams(), int64(n*len(entry)), many(n, entry), ca.key); err != nil {
		t.Fatal(err)
	}
	crl, err := x509.ParseRevocationList(out.Bytes())
	if err != nil || len(crl.RevokedCertificateEntries) != n {
		t.Fatal(err)
	}
	if err := crl.CheckSignatureFrom(ca.cert); err != nil {
		t.Error(err)
	}
	if out, ok := judge(t, "openssl", "crl", "-in", crlFile(t, out.Bytes()), "-noout", "-CAfile", certFile(t, ca.cert)); !ok || !strings.Contains(out, "verify OK") {
		t.Error(out)
	}
}

func TestMillionEntriesTakeConstantMemory(t *testing.T) {
	ca := newTestCA(t, ECDSAP256)
	entry := mustEntry(t, NewSerial(), now, KeyCompromise)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	const n = 1_000_000
	if err := WriteCRL(io.Discard, ca.crlParams(), int64(n*len(entry)), many(n, entry), ca.key); err != nil {
		t.Fatal(err)
	}
	runtime.ReadMemStats(&after)
	if used := after.TotalAlloc - before.TotalAlloc; used > 1<<20 {
		t.Errorf("%d octets were allocated for a million entries", used)
	}
}

func TestWriteCRLRefusesEntriesThatChangeOrDoNotAddUp(t *testing.T) {
	t.Parallel()
	ca := newTestCA(t, ECDSAP256)
	entry := mustEntry(t, NewSerial(), now, KeyCompromise)
	other := mustEntry(t, NewSerial(), now, KeyCompromise)
	lost := errors.New("connection lost")
	large := 2*crlBuffer/len(entry) + 1
	pass := 0
	changing := func(yield func([]byte, error) bool) {
		pass++
		for i := range large {
			e := entry
			if pass == 2 && i == 5 {
				e = other
			}
			if !yield(e, nil) {
				return
			}
		}
	}
	failing := func(yield func([]byte, error) bool) { yield(nil, lost) }
	for name, tt := range map[string]struct {
		length  int64
		entries iter.Seq2[[]byte, error]
	}{
		"too few":           {2 * int64(len(entry)), seq(entry)},
		"too many":          {int64(len(entry)), seq(entry, entry)},
		"too few, large":    {int64((large + 1) * len(entry)), many(large, entry)},
		"too many, large":   {int64((large - 1) * len(entry)), many(large, entry)},
		"negative":          {-1, seq()},
		"different 2nd":     {int64(large * len(entry)), changing},
		"read error":        {int64(len(entry)), failing},
		"read error, large": {2 * crlBuffer, failing},
	} {
		if err := WriteCRL(io.Discard, ca.crlParams(), tt.length, tt.entries, ca.key); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	if err := WriteCRL(io.Discard, ca.crlParams(), int64(len(entry)), failing, ca.key); !errors.Is(err, lost) {
		t.Errorf("the reason is lost: %v", err)
	}
}

func TestWriteCRLRefusesIncompleteParameters(t *testing.T) {
	t.Parallel()
	ca := newTestCA(t, ECDSAP256)
	for name, change := range map[string]func(*CRLParams){
		"no issuer":       func(p *CRLParams) { p.Issuer = nil },
		"issuer garbage":  func(p *CRLParams) { p.Issuer = []byte("x") },
		"no key id":       func(p *CRLParams) { p.AKI = nil },
		"no number":       func(p *CRLParams) { p.Number = nil },
		"number 0":        func(p *CRLParams) { p.Number = new(big.Int) },
		"number too long": func(p *CRLParams) { p.Number = new(big.Int).Lsh(big.NewInt(1), 160) },
		"no next update":  func(p *CRLParams) { p.NextUpdate = time.Time{} },
		"empty window":    func(p *CRLParams) { p.NextUpdate = p.ThisUpdate },
	} {
		p := ca.crlParams()
		change(&p)
		if err := WriteCRL(io.Discard, p, 0, seq(), ca.key); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	if err := WriteCRL(io.Discard, ca.crlParams(), 0, seq(), mustKey(t, Ed25519)); err == nil {
		t.Error("Ed25519: no error")
	}
	for _, r := range []Reason{7, 8, 11, -1} {
		if _, err := EncodeCRLEntry(big.NewInt(1), now, r); err == nil {
			t.Errorf("reason %d was encoded", r)
		}
	}
	if _, err := EncodeCRLEntry(new(big.Int), now, Unspecified); err == nil {
		t.Error("serial 0 was encoded")
	}
}

func BenchmarkWriteCRLMillion(b *testing.B) {
	ca := newTestCA(b, ECDSAP256)
	entry := mustEntry(b, NewSerial(), now, Unspecified)
	for b.Loop() {
		if err := WriteCRL(io.Discard, ca.crlParams(), int64(1_000_000*len(entry)), many(1_000_000, entry), ca.key); err != nil {
			b.Fatal(err)
		}
	}
}
