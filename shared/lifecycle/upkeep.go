package lifecycle

import (
	"context"

	"certctl/shared/audit"
	"certctl/shared/crash"
	"certctl/shared/db"
	"certctl/shared/deployment"
	"certctl/shared/job"

	"github.com/jackc/pgx/v5"
)

// reap is job.Reap with the record of what ended by it.
func reap(ctx context.Context, b db.Beginner) (r job.Reaped, err error) {
	err = commit(ctx, b, crash.Reap, func(tx pgx.Tx) error {
		if r, err = job.Reap(ctx, tx); err != nil {
			return err
		}
		return recordEnded(ctx, tx, r.Ended)
	})
	return r, err
}

// expire is job.Expire with the record of what it ended; it answers how many.
func expire(ctx context.Context, b db.Beginner) (n int64, err error) {
	err = commit(ctx, b, crash.Expire, func(tx pgx.Tx) error {
		ended, err := job.Expire(ctx, tx)
		if err != nil {
			return err
		}
		n = int64(len(ended))
		return recordEnded(ctx, tx, ended)
	})
	return n, err
}

// recordEnded writes the audit events of jobs that ended with nobody there, and tells the deployments among them why.
func recordEnded(ctx context.Context, tx pgx.Tx, ended []job.Ended) error {
	entries := make([]audit.Entry, len(ended))
	for i, e := range ended {
		entries[i] = endedEntry(e)
		if e.Type != job.Deployment || e.Status != job.Failed {
			continue
		}
		if err := deployment.ReportFailure(ctx, tx, e.CertificateID, e.TargetID, *e.LastError, nil); err != nil {
			return err
		}
	}
	return audit.RecordAll(ctx, tx, entries)
}

// endedEntry uses the words that the operations use when they end a job themselves.
func endedEntry(e job.Ended) audit.Entry {
	out := audit.Entry{Action: "certificate.issuance_failed", ResourceType: "certificate", ResourceID: e.CertificateID.String(),
		Details: map[string]any{"job_id": e.ID, "error": e.LastError}}
	switch {
	case e.Status == job.Cancelled:
		out.Action, out.ResourceType, out.ResourceID = "job."+*e.CancelReason, "job", e.ID.String()
		out.Details = map[string]any{"type": e.Type, "certificate_id": e.CertificateID}
	case e.Type == job.Issuance, e.Type == job.Renewal:
	case e.Type == job.Deployment:
		out.Action, out.Details["target_id"] = "deployment.failed", e.TargetID
	default:
		out.Action, out.ResourceType, out.ResourceID = "job.failed", "job", e.ID.String()
		out.Details["type"] = e.Type
	}
	return out
}
