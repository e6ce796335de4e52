package pki

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"encoding/asn1"
	"encoding/base64"
	"io"
	"math/big"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/zmap/zlint/v3"
	"github.com/zmap/zlint/v3/lint"
	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
	"golang.org/x/crypto/ocsp"
)

// requestOptions make requests that no command-line client can.
type requestOptions struct {
	hash        crypto.Hash
	absent      bool   // AlgorithmIdentifier without parameters
	nonce       []byte // nil: none
	rawNonce    bool   // the nonce without its inner OCTET STRING
	explicitV1  bool
	signed      bool
	requestor   bool
	criticalExt bool
}

func (ca testCA) request(t testing.TB, o requestOptions, serials ...*big.Int) []byte {
	t.Helper()
	h := HashIssuer(ca.cert)
	oid, name, key := oidSHA1, h.NameSHA1[:], h.KeySHA1[:]
	if o.hash == crypto.SHA256 {
		oid, name, key = oidSHA256, h.NameSHA256[:], h.KeySHA256[:]
	}
	var b cryptobyte.Builder
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
			if o.explicitV1 {
				b.AddASN1(explicit(0), func(b *cryptobyte.Builder) { b.AddASN1Int64(0) })
			}
			if o.requestor {
				b.AddASN1(explicit(1), func(b *cryptobyte.Builder) {
					b.AddASN1(cbasn1.Tag(2).ContextSpecific(), func(b *cryptobyte.Builder) { b.AddBytes([]byte("client")) })
				})
			}
			b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
				for _, s := range serials {
					addRequest(b, o, oid, name, key, s)
				}
			})
			o.addExtensions(b)
		})
		if o.signed {
			b.AddASN1(explicit(0), func(b *cryptobyte.Builder) { b.AddASN1OctetString([]byte("not looked at")) })
		}
	})
	der, err := b.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func addRequest(b *cryptobyte.Builder, o requestOptions, oid asn1.ObjectIdentifier, name, key []byte, serial *big.Int) {
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
			b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
				b.AddASN1ObjectIdentifier(oid)
				if !o.absent {
					b.AddASN1NULL()
				}
			})
			b.AddASN1OctetString(name)
			b.AddASN1OctetString(key)
			b.AddASN1BigInt(serial)
		})
	})
}

func (o requestOptions) addExtensions(b *cryptobyte.Builder) {
	if o.nonce == nil && !o.criticalExt {
		return
	}
	b.AddASN1(explicit(2), func(b *cryptobyte.Builder) {
		b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
			if o.criticalExt {
				addExtension(b, asn1.ObjectIdentifier{1, 2, 3}, true, func(b *cryptobyte.Builder) { b.AddASN1NULL() })
			}
			if o.nonce != nil {
				addExtension(b, oidNonce, false, func(b *cryptobyte.Builder) {
					if o.rawNonce {
						b.AddBytes(o.nonce)
						return
					}
					b.AddASN1OctetString(o.nonce)
				})
			}
		})
	})
}

func TestParseOCSPRequestReadsEveryForm(t *testing.T) {
	t.Parallel()
	ca := newTestCA(t, ECDSAP256)
	serials := []*big.Int{big.NewInt(1), NewSerial(), NewSerial()}
	for name, o := range map[string]requestOptions{
		"SHA-1":               {},
		"SHA-1 absent":        {absent: true},
		"SHA-256":             {hash: crypto.SHA256},
		"SHA-256 absent":      {hash: crypto.SHA256, absent: true},
		"nonce of 1":          {nonce: []byte{7}},
		"nonce of 128":        {nonce: bytes.Repeat([]byte{7}, 128)},
		"version and sender":  {explicitV1: true, requestor: true},
		"signed":              {signed: true, requestor: true, nonce: []byte("nonce")},
		"everything, SHA-256": {hash: crypto.SHA256, signed: true, requestor: true, explicitV1: true, nonce: []byte("nonce")},
	} {
		r, err := ParseOCSPRequest(ca.request(t, o, serials...))
		if err != nil || len(r.CertIDs) != 3 || !bytes.Equal(r.Nonce, o.nonce) || (r.Nonce == nil) != (o.nonce == nil) {
			t.Errorf("%s: %+v, %v", name, r, err)
			continue
		}
		for i, id := range r.CertIDs {
			if id.Serial.Cmp(serials[i]) != 0 || !HashIssuer(ca.cert).Match(id) || HashIssuer(newTestCA(t, ECDSAP256).cert).Match(id) {
				t.Errorf("%s: certificate %d is not recognised", name, i)
			}
		}
	}
}

func TestParseOCSPRequestRefuses(t *testing.T) {
	t.Parallel()
	ca := newTestCA(t, ECDSAP256)
	one := big.NewInt(1)
	good := ca.request(t, requestOptions{}, one)
	for name, der := range map[string][]byte{
		"nothing":                nil,
		"trailing octet":         append(bytes.Clone(good), 0),
		"cut":                    good[:len(good)-1],
		"no certificate":         ca.request(t, requestOptions{}),
		"too many certificates":  ca.request(t, requestOptions{}, slices.Repeat([]*big.Int{one}, MaxOCSPCertIDs+1)...),
		"nonce of 0":             ca.request(t, requestOptions{nonce: []byte{}}, one),
		"nonce of 129":           ca.request(t, requestOptions{nonce: make([]byte, 129)}, one),
		"nonce not OCTET STRING": ca.request(t, requestOptions{nonce: []byte("raw nonce"), rawNonce: true}, one),
		"critical extension":     ca.request(t, requestOptions{criticalExt: true}, one),
		"serial of 21 octets":    ca.request(t, requestOptions{}, new(big.Int).Lsh(one, 161)),
		"larger than 64 KB":      make([]byte, MaxOCSPRequest+1),
		"indefinite length":      {0x30, 0x80, 0, 0},
	} {
		if r, err := ParseOCSPRequest(der); err == nil {
			t.Errorf("%s: %+v", name, r)
		}
	}
}

func TestUnofferedHashesMatchNoIssuer(t *testing.T) {
	t.Parallel()
	ca := newTestCA(t, ECDSAP256)
	der := ca.request(t, requestOptions{hash: crypto.SHA256}, big.NewInt(1))
	i := bytes.Index(der, []byte{0x65, 3, 4, 2, 1})
	der[i+4] = 3 // SHA-512
	r, err := ParseOCSPRequest(der)
	if err != nil || HashIssuer(ca.cert).Match(r.CertIDs[0]) || r.CertIDs[0].Hash != 0 {
		t.Errorf("%+v, %v", r, err)
	}
}

func TestDecodeOCSPGetAcceptsEveryForm(t *testing.T) {
	t.Parallel()
	ca := newTestCA(t, ECDSAP256)
	var der []byte
	var text string
	for { // until the base64 has everything that may be mangled
		der = ca.request(t, requestOptions{nonce: NewSerial().Bytes()}, NewSerial())
		text = base64.StdEncoding.EncodeToString(der)
		if strings.Contains(text, "//") && strings.Contains(text, "+") && strings.HasSuffix(text, "=") {
			break
		}
	}
	for name, tail := range map[string]string{
		"raw":              text,
		"escaped":          url.QueryEscape(text),
		"path escaped":     url.PathEscape(text),
		"lower-case hex":   strings.NewReplacer("+", "%2b", "/", "%2f", "=", "%3d").Replace(text),
		"leading slash":    "/" + text,
		"no padding":       strings.TrimRight(text, "="),
		"plus as space":    strings.ReplaceAll(text, "+", " "),
		"plus as %20":      strings.ReplaceAll(text, "+", "%20"),
		"only plus coded":  strings.ReplaceAll(text, "+", "%2B"),
		"only slash coded": strings.ReplaceAll(text, "/", "%2F"),
	} {
		if got, err := DecodeOCSPGet(tail); err != nil || !bytes.Equal(got, der) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if text[0] != 'M' {
		t.Error("a request does not begin with M")
	}
	for _, bad := range []string{"", "/", "M*", "%zz", "abc%", strings.Repeat("M", 3*MaxOCSPRequest), "M=M="} {
		if _, err := DecodeOCSPGet(bad); err == nil {
			t.Errorf("%.20q was decoded", bad)
		}
	}
}

// responder is a delegated OCSP responder of a test CA.
type responder struct {
	ca   testCA
	cert *x509.Certificate
	key  crypto.Signer
}

func newResponder(t testing.TB, caAlg, alg KeyAlgorithm) responder {
	t.Helper()
	ca := newTestCA(t, caAlg)
	key := mustKey(t, alg)
	tmpl := &x509.Certificate{SerialNumber: NewSerial(), NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(12 * time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageOCSPSigning}}
	tmpl.Subject.CommonName = "responder"
	tmpl.ExtraExtensions = append(tmpl.ExtraExtensions, OCSPNoCheck())
	return responder{ca, mustCertify(t, tmpl, ca.cert, key.Public(), ca.key), key}
}

// answer is what a server does with a request: revoked serials by map, everything else good.
func (r responder) answer(t testing.TB, der []byte, revoked map[string]Reason) []byte {
	req, err := ParseOCSPRequest(der)
	if err != nil {
		return OCSPError(OCSPMalformed)
	}
	at := time.Now()
	p := OCSPResponse{ProducedAt: at, Nonce: req.Nonce}
	for _, id := range req.CertIDs {
		if !HashIssuer(r.ca.cert).Match(id) {
			return OCSPError(OCSPUnauthorized)
		}
		s := OCSPSingle{CertID: id.Raw, Status: OCSPGood, ThisUpdate: at.Add(-time.Minute), NextUpdate: at.Add(time.Hour)}
		if reason, ok := revoked[FormatSerial(id.Serial)]; ok {
			s.Status, s.Reason, s.RevokedAt = OCSPRevoked, reason, at.Add(-time.Hour)
		}
		p.Singles = append(p.Singles, s)
	}
	out, err := SignOCSP(p, r.key, r.cert)
	if err != nil {
		t.Error(err)
	}
	return out
}

// serve runs the responder over HTTP, POST and GET, in front of any mux.
func (r responder) serve(t testing.TB, revoked map[string]Reason) string {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		der, err := io.ReadAll(http.MaxBytesReader(w, req.Body, MaxOCSPRequest))
		if req.Method == http.MethodGet {
			der, err = DecodeOCSPGet(strings.TrimPrefix(req.URL.EscapedPath(), "/ocsp/"))
		}
		if err != nil {
			t.Error(err)
		}
		w.Header().Set("Content-Type", "application/ocsp-response")
		_, _ = w.Write(r.answer(t, der, revoked))
	}))
	t.Cleanup(s.Close)
	return s.URL + "/ocsp/"
}

func TestClientsVerifyAnswersOverHTTP(t *testing.T) {
	t.Parallel()
	for _, alg := range []KeyAlgorithm{ECDSAP256, RSA2048} {
		t.Run(string(alg), func(t *testing.T) {
			t.Parallel()
			r := newResponder(t, alg, alg)
			good, _ := r.ca.leaf(t, mustNames(t, "a.example.com"), nil)
			bad, _ := r.ca.leaf(t, mustNames(t, "b.example.com"), nil)
			at := r.serve(t, map[string]Reason{FormatSerial(bad.SerialNumber): KeyCompromise})
			ca, goodPEM, badPEM := certFile(t, r.ca.cert), certFile(t, good), certFile(t, bad)
			for _, digest := range []string{"-sha1", "-sha256"} {
				for _, nonce := range []string{"-nonce", "-no_nonce"} {
					askOpenSSL(t, ": good", "-issuer", ca, "-CAfile", ca, "-url", at, nonce, digest, "-cert", goodPEM)
					askOpenSSL(t, "Reason: keyCompromise", "-issuer", ca, "-CAfile", ca, "-url", at, nonce, digest, "-cert", badPEM)
				}
			}
			askOpenSSL(t, ": revoked", "-issuer", ca, "-CAfile", ca, "-url", at, "-cert", goodPEM, "-cert", badPEM)
			askGnuTLS(t, "good", at, ca, goodPEM)
			askGnuTLS(t, "revoked", at, ca, badPEM)
		})
	}
}

func askOpenSSL(t *testing.T, want string, args ...string) {
	t.Helper()
	out, ok := judge(t, "openssl", append([]string{"ocsp"}, args...)...)
	if !ok || !strings.Contains(out, "Response verify OK") || !strings.Contains(out, want) || strings.Contains(out, "WARNING") {
		t.Errorf("openssl ocsp %v: %s", args, out)
	}
}

func askGnuTLS(t *testing.T, want, at, ca, cert string) {
	t.Helper()
	out, ok := judge(t, "ocsptool", "--ask="+at, "--nonce", "--load-cert", cert, "--load-issuer", ca, "--load-trust", ca)
	if !ok || !strings.Contains(out, "Verifying OCSP Response: Success") || !strings.Contains(out, "Certificate Status: "+want) {
		t.Errorf("ocsptool: %s", out)
	}
}

func TestAnswersHaveTheFormOfRFC9919(t *testing.T) {
	t.Parallel()
	r := newResponder(t, ECDSAP256, ECDSAP256)
	serial := NewSerial()
	nonce := []byte("sixteen octets!!")
	der := r.answer(t, r.ca.request(t, requestOptions{hash: crypto.SHA256, nonce: nonce}, serial), nil)
	parsed, err := ocsp.ParseResponse(der, r.ca.cert)
	if err != nil {
		t.Fatal(err)
	}
	if parsed.Status != ocsp.Good || parsed.SerialNumber.Cmp(serial) != 0 || parsed.IssuerHash != crypto.SHA256 {
		t.Errorf("%+v", parsed)
	}
	if !bytes.Equal(parsed.ResponderKeyHash, KeyID(r.key.Public())) || parsed.RawResponderName != nil {
		t.Error("the responder is not named by its key")
	}
	if parsed.NextUpdate.IsZero() || parsed.Certificate == nil || !parsed.Certificate.Equal(r.cert) {
		t.Error("no next update, or not the responder's certificate")
	}
	if !bytes.Contains(der, append([]byte{4, 18, 4, 16}, nonce...)) {
		t.Error("the nonce is not an OCTET STRING inside the extension's value")
	}
	out, _ := judge(t, "openssl", "ocsp", "-respin", file(t, "r.der", der), "-noverify", "-resp_text")
	if !strings.Contains(out, "Response Extensions:\n        OCSP Nonce:") {
		t.Errorf("the nonce is not among the response extensions: %s", out)
	}
	if bytes.Count(der, []byte("\x18\x0f20")) != 3 {
		t.Error("producedAt, thisUpdate and nextUpdate are not GeneralizedTimes of 15 octets")
	}
	for name, r := range zlint.LintOcspResponse(parsed).Results {
		if r.Status >= lint.Warn {
			t.Errorf("zlint: %s: %v %s", name, r.Status, r.Details)
		}
	}
}

func TestRevokedAnswersCarryTimeAndReasonButNotReasonZero(t *testing.T) {
	t.Parallel()
	r := newResponder(t, ECDSAP256, ECDSAP256)
	serial := big.NewInt(77)
	req := r.ca.request(t, requestOptions{}, serial)
	for _, reason := range Reasons() {
		der := r.answer(t, req, map[string]Reason{"4d": reason})
		parsed, err := ocsp.ParseResponse(der, r.ca.cert)
		if err != nil || parsed.Status != ocsp.Revoked || parsed.RevocationReason != int(reason) || parsed.RevokedAt.IsZero() {
			t.Errorf("%v: %+v, %v", reason, parsed, err)
		}
		if bytes.Contains(der, []byte{0xa0, 3, 0x0a, 1, byte(reason)}) != (reason != Unspecified) {
			t.Errorf("%v: reason 0 is written, or another one is not", reason)
		}
	}
}

func TestAZeroStatusIsUnknown(t *testing.T) {
	t.Parallel()
	r := newResponder(t, ECDSAP256, ECDSAP256)
	req, err := ParseOCSPRequest(r.ca.request(t, requestOptions{}, big.NewInt(1)))
	if err != nil {
		t.Fatal(err)
	}
	der, err := SignOCSP(OCSPResponse{ProducedAt: now, Singles: []OCSPSingle{{CertID: req.CertIDs[0].Raw, ThisUpdate: now, NextUpdate: now.Add(time.Second)}}}, r.key, longLived(r.cert))
	if err != nil {
		t.Fatal(err)
	}
	if parsed, err := ocsp.ParseResponse(der, r.ca.cert); err != nil || parsed.Status != ocsp.Unknown {
		t.Errorf("%+v, %v", parsed, err)
	}
}

// longLived is the certificate with an end after every time in the tests; its bytes are those of the original.
func longLived(c *x509.Certificate) *x509.Certificate {
	l := *c
	l.NotAfter = now.Add(100 * 365 * 24 * time.Hour)
	return &l
}

func TestSignOCSPIsDeterministicAndCutsFractions(t *testing.T) {
	t.Parallel()
	r := newResponder(t, ECDSAP256, ECDSAP256)
	req, err := ParseOCSPRequest(r.ca.request(t, requestOptions{}, big.NewInt(1)))
	if err != nil {
		t.Fatal(err)
	}
	sign := func(at time.Time) []byte {
		der, err := SignOCSP(OCSPResponse{ProducedAt: at, Singles: []OCSPSingle{
			{CertID: req.CertIDs[0].Raw, Status: OCSPGood, ThisUpdate: at, NextUpdate: at.Add(time.Hour)},
		}}, r.key, longLived(r.cert))
		if err != nil {
			t.Fatal(err)
		}
		return der
	}
	if !bytes.Equal(sign(now), sign(now.Add(999*time.Millisecond).In(time.FixedZone("x", 3600)))) {
		t.Error("the same second gives different bytes")
	}
}

func TestSignOCSPRefusesWhatNoClientMayRelyOn(t *testing.T) {
	t.Parallel()
	r := newResponder(t, ECDSAP256, ECDSAP256)
	at := time.Now()
	good := OCSPSingle{CertID: []byte{0x30, 0}, Status: OCSPGood, ThisUpdate: at, NextUpdate: at.Add(time.Hour)}
	with := func(change func(*OCSPSingle)) OCSPResponse {
		s := good
		change(&s)
		return OCSPResponse{ProducedAt: at, Singles: []OCSPSingle{s}}
	}
	for name, p := range map[string]OCSPResponse{
		"no answers":              {ProducedAt: at},
		"no next update":          with(func(s *OCSPSingle) { s.NextUpdate = time.Time{} }),
		"beyond the responder":    with(func(s *OCSPSingle) { s.NextUpdate = r.cert.NotAfter.Add(time.Second) }),
		"revoked without a time":  with(func(s *OCSPSingle) { s.Status = OCSPRevoked }),
		"revoked, removeFromCRL":  with(func(s *OCSPSingle) { s.Status, s.RevokedAt, s.Reason = OCSPRevoked, at, 8 }),
		"a nonce of 129 octets":   {ProducedAt: at, Singles: []OCSPSingle{good}, Nonce: make([]byte, 129)},
		"a year past 9999, error": with(func(s *OCSPSingle) { s.ThisUpdate = time.Date(-5, 1, 1, 0, 0, 0, 0, time.UTC) }),
	} {
		if _, err := SignOCSP(p, r.key, r.cert); err == nil {
			t.Errorf("%s: signed", name)
		}
	}
	if _, err := SignOCSP(with(func(*OCSPSingle) {}), mustKey(t, ECDSAP256), r.cert); err == nil {
		t.Error("signed with a key that is not the responder's")
	}
}

func TestErrorAnswersAreFiveUnsignedOctets(t *testing.T) {
	t.Parallel()
	for _, s := range []OCSPErrorStatus{OCSPMalformed, OCSPInternal, OCSPTryLater, OCSPSigRequired, OCSPUnauthorized} {
		der := OCSPError(s)
		_, err := ocsp.ParseResponse(der, nil)
		answer, ok := err.(ocsp.ResponseError)
		if len(der) != 5 || !ok || answer.Status != ocsp.ResponseStatus(s) {
			t.Errorf("%d: %x, %v", s, der, err)
		}
	}
	r := newResponder(t, ECDSAP256, ECDSAP256)
	other := newTestCA(t, ECDSAP256)
	if got := r.answer(t, other.request(t, requestOptions{}, big.NewInt(1)), nil); !bytes.Equal(got, OCSPError(OCSPUnauthorized)) {
		t.Errorf("another issuer's certificate: %x", got)
	}
}

func TestIssuerHashesAreWhatOpenSSLComputes(t *testing.T) {
	t.Parallel()
	ca := newTestCA(t, ECDSAP384)
	leaf, _ := ca.leaf(t, mustNames(t, "a.example.com"), nil)
	caPEM, leafPEM := certFile(t, ca.cert), certFile(t, leaf)
	for _, digest := range []string{"-sha1", "-sha256"} {
		out := filepath.Join(t.TempDir(), "req.der")
		if text, ok := judge(t, "openssl", "ocsp", "-issuer", caPEM, digest, "-cert", leafPEM, "-reqout", out); !ok {
			t.Fatal(text)
		}
		der, err := os.ReadFile(out)
		if err != nil {
			t.Fatal(err)
		}
		r, err := ParseOCSPRequest(der)
		if err != nil || !HashIssuer(ca.cert).Match(r.CertIDs[0]) || r.CertIDs[0].Serial.Cmp(leaf.SerialNumber) != 0 || len(r.Nonce) == 0 {
			t.Errorf("%s: %+v, %v", digest, r, err)
		}
	}
}

func FuzzParseOCSPRequest(f *testing.F) {
	r := newResponder(f, ECDSAP256, ECDSAP256)
	f.Add(r.ca.request(f, requestOptions{}, big.NewInt(1)))
	f.Add(r.ca.request(f, requestOptions{hash: crypto.SHA256, signed: true, requestor: true, explicitV1: true, nonce: []byte("n")}, big.NewInt(1), big.NewInt(2)))
	f.Fuzz(func(t *testing.T, der []byte) {
		req, err := ParseOCSPRequest(der)
		if err != nil {
			return
		}
		p := OCSPResponse{ProducedAt: now, Nonce: req.Nonce}
		for _, id := range req.CertIDs {
			p.Singles = append(p.Singles, OCSPSingle{CertID: id.Raw, Status: OCSPGood, ThisUpdate: now, NextUpdate: now.Add(time.Hour)})
		}
		out, err := SignOCSP(p, r.key, longLived(r.cert))
		if err != nil {
			t.Fatalf("an accepted request cannot be answered: %v", err)
		}
		if len(req.CertIDs) == 1 {
			if _, err := asn1.Unmarshal(out, new(asn1.RawValue)); err != nil {
				t.Fatal(err)
			}
		}
	})
}

func FuzzDecodeOCSPGet(f *testing.F) {
	f.Add("MEIwQDA%2BMDwwOjAJBgUrDgMCGgUABBQ%3D")
	f.Add("/MEIw//A+MDww==")
	f.Fuzz(func(t *testing.T, tail string) {
		der, err := DecodeOCSPGet(tail)
		if err == nil && (len(der) == 0 || len(der) > MaxOCSPRequest) {
			t.Errorf("%d octets", len(der))
		}
	})
}

func BenchmarkSignOCSP(b *testing.B) {
	r := newResponder(b, ECDSAP256, ECDSAP256)
	der := r.ca.request(b, requestOptions{}, NewSerial())
	for b.Loop() {
		r.answer(b, der, nil)
	}
}
