// Package agentapi owns the HTTP side of the agent protocol (SPEC §11, Agents): it mounts what agents call and hands each
// call to one operation of lifecycle. The poll stands outside the JSON machinery, because it is by far the most frequent
// request and is answered with one statement.
package agentapi

import (
	"context"
	"encoding/json"
	"net/http"
	"strings"
	"time"

	"certctl/shared/agent"
	"certctl/shared/audit"
	"certctl/shared/auth"
	"certctl/shared/db"
	"certctl/shared/endpoint"
	"certctl/shared/fault"
	"certctl/shared/id"
	"certctl/shared/lifecycle"
	"certctl/shared/wire"

	"github.com/jackc/pgx/v5"
)

// Config of the agent's edge.
type Config struct {
	Pool db.Beginner
	Idle time.Duration // promised poll interval while nothing is open
	Ring func(ctx context.Context)
}

type edge struct{ Config }

type enrollInput struct{ Body wire.Enroll }

type enrollOutput struct{ Body wire.Enrolled }

type agentPath struct {
	ID id.Agent `path:"id"`
}

type csrInput struct {
	ID   id.Agent `path:"id"`
	Body wire.PostCSR
}

type csrOutput struct{ Body wire.CSRAccepted }

type pickupInput struct {
	ID            id.Agent       `path:"id"`
	CertificateID id.Certificate `path:"certificate_id"`
	VersionID     id.Version     `query:"version_id" doc:"default: the current version"`
}

type pickupOutput struct{ Body wire.Pickup }

type reportInput struct {
	ID    id.Agent `path:"id"`
	JobID id.Job   `path:"job_id"`
	Body  wire.Report
}

type reportOutput struct{ Body wire.Reported }

type rotateOutput struct{ Body wire.Rotated }

// Mount puts the agent's paths on a router.
func Mount(rt *endpoint.Router, c Config) {
	e := &edge{c}
	tag := "Agent protocol"
	endpoint.Write(rt, "POST /api/v1/agents/enroll", auth.EnrollAgents, endpoint.Doc{ID: "enrollAgent", Tag: tag, Summary: "Enroll an agent", Status: http.StatusCreated, Secret: true,
		Description: "Authenticated by a single-use token in the body. The same public key again, with the same token, gives the same agent.", Errors: []fault.Kind{fault.Unauthenticated, fault.Conflict}},
		func(ctx context.Context, tx pgx.Tx, in *enrollInput) (*enrollOutput, error) {
			out, err := lifecycle.Enroll(ctx, tx, in.Body)
			return &enrollOutput{out}, err
		})
	endpoint.Raw(rt, "GET /api/v1/agents/{id}/work", auth.Public, "agent", http.HandlerFunc(e.work))
	endpoint.Write(rt, "POST /api/v1/agents/{id}/csr", auth.AgentOnly, endpoint.Doc{ID: "postCSR", Tag: tag, Summary: "Post a certificate request", Status: http.StatusAccepted, Errors: []fault.Kind{fault.Conflict}}, e.csr)
	endpoint.Read(rt, "GET /api/v1/agents/{id}/certificates/{certificate_id}", auth.AgentOnly, endpoint.Doc{ID: "pickUpCertificate", Tag: tag, Summary: "Pick up a version"},
		func(ctx context.Context, q db.Querier, in *pickupInput) (*pickupOutput, error) {
			if err := own(ctx, in.ID); err != nil {
				return nil, err
			}
			v, err := lifecycle.Pickup(ctx, q, in.ID, in.CertificateID, in.VersionID)
			return &pickupOutput{v}, err
		})
	endpoint.Write(rt, "POST /api/v1/agents/{id}/jobs/{job_id}/status", auth.AgentOnly, endpoint.Doc{ID: "reportJob", Tag: tag, Summary: "Report on a job", Errors: []fault.Kind{fault.StaleLease}},
		func(ctx context.Context, tx pgx.Tx, in *reportInput) (*reportOutput, error) {
			if err := own(ctx, in.ID); err != nil {
				return nil, err
			}
			out, err := lifecycle.Report(ctx, tx, in.ID, in.JobID, in.Body)
			if err == nil && in.Body.Status != "Running" {
				e.ring(ctx)
			}
			return &reportOutput{out}, err
		})
	endpoint.Write(rt, "POST /api/v1/agents/{id}/credential/rotate", auth.AgentOnly, endpoint.Doc{ID: "rotateCredential", Tag: tag, Summary: "Rotate the agent's credential", Secret: true,
		Description: "The old credential is accepted until the new one was used once."}, rotate)
}

// own refuses an agent that names another one in the path.
func own(ctx context.Context, named id.Agent) error {
	if auth.ActorOf(ctx).AgentID != named {
		return fault.New(fault.Denied, "The credential belongs to another agent than the one in the path.")
	}
	return nil
}

func (e *edge) ring(ctx context.Context) {
	if e.Ring != nil {
		endpoint.AfterCommit(ctx, e.Ring)
	}
}

func (e *edge) csr(ctx context.Context, tx pgx.Tx, in *csrInput) (*csrOutput, error) {
	if err := own(ctx, in.ID); err != nil {
		return nil, err
	}
	out, err := lifecycle.AcceptCSR(ctx, tx, in.ID, in.Body)
	if err != nil {
		return nil, err
	}
	e.ring(ctx)
	return &csrOutput{out}, nil
}

func rotate(ctx context.Context, tx pgx.Tx, in *agentPath) (*rotateOutput, error) {
	if err := own(ctx, in.ID); err != nil {
		return nil, err
	}
	credential, err := agent.RotateCredential(ctx, tx, in.ID)
	if err != nil {
		return nil, err
	}
	return &rotateOutput{wire.Rotated{AgentID: in.ID, Credential: credential}},
		audit.Record(ctx, tx, audit.Entry{Action: "agent.credential_rotated", ResourceType: "agent", ResourceID: in.ID.String()})
}

// maxRun bounds the name of an agent's run.
const maxRun = 100

// work answers a poll. The route is public for the router, because its first statement authenticates.
func (e *edge) work(w http.ResponseWriter, r *http.Request) {
	named, err := id.Parse[id.Agent](r.PathValue("id"))
	if err != nil {
		endpoint.WriteProblem(w, r, fault.New(fault.NotFound, "There is nothing at this path."))
		return
	}
	if len(r.URL.RawQuery) > 0 {
		endpoint.WriteProblem(w, r, fault.BadField("query", "this path takes no query"))
		return
	}
	run := r.Header.Get(wire.RunHeader)
	if len(run) > maxRun || strings.ContainsFunc(run, func(c rune) bool { return c < '!' || c > '~' }) {
		endpoint.WriteProblem(w, r, fault.BadField(wire.RunHeader, "must have at most 100 visible ASCII characters"))
		return
	}
	if r.Header.Get("Authorization") == "" {
		w.Header().Set("WWW-Authenticate", "Bearer")
	}
	out, err := lifecycle.Work(r.Context(), e.Pool, lifecycle.Poll{Credential: auth.Bearer(r), Path: named, Run: run, Idle: e.Idle})
	if err != nil {
		endpoint.WriteProblem(w, r, err)
		return
	}
	w.Header().Del("WWW-Authenticate")
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	_ = json.NewEncoder(w).Encode(out)
}

// Authenticate accepts agents' credentials only.
func Authenticate(pool db.Querier) func(context.Context, *http.Request) (auth.Actor, error) {
	return func(ctx context.Context, r *http.Request) (auth.Actor, error) {
		return agent.Authenticate(ctx, pool, r)
	}
}
