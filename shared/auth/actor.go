// Package auth owns who may do what: API keys, roles and permissions, and the actor that travels on the context.
//
// An edge authenticates a request once and puts the Actor on its context; everything below takes the actor from there, so
// that jobs, approvals and audit rows name the same principal. Roles are a fixed table in Go; the database stores a key's
// role by name. Secrets are kept as SHA-256 digests only.
package auth

import (
	"context"
	"slices"

	"certctl/shared/id"
)

// Role is what a credential may do at most.
type Role string

// The roles, weakest first, and two that no key can have.
const (
	Viewer    Role = "viewer"    // reads
	Auditor   Role = "auditor"   // reads, and reads and exports the audit trail
	Operator  Role = "operator"  // works on certificates
	Admin     Role = "admin"     // everything
	AgentRole Role = "agent"     // an enrolled agent: its own paths only
	System    Role = "system"    // the sweep and the worker
	Nobody    Role = "anonymous" // an unauthenticated request
)

// Roles are the roles that a key may have.
var Roles = []Role{Viewer, Auditor, Operator, Admin}

// Permission is what a route asks for. Each route names one where it is mounted.
type Permission string

// The permissions.
const (
	Public       Permission = "public"       // no credential needed
	Read         Permission = "read"         // list and get
	AuditRead    Permission = "audit.read"   // list, get and export audit events
	CertWrite    Permission = "cert.write"   // create, renew, deploy, revoke one, unhold, cancel
	Approve      Permission = "job.approve"  // approve and reject (the two-person rule applies as well)
	Administer   Permission = "admin"        // keys, issuers, targets, profiles, policies, tokens, bulk revocation, export
	AgentOnly    Permission = "agent"        // an agent's own paths
	EnrollAgents Permission = "agent.enroll" // authenticated by an enrollment token in the body
)

var granted = map[Role][]Permission{
	Viewer:    {Read},
	Auditor:   {Read, AuditRead},
	Operator:  {Read, CertWrite, Approve},
	Admin:     {Read, AuditRead, CertWrite, Approve, Administer},
	AgentRole: {AgentOnly},
}

// Allows reports whether the role has the permission. Public routes are open to everyone.
func (r Role) Allows(p Permission) bool { return p == Public || slices.Contains(granted[r], p) }

// Actor is who acts: a principal with a role, by a key (zero for the system and for anonymous requests).
type Actor struct {
	Principal string
	Role      Role
	KeyID     id.Key
	AgentID   id.Agent // set when the role is AgentRole
}

// Anonymous is the actor of an unauthenticated request.
var Anonymous = Actor{Principal: "anonymous", Role: Nobody}

// SystemActor is the actor of work that nobody asked for by hand, e.g. SystemActor("sweep") is "system:sweep".
func SystemActor(name string) Actor { return Actor{Principal: "system:" + name, Role: System} }

type ctxKey struct{}

// WithActor puts the actor on the context.
func WithActor(ctx context.Context, a Actor) context.Context {
	return context.WithValue(ctx, ctxKey{}, a)
}

// ActorOf is the actor on the context, Anonymous if there is none.
func ActorOf(ctx context.Context) Actor {
	if a, ok := ctx.Value(ctxKey{}).(Actor); ok {
		return a
	}
	return Anonymous
}

type requestKey struct{}

// WithRequestID puts the request id (or the run's id in a tick) on the context.
func WithRequestID(ctx context.Context, id string) context.Context {
	return context.WithValue(ctx, requestKey{}, id)
}

// RequestIDOf is the request id on the context, or "".
func RequestIDOf(ctx context.Context) string {
	s, _ := ctx.Value(requestKey{}).(string)
	return s
}

// Permissions are the names of what the role may do.
func (r Role) Permissions() []string {
	out := make([]string, len(granted[r]))
	for i, p := range granted[r] {
		out[i] = string(p)
	}
	return out
}
