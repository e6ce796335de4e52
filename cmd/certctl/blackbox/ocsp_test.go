package blackbox

import (
	"bytes"
	"crypto"
	"crypto/sha1" // #nosec G505 -- RFC 6960 identifies issuers by SHA-1
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"encoding/base64"
	"encoding/pem"
	"math/big"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
	"golang.org/x/crypto/ocsp"
)

// The unsigned answers of RFC 6960, section 4.2.1, five bytes each.
var (
	ocspMalformed    = []byte{0x30, 3, 0x0a, 1, 1}
	ocspTryLater     = []byte{0x30, 3, 0x0a, 1, 3}
	ocspUnauthorized = []byte{0x30, 3, 0x0a, 1, 6}
)

// request makes OCSP requests that no command-line client can.
type request struct {
	ca    *x509.Certificate
	hash  crypto.Hash // SHA-1 unless SHA256
	nonce []byte      // nil: none
}

func (q request) der(t testing.TB, serials ...*big.Int) []byte {
	t.Helper()
	oid, name, key := q.issuer()
	explicit := func(n uint8) cbasn1.Tag { return cbasn1.Tag(n).ContextSpecific().Constructed() }
	var b cryptobyte.Builder
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
			b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
				for _, s := range serials {
					b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
						b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
							b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
								b.AddASN1ObjectIdentifier(oid)
								b.AddASN1NULL()
							})
							b.AddASN1OctetString(name)
							b.AddASN1OctetString(key)
							b.AddASN1BigInt(s)
						})
					})
				}
			})
			if q.nonce == nil {
				return
			}
			b.AddASN1(explicit(2), func(b *cryptobyte.Builder) {
				b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
					b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
						b.AddASN1ObjectIdentifier(asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 48, 1, 2})
						b.AddASN1(cbasn1.OCTET_STRING, func(b *cryptobyte.Builder) { b.AddASN1OctetString(q.nonce) })
					})
				})
			})
		})
	})
	der, err := b.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func (q request) issuer() (asn1.ObjectIdentifier, []byte, []byte) {
	var spki struct {
		Algorithm asn1.RawValue
		Key       asn1.BitString
	}
	_, _ = asn1.Unmarshal(q.ca.RawSubjectPublicKeyInfo, &spki)
	if q.hash == crypto.SHA256 {
		name, key := sha256.Sum256(q.ca.RawSubject), sha256.Sum256(spki.Key.Bytes)
		return asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 2, 1}, name[:], key[:]
	}
	name, key := sha1.Sum(q.ca.RawSubject), sha1.Sum(spki.Key.Bytes) // #nosec G401 -- as above
	return asn1.ObjectIdentifier{1, 3, 14, 3, 2, 26}, name[:], key[:]
}

func (c client) askOCSP(t testing.TB, issuer string, der []byte) answer {
	t.Helper()
	a := c.as("").must(t, 200, "POST", "/.well-known/pki/ocsp/"+issuer, der, "Content-Type", "application/ocsp-request")
	if a.header.Get("Content-Type") != "application/ocsp-response" {
		t.Errorf("OCSP: %s", a)
	}
	return a
}

// status reads an answer and proves its signature.
func status(t testing.TB, a answer, serial *big.Int, ca *x509.Certificate) *ocsp.Response {
	t.Helper()
	r, err := ocsp.ParseResponseForCert(a.body, &x509.Certificate{SerialNumber: serial}, ca)
	if err != nil {
		t.Fatalf("reading an OCSP answer: %v (%x)", err, a.body)
	}
	return r
}

// pkiHouse is a server with one issued certificate.
type pkiHouse struct {
	*server
	id     string // the certificate
	iss    string
	ca     *x509.Certificate
	cert   *x509.Certificate
	caPEM  string // files
	pem    string
	ocsp   string // address
	crlURL string
}

func issuedHouse(t testing.TB, s *server) pkiHouse {
	t.Helper()
	h := pkiHouse{server: s, iss: s.issuer(t)}
	h.id = s.issued(t, object{"sans": []string{"www.example.org", "example.org"}}).text("id")
	h.ca, h.cert = s.authority(t, h.iss), s.leaf(t, h.id)
	h.caPEM, h.pem = file(t, "ca.pem", pemOf(h.ca)), file(t, "leaf.pem", pemOf(h.cert))
	h.ocsp, h.crlURL = s.base+"/.well-known/pki/ocsp/"+h.iss, "/.well-known/pki/crl/"+h.iss
	return h
}

func TestOpenSSLAndGnuTLSBelieveTheResponder(t *testing.T) {
	t.Parallel()
	s, _ := house(t)
	h := issuedHouse(t, s)
	openssl := func(want string, args ...string) {
		t.Helper()
		out, ok := tool(t, "openssl", append([]string{"ocsp", "-url", h.ocsp, "-CAfile", h.caPEM, "-issuer", h.caPEM}, args...)...)
		if !ok || !strings.Contains(out, "Response verify OK") || !strings.Contains(out, "leaf.pem: "+want) {
			t.Errorf("openssl ocsp %v: want %s:\n%s", args, want, out)
		}
		if nonceless := strings.Contains(strings.Join(args, " "), "-no_nonce"); !nonceless && strings.Contains(out, "WARNING: no nonce") {
			t.Errorf("the nonce was not answered:\n%s", out)
		}
	}
	forms := [][]string{{"-sha1", "-cert", h.pem}, {"-sha256", "-cert", h.pem}, {"-no_nonce", "-sha1", "-cert", h.pem}, {"-no_nonce", "-sha256", "-cert", h.pem}}
	for _, f := range forms {
		openssl("good", f...)
	}
	if out, ok := tool(t, "openssl", "verify", "-CAfile", h.caPEM, h.pem); !ok {
		t.Errorf("openssl verify: %s", out)
	}
	if out, ok := tool(t, "openssl", "verify", "-crl_check", "-crl_download", "-CAfile", h.caPEM, h.pem); !ok {
		t.Errorf("openssl verify -crl_download: %s", out)
	}
	if out, ok := tool(t, "ocsptool", "--ask="+h.ocsp, "--load-issuer="+h.caPEM, "--load-cert="+h.pem, "--load-trust="+h.caPEM, "--nonce"); !ok || !strings.Contains(out, "Success") {
		t.Errorf("ocsptool: %s", out)
	}

	before := h.crl(t)
	h.must(t, 200, "POST", "/api/v1/certificates/"+h.id+"/revoke", object{"reason": "superseded"})
	for _, f := range forms {
		openssl("revoked", f...)
	}
	took := eventually(t, 10*time.Second, "in the CRL", func() bool { return listed(h.crl(t), h.cert.SerialNumber) })
	t.Logf("in the CRL %s after the revocation", took.Round(time.Millisecond))
	after := h.crl(t)
	if after.Number.Cmp(before.Number) <= 0 {
		t.Errorf("CRL number %s after %s", after.Number, before.Number)
	}
	if err := after.CheckSignatureFrom(h.ca); err != nil {
		t.Error(err)
	}
	for _, e := range after.RevokedCertificateEntries {
		if e.SerialNumber.Cmp(h.cert.SerialNumber) == 0 && e.ReasonCode != 4 {
			t.Errorf("reason %d, want superseded", e.ReasonCode)
		}
	}
	crl := file(t, "crl.pem", pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: after.Raw}))
	if out, ok := tool(t, "certtool", "--verify-crl", "--load-ca-certificate="+h.caPEM, "--infile="+crl); !ok || !strings.Contains(out, "Verification output: Verified.") {
		t.Errorf("certtool: %s", out)
	}
	if out, ok := tool(t, "openssl", "verify", "-crl_check", "-crl_download", "-CAfile", h.caPEM, h.pem); ok || !strings.Contains(out, "certificate revoked") {
		t.Errorf("openssl verify -crl_download of a revoked certificate: %s", out)
	}
	if out, ok := tool(t, "openssl", "crl", "-in", crl, "-CAfile", h.caPEM, "-noout"); !ok || !strings.Contains(out, "verify OK") {
		t.Errorf("openssl crl: %s", out)
	}
}

func (h pkiHouse) crl(t testing.TB) *x509.RevocationList {
	t.Helper()
	a := h.as("").must(t, 200, "GET", h.crlURL, nil)
	l, err := x509.ParseRevocationList(a.body)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func listed(l *x509.RevocationList, serial *big.Int) bool {
	for _, e := range l.RevokedCertificateEntries {
		if e.SerialNumber.Cmp(serial) == 0 {
			return true
		}
	}
	return false
}

// hostile is a serial whose base64 has "//" and "+" in it, wherever it lies in the request.
func hostile(t testing.TB, q request) []byte {
	t.Helper()
	for i := range 16 {
		serial := append(bytes.Repeat([]byte{0x7f}, 1+i%3), 0xff, 0xff, 0xff, 0xff, 0xfb, 0xef, 0xbe, 0xfb, 0xef, byte(i))
		der := q.der(t, new(big.Int).SetBytes(serial))
		if s := base64.StdEncoding.EncodeToString(der); strings.Contains(s, "//") && strings.Contains(s, "+") {
			return der
		}
	}
	t.Fatal("no request with // and + in its base64")
	return nil
}

func TestEveryFormOfAnOCSPRequestGetsTheSameBytes(t *testing.T) {
	t.Parallel()
	s, _ := house(t)
	h := issuedHouse(t, s)
	other := function(t, "responder", h.beside("CERTCTL_MASTER_KEY="+masterKeyOf(h.env)))
	for _, q := range []request{{ca: h.ca}, {ca: h.ca, hash: crypto.SHA256}} {
		for name, der := range map[string][]byte{"good": q.der(t, h.cert.SerialNumber), "unknown with // in its base64": hostile(t, q)} {
			path, b64 := "/.well-known/pki/ocsp/"+h.iss, base64.StdEncoding.EncodeToString(der)
			want := h.askOCSP(t, h.iss, der)
			decoded := strings.NewReplacer("+", "%2B", "=", "%3D").Replace(b64) // a proxy that turned %2F into /
			for form, tail := range map[string]string{"raw": b64, "escaped": url.QueryEscape(b64), "decoded": decoded} {
				for instance, c := range map[string]client{"serve": h.client, "functions/responder": other.client} {
					if a := c.rawGet(t, path+"/"+tail); a.status != 200 || !bytes.Equal(a.body, want.body) || a.header.Get("Etag") != want.header.Get("Etag") {
						t.Errorf("%s, %s, GET %s: %s\n%x\nwant\n%x", name, instance, form, a, a.body, want.body)
					}
				}
			}
			if a := other.askOCSP(t, h.iss, der); !bytes.Equal(a.body, want.body) {
				t.Errorf("%s: two instances answer\n%x\n%x", name, a.body, want.body)
			}
		}
	}
	short := h.must(t, 200, "GET", "/.well-known/pki/ocsp/"+h.iss+"/"+h.cert.SerialNumber.Text(16), nil)
	if want := h.askOCSP(t, h.iss, request{ca: h.ca}.der(t, h.cert.SerialNumber)); !bytes.Equal(short.body, want.body) {
		t.Error("the form with a bare serial answers other bytes")
	}
	upper := h.must(t, 200, "GET", "/.well-known/pki/ocsp/"+h.iss+"/00"+strings.ToUpper(h.cert.SerialNumber.Text(16)), nil)
	if !bytes.Equal(short.body, upper.body) {
		t.Error("a serial in upper case with leading zeros answers other bytes")
	}
}

func TestNoncesOf1To128BytesAreAnswered(t *testing.T) {
	t.Parallel()
	s, _ := house(t)
	h := issuedHouse(t, s)
	for n, good := range map[int]bool{0: false, 1: true, 32: true, 128: true, 129: false} {
		nonce := bytes.Repeat([]byte{0xa5}, n)
		a := h.askOCSP(t, h.iss, request{ca: h.ca, nonce: nonce}.der(t, h.cert.SerialNumber))
		if cc := a.header.Get("Cache-Control"); cc != "no-store" {
			t.Errorf("nonce of %d: Cache-Control %q", n, cc)
		}
		if !good {
			if !bytes.Equal(a.body, ocspMalformed) {
				t.Errorf("nonce of %d: %x, want malformedRequest", n, a.body)
			}
			continue
		}
		if r := status(t, a, h.cert.SerialNumber, h.ca); r.Status != ocsp.Good || !bytes.Contains(a.body, nonce) {
			t.Errorf("nonce of %d: status %d, echoed %t", n, r.Status, bytes.Contains(a.body, nonce))
		}
	}
}

func TestWhatWasNeverIssuedIsNeverGoodAndLeavesNoTrace(t *testing.T) {
	t.Parallel()
	s, db := house(t)
	h := issuedHouse(t, s)
	rows := func() (n int) {
		for _, table := range []string{"audit_events", "jobs", "versions", "revocations", "idempotency_keys", "auth_failures", "certificates", "crls"} {
			n += number(t, db, `SELECT count(*) FROM `+table)
		}
		return n
	}
	before := rows()
	madeUp := []*big.Int{big.NewInt(1), big.NewInt(0), new(big.Int).Add(h.cert.SerialNumber, big.NewInt(1)), new(big.Int).Lsh(big.NewInt(1), 159)}
	for _, n := range madeUp {
		a := h.askOCSP(t, h.iss, request{ca: h.ca}.der(t, n))
		if bytes.Equal(a.body, ocspMalformed) || bytes.Equal(a.body, ocspUnauthorized) {
			continue
		}
		if r := status(t, a, n, h.ca); r.Status != ocsp.Unknown {
			t.Errorf("serial %x is %d", n, r.Status)
		}
	}
	foreign := request{ca: h.cert} // a leaf's key is no CA of ours
	if a := h.askOCSP(t, h.iss, foreign.der(t, h.cert.SerialNumber)); !bytes.Equal(a.body, ocspUnauthorized) {
		t.Errorf("foreign issuer: %x, want unauthorized", a.body)
	}
	several := h.askOCSP(t, h.iss, request{ca: h.ca}.der(t, h.cert.SerialNumber, big.NewInt(7)))
	if r := status(t, several, h.cert.SerialNumber, h.ca); r.Status != ocsp.Good {
		t.Errorf("first of two: %d", r.Status)
	}
	if r := status(t, several, big.NewInt(7), h.ca); r.Status != ocsp.Unknown {
		t.Errorf("second of two: %d", r.Status)
	}
	for _, junk := range [][]byte{nil, []byte("x"), {0x30, 0x80}, bytes.Repeat([]byte{0x30}, 64<<10+1)} {
		if a := h.askOCSP(t, h.iss, junk); !bytes.Equal(a.body, ocspMalformed) {
			t.Errorf("junk of %d bytes: %x", len(junk), tail(string(a.body), 50))
		}
	}
	if after := rows(); after != before {
		t.Errorf("%d rows after, %d before: an anonymous request wrote", after, before)
	}
}

func TestPKIAnswersAreCachedAndPlain(t *testing.T) {
	t.Parallel()
	s, _ := house(t)
	h := issuedHouse(t, s)
	ocspGet := "/.well-known/pki/ocsp/" + h.iss + "/" + url.QueryEscape(base64.StdEncoding.EncodeToString(request{ca: h.ca}.der(t, h.cert.SerialNumber)))
	for path, media := range map[string]string{h.crlURL: "application/pkix-crl", "/.well-known/pki/ca/" + h.iss: "application/pkix-cert", ocspGet: "application/ocsp-response"} {
		a := h.as("").must(t, 200, "GET", path, nil)
		tag := a.header.Get("Etag")
		if a.header.Get("Content-Type") != media || tag == "" || !strings.Contains(a.header.Get("Cache-Control"), "max-age=") || a.header.Get("Expires") == "" {
			t.Errorf("%s: %v", path, a.header)
		}
		for _, match := range []string{tag, "W/" + tag, `"other", ` + tag} {
			if b := h.as("").must(t, 304, "GET", path, nil, "If-None-Match", match); len(b.body) != 0 || b.header.Get("Etag") != tag {
				t.Errorf("%s, If-None-Match %s: %s", path, match, b)
			}
		}
		h.as("").must(t, 200, "GET", path, nil, "If-None-Match", `"other"`)
		if b := h.as("").must(t, 200, "HEAD", path, nil); len(b.body) != 0 || b.header.Get("Content-Length") != a.header.Get("Content-Length") || b.header.Get("Etag") != tag {
			t.Errorf("HEAD %s: %v", path, b.header)
		}
		old := h.wire(t, "GET", "GET "+path+" HTTP/1.0\r\n\r\n") // no Host either
		if old.status != 200 || !bytes.Equal(old.body, a.body) || old.header.Get("Transfer-Encoding") != "" {
			t.Errorf("HTTP/1.0 %s: %s", path, old)
		}
		for _, method := range []string{"PUT", "DELETE", "PATCH"} {
			if b := h.must(t, 405, method, path, nil); !b.problem() || b.header.Get("Allow") == "" {
				t.Errorf("%s %s: %s", method, path, b)
			}
		}
		if b := h.as("certctl_wrong").ask(t, "GET", path, nil); b.status != 200 {
			t.Errorf("%s with a wrong credential: %s", path, b)
		}
	}
	for _, path := range []string{"/.well-known/pki/crl/", "/.well-known/pki/crl/iss_wrong", "/.well-known/pki/crl/" + h.iss + "/99", "/.well-known/pki/crl/" + h.iss + "/1-0-0", "/.well-known/pki/ca/" + strings.Replace(h.iss, "iss_", "crt_", 1),
		"/.well-known/pki/ocsp/" + h.iss + "/", "/.well-known/pki/ocsp/" + h.iss + "/xyz", "/.well-known/pki/nothing/" + h.iss, "/.well-known/pki/"} {
		if a := h.must(t, 404, "GET", path, nil); !a.problem() {
			t.Errorf("%s: %s", path, a)
		}
	}
	post := "POST /.well-known/pki/ocsp/" + h.iss + " HTTP/1.0\r\nContent-Type: application/ocsp-request\r\n"
	der := request{ca: h.ca}.der(t, h.cert.SerialNumber)
	if a := h.wire(t, http.MethodPost, post+"Content-Length: "+big.NewInt(int64(len(der))).String()+"\r\n\r\n"+string(der)); status(t, a, h.cert.SerialNumber, h.ca).Status != ocsp.Good {
		t.Errorf("HTTP/1.0 POST: %s", a)
	}
}
