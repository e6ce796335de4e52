package deployment

import (
	"context"
	"encoding/json"
	"slices"
	"time"

	"certctl/shared/db"
	"certctl/shared/id"
	"certctl/shared/wire"

	"github.com/jackc/pgx/v5"
)

// Deployment is the desired and the seen state of one certificate on one target.
type Deployment struct {
	ID                 id.Deployment
	CertificateID      id.Certificate
	TargetID           id.Target
	DesiredVersionID   id.Version
	DesiredAt          *time.Time
	InstalledVersionID id.Version // reported by the driver
	ServedVersionID    id.Version // seen in a completed handshake
	ServedAt           *time.Time
	TimeToServedMS     *int64 // from the version's issuance to that handshake
	Receipt            json.RawMessage
	LastError          *string
	CreatedAt          time.Time
	UpdatedAt          time.Time
}

const columns = `id, certificate_id, target_id, desired_version_id, desired_at, installed_version_id, served_version_id, served_at, time_to_served_ms, receipt, last_error, created_at, updated_at`

// Attach maps a certificate to targets, in this order; a target named twice counts once. Attaching again revives a detached
// mapping.
func Attach(ctx context.Context, q db.Querier, c id.Certificate, targets []id.Target) error {
	if len(targets) == 0 {
		return nil
	}
	var ids, uuids []string
	for _, t := range targets {
		if !slices.Contains(uuids, t.UUID()) {
			ids, uuids = append(ids, id.New[id.Deployment]().UUID()), append(uuids, t.UUID())
		}
	}
	slices.Sort(ids) // made within one millisecond they are in no order, and Of sorts by them
	_, err := db.Exec(ctx, q, `INSERT INTO deployments (id, certificate_id, target_id) SELECT i, @certificate, t FROM unnest(@ids::uuid[], @targets::uuid[]) AS x(i, t)
		ON CONFLICT (certificate_id, target_id) DO UPDATE SET removed_at = NULL, updated_at = now()`, pgx.NamedArgs{"certificate": c, "ids": ids, "targets": uuids})
	return err
}

// Detach ends the mapping to all targets but those kept. What is served stays served.
func Detach(ctx context.Context, q db.Querier, c id.Certificate, keep []id.Target) error {
	uuids := make([]string, len(keep))
	for i, t := range keep {
		uuids[i] = t.UUID()
	}
	_, err := db.Exec(ctx, q, `UPDATE deployments SET removed_at = now(), updated_at = now() WHERE certificate_id = @c AND removed_at IS NULL AND NOT (target_id = ANY(@keep::uuid[]))`,
		pgx.NamedArgs{"c": c, "keep": uuids})
	return err
}

// Of answers the deployments of several certificates, in the order in which they were attached.
func Of(ctx context.Context, q db.Querier, certs ...id.Certificate) ([]Deployment, error) {
	uuids := make([]string, len(certs))
	for i, c := range certs {
		uuids[i] = c.UUID()
	}
	return db.Many[Deployment](ctx, q, `SELECT `+columns+` FROM deployments WHERE certificate_id = ANY(@c::uuid[]) AND removed_at IS NULL ORDER BY certificate_id, created_at, id`, pgx.NamedArgs{"c": uuids})
}

// Get answers the deployment of a certificate on a target.
func Get(ctx context.Context, q db.Querier, c id.Certificate, t id.Target) (Deployment, error) {
	return db.One[Deployment](ctx, q, "deployment", `SELECT `+columns+` FROM deployments WHERE certificate_id = @c AND target_id = @t AND removed_at IS NULL`, pgx.NamedArgs{"c": c, "t": t})
}

// Desire makes a version the desired one on every target of its certificate.
func Desire(ctx context.Context, q db.Querier, c id.Certificate, v id.Version) error {
	_, err := db.Exec(ctx, q, `UPDATE deployments SET desired_version_id = @v, desired_at = now(), updated_at = now() WHERE certificate_id = @c AND removed_at IS NULL`, pgx.NamedArgs{"c": c, "v": v})
	return err
}

// Report records what a deployment did and saw. served says that the version was seen in a completed handshake.
func Report(ctx context.Context, q db.Querier, c id.Certificate, t id.Target, r wire.Receipt, served bool) error {
	receipt, err := json.Marshal(r)
	if err != nil {
		return err
	}
	_, err = db.Exec(ctx, q, `UPDATE deployments d SET installed_version_id = @v, receipt = @receipt, last_error = NULL, updated_at = now(),
			served_version_id = CASE WHEN @served THEN @v ELSE served_version_id END, served_at = CASE WHEN @served THEN now() ELSE served_at END,
			time_to_served_ms = CASE WHEN NOT @served THEN time_to_served_ms WHEN served_version_id IS NOT DISTINCT FROM @v THEN time_to_served_ms
				ELSE greatest(0, extract(epoch FROM clock_timestamp() - (SELECT created_at FROM versions WHERE id = @v)) * 1000)::bigint END
		WHERE certificate_id = @c AND target_id = @t`, pgx.NamedArgs{"c": c, "t": t, "v": r.VersionID, "receipt": receipt, "served": served})
	return err
}

// ReportFailure records why the newest try failed; what was served before stays recorded.
func ReportFailure(ctx context.Context, q db.Querier, c id.Certificate, t id.Target, why string, r *wire.Receipt) error {
	var receipt []byte
	if r != nil {
		var err error
		if receipt, err = json.Marshal(r); err != nil {
			return err
		}
	}
	_, err := db.Exec(ctx, q, `UPDATE deployments SET last_error = @why, receipt = coalesce(@receipt, receipt), updated_at = now() WHERE certificate_id = @c AND target_id = @t`,
		pgx.NamedArgs{"c": c, "t": t, "why": why, "receipt": receipt})
	return err
}

// Times are the quantiles of the time from issuance to the handshake that saw the version, over the mappings of today.
type Times struct {
	Count    int64
	P50, P95 *float64 // seconds
}

// TimeToServed sums up how long it took until new versions were seen served.
func TimeToServed(ctx context.Context, q db.Querier) (Times, error) {
	return db.One[Times](ctx, q, "times", `SELECT count(time_to_served_ms) AS count, percentile_cont(0.5) WITHIN GROUP (ORDER BY time_to_served_ms) / 1000 AS p50,
		percentile_cont(0.95) WITHIN GROUP (ORDER BY time_to_served_ms) / 1000 AS p95 FROM deployments WHERE removed_at IS NULL`)
}
