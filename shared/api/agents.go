package api

import (
	"context"
	"net/http"
	"time"

	"certctl/shared/agent"
	"certctl/shared/audit"
	"certctl/shared/auth"
	"certctl/shared/db"
	"certctl/shared/endpoint"
	"certctl/shared/fault"
	"certctl/shared/id"
	"certctl/shared/span"

	"github.com/jackc/pgx/v5"
)

// Agent is an agent as people read it.
type Agent struct {
	ID           id.Agent   `json:"id"`
	Name         string     `json:"name"`
	Status       string     `json:"status" enum:"online,offline,retired"`
	Hostname     string     `json:"hostname"`
	OS           string     `json:"os"`
	Arch         string     `json:"arch"`
	Version      string     `json:"version"`
	PollSeconds  int        `json:"poll_seconds"`
	LastSeenAt   *time.Time `json:"last_seen_at"`
	OfflineSince *time.Time `json:"offline_since"`
	CreatedAt    time.Time  `json:"created_at"`
	RetiredAt    *time.Time `json:"retired_at"`
}

func agentView(a agent.Agent) Agent {
	return Agent{a.ID, a.Name, string(a.State(time.Now())), a.Hostname, a.OS, a.Arch, a.Version, a.PollSeconds, a.LastSeenAt, a.OfflineSince, a.CreatedAt, a.RetiredAt}
}

type (
	agentInput struct {
		ID id.Agent `path:"id"`
	}
	agentOutput struct{ Body Agent }
	agentList   struct {
		endpoint.ListInput
		Retired bool `query:"retired" doc:"list retired agents instead"`
	}
	tokenCreate struct {
		Body struct {
			Name *string       `json:"name,omitempty" maxLength:"200"`
			TTL  span.Duration `json:"ttl,omitzero" doc:"default 1h, at most 7d"`
		}
	}
	tokenCreated struct{ Body EnrollmentToken }
)

// EnrollmentToken is the answer that shows a token, once.
type EnrollmentToken struct {
	ID        id.EnrollmentToken `json:"id"`
	Token     string             `json:"token" doc:"single-use; shown once"`
	ExpiresAt time.Time          `json:"expires_at"`
}

func (a *API) agents() {
	tag := "Agents"
	endpoint.Write(a.rt, "POST /api/v1/agents/tokens", auth.Administer, endpoint.Doc{ID: "createEnrollmentToken", Tag: tag, Summary: "Make an enrollment token", Status: http.StatusCreated, Secret: true,
		Description: "Single-use. It carries the fingerprint of the server's root when the server issues its own TLS certificate."}, a.createToken)
	endpoint.Read(a.rt, "GET /api/v1/agents", auth.Read, endpoint.Doc{ID: "listAgents", Tag: tag, Summary: "List agents"},
		func(ctx context.Context, q db.Querier, in *agentList) (*endpoint.List[Agent], error) {
			res, err := agent.List(ctx, q, in.Retired, in.Request())
			if err != nil {
				return nil, err
			}
			return endpoint.ListOf(&in.ListInput, res, agentView), nil
		})
	endpoint.Read(a.rt, "GET /api/v1/agents/{id}", auth.Read, endpoint.Doc{ID: "getAgent", Tag: tag, Summary: "Get an agent"},
		func(ctx context.Context, q db.Querier, in *agentInput) (*agentOutput, error) {
			got, err := agent.Get(ctx, q, in.ID)
			return &agentOutput{agentView(got)}, err
		})
	endpoint.Write(a.rt, "POST /api/v1/agents/{id}/retire", auth.Administer, endpoint.Doc{ID: "retireAgent", Tag: tag, Summary: "Retire an agent", Description: "Its credential is refused at once, on every instance."},
		func(ctx context.Context, tx pgx.Tx, in *agentInput) (*agentOutput, error) {
			got, err := agent.Retire(ctx, tx, in.ID)
			if err != nil {
				return nil, err
			}
			return &agentOutput{agentView(got)}, told(ctx, tx, "agent.retired", "agent", got.ID.String(), got.Name)
		})
}

func (a *API) createToken(ctx context.Context, tx pgx.Tx, in *tokenCreate) (*tokenCreated, error) {
	ttl := in.Body.TTL.Std()
	if ttl == 0 {
		ttl = time.Hour
	}
	if ttl < time.Minute || ttl > agent.MaxTokenTTL {
		return nil, fault.BadField("ttl", "must be between 1m and 7d")
	}
	var root []byte
	if a.RootHash != nil {
		root = a.RootHash()
	}
	t, text, err := agent.NewToken(ctx, tx, in.Body.Name, ttl, root)
	if err != nil {
		return nil, err
	}
	return &tokenCreated{EnrollmentToken{t.ID, text, t.ExpiresAt}}, audit.Record(ctx, tx, audit.Entry{Action: "agent.token_created", ResourceType: "enrollment_token", ResourceID: t.ID.String(),
		Details: map[string]any{"name": t.Name, "expires_at": t.ExpiresAt}})
}
