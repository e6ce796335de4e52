package lifecycle

import (
	"context"
	"fmt"

	"certctl/shared/audit"
	"certctl/shared/auth"
	"certctl/shared/cert"
	"certctl/shared/db"
	"certctl/shared/deployment"
	"certctl/shared/fault"
	"certctl/shared/id"
	"certctl/shared/job"

	"github.com/jackc/pgx/v5"
)

// desire makes a version the desired one everywhere and enqueues a deployment per target; older pending ones are superseded.
// A job reads the desired version when it is claimed, so a late one can never put an old certificate back.
func desire(ctx context.Context, tx pgx.Tx, c id.Certificate, v id.Version) ([]id.Job, error) {
	if err := deployment.Desire(ctx, tx, c, v); err != nil {
		return nil, err
	}
	if err := cancelDeployments(ctx, tx, c); err != nil {
		return nil, err
	}
	return enqueueDeployments(ctx, tx, c)
}

func cancelDeployments(ctx context.Context, q db.Querier, c id.Certificate) error {
	_, err := db.Exec(ctx, q, `UPDATE jobs SET status = 'Cancelled', cancel_reason = 'superseded', completed_at = now() WHERE certificate_id = @c AND type = 'Deployment' AND status = 'Pending'`, pgx.NamedArgs{"c": c})
	return err
}

// enqueueDeployments makes one job per target. A target with an agent is the agent's, except that a key held by the server
// is first sealed to that agent by the worker, which hands the job over.
func enqueueDeployments(ctx context.Context, q db.Querier, c id.Certificate) ([]id.Job, error) {
	a := auth.ActorOf(ctx)
	rows, err := q.Query(ctx, `INSERT INTO jobs (id, type, runner, agent_id, status, priority, certificate_id, target_id, max_attempts, requested_by, requested_role, requested_key)
		SELECT uuid7(), 'Deployment', CASE WHEN t.agent_id IS NOT NULL AND c.key_custody = 'agent' THEN 'agent' ELSE 'worker' END, t.agent_id, 'Pending', @priority, c.id, t.id, 5, @by, @role, @key
		FROM deployments d JOIN certificates c ON c.id = d.certificate_id JOIN targets t ON t.id = d.target_id
		WHERE d.certificate_id = @c AND d.removed_at IS NULL AND t.archived_at IS NULL ORDER BY d.created_at RETURNING id`,
		pgx.NamedArgs{"c": c, "priority": job.Interactive, "by": a.Principal, "role": a.Role, "key": a.KeyID})
	if err != nil {
		return nil, db.Fault(err)
	}
	out, err := pgx.CollectRows(rows, pgx.RowTo[id.Job])
	return out, db.Fault(err)
}

// Deploy puts the current version on every target again.
func Deploy(ctx context.Context, tx pgx.Tx, i id.Certificate) ([]id.Job, error) {
	c, err := cert.Lock(ctx, tx, i)
	if err != nil {
		return nil, err
	}
	switch {
	case c.ArchivedAt != nil:
		return nil, fault.New(fault.Conflict, "The certificate is archived.")
	case c.CurrentVersionID.IsZero():
		return nil, fault.New(fault.Conflict, "The certificate has no version yet; wait for its issuance.")
	}
	jobs, err := desire(ctx, tx, i, c.CurrentVersionID)
	if err != nil {
		return nil, err
	}
	if len(jobs) == 0 {
		return nil, fault.New(fault.Conflict, "The certificate has no targets; add target_ids first.")
	}
	return jobs, audit.Record(ctx, tx, audit.Entry{Action: "certificate.deployment_requested", ResourceType: "certificate", ResourceID: i.String(), Details: map[string]any{"job_ids": jobs}})
}

// deployCheckpoint is what a deployment records.
type deployCheckpoint struct {
	Key        string     `json:"key,omitempty"`        // JWE to the agent's public key
	KeyVersion id.Version `json:"key_version,omitzero"` // which version's key it is
	Probe      bool       `json:"probe,omitempty"`      // installed by an agent, to be seen served from the worker
	Receipt    any        `json:"receipt,omitempty"`    // the agent's
}

// wantedNow is what a deployment job is about when it runs.
type wantedNow struct {
	target  deployment.Target
	state   deployment.Deployment
	version cert.Version
	cert    cert.Certificate
}

func (h *House) wantedNow(ctx context.Context, j job.Job) (w wantedNow, err error) {
	if w.state, err = deployment.Get(ctx, h.Pool, j.CertificateID, j.TargetID); err != nil {
		return w, err
	}
	if w.state.DesiredVersionID.IsZero() {
		return w, fault.New(fault.Conflict, "No version is desired on this target.")
	}
	if w.target, err = deployment.GetTarget(ctx, h.Pool, j.TargetID); err != nil {
		return w, err
	}
	if w.version, err = cert.VersionByID(ctx, h.Pool, w.state.DesiredVersionID); err != nil {
		return w, err
	}
	w.cert, err = cert.Get(ctx, h.Pool, j.CertificateID)
	return w, err
}

// failDeployment ends a deployment for good and says why on its state.
func failDeployment(ctx context.Context, b db.Beginner, l *job.Lease, cause error) error {
	return db.InTx(ctx, b, func(tx pgx.Tx) error {
		if err := l.Fail(ctx, tx, cause); err != nil {
			return err
		}
		if err := deployment.ReportFailure(ctx, tx, l.CertificateID, l.TargetID, cause.Error(), nil); err != nil {
			return err
		}
		return audit.Record(ctx, tx, audit.Entry{Action: "deployment.failed", ResourceType: "certificate", ResourceID: l.CertificateID.String(),
			Details: map[string]any{"job_id": l.ID, "target_id": l.TargetID, "error": fmt.Sprint(cause)}})
	})
}
