// Package revocation owns what relying parties are told: revocation entries, CRL numbers and published CRLs per generation
// and shard, OCSP responder certificates, and the status read behind an OCSP answer.
//
// It signs nothing: a publication is begun here (number, dirty mark and snapshot in one short transaction), signed by the
// caller outside any transaction, and finished here (swapped in only over a smaller number).
package revocation

import (
	"context"
	"errors"
	"iter"
	"math/big"
	"time"

	"certctl/shared/db"
	"certctl/shared/id"
	"certctl/shared/pki"

	"github.com/jackc/pgx/v5"
)

// Entry is a revoked certificate of a local CA.
type Entry struct {
	GenerationID id.Generation
	Shard        int16
	Serial       []byte
	Reason       pki.Reason
	RevokedAt    time.Time
	ExpiresAt    time.Time // the certificate's notAfter
	VersionID    id.Version
}

// Add lists a certificate in its shard's next CRL and marks the shard dirty. A hold that becomes final is replaced.
func Add(ctx context.Context, q db.Querier, e Entry) error {
	der, err := pki.EncodeCRLEntry(new(big.Int).SetBytes(e.Serial), e.RevokedAt, e.Reason)
	if err != nil {
		return err
	}
	_, err = db.Exec(ctx, q, `WITH e AS (INSERT INTO revocations (generation_id, shard, serial, reason, revoked_at, entry, expires_at, version_id)
			VALUES (@generation, @shard, @serial, @reason, @at, @der, @expires, @version)
			ON CONFLICT (generation_id, serial) DO UPDATE SET reason = excluded.reason, entry = excluded.entry)
		UPDATE crl_state SET dirty_gen = dirty_gen + 1 WHERE generation_id = @generation AND shard = @shard`,
		pgx.NamedArgs{"generation": e.GenerationID, "shard": e.Shard, "serial": e.Serial, "reason": int16(e.Reason), "at": e.RevokedAt, // #nosec G115 -- a reason is below 11
			"der": der, "expires": e.ExpiresAt, "version": e.VersionID})
	return err
}

// Remove takes a lifted hold out of the next CRL.
func Remove(ctx context.Context, q db.Querier, g id.Generation, shard int16, serial []byte) error {
	_, err := db.Exec(ctx, q, `WITH e AS (DELETE FROM revocations WHERE generation_id = @generation AND serial = @serial)
		UPDATE crl_state SET dirty_gen = dirty_gen + 1 WHERE generation_id = @generation AND shard = @shard`,
		pgx.NamedArgs{"generation": g, "shard": shard, "serial": serial})
	return err
}

// Publication is a CRL between its beginning and its end.
type Publication struct {
	Generation id.Generation
	Shard      int16
	Number     int64 // taken: no other publication has it
	DirtyGen   int64 // what it covers
	Entries    [][]byte
	Bytes      int64
	ThisUpdate time.Time
}

// Begin takes a number and a snapshot of the shard's entries in one transaction. An entry leaves once a CRL that was issued
// after the certificate's expiry has carried it (RFC 5280, 3.3).
func Begin(ctx context.Context, b db.Beginner, g id.Generation, shard int16) (Publication, error) {
	p := Publication{Generation: g, Shard: shard}
	err := db.InTx(ctx, b, func(tx pgx.Tx) error {
		// The row lock orders publications: a larger number never has an older snapshot.
		err := tx.QueryRow(ctx, `UPDATE crl_state SET next_number = next_number + 1 WHERE generation_id = $1 AND shard = $2
			RETURNING next_number - 1, dirty_gen, date_trunc('second', clock_timestamp())`, g, shard).Scan(&p.Number, &p.DirtyGen, &p.ThisUpdate)
		if err != nil {
			return err
		}
		rows, err := tx.Query(ctx, `SELECT entry FROM revocations WHERE generation_id = $1 AND shard = $2 AND listed_at IS NULL ORDER BY serial`, g, shard)
		if err != nil {
			return err
		}
		p.Entries, err = pgx.CollectRows(rows, pgx.RowTo[[]byte])
		return err
	})
	for _, e := range p.Entries {
		p.Bytes += int64(len(e))
	}
	return p, err
}

// All iterates over the entries; it can be run again, as a two-pass signer needs.
func (p Publication) All() iter.Seq2[[]byte, error] {
	return func(yield func([]byte, error) bool) {
		for _, e := range p.Entries {
			if !yield(e, nil) {
				return
			}
		}
	}
}

// Signed is a finished CRL.
type Signed struct {
	DER        []byte
	SHA256     []byte
	NextUpdate time.Time
	RefreshAt  time.Time // when the next one is due without any revocation
}

// Finish stores the CRL and makes it current if no larger number is. It answers whether more was revoked meanwhile, so that
// the caller enqueues another publication.
func (p Publication) Finish(ctx context.Context, q db.Querier, s Signed) (dirty bool, err error) {
	dirty, err = db.Scalar[bool](ctx, q, `WITH i AS (INSERT INTO crls (generation_id, shard, number, der, sha256, this_update, next_update, entries)
			VALUES (@g, @shard, @number, @der, @sha, @this, @next, @entries) ON CONFLICT DO NOTHING),
		s AS (UPDATE crl_state SET current_number = @number, published_gen = greatest(published_gen, @dirty), refresh_at = @refresh
			WHERE generation_id = @g AND shard = @shard AND current_number < @number RETURNING dirty_gen > @dirty AS more),
		gone AS (UPDATE revocations SET listed_at = @this WHERE generation_id = @g AND shard = @shard AND listed_at IS NULL AND expires_at < @this AND EXISTS (SELECT 1 FROM s)),
		old AS (DELETE FROM crls WHERE generation_id = @g AND shard = @shard AND number < @number - 3 AND EXISTS (SELECT 1 FROM s))
		SELECT coalesce((SELECT more FROM s), false)`,
		pgx.NamedArgs{"g": p.Generation, "shard": p.Shard, "number": p.Number, "der": s.DER, "sha": s.SHA256, "this": p.ThisUpdate, "next": s.NextUpdate,
			"entries": len(p.Entries), "dirty": p.DirtyGen, "refresh": s.RefreshAt})
	return dirty, err
}

// Published is the current CRL of a generation's shard.
type Published struct {
	DER        []byte
	SHA256     []byte
	Number     int64
	ThisUpdate time.Time
	NextUpdate time.Time
}

// ErrNotYet says that the issuer exists and its first CRL is not published yet.
var ErrNotYet = errors.New("no CRL is published yet")

// Current answers the current CRL of an issuer's generation; number 0 is the newest. NotFound when there is no such
// generation or shard.
func Current(ctx context.Context, q db.Querier, i id.Issuer, number int, shard int16) (Published, error) {
	type row struct {
		DER, SHA256            []byte
		Number                 *int64
		ThisUpdate, NextUpdate *time.Time
	}
	r, err := db.One[row](ctx, q, "CRL", `SELECT c.der, c.sha256, c.number, c.this_update, c.next_update FROM ca_generations g
		JOIN crl_state s ON s.generation_id = g.id AND s.shard = @shard
		LEFT JOIN crls c ON c.generation_id = s.generation_id AND c.shard = s.shard AND c.number = s.current_number
		WHERE g.issuer_id = @issuer AND (@number = 0 OR g.number = @number) ORDER BY g.number DESC LIMIT 1`,
		pgx.NamedArgs{"issuer": i, "number": number, "shard": shard})
	if err != nil {
		return Published{}, err
	}
	if r.Number == nil {
		return Published{}, ErrNotYet
	}
	return Published{DER: r.DER, SHA256: r.SHA256, Number: *r.Number, ThisUpdate: *r.ThisUpdate, NextUpdate: *r.NextUpdate}, nil
}

// State is where a generation's shard stands, for people.
type State struct {
	GenerationID  id.Generation
	Shard         int16
	CurrentNumber int64
	Dirty         bool
	RefreshAt     time.Time
	ThisUpdate    *time.Time
	NextUpdate    *time.Time
	Entries       *int64
}

// States answers the shards of an issuer's generations, newest generation first.
func States(ctx context.Context, q db.Querier, i id.Issuer) ([]State, error) {
	return db.Many[State](ctx, q, `SELECT s.generation_id, s.shard, s.current_number, s.dirty_gen > s.published_gen AS dirty, s.refresh_at, c.this_update, c.next_update, c.entries
		FROM crl_state s JOIN ca_generations g ON g.id = s.generation_id
		LEFT JOIN crls c ON c.generation_id = s.generation_id AND c.shard = s.shard AND c.number = s.current_number
		WHERE g.issuer_id = @issuer ORDER BY g.number DESC, s.shard LIMIT 1000`, pgx.NamedArgs{"issuer": i})
}
