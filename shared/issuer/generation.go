package issuer

import (
	"context"
	"crypto/x509"
	"time"

	"certctl/shared/db"
	"certctl/shared/id"
	"certctl/shared/pki"

	"github.com/jackc/pgx/v5"
)

// Generation is one key and certificate of a local CA. Re-key and renewal add a generation; each has its own CRL and OCSP
// responder, and certificates stay with the one that signed them.
type Generation struct {
	ID          id.Generation
	IssuerID    id.Issuer
	Number      int
	Certificate []byte   // DER
	Parents     [][]byte // DER, issuing CA first, without the root; empty for a root
	KeyURI      *string  // where the key is, when it is not sealed in the row
	CRLShards   int16
	NotBefore   time.Time
	NotAfter    time.Time
	CreatedAt   time.Time
}

const generationColumns = `id, issuer_id, number, certificate, parents, key_uri, crl_shards, not_before, not_after, created_at`

// X509 is the parsed certificate.
func (g Generation) X509() (*x509.Certificate, error) { return x509.ParseCertificate(g.Certificate) }

// Chain are the parsed parents.
func (g Generation) Chain() ([]*x509.Certificate, error) {
	out := make([]*x509.Certificate, len(g.Parents))
	for i, der := range g.Parents {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, err
		}
		out[i] = c
	}
	return out, nil
}

// NewGeneration is what a generation is stored from. One of SealedKey and KeyURI is set, or neither: then ID is that of a
// certificate request (ca_requests), whose key becomes the generation's in the database.
type NewGeneration struct {
	ID        id.Generation // made by the caller: the sealed key is bound to it
	IssuerID  id.Issuer
	Cert      *x509.Certificate
	Parents   []*x509.Certificate
	SealedKey []byte
	KeyURI    string
}

// AddGeneration stores the next generation of an issuer. Two at once: one of them meets a Conflict and may try again.
func AddGeneration(ctx context.Context, q db.Querier, n NewGeneration) (Generation, error) {
	h := pki.HashIssuer(n.Cert)
	parents := make([][]byte, len(n.Parents))
	for i, p := range n.Parents {
		parents[i] = p.Raw
	}
	return db.One[Generation](ctx, q, "generation", `WITH g AS (INSERT INTO ca_generations (id, issuer_id, number, certificate, parents, sealed_key, key_uri,
			name_sha1, key_sha1, name_sha256, key_sha256, not_before, not_after)
		SELECT @id, @issuer, 1 + coalesce((SELECT max(number) FROM ca_generations WHERE issuer_id = @issuer), 0), @cert, @parents, @key, nullif(@uri, ''),
			@ns1, @ks1, @ns256, @ks256, @not_before, @not_after RETURNING `+generationColumns+`),
		s AS (INSERT INTO crl_state (generation_id, shard) SELECT id, generate_series(0, crl_shards - 1) FROM g)
		SELECT * FROM g`,
		pgx.NamedArgs{"id": n.ID, "issuer": n.IssuerID, "cert": n.Cert.Raw, "parents": parents, "key": n.SealedKey, "uri": n.KeyURI,
			"ns1": h.NameSHA1[:], "ks1": h.KeySHA1[:], "ns256": h.NameSHA256[:], "ks256": h.KeySHA256[:], "not_before": n.Cert.NotBefore, "not_after": n.Cert.NotAfter})
}

// LatestGeneration answers the generation that signs.
func LatestGeneration(ctx context.Context, q db.Querier, i id.Issuer) (Generation, error) {
	return db.One[Generation](ctx, q, "generation of this issuer", `SELECT `+generationColumns+` FROM ca_generations WHERE issuer_id = @id ORDER BY number DESC LIMIT 1`, pgx.NamedArgs{"id": i})
}

// GetGeneration answers one generation.
func GetGeneration(ctx context.Context, q db.Querier, g id.Generation) (Generation, error) {
	return db.One[Generation](ctx, q, "generation", `SELECT `+generationColumns+` FROM ca_generations WHERE id = @id`, pgx.NamedArgs{"id": g})
}

// GenerationByNumber answers a generation of an issuer.
func GenerationByNumber(ctx context.Context, q db.Querier, i id.Issuer, number int) (Generation, error) {
	return db.One[Generation](ctx, q, "generation of this issuer", `SELECT `+generationColumns+` FROM ca_generations WHERE issuer_id = @id AND number = @n`, pgx.NamedArgs{"id": i, "n": number})
}

// Generations answers all generations of an issuer, newest first. There are few.
func Generations(ctx context.Context, q db.Querier, i id.Issuer) ([]Generation, error) {
	return db.Many[Generation](ctx, q, `SELECT `+generationColumns+` FROM ca_generations WHERE issuer_id = @id ORDER BY number DESC LIMIT 200`, pgx.NamedArgs{"id": i})
}

// SealedKey answers a generation's sealed key. Only the worker may read it.
func SealedKey(ctx context.Context, q db.Querier, g id.Generation) ([]byte, error) {
	return db.Scalar[[]byte](ctx, q, `SELECT sealed_key FROM ca_generations WHERE id = $1`, g)
}
