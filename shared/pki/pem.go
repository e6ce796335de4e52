package pki

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
)

// Bounds of a bundle of certificates.
const (
	maxBundle     = 256 << 10
	maxBundleSize = 32 // certificates
)

// EncodeBundle writes certificates as PEM, in the order given.
func EncodeBundle(certs ...*x509.Certificate) []byte {
	var out bytes.Buffer
	for _, c := range certs {
		out.Write(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw}))
	}
	return out.Bytes()
}

// ParseBundle reads certificates in PEM, or one in DER: at least one, at most 32 and 256 KB. Text between the blocks is
// skipped, blocks of another type are refused. Errors hold nothing of the input.
func ParseBundle(data []byte) ([]*x509.Certificate, error) {
	if len(data) > maxBundle {
		return nil, errors.New("the bundle is larger than 256 KB")
	}
	if !bytes.Contains(data, []byte("-----BEGIN")) {
		c, err := x509.ParseCertificate(data)
		if err != nil {
			return nil, errors.New("the input is not a certificate in PEM or DER")
		}
		return []*x509.Certificate{c}, nil
	}
	var certs []*x509.Certificate
	for block, rest := pem.Decode(data); block != nil; block, rest = pem.Decode(rest) {
		if block.Type != "CERTIFICATE" {
			return nil, errors.New("the bundle holds a PEM block that is not a certificate")
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("certificate %d of the bundle is malformed", len(certs)+1)
		}
		if certs = append(certs, c); len(certs) > maxBundleSize {
			return nil, errors.New("the bundle holds more than 32 certificates")
		}
	}
	if len(certs) == 0 {
		return nil, errors.New("the bundle holds no certificate")
	}
	return certs, nil
}

// OrderChain puts certificates in the order leaf, issuer, issuer of the issuer …, beginning with the one that certifies
// none of the others. Self-signed roots and duplicates are left out; a certificate that does not belong to the leaf's chain
// is an error.
func OrderChain(certs []*x509.Certificate) ([]*x509.Certificate, error) {
	rest := withoutRootsAndDuplicates(certs)
	leaf, err := findLeaf(rest)
	if err != nil {
		return nil, err
	}
	chain := []*x509.Certificate{leaf}
	for len(chain) < len(rest) {
		next := issuerOf(chain[len(chain)-1], rest, chain)
		if next == nil {
			return nil, errors.New("the bundle holds a certificate that is not part of the leaf's chain")
		}
		chain = append(chain, next)
	}
	return chain, nil
}

// SelfSigned reports whether the certificate is its own issuer (a root), by name and signature.
func SelfSigned(c *x509.Certificate) bool {
	return bytes.Equal(c.RawSubject, c.RawIssuer) && c.CheckSignature(c.SignatureAlgorithm, c.RawTBSCertificate, c.Signature) == nil
}

func withoutRootsAndDuplicates(certs []*x509.Certificate) []*x509.Certificate {
	var out []*x509.Certificate
	for _, c := range certs {
		if SelfSigned(c) && len(certs) > 1 || has(out, c) {
			continue
		}
		out = append(out, c)
	}
	return out
}

func has(list []*x509.Certificate, c *x509.Certificate) bool {
	for _, x := range list {
		if x.Equal(c) {
			return true
		}
	}
	return false
}

func findLeaf(certs []*x509.Certificate) (*x509.Certificate, error) {
	var leaf *x509.Certificate
	for _, c := range certs {
		issues := false
		for _, o := range certs {
			issues = issues || o != c && o.CheckSignatureFrom(c) == nil
		}
		if issues {
			continue
		}
		if leaf != nil {
			return nil, errors.New("the bundle holds two certificates that issued none of the others")
		}
		leaf = c
	}
	if leaf == nil {
		return nil, errors.New("the bundle holds no leaf certificate")
	}
	return leaf, nil
}

func issuerOf(c *x509.Certificate, among, used []*x509.Certificate) *x509.Certificate {
	for _, p := range among {
		if !has(used, p) && c.CheckSignatureFrom(p) == nil {
			return p
		}
	}
	return nil
}
