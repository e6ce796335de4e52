package lifecycle_test

import (
	"context"
	"log/slog"
	"slices"
	"testing"
	"time"

	"certctl/shared/auth"
	"certctl/shared/cert"
	"certctl/shared/db"
	"certctl/shared/dbtest"
	"certctl/shared/deployment"
	"certctl/shared/fault"
	"certctl/shared/id"
	"certctl/shared/issuer"
	"certctl/shared/issuer/localca/certlint"
	"certctl/shared/job"
	"certctl/shared/lifecycle"
	"certctl/shared/responder"
	"certctl/shared/secret"
	"certctl/shared/span"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// house is an installation of a test's own that has started: a database, a master key, the local CA.
type house struct {
	*lifecycle.House
	pool *pgxpool.Pool
	box  *secret.Box
	url  string
}

func newHouse(t testing.TB) *house {
	t.Helper()
	url := dbtest.URL(t)
	h := &house{url: url, pool: open(t, url), box: secret.New(secret.NewMaster(secret.GenerateMasterKey()))}
	first, err := lifecycle.Start(t.Context(), h.pool, lifecycle.First{Box: h.box})
	if err != nil || !first {
		t.Fatalf("the first start: %v, %v", first, err)
	}
	h.House = houseOn(h.pool, h.box)
	return h
}

func houseOn(b db.Beginner, box *secret.Box) *lifecycle.House {
	return &lifecycle.House{Pool: b, Box: box, Lint: certlint.Check, Log: slog.New(slog.DiscardHandler), URLs: lifecycle.URLs{Public: "https://certctl.example", PKI: "http://pki.example"}}
}

func open(t testing.TB, url string) *pgxpool.Pool {
	t.Helper()
	p, err := db.Open(context.Background(), db.Config{URL: url, MaxConns: 12})
	must(t, err)
	t.Cleanup(p.Close)
	return p
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func exec(t testing.TB, q db.Querier, sql string, args ...any) {
	t.Helper()
	if _, err := q.Exec(t.Context(), sql, args...); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

func count(t testing.TB, q db.Querier, sql string, args ...any) int {
	t.Helper()
	n, err := db.Scalar[int](t.Context(), q, `SELECT count(*)::int FROM `+sql, args...)
	if err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return n
}

func as(t testing.TB, principal string) context.Context {
	return auth.WithActor(t.Context(), auth.Actor{Principal: principal, Role: auth.Operator})
}

// inTx runs an operation as an edge does.
func inTx[T any](t testing.TB, b db.Beginner, fn func(ctx context.Context, tx pgx.Tx) (T, error)) (out T, err error) {
	t.Helper()
	err = db.InTx(t.Context(), b, func(tx pgx.Tx) error {
		out, err = fn(as(t, "alice"), tx)
		return err
	})
	return out, err
}

// request asks for a certificate that is issued at once.
func (h *house) request(t testing.TB, w lifecycle.Wanted) cert.Certificate {
	t.Helper()
	c, err := h.tryRequest(t, w)
	must(t, err)
	return c
}

func (h *house) tryRequest(t testing.TB, w lifecycle.Wanted) (cert.Certificate, error) {
	t.Helper()
	if w.CommonName == "" && len(w.SANs) == 0 {
		w.CommonName = "web.example.com"
	}
	w.Issue = true
	return inTx(t, h.pool, func(ctx context.Context, tx pgx.Tx) (cert.Certificate, error) { return lifecycle.Request(ctx, tx, w) })
}

// work runs everything that is due.
func (h *house) work(t testing.TB) lifecycle.Worked {
	t.Helper()
	w := &lifecycle.Worker{House: h.House}
	out, err := w.Tick(t.Context())
	if err != nil || out.Errors > 0 {
		t.Fatalf("a tick: %+v, %v", out, err)
	}
	return out
}

// issued asks for a certificate and has it issued.
func (h *house) issued(t testing.TB, w lifecycle.Wanted) cert.Certificate {
	t.Helper()
	c := h.request(t, w)
	h.work(t)
	c = h.cert(t, c.ID)
	if c.CurrentVersionID.IsZero() {
		t.Fatalf("the certificate was not issued: %s", h.lastError(t, c.ID))
	}
	return c
}

func (h *house) lastError(t testing.TB, c id.Certificate) string {
	t.Helper()
	s, err := db.Scalar[string](t.Context(), h.pool, `SELECT coalesce(string_agg(type || ' ' || status || ' ' || coalesce(last_error, ''), '; '), '') FROM jobs WHERE certificate_id = $1`, c)
	must(t, err)
	return s
}

func (h *house) cert(t testing.TB, c id.Certificate) cert.Certificate {
	t.Helper()
	got, err := cert.Get(t.Context(), h.pool, c)
	must(t, err)
	return got
}

func (h *house) version(t testing.TB, v id.Version) cert.Version {
	t.Helper()
	got, err := cert.VersionByID(t.Context(), h.pool, v)
	must(t, err)
	return got
}

func (h *house) job(t testing.TB, j id.Job) job.Job {
	t.Helper()
	got, err := job.Get(t.Context(), h.pool, j)
	must(t, err)
	return got
}

// jobs are the jobs of a certificate of one type, oldest first.
func (h *house) jobs(t testing.TB, c id.Certificate, types ...job.Type) []job.Job {
	t.Helper()
	rows, err := h.pool.Query(t.Context(), `SELECT id FROM jobs WHERE certificate_id = $1 AND type = ANY($2) ORDER BY created_at, id`, c, types)
	must(t, err)
	ids, err := pgx.CollectRows(rows, pgx.RowTo[id.Job])
	must(t, err)
	var out []job.Job
	for _, i := range ids {
		out = append(out, h.job(t, i))
	}
	return out
}

func (h *house) claim(t testing.TB, typ job.Type) *job.Lease {
	t.Helper()
	l, err := job.ClaimPending(t.Context(), h.pool, job.Claim{Type: typ, Limit: 1, Lease: time.Minute, Run: "test"})
	must(t, err)
	if len(l) != 1 {
		t.Fatalf("claimed %d %s jobs, want 1", len(l), typ)
	}
	return l[0]
}

// audited counts the audit events of an action on a resource.
func (h *house) audited(t testing.TB, action, resource string) int {
	t.Helper()
	return count(t, h.pool, `audit_events WHERE action = $1 AND resource_id = $2`, action, resource)
}

func (h *house) profile(t testing.TB, change func(*cert.Profile)) cert.Profile {
	t.Helper()
	p := cert.Profile{ID: id.New[id.Profile](), KeyAlgorithms: []string{"ecdsa-p256"}, MaxTTL: span.Of(24 * time.Hour), EKUs: []string{"serverAuth"}}
	p.Name = p.ID.String()
	change(&p)
	p, err := cert.InsertProfile(t.Context(), h.pool, p)
	must(t, err)
	return p
}

func (h *house) target(t testing.TB, change func(*deployment.Target)) deployment.Target {
	t.Helper()
	x := deployment.Target{ID: id.New[id.Target](), Type: "files", Config: []byte(`{}`)}
	x.Name = x.ID.String()
	if change != nil {
		change(&x)
	}
	x, err := deployment.InsertTarget(t.Context(), h.pool, x, nil)
	must(t, err)
	return x
}

func (h *house) responder() *responder.Handler {
	return &responder.Handler{DB: h.pool, Box: h.box, Log: slog.New(slog.DiscardHandler)}
}

func (h *house) agentTarget(t testing.TB, a host) id.Target {
	t.Helper()
	return h.target(t, func(x *deployment.Target) { x.AgentID = a.ID }).ID
}

func (h *house) local(t testing.TB) (issuer.Configured, issuer.Generation) {
	t.Helper()
	i, err := issuer.ByName(t.Context(), h.pool, lifecycle.DefaultIssuer)
	must(t, err)
	g, err := issuer.LatestGeneration(t.Context(), h.pool, i.ID)
	must(t, err)
	return i, g
}

func wantFault(t testing.TB, err error, k fault.Kind, fields ...string) {
	t.Helper()
	if !fault.Is(err, k) {
		t.Errorf("answered %v, want %s", err, k)
		return
	}
	var got []string
	for _, f := range fault.As(err).Fields {
		got = append(got, f.Field)
	}
	if len(fields) > 0 && !slices.Equal(got, fields) {
		t.Errorf("names the fields %v, want %v", got, fields)
	}
}
