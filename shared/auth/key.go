package auth

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"net"
	"net/http"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"certctl/shared/db"
	"certctl/shared/fault"
	"certctl/shared/id"
	"certctl/shared/page"

	"github.com/jackc/pgx/v5"
)

// Key is an API key without its secret.
type Key struct {
	ID         id.Key
	Name       string
	Principal  string
	Role       Role
	CreatedBy  string
	CreatedAt  time.Time
	LastUsedAt *time.Time
	ExpiresAt  *time.Time
	DisabledAt *time.Time
}

const keyColumns = `id, name, principal, role, created_by, created_at, last_used_at, expires_at, disabled_at`

// NewKey is what a key is made from.
type NewKey struct {
	Name      string
	Principal string // stored in lower case
	Role      Role
	ExpiresAt *time.Time // nil: never
}

// Check answers every field that is not acceptable.
func (n NewKey) Check(now time.Time) error {
	var bad []fault.Field
	if n.Name == "" || utf8.RuneCountInString(n.Name) > 200 {
		bad = append(bad, fault.Field{Field: "name", Detail: "must have 1 to 200 characters"})
	}
	if !validPrincipal(n.Principal) {
		bad = append(bad, fault.Field{Field: "principal", Detail: "must have 1 to 200 characters of a-z, 0-9 and . _ - @ +"})
	}
	if !slices.Contains(Roles, n.Role) {
		bad = append(bad, fault.Field{Field: "role", Detail: "must be one of viewer, auditor, operator, admin"})
	}
	if n.ExpiresAt != nil && !n.ExpiresAt.After(now) {
		bad = append(bad, fault.Field{Field: "expires_at", Detail: "must be in the future"})
	}
	if len(bad) > 0 {
		return fault.BadFields(bad...)
	}
	return nil
}

// validPrincipal keeps the namespaces of the system ("system:…") and of agents ("agent:…") out of reach: no colon.
func validPrincipal(s string) bool {
	s = strings.ToLower(s)
	if s == "" || len(s) > 200 || s == Anonymous.Principal {
		return false
	}
	for _, r := range s {
		if (r < 'a' || r > 'z') && (r < '0' || r > '9') && !strings.ContainsRune("._-@+", r) {
			return false
		}
	}
	return true
}

// NewSecret makes 256 random bits as 43 base64url characters, and their digest for the database.
func NewSecret() (text string, hash []byte) {
	var b [32]byte
	_, _ = rand.Read(b[:]) // never fails since Go 1.24
	text = base64.RawURLEncoding.EncodeToString(b[:])
	return text, Digest(text)
}

// Digest is the form in which secrets of 256 random bits are stored: SHA-256 needs no salt or stretching for them.
func Digest(secret string) []byte {
	h := sha256.Sum256([]byte(secret))
	return h[:]
}

const prefix = "certctl_"

// Secret is the credential that a person sees once: certctl_<key id suffix>_<43 base64url>.
func Secret(k id.Key, text string) string { return prefix + k.Suffix() + "_" + text }

// Split takes a credential apart. Anything else than the exact form is refused.
func Split(credential string) (id.Key, string, bool) {
	rest, ok := strings.CutPrefix(credential, prefix)
	if !ok || len(rest) != 26+1+43 || rest[26] != '_' {
		return id.Key{}, "", false
	}
	k, err := id.ParseSuffix[id.Key](rest[:26])
	return k, rest[27:], err == nil
}

// Create stores a key and answers it with its secret, which nobody can read again.
func Create(ctx context.Context, q db.Querier, n NewKey) (Key, string, error) {
	return create(ctx, q, n, ActorOf(ctx).Principal)
}

func create(ctx context.Context, q db.Querier, n NewKey, by string) (Key, string, error) {
	if err := n.Check(time.Now()); err != nil {
		return Key{}, "", err
	}
	k := id.New[id.Key]()
	text, hash := NewSecret()
	key, err := db.One[Key](ctx, q, "key", `INSERT INTO api_keys (id, name, hash, principal, role, created_by, expires_at)
		VALUES (@id, @name, @hash, lower(@principal), @role, @by, @expires) RETURNING `+keyColumns,
		pgx.NamedArgs{"id": k, "name": n.Name, "hash": hash, "principal": n.Principal, "role": n.Role, "by": by, "expires": n.ExpiresAt})
	return key, Secret(k, text), err
}

var keyOrder = page.Keys[Key]{
	ID: "id", IDOf: func(k Key) string { return k.ID.UUID() },
	By: map[string]page.Key[Key]{"created_at": {SQL: "created_at", Type: page.Time, Of: func(k Key) string { return page.TimeText(k.CreatedAt) }}},
}

// ListKeys answers a page of keys.
func ListKeys(ctx context.Context, q db.Querier, principal string, p page.Request) (page.Result[Key], error) {
	args := pgx.NamedArgs{"principal": strings.ToLower(principal)}
	return db.List(ctx, q, keyOrder, p, db.Source{Columns: keyColumns, From: "api_keys", Where: "(@principal = '' OR principal = @principal)"}, args)
}

// GetKey answers one key.
func GetKey(ctx context.Context, q db.Querier, k id.Key) (Key, error) {
	return db.One[Key](ctx, q, "key", `SELECT `+keyColumns+` FROM api_keys WHERE id = @id`, pgx.NamedArgs{"id": k})
}

// Disable ends a key at once, on every instance. Disabling a disabled key changes nothing.
func Disable(ctx context.Context, q db.Querier, k id.Key) (Key, error) {
	return db.One[Key](ctx, q, "key", `UPDATE api_keys SET disabled_at = coalesce(disabled_at, now()) WHERE id = @id RETURNING `+keyColumns, pgx.NamedArgs{"id": k})
}

// Rotate makes a second key for the same principal, name, role and length of life, and lets the old one live for grace, so
// that clients can change over without a gap.
func Rotate(ctx context.Context, q db.Querier, k id.Key, grace time.Duration) (Key, string, error) {
	old, err := GetKey(ctx, q, k)
	if err != nil {
		return Key{}, "", err
	}
	if old.DisabledAt != nil {
		return Key{}, "", fault.New(fault.Conflict, "The key is disabled; create a new one.")
	}
	// The creator of the new key is the creator of the old one: rotating must not weaken the two-person rule.
	next := NewKey{Name: old.Name, Principal: old.Principal, Role: old.Role}
	if old.ExpiresAt != nil {
		end := time.Now().Add(old.ExpiresAt.Sub(old.CreatedAt))
		next.ExpiresAt = &end
	}
	fresh, secret, err := create(ctx, q, next, old.CreatedBy)
	if err != nil {
		return Key{}, "", err
	}
	_, err = db.Exec(ctx, q, `UPDATE api_keys SET expires_at = least(coalesce(expires_at, 'infinity'), now() + @grace) WHERE id = @id`,
		pgx.NamedArgs{"id": k, "grace": grace})
	return fresh, secret, err
}

// Bearer is the bearer token of a request, or "".
func Bearer(r *http.Request) string {
	scheme, token, ok := strings.Cut(r.Header.Get("Authorization"), " ")
	if !ok || !strings.EqualFold(scheme, "Bearer") {
		return ""
	}
	return strings.TrimSpace(token)
}

// lookup finds the key and stamps its use, at most once a minute, in one statement. The digest in the WHERE of the stamp only
// keeps a wrong secret from stamping; the decision is made in Go in constant time.
const lookup = `WITH k AS (SELECT id, hash, principal, role, created_by, expires_at, disabled_at, last_used_at FROM api_keys WHERE id = @id),
	stamp AS (UPDATE api_keys a SET last_used_at = now() FROM k WHERE a.id = k.id AND a.hash = @hash AND k.disabled_at IS NULL
		AND (k.expires_at IS NULL OR k.expires_at > now()) AND (k.last_used_at IS NULL OR k.last_used_at < now() - interval '1 minute'))
	SELECT hash, principal, role, expires_at IS NOT NULL AND expires_at <= now() AS expired, disabled_at IS NOT NULL AS disabled FROM k`

// Authenticate turns the bearer credential of a request into an actor. Without a credential it is Anonymous; with one that is
// not accepted, a fault that does not say why, and the attempt is counted. audit is told of the first failure of a minute.
func Authenticate(ctx context.Context, q db.Querier, r *http.Request, onFailure func(ctx context.Context, keyID, address, why string) error) (Actor, error) {
	header := r.Header.Get("Authorization")
	if header == "" {
		return Anonymous, nil
	}
	refused := fault.New(fault.Unauthenticated, "The credential is not accepted. Send “Authorization: Bearer <secret>” with a key that is neither disabled nor expired.")
	k, text, ok := Split(Bearer(r))
	if !ok {
		return Anonymous, errors.Join(refused, countFailure(ctx, q, "unknown", r, "malformed", onFailure))
	}
	digest := Digest(text)
	var row struct {
		Hash              []byte
		Principal, Role   string
		Expired, Disabled bool
	}
	err := q.QueryRow(ctx, lookup, pgx.NamedArgs{"id": k, "hash": digest}).Scan(&row.Hash, &row.Principal, &row.Role, &row.Expired, &row.Disabled)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return Anonymous, errors.Join(refused, countFailure(ctx, q, "unknown", r, "unknown key", onFailure))
	case err != nil:
		return Anonymous, db.Fault(err)
	case subtle.ConstantTimeCompare(row.Hash, digest) != 1:
		return Anonymous, errors.Join(refused, countFailure(ctx, q, k.String(), r, "wrong secret", onFailure))
	case row.Disabled:
		return Anonymous, errors.Join(refused, countFailure(ctx, q, k.String(), r, "disabled", onFailure))
	case row.Expired:
		return Anonymous, errors.Join(refused, countFailure(ctx, q, k.String(), r, "expired", onFailure))
	}
	return Actor{Principal: row.Principal, Role: Role(row.Role), KeyID: k}, nil
}

// countFailure counts per key, address and minute and reports the first. A failure to count must not turn a 401 into a 500,
// but it must not be lost either: it joins the cause, which the edge logs.
func countFailure(ctx context.Context, q db.Querier, keyID string, r *http.Request, why string, onFailure func(context.Context, string, string, string) error) error {
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		host = r.RemoteAddr
	}
	n, err := db.Scalar[int](ctx, q, `INSERT INTO auth_failures (key_id, address, minute) VALUES ($1, $2, date_trunc('minute', now()))
		ON CONFLICT (key_id, address, minute) DO UPDATE SET count = auth_failures.count + 1 RETURNING count`, keyID, host)
	if err != nil || n > 1 || onFailure == nil {
		return err
	}
	return onFailure(ctx, keyID, host, why)
}

// CreatorOf is who created the key, "" when there is none: the two-person rule asks it.
func CreatorOf(ctx context.Context, q db.Querier, k id.Key) (string, error) {
	by, err := db.Scalar[string](ctx, q, `SELECT created_by FROM api_keys WHERE id = $1`, k)
	if errors.Is(err, pgx.ErrNoRows) {
		return "", nil
	}
	return by, err
}
