// Package job owns the job table, which is the only truth about work: enqueueing, both claims, the lease and its outcomes,
// reaping, deadlines, approval and cancellation. It knows job types by name and nothing about what they do.
//
// A claimed job is held through a *Lease, which no other package can construct. Every outcome is one statement that names
// the lease number and the state it leaves, so a run that outlived its lease changes nothing and learns ErrLeaseLost.
package job

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"certctl/shared/auth"
	"certctl/shared/db"
	"certctl/shared/fault"
	"certctl/shared/id"
	"certctl/shared/page"

	"github.com/jackc/pgx/v5"
)

// Type is what a job does.
type Type string

// The job types.
const (
	Issuance       Type = "Issuance"
	Renewal        Type = "Renewal"
	Deployment     Type = "Deployment"
	Revocation     Type = "Revocation"
	BulkRevocation Type = "BulkRevocation"
	CRL            Type = "CRL"
	Responder      Type = "Responder"
	IssuerTest     Type = "IssuerTest"
	TargetTest     Type = "TargetTest"
	Export         Type = "Export"
	CARenewal      Type = "CARenewal"
)

// Types are all job types.
var Types = []Type{Issuance, Renewal, Deployment, Revocation, BulkRevocation, CRL, Responder, IssuerTest, TargetTest, Export, CARenewal}

// State is where a job stands.
type State string

// The states. Completed, Failed and Cancelled are final.
const (
	Pending          State = "Pending"
	AwaitingApproval State = "AwaitingApproval"
	AwaitingCSR      State = "AwaitingCSR"
	Running          State = "Running"
	Completed        State = "Completed"
	Failed           State = "Failed"
	Cancelled        State = "Cancelled"
)

// States are all states.
var States = []State{Pending, AwaitingApproval, AwaitingCSR, Running, Completed, Failed, Cancelled}

// Final reports whether nothing happens to the job any more.
func (s State) Final() bool { return s == Completed || s == Failed || s == Cancelled }

// Moves are the allowed changes of state (SPEC JOB-5). Each is made by one statement of this package; the table is what
// tests and the documentation read. A running job is cancelled only by being superseded: when it would return to Pending
// while a newer job of the same scope is waiting there (migrations, job_left).
var Moves = map[State][]State{
	AwaitingApproval: {AwaitingCSR, Pending, Cancelled},
	AwaitingCSR:      {Pending, Failed, Cancelled},
	Pending:          {Running, Failed, Cancelled},
	Running:          {Completed, Pending, Failed, Cancelled},
}

// Runner says whose claim a job waits for.
type Runner string

// The runners.
const (
	Worker Runner = "worker"
	Agent  Runner = "agent"
)

// Priorities: the lower, the earlier.
const (
	Urgent      = 10  // revocation and its publication
	Interactive = 40  // somebody waits
	Background  = 100 // the sweep's renewals
)

// Job is a row of the job table.
type Job struct {
	ID            id.Job
	Type          Type
	Runner        Runner
	AgentID       id.Agent
	Status        State
	Priority      int16
	CertificateID id.Certificate
	VersionID     id.Version
	TargetID      id.Target
	IssuerID      id.Issuer
	GenerationID  id.Generation
	CRLShard      *int16
	ScheduledAt   time.Time
	GiveUpAt      *time.Time
	ApproveBy     *time.Time
	CSRDeadline   *time.Time
	CSR           []byte
	LeaseNo       int64
	LeasedUntil   *time.Time
	LeaseRun      *string
	Attempts      int
	MaxAttempts   int
	Input         json.RawMessage
	Checkpoint    json.RawMessage
	Result        json.RawMessage
	RequestedBy   string
	RequestedRole string
	RequestedKey  id.Key
	ApprovedBy    *string
	ApprovedAt    *time.Time
	LastError     *string
	CancelReason  *string
	CreatedAt     time.Time
	StartedAt     *time.Time
	CompletedAt   *time.Time
}

var columnList = []string{"id", "type", "runner", "agent_id", "status", "priority", "certificate_id", "version_id", "target_id", "issuer_id",
	"generation_id", "crl_shard", "scheduled_at", "give_up_at", "approve_by", "csr_deadline", "csr", "lease_no", "leased_until", "lease_run",
	"attempts", "max_attempts", "input", "checkpoint", "result", "requested_by", "requested_role", "requested_key", "approved_by", "approved_at",
	"last_error", "cancel_reason", "created_at", "started_at", "completed_at"}

var columns = strings.Join(columnList, ", ")

// Attempt is one claim of a job.
type Attempt struct {
	JobID     id.Job
	LeaseNo   int64
	Claimant  string
	StartedAt time.Time
	EndedAt   *time.Time
	Outcome   *string
	Error     *string
}

// Filter narrows a list; empty fields do not.
type Filter struct {
	Status        State
	Type          Type
	CertificateID id.Certificate
	AgentID       id.Agent
}

func (f Filter) where(args pgx.NamedArgs) string {
	w := []string{"true"}
	if f.Status != "" {
		w, args["status"] = append(w, "status = @status"), f.Status
	}
	if f.Type != "" {
		w, args["type"] = append(w, "type = @type"), f.Type
	}
	if !f.CertificateID.IsZero() {
		w, args["certificate"] = append(w, "certificate_id = @certificate"), f.CertificateID
	}
	if !f.AgentID.IsZero() {
		w, args["agent"] = append(w, "agent_id = @agent"), f.AgentID
	}
	return strings.Join(w, " AND ")
}

var keys = page.Keys[Job]{
	ID: "id", IDOf: func(j Job) string { return j.ID.UUID() },
	By: map[string]page.Key[Job]{"created_at": {SQL: "created_at", Type: page.Time, Of: func(j Job) string { return page.TimeText(j.CreatedAt) }}},
}

// List answers a page of jobs.
func List(ctx context.Context, q db.Querier, f Filter, p page.Request) (page.Result[Job], error) {
	args := pgx.NamedArgs{}
	return db.List(ctx, q, keys, p, db.Source{Columns: columns, From: "jobs", Where: f.where(args)}, args)
}

// Get answers one job.
func Get(ctx context.Context, q db.Querier, j id.Job) (Job, error) {
	return db.One[Job](ctx, q, "job", `SELECT `+columns+` FROM jobs WHERE id = @id`, pgx.NamedArgs{"id": j})
}

// Attempts answers the claims of several jobs, oldest first.
func Attempts(ctx context.Context, q db.Querier, jobs ...id.Job) ([]Attempt, error) {
	ids := make([]string, len(jobs))
	for i, j := range jobs {
		ids[i] = j.UUID()
	}
	return db.Many[Attempt](ctx, q, `SELECT job_id, lease_no, claimant, started_at, ended_at, outcome, error FROM job_attempts
		WHERE job_id = ANY(@jobs::uuid[]) ORDER BY job_id, lease_no`, pgx.NamedArgs{"jobs": ids})
}

// CountByStatus answers how many jobs there are in each state; states without jobs are 0.
func CountByStatus(ctx context.Context, q db.Querier) (map[State]int64, error) {
	type row struct {
		Status State
		N      int64
	}
	rows, err := db.Many[row](ctx, q, `SELECT status, count(*) AS n FROM jobs GROUP BY status`)
	out := make(map[State]int64, len(States))
	for _, s := range States {
		out[s] = 0
	}
	for _, r := range rows {
		out[r.Status] = r.N
	}
	return out, err
}

// New is what a job is made from. Who asks for it is the actor on the context.
type New struct {
	Type          Type
	Status        State  // Pending when empty
	Runner        Runner // Worker when empty
	AgentID       id.Agent
	Priority      int16 // Background when 0
	CertificateID id.Certificate
	VersionID     id.Version
	TargetID      id.Target
	IssuerID      id.Issuer
	GenerationID  id.Generation
	CRLShard      *int16
	After         time.Duration // not before now plus this
	ApproveWithin time.Duration // for AwaitingApproval
	CSRWithin     time.Duration // for AwaitingCSR, and for what approval leads to
	GiveUpAfter   time.Duration // 0: never
	MaxAttempts   int           // 5 when 0
	Input         any
}

// The bounds of waiting for people and for agents (SPEC JOB-5).
const (
	ApproveWithin = 7 * 24 * time.Hour
	CSRWithin     = time.Hour
)

// Enqueue inserts a job. The unique indexes of the table refuse a second open issuance of a certificate and the like; the
// caller turns those into faults of its own.
func Enqueue(ctx context.Context, q db.Querier, n New) (Job, error) {
	input, err := json.Marshal(n.Input)
	if err != nil {
		return Job{}, fmt.Errorf("encoding the input of a %s job: %w", n.Type, err)
	}
	if n.Input == nil {
		input = []byte("{}")
	}
	a := auth.ActorOf(ctx)
	return db.One[Job](ctx, q, "job", `INSERT INTO jobs (id, type, runner, agent_id, status, priority, certificate_id, version_id, target_id, issuer_id,
			generation_id, crl_shard, scheduled_at, give_up_at, approve_by, csr_deadline, max_attempts, input, requested_by, requested_role, requested_key)
		VALUES (@id, @type, @runner, @agent, @status, @priority, @certificate, @version, @target, @issuer, @generation, @shard,
			now() + @after::interval, now() + @give_up::interval, now() + @approve::interval, now() + @csr::interval, @max, @input, @by, @role, @key)
		RETURNING `+columns,
		pgx.NamedArgs{"id": id.New[id.Job](), "type": n.Type, "runner": or(n.Runner, Worker), "agent": n.AgentID, "status": or(n.Status, Pending),
			"priority": or(n.Priority, Background), "certificate": n.CertificateID, "version": n.VersionID, "target": n.TargetID, "issuer": n.IssuerID,
			"generation": n.GenerationID, "shard": n.CRLShard, "after": n.After, "give_up": span(n.GiveUpAfter), "approve": span(n.ApproveWithin),
			"csr": span(n.CSRWithin), "max": or(n.MaxAttempts, 5), "input": input, "by": a.Principal, "role": a.Role, "key": a.KeyID})
}

func or[T comparable](v, standard T) T {
	var zero T
	if v == zero {
		return standard
	}
	return v
}

// span is a duration for SQL, NULL when 0.
func span(d time.Duration) *time.Duration {
	if d == 0 {
		return nil
	}
	return &d
}

// wrongState is the fault for an action on a job that is not in the state the action leaves, or NotFound.
func wrongState(ctx context.Context, q db.Querier, j id.Job, action string) error {
	got, err := Get(ctx, q, j)
	if err != nil {
		return err
	}
	return fault.New(fault.Conflict, "A job that is %s cannot be %s.", got.Status, action).With("job_status", got.Status)
}
