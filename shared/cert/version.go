package cert

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"math/big"
	"time"

	"certctl/shared/db"
	"certctl/shared/fault"
	"certctl/shared/id"
	"certctl/shared/page"
	"certctl/shared/pki"

	"github.com/jackc/pgx/v5"
)

// Version is one issued certificate of a managed certificate.
type Version struct {
	ID               id.Version
	CertificateID    id.Certificate
	IssuerID         id.Issuer
	GenerationID     id.Generation // none for foreign CAs
	JobID            id.Job
	Serial           []byte // big endian, no leading zero octets
	NotBefore        time.Time
	NotAfter         time.Time
	Fingerprint      []byte // SHA-256 of the DER
	SPKISHA256       []byte
	KeyAlgorithm     string
	CRLShard         int16
	RevocationExempt bool
	RevokedAt        *time.Time
	RevocationReason *int16
	StatusChangedAt  *time.Time
	CreatedAt        time.Time
}

const versionColumns = `id, certificate_id, issuer_id, generation_id, job_id, serial, not_before, not_after, fingerprint, spki_sha256, key_algorithm,
	crl_shard, revocation_exempt, revoked_at, revocation_reason, status_changed_at, created_at`

// SerialText is the serial as people read it.
func (v Version) SerialText() string { return pki.FormatSerial(new(big.Int).SetBytes(v.Serial)) }

// Reason is why the version is revoked.
func (v Version) Reason() (pki.Reason, bool) {
	if v.RevocationReason == nil {
		return 0, false
	}
	return pki.Reason(*v.RevocationReason), true
}

// ShortLived is the lifetime under which a certificate needs no revocation (RFC 9608): it is left out of CRL and OCSP.
const ShortLived = time.Hour

// NewVersion is what a version is stored from: the checked chain and where it came from.
type NewVersion struct {
	ID            id.Version
	CertificateID id.Certificate
	IssuerID      id.Issuer
	GenerationID  id.Generation
	JobID         id.Job
	Chain         []*x509.Certificate // leaf, intermediates, no root
	CSR           []byte              // DER
	SealedKey     []byte              // server custody
	CRLShard      int16
	RenewAt       time.Time
	RenewReason   string
}

// Store inserts a version with its blobs, makes it the certificate's current one and plans its renewal: one statement. The
// fingerprint, key hash and exemption are computed here, from the bytes that are stored.
func Store(ctx context.Context, q db.Querier, n NewVersion) (Version, error) {
	leaf := n.Chain[0]
	fingerprint := sha256.Sum256(leaf.Raw)
	spki := pki.SPKIHash(leaf.PublicKey)
	alg, err := pki.AlgorithmOf(leaf.PublicKey)
	if err != nil {
		return Version{}, err
	}
	chain := make([][]byte, len(n.Chain))
	for i, c := range n.Chain {
		chain[i] = c.Raw
	}
	v, err := db.One[Version](ctx, q, "version", `WITH v AS (INSERT INTO versions (id, certificate_id, issuer_id, generation_id, job_id, serial, not_before, not_after,
			fingerprint, spki_sha256, key_algorithm, crl_shard, revocation_exempt)
		VALUES (@id, @certificate, @issuer, @generation, @job, @serial, @not_before, @not_after, @fingerprint, @spki, @alg, @shard, @exempt) RETURNING *),
		b AS (INSERT INTO version_blobs (version_id, chain, csr) VALUES (@id, @chain, @csr)),
		k AS (INSERT INTO version_keys (version_id, sealed) SELECT @id, @key::bytea WHERE @key::bytea IS NOT NULL),
		c AS (UPDATE certificates SET current_version_id = @id, not_after = @not_after, revoked_at = NULL, renew_at = @renew_at, next_try_at = NULL,
			renew_reason = @reason, failures = 0, ari_check_at = NULL, updated_at = now() WHERE id = @certificate)
		SELECT `+versionColumns+` FROM v`,
		pgx.NamedArgs{"id": n.ID, "certificate": n.CertificateID, "issuer": n.IssuerID, "generation": n.GenerationID, "job": n.JobID,
			"serial": leaf.SerialNumber.Bytes(), "not_before": leaf.NotBefore, "not_after": leaf.NotAfter, "fingerprint": fingerprint[:], "spki": spki[:],
			"alg": alg, "shard": n.CRLShard, "exempt": exempt(leaf), "chain": chain, "csr": n.CSR, "key": n.SealedKey,
			"renew_at": n.RenewAt, "reason": n.RenewReason})
	return v, err
}

// exempt reports whether a certificate needs no revocation: it says so (RFC 9608), or it lives shorter than ShortLived with
// both ends counted, as RFC 5280, 4.1.2.5 does.
func exempt(c *x509.Certificate) bool {
	return pki.HasNoRevAvail(c) || c.NotAfter.Sub(c.NotBefore)+time.Second < ShortLived
}

var versionKeys = page.Keys[Version]{
	ID: "id", IDOf: func(v Version) string { return v.ID.UUID() },
	By: map[string]page.Key[Version]{"created_at": {SQL: "created_at", Type: page.Time, Of: func(v Version) string { return page.TimeText(v.CreatedAt) }}},
}

// ListVersions answers a page of a certificate's versions.
func ListVersions(ctx context.Context, q db.Querier, c id.Certificate, p page.Request) (page.Result[Version], error) {
	args := pgx.NamedArgs{"certificate": c}
	return db.List(ctx, q, versionKeys, p, db.Source{Columns: versionColumns, From: "versions", Where: "certificate_id = @certificate"}, args)
}

// GetVersion answers one version of a certificate.
func GetVersion(ctx context.Context, q db.Querier, c id.Certificate, v id.Version) (Version, error) {
	return db.One[Version](ctx, q, "version of this certificate", `SELECT `+versionColumns+` FROM versions WHERE id = @id AND certificate_id = @certificate`,
		pgx.NamedArgs{"id": v, "certificate": c})
}

// VersionByID answers one version.
func VersionByID(ctx context.Context, q db.Querier, v id.Version) (Version, error) {
	return db.One[Version](ctx, q, "version", `SELECT `+versionColumns+` FROM versions WHERE id = @id`, pgx.NamedArgs{"id": v})
}

// Versions answers versions by id.
func Versions(ctx context.Context, q db.Querier, ids ...id.Version) (map[id.Version]Version, error) {
	wanted := make([]string, 0, len(ids))
	for _, i := range ids {
		if !i.IsZero() {
			wanted = append(wanted, i.UUID())
		}
	}
	out := make(map[id.Version]Version, len(wanted))
	if len(wanted) == 0 {
		return out, nil
	}
	rows, err := db.Many[Version](ctx, q, `SELECT `+versionColumns+` FROM versions WHERE id = ANY(@ids::uuid[])`, pgx.NamedArgs{"ids": wanted})
	for _, v := range rows {
		out[v.ID] = v
	}
	return out, err
}

// Chain answers the stored chain of a version: leaf, intermediates, no root.
func Chain(ctx context.Context, q db.Querier, v id.Version) ([]*x509.Certificate, error) {
	type row struct{ Chain [][]byte }
	r, err := db.One[row](ctx, q, "version", `SELECT chain FROM version_blobs WHERE version_id = @id`, pgx.NamedArgs{"id": v})
	if err != nil {
		return nil, err
	}
	out := make([]*x509.Certificate, len(r.Chain))
	for i, der := range r.Chain {
		if out[i], err = x509.ParseCertificate(der); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// SealedKey answers a server-held key as it is stored; NotFound when the key was made elsewhere.
func SealedKey(ctx context.Context, q db.Querier, v id.Version) ([]byte, error) {
	type row struct{ Sealed []byte }
	r, err := db.One[row](ctx, q, "key on the server", `SELECT sealed FROM version_keys WHERE version_id = @id`, pgx.NamedArgs{"id": v})
	return r.Sealed, err
}

// MarkRevoked sets the revocation of a version, and on its certificate when it is the current one, where renewal by itself
// ends. It answers false when the version is revoked already, unless an earlier hold becomes final.
func MarkRevoked(ctx context.Context, q db.Querier, v id.Version, reason pki.Reason) (Version, bool, error) {
	out, err := db.One[Version](ctx, q, "version", `WITH v AS (UPDATE versions SET revoked_at = coalesce(revoked_at, date_trunc('second', now())), revocation_reason = @reason, status_changed_at = now()
			WHERE id = @id AND (revoked_at IS NULL OR (revocation_reason = @hold AND @reason <> @hold)) RETURNING *),
		c AS (UPDATE certificates SET revoked_at = v.revoked_at, renew_at = NULL, next_try_at = NULL, updated_at = now() FROM v WHERE certificates.id = v.certificate_id AND certificates.current_version_id = v.id)
		SELECT `+versionColumns+` FROM v`, pgx.NamedArgs{"id": v, "reason": int16(reason), "hold": int16(pki.CertificateHold)}) // #nosec G115 -- a reason is below 11
	if fault.Is(err, fault.NotFound) {
		out, err = VersionByID(ctx, q, v)
		return out, false, err
	}
	return out, err == nil, err
}

// Unhold lifts a hold. It answers false when the version is not on hold.
func Unhold(ctx context.Context, q db.Querier, v id.Version, renewAt time.Time) (bool, error) {
	n, err := db.Scalar[int64](ctx, q, `WITH v AS (UPDATE versions SET revoked_at = NULL, revocation_reason = NULL, status_changed_at = now()
			WHERE id = @id AND revocation_reason = @hold RETURNING id, certificate_id),
		c AS (UPDATE certificates SET revoked_at = NULL, renew_at = @renew_at, updated_at = now() FROM v WHERE certificates.id = v.certificate_id AND certificates.current_version_id = v.id)
		SELECT count(*) FROM v`, pgx.NamedArgs{"id": v, "hold": int16(pki.CertificateHold), "renew_at": renewAt})
	return n == 1, err
}

// BlockKey refuses a key everywhere from now on and answers the other live versions that use it.
func BlockKey(ctx context.Context, q db.Querier, v Version, by string) ([]Version, error) {
	if _, err := db.Exec(ctx, q, `INSERT INTO blocked_keys (spki_sha256, version_id, created_by) VALUES (@spki, @version, @by) ON CONFLICT DO NOTHING`,
		pgx.NamedArgs{"spki": v.SPKISHA256, "version": v.ID, "by": by}); err != nil {
		return nil, err
	}
	return db.Many[Version](ctx, q, `SELECT `+versionColumns+` FROM versions WHERE spki_sha256 = @spki AND id <> @id AND revoked_at IS NULL AND not_after > now() ORDER BY created_at LIMIT 1000`,
		pgx.NamedArgs{"spki": v.SPKISHA256, "id": v.ID})
}

// KeyBlocked reports whether a key may not be certified.
func KeyBlocked(ctx context.Context, q db.Querier, spki []byte) (bool, error) {
	return db.Scalar[bool](ctx, q, `SELECT EXISTS (SELECT 1 FROM blocked_keys WHERE spki_sha256 = $1)`, spki)
}
