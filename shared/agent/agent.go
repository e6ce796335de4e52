// Package agent owns agents on hosts: enrollment tokens, the agent's own credential, its encryption key, heartbeat and
// retirement. It does not know what agents do.
package agent

import (
	"context"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"net/http"
	"strings"
	"time"
	"unicode/utf8"

	"certctl/shared/auth"
	"certctl/shared/db"
	"certctl/shared/fault"
	"certctl/shared/id"
	"certctl/shared/page"
	"certctl/shared/wire"

	"github.com/jackc/pgx/v5"
)

// Agent is an enrolled agent.
type Agent struct {
	ID           id.Agent
	Name         string
	Hostname     string
	OS           string
	Arch         string
	Version      string
	PublicKey    *string // JWK, EC P-256: server-held keys reach the agent encrypted to it
	PollSeconds  int     // promised with the last answer
	LastSeenAt   *time.Time
	OfflineSince *time.Time
	CreatedAt    time.Time
	RetiredAt    *time.Time
}

const columns = `id, name, hostname, os, arch, version, public_key, poll_seconds, last_seen_at, offline_since, created_at, retired_at`

// State is where an agent stands.
type State string

// The states. An agent is offline after three times the promised interval (SPEC AGT-1).
const (
	Online  State = "online"
	Offline State = "offline"
	Retired State = "retired"
)

// onlineSQL is State == Online over the columns; the heartbeat may lag by a minute.
const onlineSQL = `retired_at IS NULL AND last_seen_at IS NOT NULL AND last_seen_at > now() - 3 * greatest(poll_seconds, 20) * interval '1 second' - interval '1 minute'`

// State decides at a moment.
func (a Agent) State(now time.Time) State {
	switch {
	case a.RetiredAt != nil:
		return Retired
	case a.LastSeenAt == nil, now.Sub(*a.LastSeenAt) >= 3*time.Duration(max(a.PollSeconds, 20))*time.Second+time.Minute:
		return Offline
	}
	return Online
}

// Token is an enrollment token without its secret.
type Token struct {
	ID        id.EnrollmentToken
	Name      *string
	CreatedBy string
	CreatedAt time.Time
	ExpiresAt time.Time
	UsedAt    *time.Time
	AgentID   id.Agent
}

const tokenColumns = `id, name, created_by, created_at, expires_at, used_at, agent_id`

// TokenPrefix starts an enrollment token: cet1_<43 base64url>[.<43 base64url SHA-256 of the server's root>].
const TokenPrefix = "cet1_"

// MaxTokenTTL bounds the life of a token.
const MaxTokenTTL = 7 * 24 * time.Hour

// NewToken makes a single-use token. rootSHA256, when given, pins the server's root certificate for the agent.
func NewToken(ctx context.Context, q db.Querier, name *string, ttl time.Duration, rootSHA256 []byte) (Token, string, error) {
	secret, hash := auth.NewSecret()
	t, err := db.One[Token](ctx, q, "token", `INSERT INTO agent_tokens (id, name, hash, created_by, expires_at) VALUES (@id, @name, @hash, @by, now() + @ttl::interval) RETURNING `+tokenColumns,
		pgx.NamedArgs{"id": id.New[id.EnrollmentToken](), "name": name, "hash": hash, "by": auth.ActorOf(ctx).Principal, "ttl": ttl})
	text := TokenPrefix + secret
	if len(rootSHA256) == 32 {
		text += "." + base64.RawURLEncoding.EncodeToString(rootSHA256)
	}
	return t, text, err
}

// tokenSecret is the secret part of a token, or "".
func tokenSecret(token string) string {
	rest, ok := strings.CutPrefix(token, TokenPrefix)
	if !ok {
		return ""
	}
	secret, _, _ := strings.Cut(rest, ".")
	return secret
}

const credentialPrefix = "certctl_agent_"

// credential is the agent's bearer: certctl_agent_<agent id suffix>_<43 base64url>.
func credential(a id.Agent, secret string) string {
	return credentialPrefix + a.Suffix() + "_" + secret
}

// SplitCredential takes an agent's bearer apart. Anything else than the exact form is refused.
func SplitCredential(s string) (id.Agent, string, bool) {
	rest, ok := strings.CutPrefix(s, credentialPrefix)
	if !ok || len(rest) != 26+1+43 || rest[26] != '_' {
		return id.Agent{}, "", false
	}
	a, err := id.ParseSuffix[id.Agent](rest[:26])
	return a, rest[27:], err == nil
}

var badToken = "The enrollment token is not accepted: it is unknown, used or expired. Make a new one with “certctl agent token”."

// Enroll uses up a token and makes an agent with a credential of its own. The same public key again gives the same agent: its
// answer may have been lost, so the credential is made anew; the token must then be the one that it used.
func Enroll(ctx context.Context, tx pgx.Tx, e wire.Enroll) (Agent, string, error) {
	var tokenID id.EnrollmentToken
	var used, expired bool
	var usedBy id.Agent
	err := tx.QueryRow(ctx, `SELECT id, used_at IS NOT NULL, expires_at <= now(), agent_id FROM agent_tokens WHERE hash = $1 FOR UPDATE`,
		auth.Digest(tokenSecret(e.Token))).Scan(&tokenID, &used, &expired, &usedBy)
	if errors.Is(err, pgx.ErrNoRows) || err == nil && expired && !used {
		return Agent{}, "", fault.New(fault.Unauthenticated, "%s", badToken)
	}
	if err != nil {
		return Agent{}, "", db.Fault(err)
	}
	if used {
		return reenroll(ctx, tx, usedBy, e)
	}
	if err := checkEnroll(e); err != nil {
		return Agent{}, "", err
	}
	secret, hash := auth.NewSecret()
	a, err := db.One[Agent](ctx, tx, "agent", `WITH a AS (INSERT INTO agents (id, name, hostname, os, arch, version, public_key, credential_hash) VALUES (@id, @name, @hostname, @os, @arch, @version, @key, @hash) RETURNING *),
			t AS (UPDATE agent_tokens SET used_at = now(), agent_id = @id WHERE id = @token)
		SELECT `+columns+` FROM a`,
		pgx.NamedArgs{"id": id.New[id.Agent](), "name": e.Name, "hostname": e.Hostname, "os": e.OS, "arch": e.Arch, "version": e.Version, "key": e.PublicKey, "hash": hash, "token": tokenID})
	switch db.Constraint(err) {
	case "agents_name":
		return a, "", fault.New(fault.Conflict, "A live agent has this name. Choose another one, or retire the old agent first.")
	case "agents_public_key":
		return a, "", fault.New(fault.Conflict, "A live agent has this public key.")
	}
	return a, credential(a.ID, secret), err
}

// reenroll answers a repeated enrollment: only the holder of the same public key, and only shortly after the first.
func reenroll(ctx context.Context, tx pgx.Tx, a id.Agent, e wire.Enroll) (Agent, string, error) {
	refused := fault.New(fault.Unauthenticated, "%s", badToken)
	old, err := Get(ctx, tx, a)
	if err != nil || e.PublicKey == nil || old.PublicKey == nil || *old.PublicKey != *e.PublicKey || old.RetiredAt != nil || time.Since(old.CreatedAt) > time.Hour {
		return Agent{}, "", refused
	}
	secret, hash := auth.NewSecret()
	_, err = db.Exec(ctx, tx, `UPDATE agents SET credential_hash = @hash, previous_credential_hash = NULL WHERE id = @id`, pgx.NamedArgs{"id": a, "hash": hash})
	return old, credential(a, secret), err
}

func checkEnroll(e wire.Enroll) error {
	if e.Name == "" || utf8.RuneCountInString(e.Name) > 200 {
		return fault.BadField("name", "must have 1 to 200 characters")
	}
	return nil
}

// Refused is the fault of a credential that is not accepted.
func Refused() error {
	return fault.New(fault.Unauthenticated, "The agent's credential is not accepted. If the agent was retired, enroll it again with a new token.")
}

// Authenticate turns an agent's bearer into an actor.
func Authenticate(ctx context.Context, q db.Querier, r *http.Request) (auth.Actor, error) {
	if r.Header.Get("Authorization") == "" {
		return auth.Anonymous, nil
	}
	a, secret, ok := SplitCredential(auth.Bearer(r))
	if !ok {
		return auth.Anonymous, Refused()
	}
	digest := auth.Digest(secret)
	var current, previous []byte
	var retired bool
	err := q.QueryRow(ctx, `SELECT credential_hash, previous_credential_hash, retired_at IS NOT NULL FROM agents WHERE id = $1`, a).Scan(&current, &previous, &retired)
	if errors.Is(err, pgx.ErrNoRows) {
		return auth.Anonymous, Refused()
	}
	if err != nil {
		return auth.Anonymous, db.Fault(err)
	}
	isCurrent := subtle.ConstantTimeCompare(current, digest) == 1
	if retired || !isCurrent && subtle.ConstantTimeCompare(previous, digest) != 1 {
		return auth.Anonymous, Refused()
	}
	if isCurrent && previous != nil {
		if _, err := db.Exec(ctx, q, `UPDATE agents SET previous_credential_hash = NULL WHERE id = $1 AND credential_hash = $2`, a, digest); err != nil {
			return auth.Anonymous, err
		}
	}
	return Actor(a), nil
}

// Actor is the actor of an agent.
func Actor(a id.Agent) auth.Actor {
	return auth.Actor{Principal: "agent:" + a.String(), Role: auth.AgentRole, AgentID: a}
}

// RotateCredential makes a new credential; the old one is accepted until the new one was used once.
func RotateCredential(ctx context.Context, q db.Querier, a id.Agent) (string, error) {
	secret, hash := auth.NewSecret()
	n, err := db.Exec(ctx, q, `UPDATE agents SET previous_credential_hash = credential_hash, credential_hash = @hash WHERE id = @id AND retired_at IS NULL`, pgx.NamedArgs{"id": a, "hash": hash})
	if err == nil && n == 0 {
		err = Refused()
	}
	return credential(a, secret), err
}

// Retire ends an agent at once: its credential is refused on every instance.
func Retire(ctx context.Context, q db.Querier, a id.Agent) (Agent, error) {
	return db.One[Agent](ctx, q, "agent", `UPDATE agents SET retired_at = coalesce(retired_at, now()), previous_credential_hash = NULL WHERE id = @id RETURNING `+columns, pgx.NamedArgs{"id": a})
}

// Get answers one agent.
func Get(ctx context.Context, q db.Querier, a id.Agent) (Agent, error) {
	return db.One[Agent](ctx, q, "agent", `SELECT `+columns+` FROM agents WHERE id = @id`, pgx.NamedArgs{"id": a})
}

var keys = page.Keys[Agent]{
	ID: "id", IDOf: func(a Agent) string { return a.ID.UUID() },
	By: map[string]page.Key[Agent]{"created_at": {SQL: "created_at", Type: page.Time, Of: func(a Agent) string { return page.TimeText(a.CreatedAt) }}},
}

// List answers a page of agents; retired ones only when asked for.
func List(ctx context.Context, q db.Querier, retired bool, p page.Request) (page.Result[Agent], error) {
	return db.List(ctx, q, keys, p, db.Source{Columns: columns, From: "agents", Where: "(retired_at IS NOT NULL) = @retired"}, pgx.NamedArgs{"retired": retired})
}

// MarkOffline records which agents missed three polls, and which came back; it answers how many went away.
func MarkOffline(ctx context.Context, q db.Querier) (int64, error) {
	return db.Scalar[int64](ctx, q, `WITH away AS (UPDATE agents SET offline_since = now() WHERE retired_at IS NULL AND offline_since IS NULL AND last_seen_at IS NOT NULL AND NOT (`+onlineSQL+`) RETURNING 1)
		SELECT count(*) FROM away`)
}

// Counts answers how many agents are not retired and how many of them are online.
func Counts(ctx context.Context, q db.Querier) (total, online int64, err error) {
	err = db.Fault(q.QueryRow(ctx, `SELECT count(*) FILTER (WHERE retired_at IS NULL), count(*) FILTER (WHERE `+onlineSQL+`) FROM agents`).Scan(&total, &online))
	return total, online, err
}
