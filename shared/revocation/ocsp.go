package revocation

import (
	"context"
	"crypto"
	"errors"
	"time"

	"certctl/shared/db"
	"certctl/shared/id"
	"certctl/shared/pki"

	"github.com/jackc/pgx/v5"
)

// NewResponder is a delegated OCSP responder certificate and its sealed key.
type NewResponder struct {
	ID           id.Responder // made by the caller: the sealed key is bound to it
	GenerationID id.Generation
	Certificate  []byte // DER
	SealedKey    []byte
	NotBefore    time.Time
	NotAfter     time.Time
	RenewAt      time.Time
}

// AddResponder stores a responder certificate; answers are signed with the newest one.
func AddResponder(ctx context.Context, q db.Querier, r NewResponder) error {
	_, err := db.Exec(ctx, q, `INSERT INTO ocsp_responders (id, generation_id, certificate, sealed_key, not_before, not_after, renew_at)
		VALUES (@id, @g, @cert, @key, @nb, @na, @renew)`,
		pgx.NamedArgs{"id": r.ID, "g": r.GenerationID, "cert": r.Certificate, "key": r.SealedKey, "nb": r.NotBefore, "na": r.NotAfter, "renew": r.RenewAt})
	return err
}

// ResponderFresh reports whether a generation has a responder certificate that needs no renewal yet.
func ResponderFresh(ctx context.Context, q db.Querier, g id.Generation) (bool, error) {
	return db.Scalar[bool](ctx, q, `SELECT EXISTS (SELECT 1 FROM ocsp_responders WHERE generation_id = $1 AND renew_at > now())`, g)
}

// Responder is what signs the answers of a generation.
type Responder struct {
	ID          id.Responder
	Certificate []byte
	SealedKey   []byte
	NotAfter    time.Time
}

// Authority is the generation that a request names, with its newest responder. Responder is zero when none is issued yet.
type Authority struct {
	GenerationID id.Generation
	IssuerID     id.Issuer
	Hashes       pki.IssuerHashes
	NotAfter     time.Time
	Responder    Responder
}

// Status is what the record says of one serial. Known is false for a serial that the CA never issued.
type Status struct {
	Known     bool
	Exempt    bool // short-lived: no authoritative answer is given (RFC 9608)
	RevokedAt *time.Time
	Reason    pki.Reason
	ChangedAt *time.Time // the last revocation or un-hold
}

// Question is one CertID of a request.
type Question struct {
	Hash    crypto.Hash // SHA-1 or SHA-256
	KeyHash []byte
	Serial  []byte // big endian, no leading zero octets
}

// Answer is the record's answer to a question; Authority is nil when no generation has the key hash.
type Answer struct {
	Authority *Authority
	Status    Status
	Now       time.Time // the database clock, so that all instances use one
}

// $1 issuer, $2 serial, $3 key hash, $4 whether that is SHA-256.
const state = `SELECT g.id, g.issuer_id, g.name_sha1, g.key_sha1, g.name_sha256, g.key_sha256, g.not_after,
		r.id, r.certificate, r.sealed_key, r.not_after,
		v.serial IS NOT NULL, coalesce(v.revocation_exempt, false), v.revoked_at, v.revocation_reason, v.status_changed_at, now()
	FROM ca_generations g
	LEFT JOIN LATERAL (SELECT id, certificate, sealed_key, not_after FROM ocsp_responders o WHERE o.generation_id = g.id AND o.not_before <= now() AND o.not_after > now()
		ORDER BY o.not_before DESC, o.id DESC LIMIT 1) r ON true
	LEFT JOIN versions v ON v.generation_id = g.id AND v.serial = $2
	WHERE g.issuer_id = $1`

const byHash = state + ` AND CASE WHEN $4 THEN g.key_sha256 = $3 ELSE g.key_sha1 = $3 END ORDER BY g.number DESC LIMIT 1`

const bySerial = state + ` ORDER BY (v.serial IS NOT NULL) DESC, g.number DESC LIMIT 1`

// Ask reads the state behind one question to an issuer's responder: one statement.
func Ask(ctx context.Context, q db.Querier, i id.Issuer, qu Question) (Answer, error) {
	return scanAnswer(q.QueryRow(ctx, byHash, i, qu.Serial, qu.KeyHash, qu.Hash == crypto.SHA256))
}

// AskSerial is Ask for a bare serial: the generation that issued it answers, else the newest.
func AskSerial(ctx context.Context, q db.Querier, i id.Issuer, serial []byte) (Answer, error) {
	return scanAnswer(q.QueryRow(ctx, bySerial, i, serial))
}

func scanAnswer(row pgx.Row) (Answer, error) {
	var a Authority
	var s Status
	var ns1, ks1, ns256, ks256 []byte
	var rid id.Responder
	var rcert, rkey []byte
	var rend *time.Time
	var reason *int16
	var now time.Time
	err := row.Scan(&a.GenerationID, &a.IssuerID, &ns1, &ks1, &ns256, &ks256, &a.NotAfter, &rid, &rcert, &rkey, &rend,
		&s.Known, &s.Exempt, &s.RevokedAt, &reason, &s.ChangedAt, &now)
	if errors.Is(err, pgx.ErrNoRows) {
		return Answer{}, nil
	}
	if err != nil {
		return Answer{}, db.Fault(err)
	}
	copy(a.Hashes.NameSHA1[:], ns1)
	copy(a.Hashes.KeySHA1[:], ks1)
	copy(a.Hashes.NameSHA256[:], ns256)
	copy(a.Hashes.KeySHA256[:], ks256)
	if rend != nil {
		a.Responder = Responder{ID: rid, Certificate: rcert, SealedKey: rkey, NotAfter: *rend}
	}
	if reason != nil {
		s.Reason = pki.Reason(*reason)
	}
	return Answer{Authority: &a, Status: s, Now: now}, nil
}

// CACertificate answers the newest CA certificate of an issuer and its age, for AIA.
func CACertificate(ctx context.Context, q db.Querier, i id.Issuer, number int) (der []byte, notAfter time.Time, err error) {
	type row struct {
		Certificate []byte
		NotAfter    time.Time
	}
	r, err := db.One[row](ctx, q, "CA certificate", `SELECT certificate, not_after FROM ca_generations WHERE issuer_id = @i AND (@n = 0 OR number = @n) ORDER BY number DESC LIMIT 1`,
		pgx.NamedArgs{"i": i, "n": number})
	return r.Certificate, r.NotAfter, err
}
