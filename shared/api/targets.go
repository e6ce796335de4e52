package api

import (
	"context"
	"encoding/json"
	"net"
	"net/http"
	"strings"
	"time"

	"certctl/shared/agent"
	"certctl/shared/auth"
	"certctl/shared/db"
	"certctl/shared/deployment"
	"certctl/shared/endpoint"
	"certctl/shared/fault"
	"certctl/shared/id"
	"certctl/shared/lifecycle"
	"certctl/shared/wire"

	"github.com/jackc/pgx/v5"
)

// Verify says how to prove that a certificate is served.
type Verify struct {
	Address    string `json:"address" minLength:"1" maxLength:"300" doc:"host:port to complete a TLS handshake with"`
	ServerName string `json:"server_name,omitempty" maxLength:"255" doc:"SNI and the name that is checked; default: the first DNS name"`
	From       string `json:"from,omitempty" enum:"agent,worker" doc:"who probes; default agent"`
}

// TargetVerify is how a target proves that a certificate is served.
type TargetVerify struct {
	Address    string  `json:"address"`
	ServerName *string `json:"server_name"`
	From       string  `json:"from" enum:"agent,worker"`
}

// Target is a target as people read it.
type Target struct {
	ID         id.Target       `json:"id"`
	Name       string          `json:"name"`
	Type       string          `json:"type"`
	AgentID    id.Agent        `json:"agent_id"`
	Config     json.RawMessage `json:"config"`
	Verify     *TargetVerify   `json:"verify"`
	LastTest   json.RawMessage `json:"last_test"`
	CreatedAt  time.Time       `json:"created_at"`
	UpdatedAt  time.Time       `json:"updated_at"`
	ArchivedAt *time.Time      `json:"archived_at"`
}

func targetView(t deployment.Target) Target {
	out := Target{ID: t.ID, Name: t.Name, Type: t.Type, AgentID: t.AgentID, Config: orNull(t.Config), LastTest: orNull(t.LastTest), CreatedAt: t.CreatedAt, UpdatedAt: t.UpdatedAt, ArchivedAt: t.ArchivedAt}
	if t.Verify != nil {
		out.Verify = &TargetVerify{Address: t.Verify.Address, From: "agent"}
		if t.Verify.ServerName != "" {
			out.Verify.ServerName = &t.Verify.ServerName
		}
		if t.Verify.From != "" {
			out.Verify.From = t.Verify.From
		}
	}
	return out
}

type (
	targetInput struct {
		ID id.Target `path:"id"`
	}
	targetCreate struct {
		Body struct {
			Name    string          `json:"name" minLength:"1" maxLength:"200"`
			Type    string          `json:"type" minLength:"1" maxLength:"50" doc:"nginx, files"`
			AgentID id.Agent        `json:"agent_id,omitzero" doc:"who deploys; none: the worker"`
			Config  json.RawMessage `json:"config" doc:"settings of the type"`
			Verify  *Verify         `json:"verify,omitempty"`
		}
	}
	targetUpdate struct {
		ID   id.Target `path:"id"`
		Body struct {
			Name   string          `json:"name" minLength:"1" maxLength:"200"`
			Config json.RawMessage `json:"config"`
			Verify *Verify         `json:"verify,omitempty"`
		}
	}
	targetOutput  struct{ Body Target }
	targetCreated struct {
		Location string `header:"Location"`
		Body     Target
	}
	targetList struct {
		endpoint.ListInput
		AgentID id.Agent `query:"agent_id"`
	}
)

func (a *API) targets() {
	tag, conflict := "Targets", []fault.Kind{fault.Conflict}
	endpoint.Write(a.rt, "POST /api/v1/targets", auth.Administer, endpoint.Doc{ID: "createTarget", Tag: tag, Summary: "Create a target", Status: http.StatusCreated, Errors: conflict,
		Description: "Targets can hold commands that agents run, so they are for admins."}, a.createTarget)
	endpoint.Read(a.rt, "GET /api/v1/targets", auth.Read, endpoint.Doc{ID: "listTargets", Tag: tag, Summary: "List targets"},
		func(ctx context.Context, q db.Querier, in *targetList) (*endpoint.List[Target], error) {
			res, err := deployment.ListTargets(ctx, q, in.AgentID, in.Request())
			if err != nil {
				return nil, err
			}
			return endpoint.ListOf(&in.ListInput, res, targetView), nil
		})
	endpoint.Read(a.rt, "GET /api/v1/targets/{id}", auth.Read, endpoint.Doc{ID: "getTarget", Tag: tag, Summary: "Get a target"},
		func(ctx context.Context, q db.Querier, in *targetInput) (*targetOutput, error) {
			t, err := deployment.GetTarget(ctx, q, in.ID)
			return &targetOutput{targetView(t)}, err
		})
	endpoint.Write(a.rt, "PUT /api/v1/targets/{id}", auth.Administer, endpoint.Doc{ID: "updateTarget", Tag: tag, Summary: "Replace a target's settings", Errors: conflict,
		Description: "Type and agent stay: they decided who holds keys."}, a.updateTarget)
	endpoint.Write(a.rt, "POST /api/v1/targets/{id}/test", auth.Administer, endpoint.Doc{ID: "testTarget", Tag: tag, Summary: "Test a target", Status: http.StatusAccepted, Errors: conflict,
		Description: "Run by the worker without changing anything: whether its agent is online and, where the worker verifies, whether the address answers with TLS. The outcome is the job's and is shown as last_test."},
		func(ctx context.Context, tx pgx.Tx, in *targetInput) (*jobAccepted, error) {
			j, err := lifecycle.RequestTargetTest(ctx, tx, in.ID)
			if err != nil {
				return nil, err
			}
			a.ring(ctx)
			return accepted(j), nil
		})
	endpoint.Write(a.rt, "DELETE /api/v1/targets/{id}", auth.Administer, endpoint.Doc{ID: "archiveTarget", Tag: tag, Summary: "Archive a target", Errors: conflict},
		func(ctx context.Context, tx pgx.Tx, in *targetInput) (*none, error) {
			if err := deployment.ArchiveTarget(ctx, tx, in.ID); err != nil {
				return nil, err
			}
			return nil, told(ctx, tx, "target.archived", "target", in.ID.String(), "")
		})
}

// checkTarget lets the driver judge the settings and checks how to verify.
func (a *API) checkTarget(kind string, config json.RawMessage, v *Verify) (*wire.Verify, error) {
	if _, err := a.Targets.Open(kind, config); err != nil {
		return nil, err
	}
	if v == nil {
		return nil, nil
	}
	host, port, err := net.SplitHostPort(v.Address)
	if err != nil || host == "" || port == "" || strings.ContainsAny(v.Address, " /@") {
		return nil, fault.BadField("verify.address", "must be host:port")
	}
	return &wire.Verify{Address: v.Address, ServerName: v.ServerName, From: v.From}, nil
}

func (a *API) createTarget(ctx context.Context, tx pgx.Tx, in *targetCreate) (*targetCreated, error) {
	b := in.Body
	verify, err := a.checkTarget(b.Type, b.Config, b.Verify)
	if err != nil {
		return nil, err
	}
	if !b.AgentID.IsZero() {
		got, err := agent.Get(ctx, tx, b.AgentID)
		if fault.Is(err, fault.NotFound) || err == nil && got.RetiredAt != nil {
			return nil, fault.BadField("agent_id", "names something that does not exist")
		}
		if err != nil {
			return nil, err
		}
	}
	t, err := deployment.InsertTarget(ctx, tx, deployment.Target{ID: id.New[id.Target](), Name: b.Name, Type: b.Type, AgentID: b.AgentID, Config: b.Config, Verify: verify}, nil)
	if err != nil {
		return nil, taken(err, "targets_name", "target")
	}
	return &targetCreated{"/api/v1/targets/" + t.ID.String(), targetView(t)}, told(ctx, tx, "target.created", "target", t.ID.String(), t.Name)
}

func (a *API) updateTarget(ctx context.Context, tx pgx.Tx, in *targetUpdate) (*targetOutput, error) {
	old, err := deployment.GetTarget(ctx, tx, in.ID)
	if err != nil {
		return nil, err
	}
	verify, err := a.checkTarget(old.Type, in.Body.Config, in.Body.Verify)
	if err != nil {
		return nil, err
	}
	t, err := deployment.UpdateTarget(ctx, tx, deployment.Target{ID: in.ID, Name: in.Body.Name, Config: in.Body.Config, Verify: verify}, nil)
	if err != nil {
		return nil, taken(err, "targets_name", "target")
	}
	return &targetOutput{targetView(t)}, told(ctx, tx, "target.updated", "target", t.ID.String(), t.Name)
}
