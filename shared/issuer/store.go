package issuer

import (
	"context"
	"encoding/json"
	"time"

	"certctl/shared/db"
	"certctl/shared/fault"
	"certctl/shared/id"
	"certctl/shared/page"

	"github.com/jackc/pgx/v5"
)

// Configured is an issuer's row: a named CA with its settings. Secrets among them are sealed apart and are never read back.
type Configured struct {
	ID         id.Issuer
	Name       string
	Type       string          // a driver's name: local, acme, stepca, script …
	Config     json.RawMessage // what may be read back
	LastTest   json.RawMessage // {at, ok, detail} of the newest connection test, or null
	CreatedAt  time.Time
	UpdatedAt  time.Time
	ArchivedAt *time.Time
}

const columns = `id, name, type, config, last_test, created_at, updated_at, archived_at`

// Insert stores an issuer. sealed may be nil.
func Insert(ctx context.Context, q db.Querier, c Configured, sealed []byte) (Configured, error) {
	return db.One[Configured](ctx, q, "issuer", `INSERT INTO issuers (id, name, type, config, sealed_config) VALUES (@id, @name, @type, @config, @sealed) RETURNING `+columns,
		pgx.NamedArgs{"id": c.ID, "name": c.Name, "type": c.Type, "config": c.Config, "sealed": sealed})
}

// Rename changes an issuer's name.
func Rename(ctx context.Context, q db.Querier, i id.Issuer, name string) (Configured, error) {
	return db.One[Configured](ctx, q, "issuer", `UPDATE issuers SET name = @name, updated_at = now() WHERE id = @id AND archived_at IS NULL RETURNING `+columns,
		pgx.NamedArgs{"id": i, "name": name})
}

// Get answers one issuer.
func Get(ctx context.Context, q db.Querier, i id.Issuer) (Configured, error) {
	return db.One[Configured](ctx, q, "issuer", `SELECT `+columns+` FROM issuers WHERE id = @id`, pgx.NamedArgs{"id": i})
}

// ByName answers the live issuer of a name.
func ByName(ctx context.Context, q db.Querier, name string) (Configured, error) {
	return db.One[Configured](ctx, q, "issuer", `SELECT `+columns+` FROM issuers WHERE lower(name) = lower(@name) AND archived_at IS NULL`, pgx.NamedArgs{"name": name})
}

// SealedConfig answers the sealed settings of an issuer, nil when it has none. Only the worker may read them.
func SealedConfig(ctx context.Context, q db.Querier, i id.Issuer) ([]byte, error) {
	return db.Scalar[[]byte](ctx, q, `SELECT sealed_config FROM issuers WHERE id = $1`, i)
}

var keys = page.Keys[Configured]{
	ID: "id", IDOf: func(c Configured) string { return c.ID.UUID() },
	By: map[string]page.Key[Configured]{"created_at": {SQL: "created_at", Type: page.Time, Of: func(c Configured) string { return page.TimeText(c.CreatedAt) }}},
}

// List answers a page of live issuers.
func List(ctx context.Context, q db.Querier, p page.Request) (page.Result[Configured], error) {
	return db.List(ctx, q, keys, p, db.Source{Columns: columns, From: "issuers", Where: "archived_at IS NULL"}, pgx.NamedArgs{})
}

// Archive retires an issuer that no live certificate uses. Its revocation material stays published.
func Archive(ctx context.Context, q db.Querier, i id.Issuer) error {
	n, err := db.Exec(ctx, q, `UPDATE issuers SET archived_at = now() WHERE id = @id AND archived_at IS NULL
		AND NOT EXISTS (SELECT 1 FROM certificates WHERE issuer_id = @id AND archived_at IS NULL)`, pgx.NamedArgs{"id": i})
	if err != nil || n == 1 {
		return err
	}
	c, err := Get(ctx, q, i)
	switch {
	case err != nil:
		return err
	case c.ArchivedAt != nil:
		return fault.New(fault.NotFound, "There is no such issuer.")
	}
	return fault.New(fault.Conflict, "Certificates still use this issuer; move or archive them first.")
}

// RecordTest keeps the outcome of a connection test.
func RecordTest(ctx context.Context, q db.Querier, i id.Issuer, ok bool, detail string) error {
	_, err := db.Exec(ctx, q, `UPDATE issuers SET last_test = jsonb_build_object('at', to_char(now() AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"'), 'ok', @ok::boolean, 'detail', @detail::text) WHERE id = @id`,
		pgx.NamedArgs{"id": i, "ok": ok, "detail": detail})
	return err
}
