// Package api owns the REST API under /api/v1: the JSON shapes of the nouns and the mounting of their operations. It decides
// nothing: a read calls a noun, a write calls an operation of lifecycle or a noun with its audit event.
package api

import (
	"context"
	"log/slog"
	"net/http"

	"certctl/shared/agent"
	"certctl/shared/audit"
	"certctl/shared/auth"
	"certctl/shared/db"
	"certctl/shared/endpoint"
	"certctl/shared/fault"
	"certctl/shared/lifecycle"
	"certctl/shared/secret"
	"certctl/shared/target"
)

// Config of the API.
type Config struct {
	Pool    db.Beginner
	Box     *secret.Box // seals; it need not open ca and leaf
	URLs    lifecycle.URLs
	Targets target.Registry // to validate targets' settings
	// Ring wakes the worker after something was enqueued. It may be lost; nil: nobody is woken.
	Ring     func(ctx context.Context)
	RootHash func() []byte // SHA-256 of the server's own root, for enrollment tokens; nil or empty: none
	Version  string
	Document []byte // the committed OpenAPI document
	Log      *slog.Logger
}

// API mounts operations.
type API struct {
	Config
	rt *endpoint.Router
}

// Authenticate turns a request's credential into an actor: an agent's, or an API key's. Failures are counted.
func Authenticate(pool db.Querier) func(context.Context, *http.Request) (auth.Actor, error) {
	return func(ctx context.Context, r *http.Request) (auth.Actor, error) {
		if _, _, ok := agent.SplitCredential(auth.Bearer(r)); ok {
			return agent.Authenticate(ctx, pool, r)
		}
		return auth.Authenticate(ctx, pool, r, func(ctx context.Context, keyID, address, why string) error {
			return audit.RecordAs(ctx, pool, auth.Anonymous, audit.Entry{Action: "authentication.failed", ResourceType: "key", ResourceID: keyID,
				Details: map[string]any{"address": address, "why": why}})
		})
	}
}

// NewRouter is a router with the API's settings, for this package and for the other edges of the same program.
func NewRouter(c Config) *endpoint.Router {
	return endpoint.New(endpoint.Config{Pool: c.Pool, Authenticate: Authenticate(c.Pool), Version: c.Version, Document: c.Document, Log: c.Log, Tags: Tags})
}

// Tags group the operations in the OpenAPI document.
var Tags = []endpoint.Tag{
	{Name: "Certificates", Description: "Managed certificates, their versions, renewal, deployment and revocation."},
	{Name: "Jobs", Description: "Work: what is open, what ran, what waits for a decision."},
	{Name: "Issuers", Description: "Certificate authorities and their generations."},
	{Name: "Profiles", Description: "What may be issued, and when it is renewed."},
	{Name: "Targets", Description: "Places where certificates are served."},
	{Name: "Agents", Description: "Agents on hosts: people's side."},
	{Name: "Agent protocol", Description: "What agents call with their own credential."},
	{Name: "Keys", Description: "API keys and who the caller is."},
	{Name: "Organisation", Description: "Teams and owners."},
	{Name: "Audit", Description: "The append-only trail."},
	{Name: "Statistics", Description: "Counts."},
}

// Mount puts all operations of the API on a router.
func Mount(rt *endpoint.Router, c Config) {
	a := &API{Config: c, rt: rt}
	a.keys()
	a.certificates()
	a.revocations()
	a.exports()
	a.jobs()
	a.issuers()
	a.profiles()
	a.targets()
	a.agents()
	a.organisation()
	a.trail()
	a.statistics()
}

// ring has the worker woken once the operation is committed.
func (a *API) ring(ctx context.Context) {
	if a.Ring != nil {
		endpoint.AfterCommit(ctx, a.Ring)
	}
}

func badTime(field string) error {
	return fault.BadField(field, "must be a time as RFC 3339 writes it")
}
