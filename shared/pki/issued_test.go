package pki

import (
	"bytes"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"
)

// line is a root, an intermediate under it and a leaf.
type line struct {
	root, sub testCA
	leaf      *x509.Certificate
	names     Names
}

func newLine(t *testing.T, change func(*x509.Certificate)) line {
	t.Helper()
	root := newTestCA(t, ECDSAP256)
	key := mustKey(t, ECDSAP256)
	sub := testCA{mustCertify(t, &x509.Certificate{
		SerialNumber: NewSerial(), Subject: pkix.Name{CommonName: "sub CA"}, NotBefore: root.cert.NotBefore, NotAfter: root.cert.NotAfter,
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign, SubjectKeyId: KeyID(key.Public()),
	}, root.cert, key.Public(), root.key), key}
	n := mustNames(t, "a.example.com", "10.0.0.1")
	leaf, _ := sub.leaf(t, n, change)
	return line{root, sub, leaf, n}
}

func (l line) expected() Expected {
	roots := x509.NewCertPool()
	roots.AddCert(l.root.cert)
	return Expected{Names: l.names, PublicKey: l.leaf.PublicKey, Now: time.Now(), MaxTTL: 3 * time.Hour, Backdate: time.Hour, Roots: roots}
}

func TestCheckIssuedAcceptsWhatWasAskedFor(t *testing.T) {
	t.Parallel()
	l := newLine(t, nil)
	if err := CheckIssued([]*x509.Certificate{l.leaf, l.sub.cert}, l.expected()); err != nil {
		t.Error(err)
	}
	noCN := newLine(t, func(c *x509.Certificate) { c.Subject = pkix.Name{} })
	if err := CheckIssued([]*x509.Certificate{noCN.leaf, noCN.sub.cert}, noCN.expected()); err != nil {
		t.Errorf("a CA that drops the common name: %v", err)
	}
	e := l.expected()
	e.Names.CommonName = ""
	if err := CheckIssued([]*x509.Certificate{l.leaf, l.sub.cert}, e); err != nil {
		t.Errorf("a CA that makes a SAN the common name: %v", err)
	}
}

func TestCheckIssuedRefuses(t *testing.T) {
	t.Parallel()
	l, other := newLine(t, nil), newLine(t, nil)
	leafWith := func(change func(*x509.Certificate)) []*x509.Certificate {
		x := l
		leaf, key := x.sub.leaf(t, l.names, change)
		_ = key
		return []*x509.Certificate{leaf, l.sub.cert}
	}
	whole := []*x509.Certificate{l.leaf, l.sub.cert}
	for _, tt := range []struct {
		name, what string
		chain      []*x509.Certificate
		change     func(*Expected)
	}{
		{"nothing", "chain", nil, nil},
		{"another key", "key", whole, func(e *Expected) { e.PublicKey = other.leaf.PublicKey }},
		{"a name more", "names", whole, func(e *Expected) { e.Names.DNS = append(slices.Clone(e.Names.DNS), "b.example.com") }},
		{"a name less", "names", whole, func(e *Expected) { e.Names.IPs = nil }},
		{"another common name", "names", whole, func(e *Expected) { e.Names.CommonName = "b.example.com" }},
		{"SAN missing although CN is there", "names", leafWith(func(c *x509.Certificate) { c.DNSNames, c.IPAddresses = nil, nil }), nil},
		{"not yet valid", "validity", whole, func(e *Expected) { e.Now = e.Now.Add(-10 * time.Minute) }},
		{"expired", "validity", whole, func(e *Expected) { e.Now = e.Now.Add(3 * time.Hour) }},
		{"too long", "validity", leafWith(func(c *x509.Certificate) { c.NotAfter = c.NotAfter.Add(4 * time.Hour) }), nil},
		{"backdated too far", "validity", leafWith(func(c *x509.Certificate) { c.NotBefore = c.NotBefore.Add(-2 * time.Hour) }), nil},
		{"a CA", "usage", leafWith(func(c *x509.Certificate) { c.IsCA, c.BasicConstraintsValid = true, true }), nil},
		{"keyCertSign", "usage", leafWith(func(c *x509.Certificate) {
			c.IsCA, c.BasicConstraintsValid, c.KeyUsage = true, true, x509.KeyUsageCertSign
		}), nil},
		{"a foreign intermediate", "chain", []*x509.Certificate{l.leaf, other.sub.cert}, nil},
		{"a missing intermediate", "chain", []*x509.Certificate{l.leaf}, nil},
		{"a foreign root", "chain", whole, func(e *Expected) { e.Roots = other.expected().Roots }},
		{"a forged leaf", "chain", []*x509.Certificate{forge(l.leaf), l.sub.cert}, nil},
	} {
		e := l.expected()
		if len(tt.chain) > 0 {
			e.PublicKey = tt.chain[0].PublicKey
		}
		if tt.change != nil {
			tt.change(&e)
		}
		var wrong *NotAsAsked
		if err := CheckIssued(tt.chain, e); !errors.As(err, &wrong) || wrong.What != tt.what {
			t.Errorf("%s: %v", tt.name, err)
		}
	}
}

func forge(c *x509.Certificate) *x509.Certificate {
	f := *c
	f.Signature = bytes.Clone(c.Signature)
	f.Signature[len(f.Signature)-1] ^= 1
	return &f
}

func TestBundlesRoundTripAndAreOrdered(t *testing.T) {
	t.Parallel()
	l := newLine(t, nil)
	text := "a comment\n" + string(EncodeBundle(l.root.cert, l.sub.cert, l.leaf, l.sub.cert))
	certs, err := ParseBundle([]byte(text))
	if err != nil || len(certs) != 4 {
		t.Fatal(len(certs), err)
	}
	chain, err := OrderChain(certs)
	if err != nil || len(chain) != 2 || !chain[0].Equal(l.leaf) || !chain[1].Equal(l.sub.cert) {
		t.Errorf("%d certificates, %v", len(chain), err)
	}
	if one, err := ParseBundle(l.leaf.Raw); err != nil || len(one) != 1 {
		t.Error(err)
	}
	if root, err := OrderChain([]*x509.Certificate{l.root.cert}); err != nil || len(root) != 1 {
		t.Error("a lone root is not its own chain", err)
	}
}

func TestBundlesAreBoundedAndStrict(t *testing.T) {
	t.Parallel()
	l, other := newLine(t, nil), newLine(t, nil)
	key, err := MarshalKeyPEM(l.root.key)
	if err != nil {
		t.Fatal(err)
	}
	for name, in := range map[string][]byte{
		"empty": nil, "words": []byte("words"), "key": key,
		"damaged": []byte(strings.Replace(string(EncodeBundle(l.leaf)), "MII", "AAA", 1)),
		"many":    bytes.Repeat(EncodeBundle(l.leaf), 33),
		"large":   bytes.Repeat([]byte{'\n'}, maxBundle+1),
	} {
		if _, err := ParseBundle(in); err == nil {
			t.Errorf("%s was accepted", name)
		}
	}
	for name, certs := range map[string][]*x509.Certificate{
		"none": {}, "two leaves": {l.leaf, other.leaf}, "stranger": {l.leaf, l.sub.cert, other.sub.cert},
	} {
		if _, err := OrderChain(certs); err == nil {
			t.Errorf("%s was ordered", name)
		}
	}
}
