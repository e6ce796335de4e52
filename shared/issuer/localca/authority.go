package localca

import (
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"certctl/shared/fault"
	"certctl/shared/pki"
)

// Authority describes a root to be made.
type Authority struct {
	Subject   pkix.Name
	Algorithm pki.KeyAlgorithm // an RSA or ECDSA one; "": ecdsa-p256
	TTL       time.Duration
	PathLen   int // CA certificates that may follow; 0: it signs leaves only; -1: any number

	// Name constraints (RFC 5280 4.2.1.10), critical. A domain covers itself and what is below it.
	PermittedDNS, ExcludedDNS []string
	PermittedIPs, ExcludedIPs []netip.Prefix
}

// NewRoot makes a key and its self-signed certificate, valid from one minute before now.
func NewRoot(a Authority, now time.Time) (*x509.Certificate, crypto.Signer, error) {
	key, err := newCAKey(a.Algorithm)
	if err != nil {
		return nil, nil, err
	}
	cert, err := SelfSign(a, key, now)
	if err != nil {
		return nil, nil, err
	}
	return cert, key, nil
}

func newCAKey(a pki.KeyAlgorithm) (crypto.Signer, error) {
	if a == "" {
		a = pki.ECDSAP256
	}
	if a == pki.Ed25519 {
		return nil, fault.BadField("key_algorithm", "must be RSA or ECDSA for a CA")
	}
	return pki.Generate(a)
}

// SelfSign makes a root certificate for a key that exists already, such as one in a key service.
func SelfSign(a Authority, key crypto.Signer, now time.Time) (*x509.Certificate, error) {
	if a.TTL <= 0 || a.PathLen < -1 {
		return nil, fault.BadField("ttl", "must be positive, and the path length not below -1")
	}
	t := &x509.Certificate{
		Subject:   a.Subject,
		NotBefore: now.Add(-maxBackdate), NotAfter: now.Add(a.TTL),
		MaxPathLen: a.PathLen, MaxPathLenZero: a.PathLen == 0,
		PermittedDNSDomains: a.PermittedDNS, ExcludedDNSDomains: a.ExcludedDNS,
		PermittedIPRanges: ipNets(a.PermittedIPs), ExcludedIPRanges: ipNets(a.ExcludedIPs),
	}
	return selfSign(t, key)
}

func ipNets(prefixes []netip.Prefix) []*net.IPNet {
	var out []*net.IPNet
	for _, p := range prefixes {
		p = p.Masked()
		out = append(out, &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())})
	}
	return out
}

func selfSign(t *x509.Certificate, key crypto.Signer) (*x509.Certificate, error) {
	if len(t.RawSubject) == 0 && t.Subject.String() == "" {
		return nil, fault.BadField("subject", "must not be empty")
	}
	t.SerialNumber, t.SubjectKeyId, t.AuthorityKeyId = pki.NewSerial(), pki.KeyID(key.Public()), pki.KeyID(key.Public())
	t.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageCRLSign
	t.BasicConstraintsValid, t.IsCA = true, true
	t.PermittedDNSDomainsCritical = true
	der, err := x509.CreateCertificate(rand.Reader, t, t, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("localca: self-signing: %w", err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("localca: reading the root: %w", err)
	}
	return cert, nil
}

// Renew makes the next certificate of a root with the same key, name and limits: leaves of both verify with either.
func Renew(g Generation, ttl time.Duration, now time.Time) (Generation, error) {
	return successor(g, g.Signer, ttl, now)
}

// Rekey makes the next generation of a root with a new key and the same name and limits. Its CRL and responder are its own.
func Rekey(g Generation, a pki.KeyAlgorithm, ttl time.Duration, now time.Time) (Generation, error) {
	key, err := newCAKey(a)
	if err != nil {
		return Generation{}, err
	}
	return successor(g, key, ttl, now)
}

func successor(g Generation, key crypto.Signer, ttl time.Duration, now time.Time) (Generation, error) {
	if !pki.SelfSigned(g.Cert) {
		return Generation{}, fault.New(fault.Conflict, "A sub-CA is renewed by its parent: make a new request and import the answer.")
	}
	if ttl <= 0 {
		return Generation{}, fault.BadField("ttl", "must be positive")
	}
	old := g.Cert
	cert, err := selfSign(&x509.Certificate{
		RawSubject: old.RawSubject,
		NotBefore:  now.Add(-maxBackdate), NotAfter: now.Add(ttl),
		MaxPathLen: old.MaxPathLen, MaxPathLenZero: old.MaxPathLenZero, ExtKeyUsage: old.ExtKeyUsage,
		PermittedDNSDomains: old.PermittedDNSDomains, ExcludedDNSDomains: old.ExcludedDNSDomains,
		PermittedIPRanges: old.PermittedIPRanges, ExcludedIPRanges: old.ExcludedIPRanges,
		PermittedEmailAddresses: old.PermittedEmailAddresses, ExcludedEmailAddresses: old.ExcludedEmailAddresses,
		PermittedURIDomains: old.PermittedURIDomains, ExcludedURIDomains: old.ExcludedURIDomains,
	}, key)
	if err != nil {
		return Generation{}, err
	}
	return Generation{Cert: cert, Signer: key}, nil
}

// RequestSubCA makes the CSR (DER) that an enterprise CA is given to sign a sub-CA. It asks for CA:TRUE with the path length
// (-1: none), keyCertSign and cRLSign. Import takes the answer.
func RequestSubCA(subject pkix.Name, pathLen int, key crypto.Signer) ([]byte, error) {
	limits, err := asn1.Marshal(struct {
		IsCA    bool
		PathLen int `asn1:"optional,default:-1"`
	}{true, pathLen})
	if err != nil {
		return nil, fmt.Errorf("localca: encoding basic constraints: %w", err)
	}
	usage, err := asn1.Marshal(asn1.BitString{Bytes: []byte{0x06}, BitLength: 7})
	if err != nil {
		return nil, fmt.Errorf("localca: encoding key usage: %w", err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
		Subject: subject,
		ExtraExtensions: []pkix.Extension{
			{Id: asn1.ObjectIdentifier{2, 5, 29, 19}, Critical: true, Value: limits},
			{Id: asn1.ObjectIdentifier{2, 5, 29, 15}, Critical: true, Value: usage},
		},
	}, key)
	if err != nil {
		return nil, fmt.Errorf("localca: making a sub-CA request: %w", err)
	}
	return der, nil
}

// Import takes over an existing CA: a root, or a sub-CA with its parents in any order (roots among them are left out). The
// key must belong to the certificate, the certificate must be a valid CA with keyCertSign, cRLSign and a subject key
// identifier. What is wrong is an Invalid fault about "certificate_pem" or "key".
func Import(bundle []byte, key crypto.Signer, now time.Time) (Generation, error) {
	certs, err := pki.ParseBundle(bundle)
	if err != nil {
		return Generation{}, fault.BadField("certificate_pem", "%v", err)
	}
	chain := certs
	if len(certs) > 1 {
		if chain, err = pki.OrderChain(certs); err != nil {
			return Generation{}, fault.BadField("certificate_pem", "%v", err)
		}
	}
	g := Generation{Cert: chain[0], Chain: chain[1:], Signer: key}
	if err := g.check(); err != nil {
		return Generation{}, err
	}
	if now.Before(g.Cert.NotBefore) || now.After(g.notAfter()) {
		return Generation{}, fault.BadField("certificate_pem", "is expired or not valid yet")
	}
	return g, nil
}

// check holds a generation against what signing needs.
func (g *Generation) check() error {
	switch {
	case g.Cert == nil || g.Signer == nil:
		return errors.New("localca: a generation needs a certificate and a key")
	case !pki.KeyMatches(g.Cert, g.Signer):
		return fault.BadField("key", "does not belong to the CA certificate")
	case !g.Cert.BasicConstraintsValid || !g.Cert.IsCA:
		return fault.BadField("certificate_pem", "is not a CA certificate (CA:TRUE)")
	case g.Cert.KeyUsage&x509.KeyUsageCertSign == 0 || g.Cert.KeyUsage&x509.KeyUsageCRLSign == 0:
		return fault.BadField("certificate_pem", "must have the key usages keyCertSign and cRLSign")
	case len(g.Cert.SubjectKeyId) == 0:
		return fault.BadField("certificate_pem", "must have a subject key identifier")
	}
	if alg, err := pki.AlgorithmOf(g.Cert.PublicKey); err != nil || alg == pki.Ed25519 {
		return fault.BadField("key", "must be RSA of 2048, 3072 or 4096 bits or ECDSA on P-256, P-384 or P-521")
	}
	return nil
}
