// Package lifecycle owns the operations that span nouns, one file each: requesting a certificate, issuing, deploying,
// revoking, publishing, enrolling, the sweep, and what the first start makes. It decides nothing that a noun can decide
// alone, and it knows neither HTTP nor how a driver talks to its CA or target.
//
// An operation that an edge calls takes the transaction from its caller, because an Idempotency-Key and the answer commit
// with the effect. An operation that a job runs opens its own: facts are gathered, the network is asked outside any
// transaction, and the effect, the job's end and the audit event commit together.
package lifecycle

import (
	"context"
	"crypto"
	"log/slog"
	"sync"

	"certctl/shared/crash"
	"certctl/shared/db"
	"certctl/shared/id"
	"certctl/shared/issuer"
	"certctl/shared/issuer/localca"
	"certctl/shared/pki"
	"certctl/shared/secret"
	"certctl/shared/target"

	"github.com/jackc/pgx/v5"
)

// URLs are the bases that are written into certificates and answers.
type URLs struct {
	Public string // https://…: links of the API
	PKI    string // http://…: AIA, CDP and OCSP; relying parties fetch them in plain
}

// CRL is the address of a generation's CRL; it stands in certificates and, critical, in the CRL itself.
func (u URLs) CRL(i id.Issuer, generation int, shard, shards int16) string {
	s := u.PKI + "/.well-known/pki/crl/" + i.String() + "/" + itoa(generation)
	if shards > 1 {
		s += "-" + itoa(int(shard))
	}
	return s
}

// OCSP is the address of an issuer's responder.
func (u URLs) OCSP(i id.Issuer) string { return u.PKI + "/.well-known/pki/ocsp/" + i.String() }

// CA is the address of a generation's certificate.
func (u URLs) CA(i id.Issuer, generation int) string {
	return u.PKI + "/.well-known/pki/ca/" + i.String() + "/" + itoa(generation)
}

// Driver makes an issuer from its settings. config is what may be read, sealed the opened write-only part or nil.
type Driver func(ctx context.Context, c issuer.Configured, sealed []byte) (issuer.Issuer, error)

// House is what operations that jobs run are given: the database, the secrets and the drivers. A program fills in what it
// links; a worker has all of it.
type House struct {
	Pool    db.Beginner
	Box     *secret.Box
	URLs    URLs
	Drivers map[string]Driver
	Lint    localca.Linter     // judges what local CAs are about to sign
	Targets *target.Engine     // deploys to targets without an agent; nil: this program cannot
	Dial    target.DialContext // for probes (verify.from: worker)
	Log     *slog.Logger

	signers sync.Map // id.Generation → crypto.Signer: generations are immutable, opening a key once is enough
}

// sealKey seals a private key bound to its row.
func (h *House) sealKey(ctx context.Context, p secret.Purpose, table, column, row string, key crypto.Signer) ([]byte, error) {
	der, err := pki.MarshalKey(key)
	if err != nil {
		return nil, err
	}
	defer clear(der)
	return h.Box.Seal(ctx, p, secret.Binding{Table: table, Column: column, Row: row}, der)
}

func (h *House) openKey(ctx context.Context, p secret.Purpose, table, column, row string, sealed []byte) (crypto.Signer, error) {
	der, err := h.Box.Open(ctx, p, secret.Binding{Table: table, Column: column, Row: row}, sealed)
	if err != nil {
		return nil, err
	}
	defer clear(der)
	return pki.ParseKey(der)
}

// commit is db.InTx whose end is a recorded step: before, everything is written and nothing committed.
func commit(ctx context.Context, b db.Beginner, step crash.Step, fn func(tx pgx.Tx) error) error {
	err := db.InTx(ctx, b, func(tx pgx.Tx) error {
		if err := fn(tx); err != nil {
			return err
		}
		crash.At(step, crash.Before)
		return nil
	})
	if err == nil {
		crash.At(step, crash.After)
	}
	return err
}
