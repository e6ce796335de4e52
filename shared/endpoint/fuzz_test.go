package endpoint_test

import (
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"certctl/shared/db"
)

// fuzzed is the sample on a database of its own; what an input does is rolled back.
func fuzzed(f *testing.F) (h http.Handler, isolate func(t *testing.T)) {
	pool := withTable(f)
	at := &moving{Beginner: pool}
	return house(at), func(t *testing.T) {
		tx, err := pool.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		at.Beginner = tx
		t.Cleanup(func() { _ = tx.Rollback(context.WithoutCancel(t.Context())) })
	}
}

// moving is where the sample's transactions begin.
type moving struct{ db.Beginner }

const submitted = "zQ7marker"

// Whatever is sent as a body is created or refused with a problem document, which repeats nothing of it.
func FuzzBodiesAreTakenOrRefused(f *testing.F) {
	h, isolate := fuzzed(f)
	for _, body := range []string{`{"name":"web"}`, `{"name":"x","n":1e300,"sans":["ok","zQ7marker"]}`, `{"name":"x","owner_id":"own_zQ7marker","ttl":"9d","tags":{"a":1}}`,
		`{"name":"x","Name":"y"}`, `{"name":"\u0000"}`, `[[[[`, `{"name":"x","config":{"a":[1,{"b":null}]},"part":{"serial":"1"}}`, `null`, `{"name":"x","at":"2026-01-01T00:00:00Z","mail":"a@b","link":"http://x/%zz"}`} {
		f.Add(body)
	}
	f.Fuzz(func(t *testing.T, body string) {
		isolate(t)
		w := request{method: "POST", path: "/api/v1/things", token: "operator", body: body}.do(t, h)
		if w.Code == 201 {
			var in map[string]any
			if err := json.Unmarshal([]byte(body), &in); err != nil || in["name"] == nil {
				t.Fatalf("created from %q", body)
			}
			return
		}
		if w.Code != 400 && w.Code != 409 && w.Code != 413 && w.Code != 415 {
			t.Fatalf("%q: %d %s", body, w.Code, w.Body)
		}
		repeatsNothing(t, w)
	})
}

// repeatsNothing looks at the texts of a problem. The names of fields are shown where they look like names.
func repeatsNothing(t *testing.T, w *httptest.ResponseRecorder) {
	t.Helper()
	p := problemOf(t, w, w.Code)
	for field, detail := range fieldsOf(p) {
		if strings.Contains(detail, submitted) {
			t.Fatalf("the text about %s repeats what was sent: %s", field, detail)
		}
	}
	if strings.Contains(p["detail"].(string), submitted) {
		t.Fatalf("the answer repeats what was sent: %s", w.Body)
	}
}

// Whatever stands in the query of a list is a page or a 400 that repeats nothing of it.
func FuzzQueriesAreTakenOrRefused(f *testing.F) {
	h, isolate := fuzzed(f)
	for _, q := range []string{"limit=1&sort=-name", "limit=0", "cursor=eyJzIjoiLWNyZWF0ZWRfYXQifQ", "name=zQ7marker&wait=5s&since=2026-01-01T00:00:00Z", "zQ7marker=1", "limit=1&limit=2", "a=%zz", "name=%00", "total=zQ7marker", ";"} {
		f.Add(q)
	}
	f.Fuzz(func(t *testing.T, query string) {
		isolate(t)
		w := request{method: "GET", path: "/api/v1/things", token: "viewer"}.doRaw(t, h, query)
		if w.Code == 200 {
			return
		}
		problemOf(t, w, 400)
		repeatsNothing(t, w)
	})
}
