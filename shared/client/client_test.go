package client_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os/exec"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"certctl/shared/api/openapi"
	"certctl/shared/client"
)

// dial makes a client of a handler. Its pauses are noted instead of waited for.
func dial(t *testing.T, h http.HandlerFunc) (*client.Client, *[]time.Duration) {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	var pauses []time.Duration
	c, err := client.New(client.Config{URL: s.URL + "/", Key: "k", Pause: func(ctx context.Context, d time.Duration) error {
		pauses = append(pauses, d)
		return ctx.Err()
	}})
	if err != nil {
		t.Fatal(err)
	}
	return c, &pauses
}

func problem(w http.ResponseWriter, status int, more string) {
	w.Header().Set("Content-Type", "application/problem+json; charset=utf-8")
	w.WriteHeader(status)
	_, _ = io.WriteString(w, `{"type":"https://certctl.dev/problems/some-kind","title":"T","status":`+strconv.Itoa(status)+`,"detail":"D","instance":"req-1"`+more+`}`)
}

// drop breaks the connection without an answer.
func drop(w http.ResponseWriter) {
	conn, _, err := w.(http.Hijacker).Hijack()
	if err == nil {
		_ = conn.Close()
	}
}

func TestAnActionKeepsItsIdempotencyKeyOverRetries(t *testing.T) {
	t.Parallel()
	var keys []string
	c, pauses := dial(t, func(w http.ResponseWriter, r *http.Request) {
		keys = append(keys, r.Header.Get("Idempotency-Key"))
		b, _ := io.ReadAll(r.Body)
		if string(b) != `{"name":"web"}` {
			t.Errorf("try %d has the body %q", len(keys), b)
		}
		switch len(keys) {
		case 1:
			w.Header().Set("Retry-After", "7")
			problem(w, 503, `,"retryable":true`)
		case 2:
			drop(w)
		default:
			_, _ = io.WriteString(w, `{"id":"team_1","name":"web","created_at":"2026-01-02T03:04:05Z"}`)
		}
	})
	for range 2 {
		if got, err := c.Teams.Create(t.Context(), client.NewTeam{Name: "web"}); err != nil || got.ID != "team_1" {
			t.Fatalf("%+v, %v", got, err)
		}
	}
	if len(keys) != 4 || keys[0] == "" || keys[1] != keys[0] || keys[2] != keys[0] || keys[3] == keys[0] {
		t.Errorf("one action has one key and the next another: %q", keys)
	}
	if (*pauses)[0] != 7*time.Second {
		t.Errorf("Retry-After is obeyed: %v", *pauses)
	}
}

func TestReadsAndChangesCarryNoIdempotencyKey(t *testing.T) {
	t.Parallel()
	c, _ := dial(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Idempotency-Key") != "" {
			t.Errorf("%s carries one", r.Method)
		}
		if r.Method == http.MethodDelete {
			w.WriteHeader(http.StatusNoContent)
			return
		}
		_, _ = io.WriteString(w, `{}`)
	})
	_, err1 := c.Jobs.Get(t.Context(), "job_1")
	_, err2 := c.Certificates.Update(t.Context(), "crt_1", client.CertificateChange{})
	err3 := c.Profiles.Archive(t.Context(), "prf_1")
	if err := errors.Join(err1, err2, err3); err != nil {
		t.Error(err)
	}
}

func TestWhatCannotSucceedIsNotTriedAgain(t *testing.T) {
	t.Parallel()
	for name, answer := range map[string]func(w http.ResponseWriter){
		"a conflict":  func(w http.ResponseWriter) { problem(w, 409, "") },
		"an internal": func(w http.ResponseWriter) { problem(w, 500, "") },
		"a redirect":  func(w http.ResponseWriter) { w.Header().Set("Location", "/elsewhere"); w.WriteHeader(307) },
		"a long wait": func(w http.ResponseWriter) {
			w.Header().Set("Retry-After", "3600")
			problem(w, 503, `,"retryable":true`)
		},
		"a page of proxy": func(w http.ResponseWriter) { w.WriteHeader(403) },
	} {
		n := 0
		c, _ := dial(t, func(w http.ResponseWriter, _ *http.Request) { n++; answer(w) })
		_, err := c.Certificates.Renew(t.Context(), "crt_1")
		var p *client.Problem
		if !errors.As(err, &p) || n != 1 {
			t.Errorf("%s: %d tries, %v", name, n, err)
		}
	}
}

func TestALostServerIsTriedAFewTimesAndNamed(t *testing.T) {
	t.Parallel()
	var n atomic.Int32
	c, pauses := dial(t, func(w http.ResponseWriter, _ *http.Request) { n.Add(1); drop(w) })
	_, err := c.Certificates.Renew(t.Context(), "crt_1")
	var away *client.Unreachable
	if !errors.As(err, &away) || n.Load() < 4 || len(*pauses) != 3 || (*pauses)[2] < (*pauses)[0] {
		t.Errorf("%d tries, pauses %v, %v", n.Load(), *pauses, err)
	}
}

func TestADeletionWhoseAnswerWasLostIsDone(t *testing.T) {
	t.Parallel()
	n := 0
	c, _ := dial(t, func(w http.ResponseWriter, _ *http.Request) {
		if n++; n == 1 {
			problem(w, 404, "")
			return
		}
		if n == 2 {
			w.Header().Set("Content-Length", "5")
			drop(w)
			return
		}
		problem(w, 404, "")
	})
	if c.Issuers.Archive(t.Context(), "iss_1") == nil {
		t.Error("what was never there is not found")
	}
	if err := c.Issuers.Archive(t.Context(), "iss_1"); err != nil {
		t.Errorf("after a lost answer: %v", err)
	}
}

func TestAProblemSaysAllThatTheDocumentSays(t *testing.T) {
	t.Parallel()
	c, _ := dial(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Retry-After", "3600")
		problem(w, 409, `,"errors":[{"field":"sans[0]","detail":"is bad"}],"open_job_id":"job_9"`)
	})
	_, err := c.Me(t.Context())
	var p *client.Problem
	if !errors.As(err, &p) {
		t.Fatal(err)
	}
	if p.Status != 409 || p.Kind() != "some-kind" || p.Detail != "D" || p.RequestID != "req-1" || p.RetryAfter != time.Hour || p.Retryable || p.Member("open_job_id") != "job_9" ||
		len(p.Fields) != 1 || p.Fields[0] != (client.Field{Field: "sans[0]", Detail: "is bad"}) || len(p.Extra) != 1 {
		t.Errorf("%+v", p)
	}
}

func TestAListIsReadPageByPageAndOnlyAsFarAsItIsWanted(t *testing.T) {
	t.Parallel()
	var asked []string
	c, _ := dial(t, func(w http.ResponseWriter, r *http.Request) {
		q := r.URL.Query()
		asked = append(asked, q.Get("cursor"))
		if q.Get("limit") != "200" || q.Get("status") != "active" {
			t.Errorf("asked %s", r.URL)
		}
		next := map[string]string{"": "a", "a": "b", "b": ""}[q.Get("cursor")]
		_ = json.NewEncoder(w).Encode(map[string]any{"data": []map[string]string{{"id": q.Get("cursor") + "1"}, {"id": q.Get("cursor") + "2"}}, "next_cursor": next})
	})
	var got []string
	for v, err := range c.Certificates.All(t.Context(), url.Values{"status": {"active"}}) {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, v.ID)
	}
	if want := []string{"1", "2", "a1", "a2", "b1", "b2"}; !slices.Equal(got, want) {
		t.Errorf("got %v", got)
	}
	asked = nil
	for range c.Certificates.All(t.Context(), url.Values{"status": {"active"}}) {
		break
	}
	if len(asked) != 1 {
		t.Errorf("%d pages were read for one row", len(asked))
	}
}

func TestWaitJobSeesEveryMoveAndEndsWhenToldTo(t *testing.T) {
	t.Parallel()
	states := []string{client.Pending, client.Running, client.Running, client.Failed}
	n := 0
	c, _ := dial(t, func(w http.ResponseWriter, r *http.Request) {
		if n > 0 == (r.URL.Query().Get("wait") == "") {
			t.Errorf("look %d asks %s", n, r.URL)
		}
		_ = json.NewEncoder(w).Encode(client.Job{ID: "job_1", Status: states[min(n, 3)]})
		n++
	})
	var seen []string
	j, err := c.WaitJob(t.Context(), "job_1", func(j client.Job) bool { seen = append(seen, j.Status); return true })
	if err != nil || j.Status != client.Failed || !slices.Equal(seen, states) {
		t.Errorf("%v, %v, %v", j.Status, err, seen)
	}
	n = 0
	j, err = c.WaitJob(t.Context(), "job_1", func(j client.Job) bool { return j.Status != client.Running })
	if err != nil || j.Status != client.Running {
		t.Errorf("%v, %v", j.Status, err)
	}
}

func TestAnExportThatBreaksOffIsAnError(t *testing.T) {
	t.Parallel()
	c, _ := dial(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Get("since") != "2026-01-02T03:04:05Z" {
			t.Errorf("asked %s", r.URL)
		}
		_, _ = io.WriteString(w, "{}\n")
		w.(http.Flusher).Flush()
		panic(http.ErrAbortHandler)
	})
	var b bytes.Buffer
	n, err := c.Audit.Export(t.Context(), time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), time.Time{}, &b)
	if err == nil || n != 3 || b.String() != "{}\n" {
		t.Errorf("%d, %v", n, err)
	}
}

func TestURLsAndKeysThatCannotBeAreRefused(t *testing.T) {
	t.Parallel()
	for _, c := range []client.Config{{URL: ""}, {URL: "certctl.example.com"}, {URL: "ftp://x"}, {URL: "https://u:p@x"}, {URL: "https://x?y"}, {URL: "https://x", Key: "a b"}, {URL: "https://x", Key: "a\r\nB: c"}} {
		if _, err := client.New(c); err == nil {
			t.Errorf("%+v is taken", c)
		}
	}
}

// TestTypesHaveTheFieldsOfTheAPI holds the types against the committed OpenAPI document, name by name.
func TestTypesHaveTheFieldsOfTheAPI(t *testing.T) {
	t.Parallel()
	var doc struct {
		Components struct {
			Schemas map[string]struct {
				Properties map[string]any `json:"properties"`
				Required   []string       `json:"required"`
			} `json:"schemas"`
		} `json:"components"`
	}
	if err := json.Unmarshal(openapi.Document, &doc); err != nil {
		t.Fatal(err)
	}
	for schema, v := range map[string]any{
		"Certificate": client.Certificate{}, "Version": client.Version{}, "Deployment": client.Deployment{}, "Job": client.Job{}, "JobEvent": client.JobEvent{}, "Issuer": client.Issuer{},
		"Generation": client.Generation{}, "Profile": client.Profile{}, "RenewalPolicy": client.RenewalPolicy{}, "Target": client.Target{}, "TargetVerify": client.TargetVerify{}, "Agent": client.Agent{}, "Key": client.Key{},
		"KeyWithSecret": client.KeyWithSecret{}, "EnrollmentToken": client.EnrollmentToken{}, "Me": client.Me{}, "Team": client.Team{}, "Owner": client.Owner{}, "AuditEvent": client.AuditEvent{}, "Actor": client.Actor{},
		"Summary": client.Summary{}, "Totals": client.BulkTotals{}, "Outcome": client.BulkOutcome{}, "RevokedCertificate": client.Revoked{},
		"CertificateCreateBody": client.NewCertificate{}, "CertificateUpdateBody": client.CertificateChange{}, "IssuerCreateBody": client.NewIssuer{}, "ProfileFields": client.ProfileFields{},
		"RenewalPolicyFields": client.RenewalPolicyFields{}, "TargetCreateBody": client.NewTarget{}, "TargetUpdateBody": client.TargetSettings{}, "Verify": client.Verify{}, "TokenCreateBody": client.NewToken{},
		"KeyCreateBody": client.NewKey{}, "TeamCreateBody": client.NewTeam{}, "OwnerCreateBody": client.NewOwner{}, "BulkInputBody": client.Bulk{}, "BulkFilter": client.BulkFilter{}, "ExportInputBody": client.Export{},
	} {
		s, ok := doc.Components.Schemas[schema]
		if !ok {
			t.Errorf("the document has no %s", schema)
			continue
		}
		have := fields(reflect.TypeOf(v))
		for name := range s.Properties {
			if !slices.Contains(have, name) {
				t.Errorf("%s: the type lacks %s", schema, name)
			}
		}
		for _, name := range have {
			if _, ok := s.Properties[name]; !ok {
				t.Errorf("%s: the API has no %s", schema, name)
			}
		}
	}
}

func fields(t reflect.Type) (out []string) {
	for i := range t.NumField() {
		f := t.Field(i)
		if f.Anonymous {
			out = append(out, fields(f.Type)...)
			continue
		}
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		out = append(out, name)
	}
	return out
}

// TestTheClientLinksNothingOfTheServer keeps programs that use it small.
func TestTheClientLinksNothingOfTheServer(t *testing.T) {
	t.Parallel()
	out, err := exec.CommandContext(t.Context(), "go", "list", "-deps", "certctl/shared/client", "certctl/shared/cli").Output()
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(out)) {
		dep := strings.TrimSpace(line)
		if strings.Contains(dep, "pgx") || strings.Contains(dep, "huma") || strings.HasPrefix(dep, "certctl/shared/") && dep != "certctl/shared/client" && dep != "certctl/shared/cli" {
			t.Errorf("links %s", dep)
		}
	}
}
