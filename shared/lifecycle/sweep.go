package lifecycle

import (
	"context"
	"fmt"
	"time"

	"certctl/shared/agent"
	"certctl/shared/auth"
	"certctl/shared/crash"
	"certctl/shared/db"
	"certctl/shared/job"

	"github.com/jackc/pgx/v5"
)

// Swept is what a sweep did. Left says that certificates are still due: the caller's time was over.
type Swept struct {
	Requeued   int64 `json:"requeued"`
	Failed     int64 `json:"failed"`
	Expired    int64 `json:"expired"`
	Renewals   int64 `json:"renewals"`
	CRLs       int64 `json:"crls"`
	Responders int64 `json:"responders"`
	Offline    int64 `json:"offline"`
	Left       bool  `json:"left"`
}

// slice is how many due certificates one statement takes: 10,000 take about 0.3 s and hold locks no longer.
const slice = 1000

// Sweep finds what is due and makes its jobs. Every part is set-based and safe beside another sweep: due certificates are
// locked with SKIP LOCKED and get their jobs, their mark and their audit events in the same statement.
func Sweep(ctx context.Context, b db.Beginner) (s Swept, err error) {
	ctx = auth.WithActor(ctx, auth.SystemActor("sweep"))
	reaped, err := reap(ctx, b)
	if err != nil {
		return s, err
	}
	s.Requeued, s.Failed = reaped.Requeued, reaped.Failed
	if s.Expired, err = expire(ctx, b); err != nil {
		return s, err
	}
	if s.CRLs, err = dueCRLs(ctx, b); err != nil {
		return s, err
	}
	if s.Responders, err = dueResponders(ctx, b); err != nil {
		return s, err
	}
	for {
		n, err := renewSlice(ctx, b)
		if err != nil {
			return s, err
		}
		s.Renewals += n
		if n < slice {
			break
		}
		if nearEnd(ctx) {
			s.Left = true
			break
		}
	}
	if s.Offline, err = agent.MarkOffline(ctx, b); err != nil {
		return s, err
	}
	return s, tidy(ctx, b)
}

func nearEnd(ctx context.Context) bool {
	d, ok := ctx.Deadline()
	return ctx.Err() != nil || ok && time.Until(d) < 2*time.Second
}

const renewDue = `WITH due AS (
	SELECT id, profile_id, issuer_id, agent_id, key_custody, current_version_id, failures, renew_at, renew_reason FROM certificates
	WHERE open_job_id IS NULL AND auto_renew AND archived_at IS NULL AND greatest(renew_at, next_try_at) <= now()
	ORDER BY greatest(renew_at, next_try_at) LIMIT @n FOR UPDATE SKIP LOCKED),
plan AS (SELECT due.*, uuid7() AS job_id, CASE WHEN p.requires_approval THEN 'AwaitingApproval' WHEN due.key_custody = 'agent' THEN 'AwaitingCSR' ELSE 'Pending' END AS status,
	CASE WHEN failures > 0 THEN 'tried again after ' || failures || ' failure(s)' WHEN current_version_id IS NULL THEN 'never issued' ELSE 'due: ' || coalesce(renew_reason, 'the planned time came') END AS why
	FROM due JOIN profiles p ON p.id = due.profile_id),
made AS (INSERT INTO jobs (id, type, runner, agent_id, status, priority, certificate_id, issuer_id, approve_by, csr_deadline, max_attempts, requested_by, requested_role)
	SELECT job_id, CASE WHEN current_version_id IS NULL THEN 'Issuance' ELSE 'Renewal' END, 'worker', agent_id, status, @priority, id, issuer_id,
		CASE WHEN status = 'AwaitingApproval' THEN now() + @approve::interval END, CASE WHEN status = 'AwaitingCSR' THEN now() + @csr::interval END, 6, @by, @role FROM plan
	RETURNING id, certificate_id),
marked AS (UPDATE certificates c SET open_job_id = plan.job_id, renew_reason = plan.why, updated_at = now() FROM plan WHERE c.id = plan.id),
told AS (INSERT INTO audit_events (principal, role, action, resource_type, resource_id, details, request_id)
	SELECT @by, @role, 'certificate.renewal_requested', 'certificate', type_id('crt', id), jsonb_build_object('job_id', type_id('job', job_id), 'why', why), nullif(@request, '') FROM plan)
SELECT count(*) FROM made`

// renewSlice makes the jobs of up to slice due certificates.
func renewSlice(ctx context.Context, q db.Querier) (int64, error) {
	a := auth.ActorOf(ctx)
	crash.At(crash.SweepSlice, crash.Before)
	n, err := db.Scalar[int64](ctx, q, renewDue, pgx.NamedArgs{"n": slice, "priority": job.Background, "approve": job.ApproveWithin, "csr": job.CSRWithin,
		"by": a.Principal, "role": a.Role, "request": auth.RequestIDOf(ctx)})
	if err != nil {
		return 0, fmt.Errorf("enqueueing due renewals: %w", err)
	}
	crash.At(crash.SweepSlice, crash.After)
	return n, nil
}

// dueCRLs asks for CRLs whose refresh is due or whose dirty mark was left behind. The CRL of a generation goes on for a
// month after its end: relying parties may still hold its certificates.
func dueCRLs(ctx context.Context, q db.Querier) (int64, error) {
	a := auth.ActorOf(ctx)
	return db.Exec(ctx, q, `INSERT INTO jobs (id, type, runner, status, priority, issuer_id, generation_id, crl_shard, max_attempts, requested_by, requested_role)
		SELECT uuid7(), 'CRL', 'worker', 'Pending', @priority, g.issuer_id, g.id, s.shard, 20, @by, @role FROM crl_state s JOIN ca_generations g ON g.id = s.generation_id
		WHERE (s.refresh_at <= now() OR s.dirty_gen > s.published_gen) AND g.not_after > now() - interval '30 days'
			AND NOT EXISTS (SELECT 1 FROM jobs j WHERE j.type = 'CRL' AND j.status IN ('Pending','Running') AND j.generation_id = s.generation_id AND j.crl_shard = s.shard)
		ON CONFLICT DO NOTHING`, pgx.NamedArgs{"priority": job.Urgent, "by": a.Principal, "role": a.Role})
}

// dueResponders asks for responder certificates of generations that have none which outlives the next sweeps.
func dueResponders(ctx context.Context, q db.Querier) (int64, error) {
	a := auth.ActorOf(ctx)
	return db.Exec(ctx, q, `INSERT INTO jobs (id, type, runner, status, priority, issuer_id, generation_id, max_attempts, requested_by, requested_role)
		SELECT uuid7(), 'Responder', 'worker', 'Pending', @priority, g.issuer_id, g.id, 20, @by, @role FROM ca_generations g
		WHERE g.not_after > now() AND NOT EXISTS (SELECT 1 FROM ocsp_responders r WHERE r.generation_id = g.id AND r.renew_at > now())
		ON CONFLICT DO NOTHING`, pgx.NamedArgs{"priority": job.Urgent, "by": a.Principal, "role": a.Role})
}

// tidy removes what has served: answers kept for idempotency, counts of failed authentication; and makes the partitions of
// the coming months.
func tidy(ctx context.Context, q db.Querier) error {
	for _, sql := range []string{
		`DELETE FROM idempotency_keys WHERE created_at < now() - interval '24 hours'`,
		`DELETE FROM auth_failures WHERE minute < now() - interval '7 days'`,
		`SELECT audit_make_partitions()`,
	} {
		if _, err := db.Exec(ctx, q, sql); err != nil {
			return fmt.Errorf("tidying: %w", err)
		}
	}
	return nil
}
