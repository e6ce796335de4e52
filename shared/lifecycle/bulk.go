package lifecycle

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"certctl/shared/audit"
	"certctl/shared/cert"
	"certctl/shared/db"
	"certctl/shared/fault"
	"certctl/shared/id"
	"certctl/shared/job"
	"certctl/shared/pki"

	"github.com/jackc/pgx/v5"
)

// Bulk is a revocation of many certificates.
type Bulk struct {
	Reason         pki.Reason       `json:"reason"`
	CertificateIDs []id.Certificate `json:"certificate_ids"`
	DryRun         bool             `json:"dry_run"`
}

// Outcome is what became of one certificate of a bulk.
type Outcome struct {
	CertificateID string `json:"certificate_id"`
	Outcome       string `json:"outcome" enum:"revoked,skipped,failed,would-revoke,requested"`
	Detail        string `json:"detail"`
}

// Totals are the counts of a bulk. Unknown ids are matched and failed.
type Totals struct {
	Matched int       `json:"matched"`
	Revoked int       `json:"revoked"`
	Skipped int       `json:"skipped"`
	Failed  int       `json:"failed"`
	Results []Outcome `json:"results"`
}

// BulkLimit is how many certificates are revoked within the request; more go to a job.
const BulkLimit = 1000

// RevokeAll revokes the current versions of certificates, each in a savepoint of its own, and names every failure.
func RevokeAll(ctx context.Context, tx pgx.Tx, b Bulk) (Totals, error) {
	t := Totals{Matched: len(b.CertificateIDs), Results: []Outcome{}}
	for _, c := range b.CertificateIDs {
		o, err := revokeOne(ctx, tx, c, b)
		if err != nil {
			return t, err
		}
		switch o.Outcome {
		case "revoked", "would-revoke", "requested":
			t.Revoked++
		case "skipped":
			t.Skipped++
		default:
			t.Failed++
		}
		t.Results = append(t.Results, o)
	}
	if b.DryRun {
		return t, nil
	}
	return t, audit.Record(ctx, tx, audit.Entry{Action: "certificate.bulk_revoked", ResourceType: "certificate",
		Details: map[string]any{"reason": b.Reason.String(), "matched": t.Matched, "revoked": t.Revoked, "skipped": t.Skipped, "failed": t.Failed}})
}

func revokeOne(ctx context.Context, tx pgx.Tx, c id.Certificate, b Bulk) (Outcome, error) {
	o := Outcome{CertificateID: c.String(), Outcome: "revoked"}
	err := db.InTx(ctx, tx, func(tx pgx.Tx) error {
		got, err := cert.Lock(ctx, tx, c)
		if err != nil {
			return err
		}
		if got.CurrentVersionID.IsZero() {
			return fault.New(fault.AlreadyRevoked, "The certificate has no version.")
		}
		if b.DryRun {
			_, err := revocable(ctx, tx, got, id.Version{}, b.Reason)
			o.Outcome = "would-revoke"
			return err
		}
		out, err := Revoke(ctx, tx, c, id.Version{}, b.Reason)
		if err == nil && out.Job != nil {
			o.Outcome, o.Detail = "requested", out.Job.ID.String()
		}
		return err
	})
	f := fault.As(err)
	switch {
	case err == nil:
	case f == nil || f.Kind == fault.Unavailable || f.Kind == fault.Internal:
		return o, err
	case f.Kind == fault.AlreadyRevoked:
		o.Outcome, o.Detail = "skipped", f.Detail
	default:
		o.Outcome, o.Detail = "failed", f.Detail
	}
	return o, nil
}

// EnqueueBulk hands a large bulk to the worker.
func EnqueueBulk(ctx context.Context, tx pgx.Tx, b Bulk) (job.Job, error) {
	j, err := job.Enqueue(ctx, tx, job.New{Type: job.BulkRevocation, Priority: job.Urgent, MaxAttempts: 10, Input: b})
	if err != nil {
		return j, err
	}
	return j, audit.Record(ctx, tx, audit.Entry{Action: "certificate.bulk_revocation_requested", ResourceType: "job", ResourceID: j.ID.String(),
		Details: map[string]any{"reason": b.Reason.String(), "matched": len(b.CertificateIDs)}})
}

// bulkProgress is the checkpoint of a BulkRevocation job.
type bulkProgress struct {
	Done   int    `json:"done"` // how many ids were handled
	Totals Totals `json:"totals"`
}

// RevokeMany runs a BulkRevocation job in slices, each committed with its progress, and postpones itself when its time is
// nearly over.
func (h *House) RevokeMany(ctx context.Context, l *job.Lease) error {
	var b Bulk
	p := bulkProgress{Totals: Totals{Results: []Outcome{}}}
	if err := errors.Join(json.Unmarshal(l.Input, &b), json.Unmarshal(l.Checkpoint, &p)); err != nil {
		return l.Fail(ctx, h.Pool, fmt.Errorf("reading job %s: %w", l.ID, err))
	}
	for p.Done < len(b.CertificateIDs) {
		if nearEnd(ctx) {
			return l.Release(detached(ctx), h.Pool)
		}
		end := min(p.Done+100, len(b.CertificateIDs))
		next := p
		err := db.InTx(ctx, h.Pool, func(tx pgx.Tx) error {
			t, err := RevokeAll(ctx, tx, Bulk{Reason: b.Reason, CertificateIDs: b.CertificateIDs[p.Done:end]})
			if err != nil {
				return err
			}
			next.Done, next.Totals = end, p.Totals.plus(t)
			return l.Save(ctx, tx, next)
		})
		if errors.Is(err, job.ErrLeaseLost) {
			return err
		}
		if err != nil {
			return settle(ctx, h.Pool, l, err)
		}
		p = next
	}
	p.Totals.Matched = len(b.CertificateIDs)
	return l.Complete(ctx, h.Pool, p.Totals)
}

// plus adds up; of the results only those that did not end as wished are kept, so that the record stays small.
func (t Totals) plus(o Totals) Totals {
	t.Matched += o.Matched
	t.Revoked += o.Revoked
	t.Skipped += o.Skipped
	t.Failed += o.Failed
	for _, r := range o.Results {
		if r.Outcome != "revoked" {
			t.Results = append(t.Results, r)
		}
	}
	return t
}
