// Package issuer owns configured issuers, their CA generations, and the interface that every certificate authority is
// driven through. It knows nothing about certificates as managed things: it is given a request and answers with a chain.
//
// A driver (localca, acme, stepca, script …) lives in a folder of its own, imports this package, pki, fault, dial and at
// most one SDK, and never the database.
package issuer

import (
	"context"
	"crypto/x509"
	"time"

	"certctl/shared/pki"
)

// Request is what a CA is asked for. Names and lifetime come from the record and its profile, never from the CSR.
type Request struct {
	Key        string        // stable per job: a CA that has idempotency tokens gets this one
	CSR        []byte        // DER, admitted: names and key were checked against Names and the profile
	Names      pki.Names     // what the certificate must carry
	TTL        time.Duration // wanted lifetime; 0: the issuer's own default
	EKUs       []string      // serverAuth, clientAuth …; empty: serverAuth and clientAuth
	MustStaple bool          // TLS feature status_request (RFC 7633)
	PublicTLS  bool          // lint with the CA/Browser Forum's sources too
	Shard      int16         // CRL shard, settled when the job was made

	// Checkpoint is what the last Save kept, nil at first. Save stores it under the job's lease: a driver calls it before
	// each step that cannot be taken back, so that after a crash the same order is found and finished (SPEC ISS-0).
	Checkpoint []byte
	Save       func(ctx context.Context, checkpoint []byte) error
}

// Result is Issued or Pending.
type Result interface{ result() }

// Issued is a finished certificate: leaf first, then intermediates, without the root.
type Issued struct {
	Chain []*x509.Certificate
}

// Pending says that the CA is not ready: Poll with Handle, not before After.
type Pending struct {
	Handle []byte
	After  time.Duration
}

func (Issued) result()  {}
func (Pending) result() {}

// Issuer asks a CA. Submit may be called again with the Checkpoint of an earlier call that was killed at any point: it then
// goes on with what the CA was asked, and never asks for a second certificate where the CA lets a request be found again.
//
// Errors: a fault of kind Invalid or Denied is final (the CA refused); anything else is retried by the job engine.
type Issuer interface {
	Submit(ctx context.Context, r Request) (Result, error)
}

// Poller is an issuer that can answer Pending.
type Poller interface {
	Poll(ctx context.Context, r Request, handle []byte) (Result, error)
}

// Revoker is an issuer that must be asked to revoke. "Already revoked" is success.
type Revoker interface {
	Revoke(ctx context.Context, leaf *x509.Certificate, reason pki.Reason) error
}

// Window is a suggested renewal window (ARI, RFC 9773).
type Window struct {
	Start, End  time.Time
	Explanation string        // URL for people, or ""
	RetryAfter  time.Duration // when to ask again
}

// Advisor is an issuer that suggests when to renew.
type Advisor interface {
	RenewalWindow(ctx context.Context, leaf *x509.Certificate) (Window, error)
}

// Tester is an issuer that can check its settings without issuing.
type Tester interface {
	Test(ctx context.Context) error
}
