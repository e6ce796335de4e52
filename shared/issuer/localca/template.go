package localca

import (
	"context"
	"crypto"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"slices"
	"time"

	"certctl/shared/fault"
	"certctl/shared/issuer"
	"certctl/shared/pki"
)

// draftLeaf makes the linted TBSCertificate of a requested leaf.
func (c *CA) draftLeaf(pub crypto.PublicKey, r issuer.Request) ([]byte, error) {
	t, err := c.template(pub, r.TTL)
	if err != nil {
		return nil, err
	}
	if err := r.Names.Apply(t); err != nil {
		return nil, err
	}
	if len(r.Names.SANs()) == 0 && r.Names.CommonName == "" {
		return nil, fault.BadField("sans", "must hold a name")
	}
	if t.ExtKeyUsage, err = pki.ParseEKUs(r.EKUs); err != nil {
		return nil, err
	}
	t.KeyUsage = keyUsage(pub, t.ExtKeyUsage)
	c.addRevocation(t, r.Shard, r.MustStaple)
	if r.PublicTLS {
		t.NotAfter = t.NotAfter.Add(-time.Second) // validity is inclusive (RFC 5280 4.1.2.5), and the forum counts so
	}
	return c.draft(t, pub, r.PublicTLS)
}

// template is what leaves and responder certificates have in common. It is backdated one minute for clocks that are behind,
// or a tenth of its lifetime if that is less; it ends with the CA at the latest.
func (c *CA) template(pub crypto.PublicKey, ttl time.Duration) (*x509.Certificate, error) {
	if ttl == 0 {
		ttl = c.cfg.DefaultTTL
	}
	if ttl < 0 {
		return nil, fault.BadField("ttl", "must be positive")
	}
	now := c.cfg.Now().UTC()
	start := latest(now.Add(-min(maxBackdate, ttl/10)), c.gen.Cert.NotBefore).Truncate(time.Second)
	end := start.Add(ttl)
	if limit := c.gen.notAfter(); end.After(limit) {
		end = limit
	}
	if !end.After(now) {
		return nil, fault.New(fault.Denied, "The CA certificate has expired or the lifetime is too short. Renew the CA or ask for more time.")
	}
	return &x509.Certificate{
		SerialNumber: pki.NewSerial(), NotBefore: start, NotAfter: end.Truncate(time.Second),
		BasicConstraintsValid: true, SubjectKeyId: pki.KeyID(pub), AuthorityKeyId: c.gen.Cert.SubjectKeyId,
	}, nil
}

func latest(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// keyUsage: every key signs; an RSA key of a TLS server may also be used for RSA key exchange (TLS 1.2).
func keyUsage(pub crypto.PublicKey, ekus []x509.ExtKeyUsage) x509.KeyUsage {
	u := x509.KeyUsageDigitalSignature
	if _, ok := pub.(*rsa.PublicKey); ok && slices.ContainsFunc(ekus, func(e x509.ExtKeyUsage) bool {
		return e == x509.ExtKeyUsageServerAuth || e == x509.ExtKeyUsageEmailProtection
	}) {
		u |= x509.KeyUsageKeyEncipherment
	}
	return u
}

// addRevocation says where the status is to be had. A short-lived certificate has none and says so (RFC 9608), and cannot
// be asked to staple one.
func (c *CA) addRevocation(t *x509.Certificate, shard int16, mustStaple bool) {
	u := c.cfg.URLs
	if u.CAIssuers != "" {
		t.IssuingCertificateURL = []string{u.CAIssuers}
	}
	if pki.ShortLived(t.NotAfter.Sub(t.NotBefore)) {
		t.ExtraExtensions = append(t.ExtraExtensions, pki.NoRevAvail())
		return
	}
	if u.OCSP != "" {
		t.OCSPServer = []string{u.OCSP}
	}
	if u.CRL != nil {
		t.CRLDistributionPoints = []string{u.CRL(shard)}
	}
	if mustStaple {
		t.ExtraExtensions = append(t.ExtraExtensions, pki.MustStaple())
	}
}

// ResponderRequest asks for the certificate of a delegated OCSP responder. Checkpoint and Save are those of issuer.Request.
type ResponderRequest struct {
	PublicKey  crypto.PublicKey
	TTL        time.Duration
	Checkpoint []byte
	Save       func(ctx context.Context, checkpoint []byte) error
}

// ResponderCertificate issues the certificate with which OCSP answers of the newest generation are signed: issued directly
// by the CA's key, OCSPSigning only, id-pkix-ocsp-nocheck, without revocation URLs (RFC 6960 4.2.2.2). It is drafted, saved
// and signed as a leaf is, so that a repeated job gives the same certificate.
func (c *CA) ResponderCertificate(ctx context.Context, r ResponderRequest) (*x509.Certificate, error) {
	s := step{pub: r.PublicKey, saved: r.Checkpoint, save: r.Save, fits: pki.HasOCSPNoCheck}
	s.draft = func() ([]byte, error) { return c.draftResponder(r) }
	cert, _, err := c.issue(ctx, s)
	return cert, err
}

func (c *CA) draftResponder(r ResponderRequest) ([]byte, error) {
	if _, err := pki.AlgorithmOf(r.PublicKey); err != nil {
		return nil, fault.BadField("public_key", "%v", err)
	}
	t, err := c.template(r.PublicKey, r.TTL)
	if err != nil {
		return nil, err
	}
	t.Subject = pkix.Name{CommonName: responderName(c.gen.Cert.Subject.CommonName)}
	t.KeyUsage = x509.KeyUsageDigitalSignature
	t.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageOCSPSigning}
	t.ExtraExtensions = []pkix.Extension{pki.OCSPNoCheck()}
	return c.draft(t, r.PublicKey, false)
}

// responderName keeps within the 64 characters of a common name.
func responderName(ca string) string {
	const suffix = " OCSP responder"
	name := []rune(ca)
	return string(name[:min(len(name), 64-len(suffix))]) + suffix
}
