// Package deployment owns targets and the desired state of certificates on them: which version a target should serve, which
// one was installed, and which one was seen served. It does not know how a driver puts a certificate in place.
package deployment

import (
	"context"
	"encoding/json"
	"strconv"
	"time"

	"certctl/shared/db"
	"certctl/shared/fault"
	"certctl/shared/id"
	"certctl/shared/page"
	"certctl/shared/wire"

	"github.com/jackc/pgx/v5"
)

// Target is a place where certificates are served.
type Target struct {
	ID         id.Target
	Name       string
	Type       string // a driver's name: nginx, files …
	AgentID    id.Agent
	Config     json.RawMessage // what may be read back
	Verify     *wire.Verify
	LastTest   json.RawMessage
	CreatedAt  time.Time
	UpdatedAt  time.Time
	ArchivedAt *time.Time
}

const targetColumns = `id, name, type, agent_id, config, verify, last_test, created_at, updated_at, archived_at`

// InsertTarget stores a target. sealed may be nil.
func InsertTarget(ctx context.Context, q db.Querier, t Target, sealed []byte) (Target, error) {
	out, err := db.One[Target](ctx, q, "target", `INSERT INTO targets (id, name, type, agent_id, config, sealed_config, verify) VALUES (@id, @name, @type, @agent, @config, @sealed, @verify) RETURNING `+targetColumns,
		pgx.NamedArgs{"id": t.ID, "name": t.Name, "type": t.Type, "agent": t.AgentID, "config": t.Config, "sealed": sealed, "verify": t.Verify})
	if db.Constraint(err) == "targets_agent_id_fkey" {
		return out, fault.BadField("agent_id", "names something that does not exist")
	}
	return out, err
}

// UpdateTarget replaces a target's name, settings and verification. Its type and agent stay: they decide who holds keys.
func UpdateTarget(ctx context.Context, q db.Querier, t Target, sealed []byte) (Target, error) {
	return db.One[Target](ctx, q, "target", `UPDATE targets SET name = @name, config = @config, sealed_config = coalesce(@sealed, sealed_config), verify = @verify, updated_at = now()
		WHERE id = @id AND archived_at IS NULL RETURNING `+targetColumns,
		pgx.NamedArgs{"id": t.ID, "name": t.Name, "config": t.Config, "sealed": sealed, "verify": t.Verify})
}

// GetTarget answers one target.
func GetTarget(ctx context.Context, q db.Querier, t id.Target) (Target, error) {
	return db.One[Target](ctx, q, "target", `SELECT `+targetColumns+` FROM targets WHERE id = @id`, pgx.NamedArgs{"id": t})
}

// Targets answers live targets by id; one that is missing or archived is a fault that names its place in target_ids.
func Targets(ctx context.Context, q db.Querier, ids []id.Target) ([]Target, error) {
	if len(ids) == 0 {
		return nil, nil
	}
	uuids := make([]string, len(ids))
	for i, t := range ids {
		uuids[i] = t.UUID()
	}
	rows, err := db.Many[Target](ctx, q, `SELECT `+targetColumns+` FROM targets WHERE id = ANY(@ids::uuid[]) AND archived_at IS NULL`, pgx.NamedArgs{"ids": uuids})
	if err != nil {
		return nil, err
	}
	byID := make(map[id.Target]Target, len(rows))
	for _, t := range rows {
		byID[t.ID] = t
	}
	out := make([]Target, len(ids))
	var bad []fault.Field
	for i, t := range ids {
		found, ok := byID[t]
		if !ok {
			bad = append(bad, fault.Field{Field: fieldAt("target_ids", i), Detail: "names something that does not exist"})
		}
		out[i] = found
	}
	if len(bad) > 0 {
		return nil, fault.BadFields(bad...)
	}
	return out, nil
}

func fieldAt(name string, i int) string { return name + "[" + strconv.Itoa(i) + "]" }

var targetKeys = page.Keys[Target]{
	ID: "id", IDOf: func(t Target) string { return t.ID.UUID() },
	By: map[string]page.Key[Target]{"created_at": {SQL: "created_at", Type: page.Time, Of: func(t Target) string { return page.TimeText(t.CreatedAt) }}},
}

// ListTargets answers a page of live targets.
func ListTargets(ctx context.Context, q db.Querier, a id.Agent, p page.Request) (page.Result[Target], error) {
	where, args := "archived_at IS NULL", pgx.NamedArgs{}
	if !a.IsZero() {
		where, args["agent"] = where+" AND agent_id = @agent", a
	}
	return db.List(ctx, q, targetKeys, p, db.Source{Columns: targetColumns, From: "targets", Where: where}, args)
}

// ArchiveTarget retires a target that no live certificate is deployed to.
func ArchiveTarget(ctx context.Context, q db.Querier, t id.Target) error {
	n, err := db.Exec(ctx, q, `UPDATE targets SET archived_at = now() WHERE id = @id AND archived_at IS NULL AND NOT EXISTS
		(SELECT 1 FROM deployments d JOIN certificates c ON c.id = d.certificate_id WHERE d.target_id = @id AND d.removed_at IS NULL AND c.archived_at IS NULL)`, pgx.NamedArgs{"id": t})
	if err != nil || n == 1 {
		return err
	}
	if got, err := GetTarget(ctx, q, t); err != nil {
		return err
	} else if got.ArchivedAt != nil {
		return fault.New(fault.NotFound, "There is no such target.")
	}
	return fault.New(fault.Conflict, "Certificates are still deployed to this target; detach or archive them first.")
}

// RecordTest keeps the outcome of a test.
func RecordTest(ctx context.Context, q db.Querier, t id.Target, ok bool, detail string) error {
	_, err := db.Exec(ctx, q, `UPDATE targets SET last_test = jsonb_build_object('at', to_char(now() AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"'), 'ok', @ok::boolean, 'detail', @detail::text) WHERE id = @id`,
		pgx.NamedArgs{"id": t, "ok": ok, "detail": detail})
	return err
}
