package api

import (
	"context"
	"time"

	"certctl/shared/audit"
	"certctl/shared/auth"
	"certctl/shared/db"
	"certctl/shared/endpoint"
	"certctl/shared/id"
	"certctl/shared/span"

	"github.com/jackc/pgx/v5"
)

// Key is an API key as people read it.
type Key struct {
	ID         id.Key     `json:"id"`
	Name       string     `json:"name"`
	Principal  string     `json:"principal"`
	Role       string     `json:"role" enum:"viewer,auditor,operator,admin"`
	CreatedBy  string     `json:"created_by"`
	CreatedAt  time.Time  `json:"created_at"`
	LastUsedAt *time.Time `json:"last_used_at"`
	ExpiresAt  *time.Time `json:"expires_at"`
	DisabledAt *time.Time `json:"disabled_at"`
}

func keyView(k auth.Key) Key {
	return Key{k.ID, k.Name, k.Principal, string(k.Role), k.CreatedBy, k.CreatedAt, k.LastUsedAt, k.ExpiresAt, k.DisabledAt}
}

// KeyWithSecret is the answer that shows a secret, once.
type KeyWithSecret struct {
	Key
	Secret string `json:"secret" doc:"shown once; send it as Authorization: Bearer"`
}

type keyCreate struct {
	Body struct {
		Name      string     `json:"name" minLength:"1" maxLength:"200"`
		Principal string     `json:"principal" minLength:"1" maxLength:"200" doc:"who acts with the key; stored in lower case"`
		Role      string     `json:"role" enum:"viewer,auditor,operator,admin"`
		ExpiresAt *time.Time `json:"expires_at,omitempty"`
	}
}

type keyCreated struct {
	Location string `header:"Location"`
	Body     KeyWithSecret
}

type keyInput struct {
	ID id.Key `path:"id"`
}

type keyRotate struct {
	ID   id.Key `path:"id"`
	Body struct {
		Grace span.Duration `json:"grace,omitzero" doc:"how long the old secret stays good; default 24h, at most 30d"`
	}
}

type keyOutput struct{ Body Key }

type keyList struct {
	endpoint.ListInput
	Principal string `query:"principal" maxLength:"200"`
}

// Me is who the caller is.
type Me struct {
	Principal   string   `json:"principal"`
	Role        string   `json:"role"`
	KeyID       id.Key   `json:"key_id"`
	Permissions []string `json:"permissions"`
}

// Info says how to authenticate.
type Info struct {
	Methods []string `json:"methods"`
	Header  string   `json:"header"`
	Version string   `json:"version"`
}

type none struct{}

func (a *API) keys() {
	endpoint.Read(a.rt, "GET /api/v1/auth/info", auth.Public, endpoint.Doc{ID: "getAuthInfo", Tag: "Keys", Summary: "How to authenticate"},
		func(context.Context, db.Querier, *none) (*struct{ Body Info }, error) {
			return &struct{ Body Info }{Info{[]string{"api_key"}, "Authorization: Bearer <secret>", a.Version}}, nil
		})
	endpoint.Read(a.rt, "GET /api/v1/auth/me", auth.Read, endpoint.Doc{ID: "getMe", Tag: "Keys", Summary: "Who the caller is"},
		func(ctx context.Context, _ db.Querier, _ *none) (*struct{ Body Me }, error) {
			actor := auth.ActorOf(ctx)
			return &struct{ Body Me }{Me{actor.Principal, string(actor.Role), actor.KeyID, actor.Role.Permissions()}}, nil
		})
	endpoint.Write(a.rt, "POST /api/v1/keys", auth.Administer, endpoint.Doc{ID: "createKey", Tag: "Keys", Summary: "Create an API key", Status: 201, Secret: true,
		Description: "Makes a named key for a principal. The secret is in this answer and nowhere else."}, createKey)
	endpoint.Read(a.rt, "GET /api/v1/keys", auth.Administer, endpoint.Doc{ID: "listKeys", Tag: "Keys", Summary: "List API keys"},
		func(ctx context.Context, q db.Querier, in *keyList) (*endpoint.List[Key], error) {
			res, err := auth.ListKeys(ctx, q, in.Principal, in.Request())
			if err != nil {
				return nil, err
			}
			return endpoint.ListOf(&in.ListInput, res, keyView), nil
		})
	endpoint.Read(a.rt, "GET /api/v1/keys/{id}", auth.Administer, endpoint.Doc{ID: "getKey", Tag: "Keys", Summary: "Get an API key"},
		func(ctx context.Context, q db.Querier, in *keyInput) (*keyOutput, error) {
			k, err := auth.GetKey(ctx, q, in.ID)
			return &keyOutput{keyView(k)}, err
		})
	endpoint.Write(a.rt, "POST /api/v1/keys/{id}/disable", auth.Administer, endpoint.Doc{ID: "disableKey", Tag: "Keys", Summary: "Disable an API key",
		Description: "The key is refused from the next request on, on every instance."}, disableKey)
	endpoint.Write(a.rt, "POST /api/v1/keys/{id}/rotate", auth.Administer, endpoint.Doc{ID: "rotateKey", Tag: "Keys", Summary: "Rotate an API key", Status: 201, Secret: true,
		Description: "Makes a new key for the same principal and role; the old one ends after the grace."}, rotateKey)
}

func createKey(ctx context.Context, tx pgx.Tx, in *keyCreate) (*keyCreated, error) {
	b := in.Body
	k, secret, err := auth.Create(ctx, tx, auth.NewKey{Name: b.Name, Principal: b.Principal, Role: auth.Role(b.Role), ExpiresAt: b.ExpiresAt})
	if err != nil {
		return nil, err
	}
	return keyShown(k, secret), keyAudit(ctx, tx, "key.created", k)
}

func keyShown(k auth.Key, secret string) *keyCreated {
	return &keyCreated{"/api/v1/keys/" + k.ID.String(), KeyWithSecret{keyView(k), secret}}
}

func keyAudit(ctx context.Context, tx pgx.Tx, action string, k auth.Key) error {
	return audit.Record(ctx, tx, audit.Entry{Action: action, ResourceType: "key", ResourceID: k.ID.String(), Details: map[string]any{"name": k.Name, "principal": k.Principal, "role": k.Role}})
}

func disableKey(ctx context.Context, tx pgx.Tx, in *keyInput) (*keyOutput, error) {
	k, err := auth.Disable(ctx, tx, in.ID)
	if err != nil {
		return nil, err
	}
	return &keyOutput{keyView(k)}, keyAudit(ctx, tx, "key.disabled", k)
}

func rotateKey(ctx context.Context, tx pgx.Tx, in *keyRotate) (*keyCreated, error) {
	grace := in.Body.Grace.Std()
	if grace == 0 {
		grace = 24 * time.Hour
	}
	k, secret, err := auth.Rotate(ctx, tx, in.ID, min(grace, 30*24*time.Hour))
	if err != nil {
		return nil, err
	}
	return keyShown(k, secret), keyAudit(ctx, tx, "key.rotated", k)
}
