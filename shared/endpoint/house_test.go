package endpoint_test

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"certctl/shared/auth"
	"certctl/shared/db"
	"certctl/shared/dbtest"
	"certctl/shared/endpoint"
	"certctl/shared/fault"
	"certctl/shared/id"
	"certctl/shared/page"
	"certctl/shared/span"

	"github.com/jackc/pgx/v5"
)

// The sample API of these tests: things, with every kind of field.

type thing struct {
	ID        id.Certificate `json:"id"`
	Name      string         `json:"name"`
	OwnerID   id.Owner       `json:"owner_id"`
	CreatedAt time.Time      `json:"created_at"`
	SANs      []string       `json:"sans"`
	Tags      map[string]int `json:"tags"`
	Part      *part          `json:"part" doc:"what it is made of; null for a simple thing"`
}

type part struct {
	Serial string `json:"serial"`
}

type row struct {
	ID        id.Certificate `db:"id"`
	Name      string         `db:"name"`
	CreatedAt time.Time      `db:"created_at"`
}

func view(r row) thing { return thing{ID: r.ID, Name: r.Name, CreatedAt: r.CreatedAt} }

type createInput struct {
	Body struct {
		Name    string          `json:"name" minLength:"1" maxLength:"20" example:"web"`
		N       int64           `json:"n,omitempty" minimum:"3"`
		Kind    string          `json:"kind,omitempty" enum:"a,b"`
		SANs    []string        `json:"sans,omitempty" maxItems:"3" pattern:"^[a-z.]+$"`
		At      *time.Time      `json:"at,omitempty"`
		Mail    string          `json:"mail,omitempty" format:"email"`
		Link    string          `json:"link,omitempty" format:"uri"`
		OwnerID id.Owner        `json:"owner_id,omitempty"`
		TTL     span.Duration   `json:"ttl,omitzero"`
		Tags    map[string]int  `json:"tags,omitempty"`
		Config  json.RawMessage `json:"config,omitempty"`
		Part    *part           `json:"part,omitempty"`
	}
}

type createdOutput struct {
	Location string `header:"Location"`
	Body     thing
}

type idInput struct {
	ID id.Certificate `path:"id" doc:"the thing"`
}

type thingOutput struct{ Body thing }

type listInput struct {
	endpoint.ListInput
	Name    string        `query:"name" maxLength:"20"`
	OwnerID id.Owner      `query:"owner_id"`
	Wait    span.Duration `query:"wait"`
	Since   time.Time     `query:"since"`
}

type secretOutput struct {
	Body struct {
		ID     id.Key `json:"id"`
		Secret string `json:"secret"`
	}
}

var byKeys = page.Keys[row]{
	ID: "t.id", IDOf: func(r row) string { return r.ID.UUID() },
	By: map[string]page.Key[row]{
		"created_at": {SQL: "t.created_at", Type: page.Time, Of: func(r row) string { return page.TimeText(r.CreatedAt) }},
		"name":       {SQL: "t.name", Type: page.Text, Of: func(r row) string { return r.Name }},
	},
}

func list(ctx context.Context, q db.Querier, in *listInput) (*endpoint.List[thing], error) {
	args := pgx.NamedArgs{"name": in.Name}
	where, tail, err := byKeys.SQL(in.Request(), args)
	if err != nil {
		return nil, err
	}
	rows, err := db.Many[row](ctx, q, `SELECT t.id, t.name, t.created_at FROM things t WHERE (@name = '' OR t.name = @name) AND `+where+tail, args)
	if err != nil {
		return nil, err
	}
	return endpoint.ListOf(&in.ListInput, byKeys.Cut(in.Request(), rows), view), nil
}

func create(ctx context.Context, tx pgx.Tx, in *createInput) (*createdOutput, error) {
	t := thing{ID: id.New[id.Certificate](), Name: in.Body.Name, CreatedAt: time.Unix(1, 0).UTC()}
	_, err := db.Exec(ctx, tx, `INSERT INTO things (id, name) VALUES ($1, $2)`, t.ID, t.Name)
	if err != nil {
		return nil, err
	}
	if in.Body.Name == "fail" {
		return nil, fault.New(fault.OpenJob, "There is an open job.").With("open_job_id", "job_1").With("status", "no")
	}
	return &createdOutput{Location: "/api/v1/things/" + t.ID.String(), Body: t}, nil
}

// tokens are the bearer tokens of the sample.
var tokens = map[string]auth.Actor{
	"viewer":   {Principal: "vera", Role: auth.Viewer},
	"operator": {Principal: "olga", Role: auth.Operator},
	"other":    {Principal: "otto", Role: auth.Operator},
	"admin":    {Principal: "anna", Role: auth.Admin},
	"agent":    {Principal: "agent:1", Role: auth.AgentRole},
}

func authenticate(_ context.Context, r *http.Request) (auth.Actor, error) {
	h := r.Header.Get("Authorization")
	if h == "" {
		return auth.Anonymous, nil
	}
	if a, ok := tokens[strings.TrimPrefix(h, "Bearer ")]; ok {
		return a, nil
	}
	return auth.Actor{}, fault.New(fault.Unauthenticated, "This credential is not accepted.")
}

func doc(name string) endpoint.Doc {
	return endpoint.Doc{ID: name, Tag: "Things", Summary: "The operation " + name}
}

// house is the sample API. More mounts what one test needs.
func house(pool db.Beginner, more ...func(*endpoint.Router)) *endpoint.Router {
	rt := endpoint.New(endpoint.Config{
		Pool: pool, Authenticate: authenticate, Version: "1.0.0", MaxBody: 4096,
		Tags: []endpoint.Tag{{Name: "Things", Description: "Things of all kinds."}},
		Log:  slog.New(slog.DiscardHandler),
	})
	created := doc("createThing")
	created.Status, created.Errors = 201, []fault.Kind{fault.Conflict, fault.OpenJob}
	endpoint.Write(rt, "POST /api/v1/things", auth.CertWrite, created, create)
	endpoint.Read(rt, "GET /api/v1/things", auth.Read, doc("listThings"), list)
	endpoint.Read(rt, "GET /api/v1/things/{id}", auth.Read, doc("getThing"), func(_ context.Context, _ db.Querier, in *idInput) (*thingOutput, error) {
		return &thingOutput{Body: thing{ID: in.ID, Name: "x"}}, nil
	})
	endpoint.Write(rt, "POST /api/v1/things/{id}/poke", auth.CertWrite, doc("pokeThing"), func(ctx context.Context, tx pgx.Tx, in *idInput) (*thingOutput, error) {
		_, err := db.Exec(ctx, tx, `INSERT INTO things (id, name) VALUES (gen_random_uuid(), 'poked')`)
		return &thingOutput{Body: thing{ID: in.ID}}, err
	})
	endpoint.Write(rt, "DELETE /api/v1/things/{id}", auth.CertWrite, doc("deleteThing"), func(ctx context.Context, tx pgx.Tx, in *idInput) (*struct{}, error) {
		_, err := db.Exec(ctx, tx, `DELETE FROM things WHERE id = $1`, in.ID)
		return nil, err
	})
	secret := doc("createSecret")
	secret.Status, secret.Secret = 201, true
	endpoint.Write(rt, "POST /api/v1/secrets", auth.Administer, secret, func(ctx context.Context, tx pgx.Tx, _ *struct{}) (*secretOutput, error) {
		out := &secretOutput{}
		out.Body.ID, out.Body.Secret = id.New[id.Key](), "hush-hush"
		_, err := db.Exec(ctx, tx, `INSERT INTO things (id, name) VALUES ($1, 'secret')`, out.Body.ID)
		return out, err
	})
	endpoint.Read(rt, "GET /api/v1/info", auth.Public, doc("info"), func(ctx context.Context, _ db.Querier, _ *struct{}) (*struct {
		Body struct {
			Principal string `json:"principal"`
		}
	}, error) {
		out := &struct {
			Body struct {
				Principal string `json:"principal"`
			}
		}{}
		out.Body.Principal = auth.ActorOf(ctx).Principal
		return out, nil
	})
	endpoint.Raw(rt, "GET /health", auth.Public, "open", http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok") }))
	endpoint.Raw(rt, "GET /{path...}", auth.Public, "web", http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "page") }))
	endpoint.Raw(rt, "/.well-known/est/cacerts", auth.Public, "est", http.NotFoundHandler())
	for _, m := range more {
		m(rt)
	}
	return rt
}

func withTable(t testing.TB) db.Beginner {
	t.Helper()
	pool := dbtest.Pool(t)
	if _, err := pool.Exec(t.Context(), `CREATE TABLE things (id uuid PRIMARY KEY, name text NOT NULL, created_at timestamptz NOT NULL DEFAULT clock_timestamp())`); err != nil {
		t.Fatal(err)
	}
	return pool
}

// request is one call to the sample; zero values are left out.
type request struct {
	token, method, path, body, key string
	header                         map[string]string
}

func (q request) do(t testing.TB, h http.Handler) *httptest.ResponseRecorder {
	t.Helper()
	r := httptest.NewRequest(q.method, "/", strings.NewReader(q.body))
	target, err := r.URL.Parse(q.path)
	if err != nil {
		t.Fatal(err)
	}
	r.URL.RawQuery = target.RawQuery
	raw, _, _ := strings.Cut(q.path, "?") // Parse would resolve dot segments
	if r.URL.Path, err = url.PathUnescape(raw); err != nil {
		t.Fatal(err)
	}
	r.URL.RawPath = raw
	if q.token != "" {
		r.Header.Set("Authorization", "Bearer "+q.token)
	}
	if q.body != "" {
		r.Header.Set("Content-Type", "application/json")
	} else {
		r.Body, r.ContentLength = http.NoBody, 0
	}
	if q.key != "" {
		r.Header.Set("Idempotency-Key", q.key)
	}
	for k, v := range q.header {
		if v == "" {
			r.Header.Del(k)
		} else {
			r.Header.Set(k, v)
		}
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

// problemOf checks the form of a problem document and gives it.
func problemOf(t testing.TB, w *httptest.ResponseRecorder, status int) map[string]any {
	t.Helper()
	var p map[string]any
	dec := json.NewDecoder(bytes.NewReader(w.Body.Bytes()))
	if err := dec.Decode(&p); err != nil || w.Code != status || w.Header().Get("Content-Type") != "application/problem+json" {
		t.Fatalf("want a problem with status %d, got %d %s %s", status, w.Code, w.Header().Get("Content-Type"), w.Body)
	}
	for _, name := range []string{"type", "title", "status", "detail", "instance"} {
		if p[name] == nil {
			t.Errorf("the problem has no %s: %s", name, w.Body)
		}
	}
	if p["status"] != float64(status) || p["instance"] != w.Header().Get("X-Request-Id") || p["instance"] == "" {
		t.Errorf("status or instance do not match the answer: %s", w.Body)
	}
	if !strings.HasPrefix(p["type"].(string), "https://certctl.dev/problems/") {
		t.Errorf("type %s", p["type"])
	}
	return p
}

func kindOf(p map[string]any) fault.Kind {
	return fault.Kind(strings.TrimPrefix(p["type"].(string), "https://certctl.dev/problems/"))
}

func fieldsOf(p map[string]any) map[string]string {
	out := map[string]string{}
	list, _ := p["errors"].([]any)
	for _, e := range list {
		m := e.(map[string]any)
		out[m["field"].(string)] = m["detail"].(string)
	}
	return out
}

func count(t testing.TB, q db.Querier, sql string, args ...any) int {
	t.Helper()
	n, err := db.Scalar[int](t.Context(), q, sql, args...)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// doRaw is do with a query that need not be well-formed.
func (q request) doRaw(t testing.TB, h http.Handler, query string) *httptest.ResponseRecorder {
	t.Helper()
	path, _, _ := strings.Cut(q.path, "?")
	r := httptest.NewRequest(q.method, path, nil)
	r.URL.RawQuery = query
	r.Header.Set("Authorization", "Bearer "+q.token)
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

func decode(t testing.TB, w *httptest.ResponseRecorder, v any) {
	t.Helper()
	if err := json.Unmarshal(w.Body.Bytes(), v); err != nil {
		t.Fatal(err)
	}
}
