package pki

import (
	"bytes"
	"slices"
	"strings"
	"testing"
)

func FuzzParseBundle(f *testing.F) {
	r := newResponder(f, ECDSAP256, ECDSAP256)
	f.Add(EncodeBundle(r.cert, r.ca.cert))
	f.Add(append([]byte("a comment\n"), EncodeBundle(r.ca.cert)...))
	f.Add(r.cert.Raw)
	f.Add([]byte("-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		certs, err := ParseBundle(data)
		if (err == nil) != (len(certs) > 0) || len(certs) > maxBundleSize {
			t.Fatalf("%d certificates, %v", len(certs), err)
		}
		if err != nil {
			return
		}
		again, err := ParseBundle(EncodeBundle(certs...))
		if err != nil || len(again) != len(certs) {
			t.Fatalf("what was read cannot be read again: %v", err)
		}
		chain, err := OrderChain(certs)
		if err == nil && (len(chain) == 0 || len(chain) > len(certs)) {
			t.Fatalf("%d certificates became a chain of %d", len(certs), len(chain))
		}
	})
}

func FuzzParseNames(f *testing.F) {
	for _, s := range [][2]string{{"", "a.example.com"}, {"Build server 7", "*.example.com\n10.0.0.1"}, {"a.b", "x@example.com\nspiffe://d/p\nurn:x:y"},
		{"ｅxample。com", "fe80::1%eth0\n::ffff:10.0.0.1"}, {"XN--BCHER-KVA.example", "https://u@h:1/%2e"}} {
		f.Add(s[0], s[1])
	}
	f.Fuzz(func(t *testing.T, cn, sans string) {
		var list []string
		if sans != "" {
			list = strings.Split(sans, "\n")
		}
		n, err := ParseNames(cn, list)
		if err != nil {
			return
		}
		again, err := ParseNames(n.CommonName, n.SANs())
		if err != nil || !again.Equal(n) {
			t.Fatalf("%+v became %+v (%v)", n, again, err)
		}
		for _, s := range n.SANs() {
			if strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r > '~' }) {
				t.Fatalf("a name with octets that are not visible ASCII: %q", s)
			}
			if !MatchPattern("*", s) {
				t.Fatalf("%q is not a name to patterns", s)
			}
		}
	})
}

// What the names say must survive a request and come back as the same names: R3 compares them.
func FuzzNamesThroughACSR(f *testing.F) {
	f.Add("a.example.com", "b.example.com")
	f.Add("Build server 7", "10.0.0.1")
	f.Add("", "urn:uuid:1")
	f.Add("", "https://example.com/a%20b?c#d")
	key := mustKey(f, ECDSAP256)
	f.Fuzz(func(t *testing.T, cn, san string) {
		n, err := ParseNames(cn, []string{san})
		if err != nil {
			return
		}
		der, err := NewCSR(key, n)
		if err != nil {
			t.Fatalf("accepted names %+v make no request: %v", n, err)
		}
		csr, err := ParseCSR(der)
		if err != nil {
			t.Fatal(err)
		}
		if err := AdmitCSR(csr, n, nil); err != nil {
			t.Fatalf("%+v: %v", n, err)
		}
	})
}

func FuzzParseSerial(f *testing.F) {
	for _, s := range []string{"1", "00ff", "ABCDEF", "ffffffffffffffffffffffffffffffffffffffff", "-1", "0x1", ""} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		n, err := ParseSerial(s)
		if err != nil {
			return
		}
		if n.Sign() <= 0 || n.BitLen() > 160 {
			t.Fatalf("%s is no serial", n)
		}
		if again, err := ParseSerial(FormatSerial(n)); err != nil || again.Cmp(n) != 0 {
			t.Fatalf("%s became %s (%v)", n, again, err)
		}
	})
}

func FuzzMatchPattern(f *testing.F) {
	for _, s := range [][2]string{{"*.example.com", "a.example.com"}, {"**.example.com", "a.b.example.com"}, {"10.0.0.0/8", "10.1.2.3"},
		{"*@example.com", "a@example.com"}, {"spiffe://x/ns/*", "spiffe://x/ns/a"}, {"*", "x"}} {
		f.Add(s[0], s[1])
	}
	f.Fuzz(func(t *testing.T, pattern, name string) {
		if MatchPattern(pattern, name) && CheckPattern(pattern) != nil {
			t.Fatalf("a refused pattern matches %q", name)
		}
		n, err := ParseNames("", []string{name})
		if err != nil || CheckPattern(pattern) != nil || !MatchPattern(pattern, n.SANs()[0]) {
			return
		}
		if suffix, depth := hostPattern(strings.ToLower(pattern)); depth != 0 && !isURI(pattern) && !slices.ContainsFunc(n.DNS, func(d string) bool { return strings.HasSuffix(d, suffix) }) {
			t.Fatalf("pattern %q matches %+v", pattern, n)
		}
	})
}

func FuzzParseKey(f *testing.F) {
	for _, a := range []KeyAlgorithm{ECDSAP256, Ed25519} {
		der, err := MarshalKey(mustKey(f, a))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(der)
	}
	pemKey, err := MarshalKeyPEM(mustKey(f, ECDSAP384))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(pemKey)
	f.Fuzz(func(t *testing.T, data []byte) {
		key, err := ParseKey(data)
		if err != nil {
			if len(data) > 8 && bytes.Contains([]byte(err.Error()), data) {
				t.Fatal("the error repeats the key")
			}
			return
		}
		der, err := MarshalKey(key)
		if err != nil {
			t.Fatal(err)
		}
		if again, err := ParseKey(der); err != nil || !SameKey(again.Public(), key.Public()) {
			t.Fatalf("what was read cannot be read again: %v", err)
		}
	})
}
