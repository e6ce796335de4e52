package job

import (
	"context"
	"errors"
	"fmt"
	"time"

	"certctl/shared/auth"
	"certctl/shared/db"
	"certctl/shared/fault"
	"certctl/shared/id"

	"github.com/jackc/pgx/v5"
)

// Ended is a job that upkeep ended: nobody was there who could tell.
type Ended struct {
	ID            id.Job
	Type          Type
	Status        State
	CertificateID id.Certificate
	TargetID      id.Target
	CancelReason  *string
	LastError     *string
}

const endedColumns = `id, type, status, certificate_id, target_id, cancel_reason, last_error`

// Reaped is what a reap found.
type Reaped struct {
	Requeued int64   // expired leases that may be claimed again
	Failed   int64   // expired leases that had no attempt left
	Ended    []Ended // those that failed, and those that a newer job of the same scope supersedes
}

// Reap turns expired leases back to Pending, or to Failed when no attempt is left. It is the first statement of every sweep
// and worker tick. What comes back queues up behind its equals: at the head, programs that die again and again would spend
// all attempts of the same few jobs, and a job that kills its program would be the next one's first.
func Reap(ctx context.Context, q db.Querier) (r Reaped, err error) {
	rows, err := db.Many[Ended](ctx, q, `WITH expired AS (SELECT id, lease_no FROM jobs WHERE status = 'Running' AND leased_until < now() ORDER BY leased_until LIMIT 10000 FOR UPDATE SKIP LOCKED),
		j AS (UPDATE jobs SET attempts = attempts + 1, leased_until = NULL, scheduled_at = now(),
			last_error = 'the run that held this job ended without an answer',
			status = CASE WHEN attempts + 1 >= max_attempts THEN 'Failed' ELSE 'Pending' END,
			completed_at = CASE WHEN attempts + 1 >= max_attempts THEN now() END
			FROM expired WHERE jobs.id = expired.id RETURNING jobs.*),
		a AS (UPDATE job_attempts t SET ended_at = clock_timestamp(), outcome = 'expired' FROM j WHERE t.job_id = j.id AND t.lease_no = j.lease_no)
		SELECT `+endedColumns+` FROM j`)
	if err != nil {
		return Reaped{}, fmt.Errorf("reaping expired leases: %w", err)
	}
	for _, e := range rows {
		switch e.Status {
		case Pending:
			r.Requeued++
			continue
		case Failed:
			r.Failed++
		}
		r.Ended = append(r.Ended, e)
	}
	return r, nil
}

// Expire ends what waited too long: a CSR that never came and work that was postponed past its give-up time are Failed, an
// approval that nobody gave is Cancelled. It answers what it ended.
func Expire(ctx context.Context, q db.Querier) ([]Ended, error) {
	ended, err := db.Many[Ended](ctx, q, `WITH late AS (
			SELECT id, 'Failed' AS status, NULL AS cancel, 'the agent posted no certificate request in time' AS why FROM (
				SELECT id FROM jobs WHERE status = 'AwaitingCSR' AND csr_deadline < now() LIMIT 10000 FOR UPDATE SKIP LOCKED) a
			UNION ALL SELECT id, 'Failed', NULL, 'gave up: ' || coalesce(last_error, 'not finished in time') FROM (
				SELECT id, last_error FROM jobs WHERE status = 'Pending' AND give_up_at < now() LIMIT 10000 FOR UPDATE SKIP LOCKED) b
			UNION ALL SELECT id, 'Cancelled', 'approval_expired', NULL FROM (
				SELECT id FROM jobs WHERE status = 'AwaitingApproval' AND approve_by < now() LIMIT 10000 FOR UPDATE SKIP LOCKED) c),
		j AS (UPDATE jobs SET status = late.status, cancel_reason = late.cancel, last_error = coalesce(late.why, last_error), completed_at = now()
			FROM late WHERE jobs.id = late.id RETURNING jobs.*)
		SELECT `+endedColumns+` FROM j`)
	if err != nil {
		return nil, fmt.Errorf("ending jobs that waited too long: %w", err)
	}
	return ended, nil
}

// Cancel ends a job that does not run yet.
func Cancel(ctx context.Context, q db.Querier, j id.Job) (Job, error) {
	out, err := db.One[Job](ctx, q, "job", `UPDATE jobs SET status = 'Cancelled', cancel_reason = 'cancelled', completed_at = now()
		WHERE id = @id AND status IN ('Pending','AwaitingApproval','AwaitingCSR') RETURNING `+columns, pgx.NamedArgs{"id": j})
	if fault.Is(err, fault.NotFound) {
		return out, wrongState(ctx, q, j, "cancelled")
	}
	return out, err
}

// Approve lets a job go on: to AwaitingCSR where an agent holds the key, else to Pending. The two-person rule is checked on
// the locked row: neither the requesting principal nor a key that he created may approve.
func Approve(ctx context.Context, q db.Querier, j id.Job) (Job, error) {
	if err := secondPerson(ctx, q, j); err != nil {
		return Job{}, err
	}
	return db.One[Job](ctx, q, "job", `UPDATE jobs SET approved_by = @by, approved_at = now(),
			status = CASE WHEN agent_id IS NOT NULL AND runner = 'worker' THEN 'AwaitingCSR' ELSE 'Pending' END,
			csr_deadline = CASE WHEN agent_id IS NOT NULL AND runner = 'worker' THEN now() + @csr::interval END,
			scheduled_at = greatest(scheduled_at, now())
		WHERE id = @id AND status = 'AwaitingApproval' RETURNING `+columns,
		pgx.NamedArgs{"id": j, "by": auth.ActorOf(ctx).Principal, "csr": CSRWithin})
}

// Reject ends a job that waits for approval.
func Reject(ctx context.Context, q db.Querier, j id.Job, reason string) (Job, error) {
	if err := secondPerson(ctx, q, j); err != nil {
		return Job{}, err
	}
	return db.One[Job](ctx, q, "job", `UPDATE jobs SET status = 'Cancelled', cancel_reason = 'rejected', approved_by = @by, approved_at = now(),
			completed_at = now(), last_error = nullif(@reason, '')
		WHERE id = @id AND status = 'AwaitingApproval' RETURNING `+columns,
		pgx.NamedArgs{"id": j, "by": auth.ActorOf(ctx).Principal, "reason": reason})
}

// secondPerson locks the job and refuses the requester and his keys (SPEC JOB-4).
func secondPerson(ctx context.Context, q db.Querier, j id.Job) error {
	var status State
	var by string
	err := q.QueryRow(ctx, `SELECT status, requested_by FROM jobs WHERE id = $1 FOR UPDATE`, j).Scan(&status, &by)
	if errors.Is(err, pgx.ErrNoRows) {
		return fault.New(fault.NotFound, "There is no such job.")
	}
	if err != nil {
		return db.Fault(err)
	}
	if status != AwaitingApproval {
		return fault.New(fault.Conflict, "The job is %s; only a job that is AwaitingApproval can be approved or rejected.", status).With("job_status", status)
	}
	actor := auth.ActorOf(ctx)
	creator, err := auth.CreatorOf(ctx, q, actor.KeyID)
	if err != nil {
		return err
	}
	if actor.Principal == by || creator == by {
		return fault.New(fault.Denied, "Another person must decide: neither the requester nor a key that the requester created may approve or reject.")
	}
	return nil
}

// AcceptCSR stores the admitted request of an agent and hands the job to the worker. The first one wins: the same key again
// answers with the job as it is, another key is a conflict, which the caller decides by comparing.
func AcceptCSR(ctx context.Context, q db.Querier, agent id.Agent, j id.Job, csr []byte) (Job, bool, error) {
	out, err := db.One[Job](ctx, q, "job of this agent", `UPDATE jobs SET csr = @csr, status = 'Pending', csr_deadline = NULL, scheduled_at = now(), priority = least(priority, @priority)
		WHERE id = @id AND agent_id = @agent AND status = 'AwaitingCSR' AND csr_deadline > now() RETURNING `+columns,
		pgx.NamedArgs{"id": j, "agent": agent, "csr": csr, "priority": Interactive})
	if fault.Is(err, fault.NotFound) {
		out, err = OfAgent(ctx, q, agent, j)
		return out, false, err
	}
	return out, err == nil, err
}

// OfAgent answers a job if it is the agent's.
func OfAgent(ctx context.Context, q db.Querier, agent id.Agent, j id.Job) (Job, error) {
	return db.One[Job](ctx, q, "job of this agent", `SELECT `+columns+` FROM jobs WHERE id = @id AND agent_id = @agent`, pgx.NamedArgs{"id": j, "agent": agent})
}

// Next answers when the earliest pending job of the worker is due, so that a loop can sleep until then. ok is false when
// there is none.
func Next(ctx context.Context, q db.Querier) (at time.Time, ok bool, err error) {
	var t *time.Time
	err = db.Fault(q.QueryRow(ctx, `SELECT min(scheduled_at) FROM jobs WHERE status = 'Pending' AND runner = 'worker'`).Scan(&t))
	if err != nil || t == nil {
		return time.Time{}, false, err
	}
	return *t, true, nil
}
