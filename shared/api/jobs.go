package api

import (
	"context"
	"encoding/json"
	"sort"
	"time"

	"certctl/shared/audit"
	"certctl/shared/auth"
	"certctl/shared/boot"
	"certctl/shared/db"
	"certctl/shared/endpoint"
	"certctl/shared/id"
	"certctl/shared/job"
	"certctl/shared/span"

	"github.com/jackc/pgx/v5"
)

// JobEvent is one thing that happened to a job; events follow from its row and its claims.
type JobEvent struct {
	At     time.Time `json:"at"`
	Event  string    `json:"event" enum:"created,approved,rejected,claimed,completed,retried,postponed,released,failed,expired,cancelled"`
	Lease  *int64    `json:"lease"`
	Detail *string   `json:"detail"`
	Actor  *string   `json:"actor"`
}

// Job is a job as people read it.
type Job struct {
	ID            id.Job          `json:"id"`
	Type          string          `json:"type"`
	Status        string          `json:"status" enum:"Pending,AwaitingApproval,AwaitingCSR,Running,Completed,Failed,Cancelled"`
	Runner        string          `json:"runner" enum:"worker,agent"`
	AgentID       id.Agent        `json:"agent_id"`
	CertificateID id.Certificate  `json:"certificate_id"`
	VersionID     id.Version      `json:"version_id"`
	TargetID      id.Target       `json:"target_id"`
	IssuerID      id.Issuer       `json:"issuer_id"`
	Attempts      int             `json:"attempts"`
	MaxAttempts   int             `json:"max_attempts"`
	LeaseNo       int64           `json:"lease_no"`
	LeasedUntil   *time.Time      `json:"leased_until"`
	ScheduledAt   time.Time       `json:"scheduled_at"`
	StartedAt     *time.Time      `json:"started_at"`
	CompletedAt   *time.Time      `json:"completed_at"`
	GiveUpAt      *time.Time      `json:"give_up_at"`
	ApproveBy     *time.Time      `json:"approve_by"`
	CSRDeadline   *time.Time      `json:"csr_deadline"`
	RequestedBy   string          `json:"requested_by"`
	ApprovedBy    *string         `json:"approved_by"`
	LastError     *string         `json:"last_error"`
	CancelReason  *string         `json:"cancel_reason" enum:"cancelled,rejected,approval_expired,superseded"`
	Result        json.RawMessage `json:"result"`
	Events        []JobEvent      `json:"events"`
	CreatedAt     time.Time       `json:"created_at"`
	Can           []string        `json:"can"`
}

func jobView(j job.Job, attempts []job.Attempt) Job {
	out := Job{ID: j.ID, Type: string(j.Type), Status: string(j.Status), Runner: string(j.Runner), AgentID: j.AgentID, CertificateID: j.CertificateID, VersionID: j.VersionID,
		TargetID: j.TargetID, IssuerID: j.IssuerID, Attempts: j.Attempts, MaxAttempts: j.MaxAttempts, LeaseNo: j.LeaseNo, LeasedUntil: j.LeasedUntil, ScheduledAt: j.ScheduledAt,
		StartedAt: j.StartedAt, CompletedAt: j.CompletedAt, GiveUpAt: j.GiveUpAt, ApproveBy: j.ApproveBy, CSRDeadline: j.CSRDeadline, RequestedBy: j.RequestedBy, ApprovedBy: j.ApprovedBy,
		LastError: j.LastError, CancelReason: j.CancelReason, Result: json.RawMessage("null"), Events: jobEvents(j, attempts), CreatedAt: j.CreatedAt, Can: []string{}}
	if len(j.Result) > 0 && j.Type != job.Export { // an export's result is for the process that asked
		out.Result = j.Result
	}
	switch j.Status {
	case job.AwaitingApproval:
		out.Can = []string{"approve", "reject", "cancel"}
	case job.Pending, job.AwaitingCSR:
		out.Can = []string{"cancel"}
	}
	return out
}

func jobEvents(j job.Job, attempts []job.Attempt) []JobEvent {
	out := []JobEvent{{At: j.CreatedAt, Event: "created", Actor: &j.RequestedBy}}
	if j.ApprovedAt != nil {
		e := JobEvent{At: *j.ApprovedAt, Event: "approved", Actor: j.ApprovedBy}
		if j.CancelReason != nil && *j.CancelReason == "rejected" {
			e.Event, e.Detail = "rejected", j.LastError
		}
		out = append(out, e)
	}
	for _, a := range attempts {
		lease := a.LeaseNo
		out = append(out, JobEvent{At: a.StartedAt, Event: "claimed", Lease: &lease, Actor: &a.Claimant})
		if a.EndedAt != nil && a.Outcome != nil {
			out = append(out, JobEvent{At: *a.EndedAt, Event: *a.Outcome, Lease: &lease, Detail: a.Error, Actor: &a.Claimant})
		}
	}
	if j.Status == job.Cancelled && (j.CancelReason == nil || *j.CancelReason != "rejected") {
		out = append(out, JobEvent{At: *j.CompletedAt, Event: "cancelled", Detail: j.CancelReason})
	}
	sort.SliceStable(out, func(i, k int) bool { return out[i].At.Before(out[k].At) })
	return out
}

// jobViews reads the claims of a page of jobs.
func jobViews(ctx context.Context, q db.Querier, jobs []job.Job) (func(job.Job) Job, error) {
	ids := make([]id.Job, len(jobs))
	for i, j := range jobs {
		ids[i] = j.ID
	}
	attempts, err := job.Attempts(ctx, q, ids...)
	if err != nil {
		return nil, err
	}
	byJob := map[id.Job][]job.Attempt{}
	for _, a := range attempts {
		byJob[a.JobID] = append(byJob[a.JobID], a)
	}
	return func(j job.Job) Job { return jobView(j, byJob[j.ID]) }, nil
}

type jobList struct {
	endpoint.ListInput
	Status        string         `query:"status" enum:"Pending,AwaitingApproval,AwaitingCSR,Running,Completed,Failed,Cancelled"`
	Type          string         `query:"type" enum:"Issuance,Renewal,Deployment,Revocation,BulkRevocation,CRL,Responder,IssuerTest,TargetTest,Export,CARenewal"`
	CertificateID id.Certificate `query:"certificate_id"`
	AgentID       id.Agent       `query:"agent_id"`
}

type jobInput struct {
	ID id.Job `path:"id"`
}

type jobGet struct {
	ID   id.Job        `path:"id"`
	Wait span.Duration `query:"wait" doc:"wait until the job ends, at most 60s"`
}

type jobOutput struct{ Body Job }

type jobReject struct {
	ID   id.Job `path:"id"`
	Body struct {
		Reason string `json:"reason,omitempty" maxLength:"1000"`
	}
}

func (a *API) jobs() {
	tag := "Jobs"
	endpoint.Read(a.rt, "GET /api/v1/jobs", auth.Read, endpoint.Doc{ID: "listJobs", Tag: tag, Summary: "List jobs"},
		func(ctx context.Context, q db.Querier, in *jobList) (*endpoint.List[Job], error) {
			res, err := job.List(ctx, q, job.Filter{Status: job.State(in.Status), Type: job.Type(in.Type), CertificateID: in.CertificateID, AgentID: in.AgentID}, in.Request())
			if err != nil {
				return nil, err
			}
			view, err := jobViews(ctx, q, res.Rows)
			if err != nil {
				return nil, err
			}
			return endpoint.ListOf(&in.ListInput, res, view), nil
		})
	endpoint.Read(a.rt, "GET /api/v1/jobs/{id}", auth.Read, endpoint.Doc{ID: "getJob", Tag: tag, Summary: "Get a job",
		Description: "With wait the answer comes when the job has ended, or after that time with the job as it is."}, getJob)
	endpoint.Write(a.rt, "POST /api/v1/jobs/{id}/cancel", auth.CertWrite, endpoint.Doc{ID: "cancelJob", Tag: tag, Summary: "Cancel a job that does not run yet"},
		decide("job.cancelled", func(ctx context.Context, tx pgx.Tx, in *jobInput) (job.Job, error) { return job.Cancel(ctx, tx, in.ID) }, a))
	endpoint.Write(a.rt, "POST /api/v1/jobs/{id}/approve", auth.Approve, endpoint.Doc{ID: "approveJob", Tag: tag, Summary: "Approve a job",
		Description: "Neither the requester nor a key that the requester created may decide."},
		decide("job.approved", func(ctx context.Context, tx pgx.Tx, in *jobInput) (job.Job, error) {
			return job.Approve(ctx, tx, in.ID)
		}, a))
	endpoint.Write(a.rt, "POST /api/v1/jobs/{id}/reject", auth.Approve, endpoint.Doc{ID: "rejectJob", Tag: tag, Summary: "Reject a job"},
		decide("job.rejected", func(ctx context.Context, tx pgx.Tx, in *jobReject) (job.Job, error) {
			return job.Reject(ctx, tx, in.ID, in.Body.Reason)
		}, a))
}

// decide makes an operation of a change of a job's state: the change, its audit event and the job as it is then.
func decide[I any](action string, change func(context.Context, pgx.Tx, *I) (job.Job, error), a *API) func(context.Context, pgx.Tx, *I) (*jobOutput, error) {
	return func(ctx context.Context, tx pgx.Tx, in *I) (*jobOutput, error) {
		j, err := change(ctx, tx, in)
		if err != nil {
			return nil, err
		}
		if err := audit.Record(ctx, tx, audit.Entry{Action: action, ResourceType: "job", ResourceID: j.ID.String(),
			Details: map[string]any{"type": j.Type, "certificate_id": j.CertificateID, "requested_by": j.RequestedBy}}); err != nil {
			return nil, err
		}
		a.ring(ctx)
		view, err := jobViews(ctx, tx, []job.Job{j})
		if err != nil {
			return nil, err
		}
		return &jobOutput{view(j)}, nil
	}
}

const maxWait = time.Minute

// getJob polls while it waits: each look is one read by key, and nothing holds a connection between them.
func getJob(ctx context.Context, q db.Querier, in *jobGet) (*jobOutput, error) {
	until := time.Now().Add(min(in.Wait.Std(), maxWait, max(0, boot.Remaining(ctx)-2*time.Second)))
	for pause := 20 * time.Millisecond; ; pause = min(pause*3/2, time.Second) {
		j, err := job.Get(ctx, q, in.ID)
		if err != nil {
			return nil, err
		}
		left := time.Until(until)
		if !j.Status.Final() && left > 0 {
			select {
			case <-time.After(min(pause, left)):
				continue
			case <-ctx.Done():
			}
		}
		view, err := jobViews(ctx, q, []job.Job{j})
		if err != nil {
			return nil, err
		}
		return &jobOutput{view(j)}, nil
	}
}
