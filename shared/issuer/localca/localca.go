// Package localca is the local certificate authority: the issuer driver that signs with a key of our own, and the functions
// that make, import and renew such authorities. It owns what our certificates contain (ISS-1) and that they are linted
// before they are signed. It has no database: generations, URLs and keys are given to it, and what must survive a crash goes
// through the request's Save.
//
// The surprising rule: a certificate is made twice. A draft signed by a throwaway key is linted, its TBSCertificate is saved,
// and then exactly these bytes are signed by the CA's key, again after every crash, so that one request has one certificate.
package localca

import (
	"bytes"
	"context"
	"crypto"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"certctl/shared/crash"
	"certctl/shared/fault"
	"certctl/shared/issuer"
	"certctl/shared/pki"
)

// Generation is one certificate and key of a CA. A re-key or a renewal makes a new one; the issuer stays the same.
type Generation struct {
	Cert   *x509.Certificate
	Chain  []*x509.Certificate // for a sub-CA its parents, nearest first, without the root; empty for a root
	Signer crypto.Signer

	root bool // set by New: the certificate is self-signed, which takes a signature check to know
}

// URLs go into certificates; an empty one is left out. Relying parties fetch them over plain HTTP.
type URLs struct {
	CRL       func(shard int16) string // the CRL of a shard, equal to the IDP of that CRL; nil: none
	OCSP      string
	CAIssuers string // the CA's own certificate in DER
}

// Config is a configured local CA.
type Config struct {
	Generation Generation
	Older      []Generation     // earlier ones with their keys: a TBS that was saved under one of them is signed by it
	URLs       URLs             // of the newest generation
	Lint       Linter           // judges every draft; needed
	DefaultTTL time.Duration    // for requests without one; 0: 90 days
	Now        func() time.Time // nil: time.Now
}

const (
	defaultTTL  = 90 * 24 * time.Hour
	maxBackdate = time.Minute
)

// CA is the driver. It is safe for concurrent use.
type CA struct {
	cfg   Config
	gen   Generation
	older []Generation
}

var (
	_ issuer.Issuer = (*CA)(nil)
	_ issuer.Tester = (*CA)(nil)
)

// New makes the driver. A generation whose key does not belong to its certificate, or that may not sign certificates and
// CRLs, is an error.
func New(cfg Config) (*CA, error) {
	ca := &CA{gen: cfg.Generation, older: slices.Clone(cfg.Older)}
	for _, g := range ca.generations() {
		if err := g.check(); err != nil {
			return nil, err
		}
		g.root = pki.SelfSigned(g.Cert)
	}
	if cfg.Lint == nil {
		return nil, errors.New("localca: a CA needs a linter")
	}
	if cfg.DefaultTTL == 0 {
		cfg.DefaultTTL = defaultTTL
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	ca.cfg = cfg
	return ca, nil
}

// generations are all that have a key here, the newest first.
func (c *CA) generations() []*Generation {
	all := []*Generation{&c.gen}
	for i := range c.older {
		all = append(all, &c.older[i])
	}
	return all
}

// checkpoint is what is saved before signing. Serial is for people; TBS alone is signed.
type checkpoint struct {
	Serial string `json:"serial"`
	TBS    []byte `json:"tbs"`
}

// Submit issues at once. With a checkpoint it signs what was saved and nothing else, even if the clock, the URLs or the
// newest generation have changed meanwhile; a checkpoint that does not belong to the request's key and names is an error.
func (c *CA) Submit(ctx context.Context, r issuer.Request) (issuer.Result, error) {
	csr, err := pki.ParseCSR(r.CSR)
	if err != nil {
		return nil, err
	}
	s := step{pub: csr.PublicKey, saved: r.Checkpoint, save: r.Save}
	s.draft = func() ([]byte, error) { return c.draftLeaf(csr.PublicKey, r) }
	s.fits = func(draft *x509.Certificate) bool {
		got, err := pki.CertificateNames(draft)
		return err == nil && got.Equal(r.Names)
	}
	leaf, gen, err := c.issue(ctx, s)
	if err != nil {
		return nil, err
	}
	return issuer.Issued{Chain: gen.chain(leaf)}, nil
}

// Test proves that the key answers and belongs to the certificate, and that the CA has not expired. It issues nothing.
func (c *CA) Test(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if c.cfg.Now().After(c.gen.notAfter()) {
		return fault.New(fault.Conflict, "The CA certificate has expired. Renew the CA.")
	}
	if err := pki.ProveKey(c.gen.Cert, c.gen.Signer); err != nil {
		return fault.Wrap(err, fault.Unavailable, "The CA's key does not sign for the CA's certificate.")
	}
	return nil
}

// step is one recorded issuance.
type step struct {
	pub   crypto.PublicKey
	saved []byte // what the last Save kept
	save  func(context.Context, []byte) error
	draft func() ([]byte, error)             // makes the TBS where nothing is saved
	fits  func(draft *x509.Certificate) bool // whether a TBS is what the request asks for
}

var errForeignCheckpoint = errors.New("localca: the saved checkpoint belongs to another request")

// issue drafts, saves and signs; or, with a saved TBS, only signs. The certificate is checked against the CA's key before it
// is given out: a wrong signature from a key service would otherwise be found by relying parties.
func (c *CA) issue(ctx context.Context, s step) (*x509.Certificate, *Generation, error) {
	if err := ctx.Err(); err != nil {
		return nil, nil, fmt.Errorf("localca: before drafting: %w", err)
	}
	tbs, err := s.recordedTBS(ctx)
	if err != nil {
		return nil, nil, err
	}
	gen, err := c.generationOf(tbs, s)
	if err != nil {
		return nil, nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, nil, fmt.Errorf("localca: before signing: %w", err)
	}
	crash.At(crash.IssueSign, crash.Before)
	der, err := pki.SignTBS(tbs, gen.Signer)
	if err != nil {
		return nil, nil, fmt.Errorf("localca: %w", err)
	}
	crash.At(crash.IssueSign, crash.After)
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, nil, fmt.Errorf("localca: reading the signed certificate: %w", err)
	}
	if err := cert.CheckSignatureFrom(gen.Cert); err != nil {
		return nil, nil, fmt.Errorf("localca: the signature does not verify with the CA certificate: %w", err)
	}
	return cert, gen, nil
}

// recordedTBS gives the bytes to be signed, which are saved when it returns.
func (s step) recordedTBS(ctx context.Context) ([]byte, error) {
	if len(s.saved) > 0 {
		var cp checkpoint
		if err := json.Unmarshal(s.saved, &cp); err != nil || len(cp.TBS) == 0 {
			return nil, errors.New("localca: the saved checkpoint cannot be read")
		}
		return cp.TBS, nil
	}
	if s.save == nil {
		return nil, errors.New("localca: the request has no Save: nothing may be signed that is not recorded first")
	}
	tbs, err := s.draft()
	if err != nil {
		return nil, err
	}
	parsed, err := pki.ParseTBS(tbs)
	if err != nil {
		return nil, fmt.Errorf("localca: %w", err)
	}
	saved, err := json.Marshal(checkpoint{Serial: pki.FormatSerial(parsed.SerialNumber), TBS: tbs})
	if err != nil {
		return nil, fmt.Errorf("localca: encoding the checkpoint: %w", err)
	}
	if err := s.save(ctx, saved); err != nil {
		return nil, fmt.Errorf("localca: saving the checkpoint: %w", err)
	}
	return tbs, nil
}

// generationOf finds the generation that a TBS names as its issuer, and makes sure that the TBS is what was asked for.
func (c *CA) generationOf(tbs []byte, s step) (*Generation, error) {
	draft, err := pki.ParseTBS(tbs)
	if err != nil {
		return nil, fmt.Errorf("localca: the saved checkpoint cannot be used: %w", err)
	}
	if draft.IsCA || !pki.SameKey(draft.PublicKey, s.pub) || !s.fits(draft) {
		return nil, errForeignCheckpoint
	}
	for _, g := range c.generations() {
		if g.issued(draft) {
			return g, nil
		}
	}
	return nil, fault.New(fault.Conflict, "The certificate was prepared under a generation of the CA whose key is not here. Request it again.")
}

func (g *Generation) issued(c *x509.Certificate) bool {
	return bytes.Equal(c.RawIssuer, g.Cert.RawSubject) && bytes.Equal(c.AuthorityKeyId, g.Cert.SubjectKeyId)
}

// chain is what the holder of a leaf serves: the root is left out.
func (g *Generation) chain(leaf *x509.Certificate) []*x509.Certificate {
	if g.root {
		return []*x509.Certificate{leaf}
	}
	return append([]*x509.Certificate{leaf, g.Cert}, g.Chain...)
}

// notAfter is the end of the CA certificate, or of the first parent that ends before it.
func (g *Generation) notAfter() time.Time {
	end := g.Cert.NotAfter
	for _, p := range g.Chain {
		if p.NotAfter.Before(end) {
			end = p.NotAfter
		}
	}
	return end
}
