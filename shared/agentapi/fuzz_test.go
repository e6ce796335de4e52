package agentapi_test

import (
	"bytes"
	"context"
	"encoding/json"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"certctl/shared/agent"
	"certctl/shared/agentapi"
	"certctl/shared/auth"
	"certctl/shared/cert"
	"certctl/shared/db"
	"certctl/shared/dbtest"
	"certctl/shared/deployment"
	"certctl/shared/endpoint"
	"certctl/shared/id"
	"certctl/shared/job"
	"certctl/shared/lifecycle"
	"certctl/shared/secret"
	"certctl/shared/wire"

	"github.com/jackc/pgx/v5"
)

// moving is where the edge's transactions begin: what an input does is rolled back.
type moving struct{ db.Beginner }

// site is an agent with one running deployment and one certificate that waits for its request.
type site struct {
	pool       db.Beginner
	at         *moving
	edge       http.Handler
	agent      id.Agent
	credential string
	deployment id.Job
	version    id.Version
	request    id.Job
	log        *bytes.Buffer // of the last request
}

func must(f *testing.F, err error) {
	f.Helper()
	if err != nil {
		f.Fatal(err)
	}
}

func newSite(f *testing.F) *site {
	s := &site{pool: dbtest.Pool(f), log: &bytes.Buffer{}}
	slog.SetDefault(slog.New(slog.NewTextHandler(s.log, nil))) // problems of the server are logged there
	s.at = &moving{s.pool}
	ctx := auth.WithActor(f.Context(), auth.Actor{Principal: "anna", Role: auth.Admin})
	_, err := lifecycle.Start(ctx, s.pool, lifecycle.First{Box: secret.New(secret.NewMaster(secret.GenerateMasterKey()))})
	must(f, err)
	tx, err := s.pool.Begin(ctx)
	must(f, err)
	_, token, err := agent.NewToken(ctx, tx, nil, time.Hour, nil)
	must(f, err)
	e, err := lifecycle.Enroll(ctx, tx, wire.Enroll{Token: token, Name: "fuzzed"})
	must(f, err)
	s.agent, s.credential = e.AgentID, e.Credential
	t, err := deployment.InsertTarget(ctx, tx, deployment.Target{ID: id.New[id.Target](), Name: "t", Type: "files", AgentID: s.agent, Config: json.RawMessage(`{"cert_path":"/a","key_path":"/b"}`)}, nil)
	must(f, err)
	s.request = s.order(ctx, f, tx, t.ID).OpenJobID
	c := s.order(ctx, f, tx, t.ID)
	s.version = id.New[id.Version]()
	_, err = db.Exec(ctx, tx, `WITH v AS (INSERT INTO versions (id, certificate_id, issuer_id, job_id, serial, not_before, not_after, fingerprint, spki_sha256, key_algorithm)
		VALUES ($1, $2, $3, $4, '\x01', now(), now() + interval '1 day', sha256('a'), sha256('b'), 'ecdsa-p256')) UPDATE jobs SET status = 'Completed', completed_at = now() WHERE id = $4`,
		s.version, c.ID, c.IssuerID, c.OpenJobID)
	must(f, err)
	j, err := job.Enqueue(ctx, tx, job.New{Type: job.Deployment, CertificateID: c.ID, TargetID: t.ID, Runner: job.Agent, AgentID: s.agent})
	must(f, err)
	s.deployment = j.ID
	must(f, tx.Commit(ctx))
	rt := endpoint.New(endpoint.Config{Pool: s.at, Authenticate: agentapi.Authenticate(s.pool), Log: slog.New(slog.DiscardHandler)})
	agentapi.Mount(rt, agentapi.Config{Pool: s.at, Idle: time.Minute})
	s.edge = rt
	if w := s.call(f.Context(), "GET", "/work", ""); w.Code != 200 || !strings.Contains(w.Body.String(), s.deployment.String()) {
		f.Fatalf("%d %s", w.Code, w.Body)
	}
	return s
}

func (s *site) order(ctx context.Context, f *testing.F, tx pgx.Tx, t id.Target) cert.Certificate {
	c, err := lifecycle.Request(ctx, tx, lifecycle.Wanted{SANs: []string{"fuzz.example.com"}, TargetIDs: []id.Target{t}, Issue: true})
	must(f, err)
	return c
}

func (s *site) call(ctx context.Context, method, path, body string) *httptest.ResponseRecorder {
	s.log.Reset()
	r := httptest.NewRequestWithContext(ctx, method, "/api/v1/agents/"+s.agent.String()+path, strings.NewReader(body))
	r.Header.Set("Authorization", "Bearer "+s.credential)
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set(wire.RunHeader, "run")
	w := httptest.NewRecorder()
	s.edge.ServeHTTP(w, r)
	return w
}

// post sends one body, which is undone afterwards, and wants an answer that is no error of the server.
func (s *site) post(t *testing.T, path, body string) {
	tx, err := s.pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	s.at.Beginner = tx
	defer func() { _ = tx.Rollback(context.WithoutCancel(t.Context())) }()
	w := s.call(t.Context(), "POST", path, body)
	if w.Code >= 500 || w.Code >= 300 && w.Code < 400 {
		t.Fatalf("%q: %d %s\n%s", body, w.Code, w.Body, s.log)
	}
	if w.Code >= 400 && w.Header().Get("Content-Type") != "application/problem+json" {
		t.Fatalf("%d with %s", w.Code, w.Header().Get("Content-Type"))
	}
}

func FuzzReportsAreTakenOrRefused(f *testing.F) {
	s := newSite(f)
	ver := s.version.String()
	fits := `{"lease":1,"status":"Completed","receipt":{"version_id":"` + ver + `","changed":true,"served_fingerprint_sha256":"ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb","steps":[{"name":"x","ms":1}]}}`
	if w := s.call(f.Context(), "POST", "/jobs/"+s.deployment.String()+"/status", `{"lease":1,"status":"Running"}`); w.Code != 200 {
		f.Fatalf("%d %s", w.Code, w.Body)
	}
	for _, body := range []string{strings.Replace(fits, ver, "VERSION", 1), `{"lease":1,"status":"Running"}`, `{"lease":1,"status":"Failed","detail":"x","receipt":{"version_id":null,"steps":null,"rolled_back":true}}`,
		`{"lease":-1,"status":"Completed","receipt":{}}`, `{"lease":9223372036854775807,"status":"Failed"}`, `{"lease":1,"status":"Completed","receipt":{"version_id":"VERSION","steps":[{"name":"\ud800","ms":9223372036854775807}]}}`} {
		f.Add(body)
	}
	f.Fuzz(func(t *testing.T, body string) {
		s.post(t, "/jobs/"+s.deployment.String()+"/status", strings.ReplaceAll(body, "VERSION", ver))
	})
}

func FuzzPostedRequestsAreTakenOrRefused(f *testing.F) {
	s := newSite(f)
	for _, body := range []string{`{"job_id":"JOB","csr_pem":"x"}`, `{"job_id":"JOB","csr_pem":"-----BEGIN CERTIFICATE REQUEST-----\nMAA=\n-----END CERTIFICATE REQUEST-----\n"}`, `{"job_id":null}`, `{}`, `{"job_id":"job_zzzzzzzzzzzzzzzzzzzzzzzzzz","csr_pem":""}`} {
		f.Add(body)
	}
	f.Fuzz(func(t *testing.T, body string) {
		s.post(t, "/csr", strings.ReplaceAll(body, "JOB", s.request.String()))
	})
}

func FuzzEnrollmentsAreTakenOrRefused(f *testing.F) {
	s := newSite(f)
	for _, body := range []string{`{"token":"cet1_x","name":"a","hostname":"b","os":"linux","arch":"amd64","version":"1"}`, `{"token":"TOKEN","name":"a"}`, `{"token":"TOKEN","name":"a","public_key":"{}"}`, `{"token":"TOKEN","name":"\u202e"}`, `{}`} {
		f.Add(body)
	}
	f.Fuzz(func(t *testing.T, body string) {
		tx, err := s.pool.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		s.at.Beginner = tx
		defer func() { _ = tx.Rollback(context.WithoutCancel(t.Context())) }()
		if strings.Contains(body, "TOKEN") {
			_, token, err := agent.NewToken(t.Context(), tx, nil, time.Hour, nil)
			if err != nil {
				t.Fatal(err)
			}
			body = strings.ReplaceAll(body, "TOKEN", token)
		}
		r := httptest.NewRequestWithContext(t.Context(), "POST", "/api/v1/agents/enroll", strings.NewReader(body))
		r.Header.Set("Content-Type", "application/json")
		w := httptest.NewRecorder()
		s.edge.ServeHTTP(w, r)
		if w.Code >= 500 {
			t.Fatalf("%q: %d %s", body, w.Code, w.Body)
		}
	})
}
