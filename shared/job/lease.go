package job

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"time"

	"certctl/shared/db"
	"certctl/shared/id"

	"github.com/jackc/pgx/v5"
)

// ErrLeaseLost says that the job is not held under this lease any more: it expired and was claimed again or ended. The run
// must stop and must not report.
var ErrLeaseLost = errors.New("the lease on the job is lost")

// Lease is the right to run one job until it expires. Only a claim makes one.
type Lease struct {
	Job
	held bool // keeps a zero Lease from being used
}

func (l *Lease) args(more pgx.NamedArgs) pgx.NamedArgs {
	if !l.held {
		panic("job: a lease that was not claimed")
	}
	if more == nil {
		more = pgx.NamedArgs{}
	}
	more["job"], more["lease"] = l.ID, l.LeaseNo
	return more
}

const fence = ` WHERE id = @job AND lease_no = @lease AND status = 'Running'`

// end runs an outcome: the job's update and the end of its attempt in one statement. Status is the new state afterwards.
func (l *Lease) end(ctx context.Context, q db.Querier, set, outcome string, cause error, more pgx.NamedArgs) error {
	args := l.args(more)
	args["outcome"], args["error"] = outcome, text(cause)
	status, err := db.Scalar[*State](ctx, q, `WITH j AS (UPDATE jobs SET leased_until = NULL, `+set+fence+` RETURNING id, lease_no, status),
		a AS (UPDATE job_attempts t SET ended_at = clock_timestamp(), outcome = CASE j.status WHEN 'Failed' THEN 'failed' WHEN 'Cancelled' THEN 'cancelled' ELSE @outcome END, error = @error
			FROM j WHERE t.job_id = j.id AND t.lease_no = j.lease_no)
		SELECT (SELECT status FROM j)`, args)
	if err != nil {
		return fmt.Errorf("ending job %s as %s: %w", l.ID, outcome, err)
	}
	if status == nil {
		return ErrLeaseLost
	}
	l.Status = *status
	return nil
}

const errorLimit = 2000

// text is an error for the record, bounded.
func text(err error) *string {
	if err == nil {
		return nil
	}
	s := err.Error()
	if len(s) > errorLimit {
		s = s[:errorLimit] + "…"
	}
	return &s
}

// Complete ends the job well. Run it in the transaction of the effect.
func (l *Lease) Complete(ctx context.Context, q db.Querier, result any) error {
	r, err := json.Marshal(result)
	if err != nil {
		return fmt.Errorf("encoding the result of job %s: %w", l.ID, err)
	}
	return l.end(ctx, q, `status = 'Completed', completed_at = now(), last_error = NULL, result = nullif(@result::jsonb, 'null'::jsonb)`, "completed", nil, pgx.NamedArgs{"result": r})
}

// Fail ends the job for good.
func (l *Lease) Fail(ctx context.Context, q db.Querier, cause error) error {
	return l.end(ctx, q, `status = 'Failed', completed_at = now(), last_error = @error`, "failed", cause, nil)
}

// Retry spends an attempt: back to Pending after a back-off that grows, or Failed when none is left.
func (l *Lease) Retry(ctx context.Context, q db.Querier, cause error) error {
	return l.RetryAfter(ctx, q, cause, Backoff(l.Attempts+1))
}

// RetryAfter is Retry with the wait given, e.g. by a CA's Retry-After.
func (l *Lease) RetryAfter(ctx context.Context, q db.Querier, cause error, wait time.Duration) error {
	return l.end(ctx, q, `attempts = attempts + 1, last_error = @error,
		status = CASE WHEN attempts + 1 >= max_attempts THEN 'Failed' ELSE 'Pending' END,
		completed_at = CASE WHEN attempts + 1 >= max_attempts THEN now() END,
		scheduled_at = now() + @wait::interval`, "retried", cause, pgx.NamedArgs{"wait": wait})
}

// Postpone says "not yet" (a CA works on it, DNS spreads): it spends no attempt and holds no function. From give_up_at on,
// the deadline of the first postponement plus giveUp, the job is Failed by the next expiry.
func (l *Lease) Postpone(ctx context.Context, q db.Querier, after, giveUp time.Duration, why error) error {
	return l.end(ctx, q, `status = 'Pending', scheduled_at = now() + @after::interval, last_error = @error,
		give_up_at = coalesce(give_up_at, now() + @give_up::interval)`, "postponed", why, pgx.NamedArgs{"after": after, "give_up": giveUp})
}

// Release gives back what was claimed and not started; it may be claimed again at once.
func (l *Lease) Release(ctx context.Context, q db.Querier) error {
	return l.end(ctx, q, `status = 'Pending'`, "released", nil, nil)
}

// HandOver gives the job to the other runner with a new checkpoint: a key sealed to an agent, or a deployment to be probed
// from the worker. It spends no attempt.
func (l *Lease) HandOver(ctx context.Context, q db.Querier, to Runner, checkpoint any) error {
	c, err := json.Marshal(checkpoint)
	if err != nil {
		return fmt.Errorf("encoding the checkpoint of job %s: %w", l.ID, err)
	}
	return l.end(ctx, q, `status = 'Pending', runner = @runner, checkpoint = @checkpoint, scheduled_at = now()`, "released", nil, pgx.NamedArgs{"runner": to, "checkpoint": c})
}

// Save records a step. The checkpoint replaces the one before.
func (l *Lease) Save(ctx context.Context, q db.Querier, checkpoint any) error {
	c, err := json.Marshal(checkpoint)
	if err != nil {
		return fmt.Errorf("encoding the checkpoint of job %s: %w", l.ID, err)
	}
	n, err := db.Exec(ctx, q, `UPDATE jobs SET checkpoint = @checkpoint`+fence, l.args(pgx.NamedArgs{"checkpoint": c}))
	if err != nil {
		return fmt.Errorf("saving the checkpoint of job %s: %w", l.ID, err)
	}
	if n == 0 {
		return ErrLeaseLost
	}
	l.Checkpoint = c
	return nil
}

// Extend moves the end of the lease to now plus d.
func (l *Lease) Extend(ctx context.Context, q db.Querier, d time.Duration) error {
	n, err := db.Exec(ctx, q, `UPDATE jobs SET leased_until = now() + @d::interval`+fence, l.args(pgx.NamedArgs{"d": d}))
	if err == nil && n == 0 {
		return ErrLeaseLost
	}
	return err
}

// Backoff is the wait before attempt n+1: 5 s × 3ⁿ⁻¹ to one hour, ± 20 % so that what failed together does not return together.
func Backoff(n int) time.Duration {
	d := 5 * time.Second
	for range min(n-1, 10) {
		d *= 3
	}
	d = min(d, time.Hour)
	return d + time.Duration((rand.Float64()-0.5)*0.4*float64(d)) // #nosec G404 -- spreading load needs no secret
}

// Claim asks for work.
type Claim struct {
	Type  Type          // empty: any
	Limit int           // no more than can run at once
	Lease time.Duration // more than the longest run
	Run   string        // names this run of this program
}

// running returns the jobs that a deployment must wait for: a target has one Running deployment.
const targetFree = `(type <> 'Deployment' OR NOT EXISTS (SELECT 1 FROM jobs r WHERE r.type = 'Deployment' AND r.status = 'Running' AND r.target_id = jobs.target_id))`

// The lateral join is lazy: it starts at a random shard and asks further ones only until the batch is full, so claimants do
// not walk over each other's locked rows. Strict priority holds inside a shard.
//
// The limit and the type stand in the text: as parameters they make every known plan look cheaper than the kept one, so that
// Postgres would plan the statement at each claim, which took longer than to run it.
func claimPending(typed bool, n int) string {
	limit, ofType := strconv.Itoa(n), ""
	if typed {
		ofType = "AND type = @type"
	}
	return `WITH c AS (UPDATE jobs SET status = 'Running', lease_no = lease_no + 1, leased_until = now() + @lease::interval, lease_run = @run, started_at = coalesce(started_at, now())
	WHERE id = ANY(ARRAY(SELECT j.id FROM generate_series(@s::int, @s::int + 15) AS r(s) CROSS JOIN LATERAL (
		SELECT id FROM jobs WHERE shard = (r.s % 16)::smallint AND status = 'Pending' AND runner = 'worker' AND scheduled_at <= now()
			` + ofType + ` AND ` + targetFree + `
		ORDER BY priority, scheduled_at, id LIMIT ` + limit + ` FOR UPDATE SKIP LOCKED) j LIMIT ` + limit + `))
	RETURNING ` + columns + `), a AS (INSERT INTO job_attempts (job_id, lease_no, claimant) SELECT id, lease_no, @run FROM c)
	SELECT * FROM c ORDER BY priority, scheduled_at, id`
}

// ClaimPending takes up to limit due jobs of the worker: one statement, Pending to Running, disjoint from every other claim.
func ClaimPending(ctx context.Context, q db.Querier, c Claim) ([]*Lease, error) {
	for limit := c.Limit; ; limit = 1 {
		jobs, err := db.Many[Job](ctx, q, claimPending(c.Type != "", limit), pgx.NamedArgs{"type": c.Type, "lease": c.Lease, "run": c.Run, "s": rand.IntN(16)}) // #nosec G404 -- spreading load needs no secret
		// Two pending deployments of one target can meet in one batch; alone, one of them passes.
		if db.Constraint(err) == "jobs_one_running_deployment" && limit > 1 {
			continue
		}
		if err != nil {
			if db.Constraint(err) == "jobs_one_running_deployment" {
				return nil, nil
			}
			return nil, fmt.Errorf("claiming jobs: %w", err)
		}
		return leases(jobs), nil
	}
}

func leases(jobs []Job) []*Lease {
	out := make([]*Lease, len(jobs))
	for i, j := range jobs {
		out[i] = &Lease{Job: j, held: true}
	}
	return out
}

// Several deployments of one target can be pending (of several certificates); an agent gets one at a time.
var claimByAgent = `WITH c AS (UPDATE jobs SET status = 'Running', lease_no = lease_no + 1, leased_until = now() + @lease::interval, lease_run = @run, started_at = coalesce(started_at, now())
	WHERE id = ANY(ARRAY(SELECT id FROM (SELECT DISTINCT ON (target_id) id, priority, scheduled_at FROM (
		SELECT id, target_id, priority, scheduled_at FROM jobs WHERE agent_id = @agent AND status = 'Pending' AND runner = 'agent' AND scheduled_at <= now()
			AND ` + targetFree + `
		ORDER BY priority, scheduled_at, id LIMIT @n FOR UPDATE SKIP LOCKED) p ORDER BY target_id, priority, scheduled_at, id) d))
	RETURNING ` + columns + `), a AS (INSERT INTO job_attempts (job_id, lease_no, claimant) SELECT id, lease_no, @run FROM c)
	SELECT * FROM (SELECT * FROM c
		UNION ALL SELECT ` + columns + ` FROM jobs WHERE agent_id = @agent AND runner = 'agent' AND status = 'Running' AND lease_run = @run AND @run <> '' AND leased_until > now()
		UNION ALL SELECT ` + columns + ` FROM jobs WHERE agent_id = @agent AND status = 'AwaitingCSR' AND csr_deadline > now()) w
	ORDER BY priority, scheduled_at, id`

// ClaimPendingByAgent takes the agent's due jobs, adds those that are leased to this run already (an answer may have been
// lost; a run without a name has none) and its AwaitingCSR work in place: one statement.
func ClaimPendingByAgent(ctx context.Context, q db.Querier, agent id.Agent, c Claim) ([]Job, error) {
	args := pgx.NamedArgs{"agent": agent, "n": c.Limit, "lease": c.Lease, "run": c.Run}
	jobs, err := db.Many[Job](ctx, q, claimByAgent, args)
	if db.Constraint(err) == "jobs_one_running_deployment" { // another poll of this agent took the target in this moment
		args["n"] = 0
		jobs, err = db.Many[Job](ctx, q, claimByAgent, args)
	}
	if err != nil {
		return nil, fmt.Errorf("claiming an agent's jobs: %w", err)
	}
	return jobs, nil
}

// AgentLease is the lease that an agent names in a report. The fence is checked by the outcome itself.
func AgentLease(ctx context.Context, q db.Querier, agent id.Agent, j id.Job, leaseNo int64) (*Lease, error) {
	row, err := db.One[Job](ctx, q, "job of this agent", `SELECT `+columns+` FROM jobs WHERE id = @id AND agent_id = @agent AND runner = 'agent'`, pgx.NamedArgs{"id": j, "agent": agent})
	if err != nil {
		return nil, err
	}
	row.LeaseNo = leaseNo
	return &Lease{Job: row, held: true}, nil
}
