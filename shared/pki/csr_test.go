package pki

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"net"
	"os"
	"strings"
	"testing"

	"certctl/shared/fault"
)

func mustCSR(t testing.TB, tmpl *x509.CertificateRequest, key any) *x509.CertificateRequest {
	t.Helper()
	der, err := x509.CreateCertificateRequest(rand.Reader, tmpl, key)
	if err != nil {
		t.Fatal(err)
	}
	csr, err := ParseCSR(der)
	if err != nil {
		t.Fatal(err)
	}
	return csr
}

func TestNewCSRIsAdmittedForItsOwnNamesAndReadByOpenSSL(t *testing.T) {
	t.Parallel()
	n := mustNames(t, "www.example.com", "*.example.com", "10.0.0.1", "2001:db8::1", "ops@example.com", "spiffe://example.org/a")
	for _, a := range []KeyAlgorithm{ECDSAP256, RSA2048, Ed25519} {
		der, err := NewCSR(mustKey(t, a), n)
		if err != nil {
			t.Fatal(err)
		}
		for _, data := range [][]byte{der, EncodeCSR(der), append(EncodeCSR(der), "\n \n"...)} {
			csr, err := ParseCSR(data)
			if err != nil {
				t.Fatal(err)
			}
			if err := AdmitCSR(csr, n, []KeyAlgorithm{a}); err != nil {
				t.Error(err)
			}
		}
		out, ok := judge(t, "openssl", "req", "-in", file(t, "csr.pem", EncodeCSR(der)), "-noout", "-verify", "-text")
		if !ok || !strings.Contains(out, "DNS:*.example.com") || !strings.Contains(out, "URI:spiffe://example.org/a") {
			t.Errorf("OpenSSL: %s", out)
		}
	}
}

func TestParseCSRIsBoundedAndStrict(t *testing.T) {
	t.Parallel()
	der, err := NewCSR(mustKey(t, ECDSAP256), mustNames(t, "a.example.com"))
	if err != nil {
		t.Fatal(err)
	}
	text := EncodeCSR(der)
	for name, in := range map[string][]byte{
		"empty":              nil,
		"trailing DER":       append(bytes.Clone(der), 0),
		"cut DER":            der[:len(der)-1],
		"trailing PEM":       append(bytes.Clone(text), text...),
		"words after PEM":    append(bytes.Clone(text), "x"...),
		"certificate":        bytes.ReplaceAll(text, []byte("CERTIFICATE REQUEST"), []byte("CERTIFICATE")),
		"larger than 64 KB":  append(bytes.Clone(text), bytes.Repeat([]byte("\n"), MaxCSR)...),
		"begin without end":  []byte("-----BEGIN CERTIFICATE REQUEST-----\nAAAA"),
		"PEM of other bytes": EncodeCSR([]byte("x")),
	} {
		_, err := ParseCSR(in)
		if f := fault.As(err); f == nil || f.Kind != fault.Invalid || f.Fields[0].Field != "csr_pem" {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestAdmitCSRTakesNamesInAnyFormThatSaysTheSame(t *testing.T) {
	t.Parallel()
	want := mustNames(t, "a.example.com", "b.example.com")
	key := mustKey(t, ECDSAP256)
	for name, tmpl := range map[string]*x509.CertificateRequest{
		"other order and case":      {Subject: pkix.Name{CommonName: "A.example.com"}, DNSNames: []string{"b.EXAMPLE.com", "a.example.com"}},
		"no common name":            {DNSNames: []string{"a.example.com", "b.example.com"}},
		"common name not repeated":  {Subject: pkix.Name{CommonName: "a.example.com"}, DNSNames: []string{"b.example.com"}},
		"organisation is ignored":   {Subject: pkix.Name{CommonName: "a.example.com", Organization: []string{"X"}, Country: []string{"AU"}}, DNSNames: want.DNS},
		"end-entity basic settings": {DNSNames: want.DNS, ExtraExtensions: []pkix.Extension{{Id: oidBasicConstraints, Value: []byte{0x30, 0}}, {Id: oidKeyUsage, Value: []byte{3, 2, 5, 0xa0}}}},
	} {
		if err := AdmitCSR(mustCSR(t, tmpl, key), want, nil); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestAdmitCSRRefuses(t *testing.T) {
	t.Parallel()
	want := mustNames(t, "a.example.com", "b.example.com")
	key := mustKey(t, ECDSAP256)
	with := func(change func(*x509.CertificateRequest)) *x509.CertificateRequest {
		tmpl := &x509.CertificateRequest{Subject: pkix.Name{CommonName: "a.example.com"}, DNSNames: want.DNS}
		change(tmpl)
		return mustCSR(t, tmpl, key)
	}
	ext := func(id asn1.ObjectIdentifier, value ...byte) *x509.CertificateRequest {
		return with(func(c *x509.CertificateRequest) { c.ExtraExtensions = []pkix.Extension{{Id: id, Value: value}} })
	}
	forged := with(func(*x509.CertificateRequest) {})
	forged.Signature[len(forged.Signature)-1] ^= 1
	weak, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	for name, csr := range map[string]*x509.CertificateRequest{
		"one name more":      with(func(c *x509.CertificateRequest) { c.DNSNames = append([]string{"c.example.com"}, want.DNS...) }),
		"one name less":      with(func(c *x509.CertificateRequest) { c.DNSNames = want.DNS[:1] }),
		"an IP more":         with(func(c *x509.CertificateRequest) { c.IPAddresses = []net.IP{{10, 0, 0, 1}} }),
		"an e-mail more":     with(func(c *x509.CertificateRequest) { c.EmailAddresses = []string{"a@example.com"} }),
		"other common name":  with(func(c *x509.CertificateRequest) { c.Subject.CommonName = "b.example.com" }),
		"free common name":   with(func(c *x509.CertificateRequest) { c.Subject.CommonName = "Some One" }),
		"two common names":   with(func(c *x509.CertificateRequest) { c.Subject.ExtraNames = twoCommonNames() }),
		"e-mail in subject":  with(func(c *x509.CertificateRequest) { c.Subject.ExtraNames = emailAddress() }),
		"otherName":          with(func(c *x509.CertificateRequest) { c.DNSNames, c.ExtraExtensions = nil, otherName() }),
		"no names":           with(func(c *x509.CertificateRequest) { c.Subject, c.DNSNames = pkix.Name{}, nil }),
		"CA:TRUE":            ext(oidBasicConstraints, 0x30, 3, 1, 1, 0xff),
		"keyCertSign":        ext(oidKeyUsage, 3, 2, 2, 0x84),
		"cRLSign":            ext(oidKeyUsage, 3, 2, 1, 0x82),
		"unreadable limits":  ext(oidBasicConstraints, 0x30, 9),
		"bad signature":      forged,
		"RSA 1024":           mustCSR(t, &x509.CertificateRequest{DNSNames: want.DNS}, weak),
		"SHA-1":              opensslCSR(t, "sha1.pem"),
		"MD5":                opensslCSR(t, "md5.pem"),
		"P-384, not allowed": mustCSR(t, &x509.CertificateRequest{DNSNames: want.DNS}, mustKey(t, ECDSAP384)),
	} {
		err := AdmitCSR(csr, want, []KeyAlgorithm{ECDSAP256, RSA2048})
		if f := fault.As(err); f == nil || f.Kind != fault.Invalid || f.Fields[0].Field != "csr_pem" {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// opensslCSR reads a request for a.example.com and b.example.com that OpenSSL signed with a digest Go cannot make.
func opensslCSR(t *testing.T, name string) *x509.CertificateRequest {
	t.Helper()
	data, err := os.ReadFile("testdata/csr/" + name)
	if err != nil {
		t.Fatal(err)
	}
	csr, err := ParseCSR(data)
	if err != nil {
		t.Fatal(err)
	}
	return csr
}

func twoCommonNames() []pkix.AttributeTypeAndValue {
	return []pkix.AttributeTypeAndValue{{Type: oidCommonName, Value: "evil.example.com"}, {Type: oidCommonName, Value: "a.example.com"}}
}

func emailAddress() []pkix.AttributeTypeAndValue {
	return []pkix.AttributeTypeAndValue{{Type: oidCommonName, Value: "a.example.com"},
		{Type: asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 1}, Value: "root@example.com"}}
}

// otherName is a SAN extension with the two wanted names and a Microsoft UPN that crypto/x509 does not show.
func otherName() []pkix.Extension {
	dns := func(s string) []byte { return append([]byte{0x82, byte(len(s))}, s...) }
	upn := []byte{0xa0, 21, 6, 10, 0x2b, 6, 1, 4, 1, 0x82, 0x37, 0x14, 2, 3, 0xa0, 7, 0x0c, 5, 'a', 'd', 'm', 'i', 'n'}
	body := append(append(dns("a.example.com"), dns("b.example.com")...), upn...)
	return []pkix.Extension{{Id: oidSAN, Value: append([]byte{0x30, byte(len(body))}, body...)}}
}

func TestAdmitEnrollmentTakesNamesFromTheRequest(t *testing.T) {
	t.Parallel()
	key := mustKey(t, ECDSAP256)
	n, err := AdmitEnrollment(mustCSR(t, &x509.CertificateRequest{Subject: pkix.Name{CommonName: "dev1"}}, key), nil)
	if err != nil || !n.Equal(mustNames(t, "dev1")) {
		t.Errorf("%+v, %v", n, err)
	}
	for name, tmpl := range map[string]*x509.CertificateRequest{
		"no names":  {},
		"bad name":  {DNSNames: []string{"a_b.example.com"}},
		"otherName": {ExtraExtensions: otherName()},
	} {
		if _, err := AdmitEnrollment(mustCSR(t, tmpl, key), nil); !fault.Is(err, fault.Invalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzParseAndAdmitCSR(f *testing.F) {
	der, err := NewCSR(mustKey(f, ECDSAP256), mustNames(f, "a.example.com", "10.0.0.1"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(der)
	f.Add(EncodeCSR(der))
	f.Fuzz(func(t *testing.T, data []byte) {
		csr, err := ParseCSR(data)
		if err != nil {
			return
		}
		n, err := AdmitEnrollment(csr, nil)
		if err == nil && AdmitCSR(csr, n, nil) != nil {
			t.Error("an admitted enrollment is refused for its own names")
		}
	})
}
