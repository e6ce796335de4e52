package endpoint_test

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"strings"
	"testing"

	"certctl/shared/auth"
	"certctl/shared/db"
	"certctl/shared/endpoint"
	"certctl/shared/endpoint/problem"
	"certctl/shared/fault"
)

const aThing = "/api/v1/things/crt_01h455vb4pex5vsknk084sn02q"

func TestPathsAreNeverRedirected(t *testing.T) {
	t.Parallel()
	rt := house(nil)
	for _, path := range []string{
		"/api/v1/things/", "/api/v1//things", "//api/v1/things", "/api/v1/./things", "/api/v1/x/../things", "/api/v1/things/..",
		"/api/v1/x/%2e%2e/things", "/api/v1/%2E/things", "/api/v1/x%2f..%2fthings", "/api/v1/%2fthings", "/api/", "/api", "/api/v1/nope",
		"/.well-known", "/.well-known/est/", "/.well-known/est/cacerts/", "/.well-known/nope", "/scep", "/scep/", "/scep/../health",
		"/health/../x", "/a//b", "/api/v1/things%00", "/%2e%2e/api/v1/things",
	} {
		for _, method := range []string{"GET", "POST", "HEAD"} {
			w := request{method: method, path: path, token: "admin"}.do(t, rt)
			if w.Code != 404 || w.Header().Get("Location") != "" {
				t.Errorf("%s %s: %d %s", method, path, w.Code, w.Header().Get("Location"))
			}
			if method != "HEAD" {
				problemOf(t, w, 404)
			}
		}
	}
	if w := (request{method: "GET", path: "/dashboard"}).do(t, rt); w.Code != 200 {
		t.Errorf("a page outside the reserved prefixes: %d", w.Code)
	}
}

func TestWrongMethodNamesTheRightOnes(t *testing.T) {
	t.Parallel()
	rt := house(nil)
	w := request{method: "PUT", path: "/api/v1/things"}.do(t, rt)
	problemOf(t, w, 405)
	if got := w.Header().Get("Allow"); got != "GET, HEAD, POST" {
		t.Errorf("Allow: %s", got)
	}
}

func TestEachRouteAsksForItsPermissionBeforeItLooksAtTheBody(t *testing.T) {
	t.Parallel()
	rt := house(nil)
	for _, c := range []struct {
		token, method, path string
		want                int
	}{
		{"", "GET", "/api/v1/things", 401}, {"forged", "GET", "/api/v1/things", 401}, {"agent", "GET", "/api/v1/things", 403},
		{"", "POST", "/api/v1/things", 401}, {"viewer", "POST", "/api/v1/things", 403}, {"operator", "POST", "/api/v1/things", 415},
		{"operator", "POST", "/api/v1/secrets", 403}, {"forged", "GET", "/api/v1/info", 200}, {"forged", "GET", "/nope/x", 200},
		{"", "DELETE", aThing, 401}, {"viewer", "GET", aThing, 200},
	} {
		w := request{token: c.token, method: c.method, path: c.path, body: "not json", header: map[string]string{"Content-Type": "text/plain"}}.do(t, rt)
		if w.Code != c.want {
			t.Errorf("%s %s as %q: %d, want %d", c.method, c.path, c.token, w.Code, c.want)
		}
		if challenge := w.Header().Get("WWW-Authenticate"); (w.Code == 401) != strings.HasPrefix(challenge, "Bearer") {
			t.Errorf("%s %s as %q: WWW-Authenticate %q", c.method, c.path, c.token, challenge)
		}
	}
	if w := (request{token: "forged", method: "GET", path: "/api/v1/info"}).do(t, rt); !strings.Contains(w.Body.String(), "anonymous") {
		t.Errorf("a public route read the credential: %s", w.Body)
	}
}

func TestARouteWithoutAPermissionStopsTheStart(t *testing.T) {
	t.Parallel()
	for _, p := range []auth.Permission{"", "certs.write"} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("permission %q was mounted", p)
				}
			}()
			endpoint.Raw(endpoint.New(endpoint.Config{Authenticate: authenticate}), "GET /x", p, "api", http.NotFoundHandler())
		}()
	}
}

func TestRoutesListEverything(t *testing.T) {
	t.Parallel()
	rt := house(nil, func(rt *endpoint.Router) { rt.Before("/.well-known/pki/ocsp/", "pki", http.NotFoundHandler()) })
	classes := map[string]string{}
	for _, r := range rt.Routes() {
		classes[r.Pattern] = r.Class
	}
	for pattern, class := range map[string]string{
		"GET /openapi.json": "open", "POST /api/v1/things": "api", "GET /api/v1/info": "open", "/.well-known/est/cacerts": "est",
		"/.well-known/pki/ocsp/": "pki", "GET /{path...}": "web",
	} {
		if classes[pattern] != class {
			t.Errorf("%s: class %q, want %q", pattern, classes[pattern], class)
		}
	}
}

func TestBeforeSeesPathsThatAreData(t *testing.T) {
	t.Parallel()
	var seen string
	rt := house(nil, func(rt *endpoint.Router) {
		rt.Before("/.well-known/pki/ocsp/", "pki", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { seen = r.URL.Path }))
	})
	w := request{method: "GET", path: "/.well-known/pki/ocsp/iss_1/MEo//w=="}.do(t, rt)
	if w.Code != 200 || !strings.HasSuffix(seen, "/MEo//w==") || w.Header().Get("X-Request-Id") == "" {
		t.Errorf("%d %q", w.Code, seen)
	}
}

func TestBadInputIs400WithFieldsAndWithoutWhatWasSent(t *testing.T) {
	t.Parallel()
	rt := house(nil)
	const marker = "zQ7marker"
	for name, c := range map[string]struct{ path, body, field string }{
		"type":             {"", `{"name":5,"n":"zQ7marker"}`, "n"},
		"missing":          {"", `{"n":4}`, "name"},
		"no body":          {"", ``, "name"},
		"enum":             {"", `{"name":"x","kind":"zQ7marker"}`, "kind"},
		"too long":         {"", `{"name":"zQ7markerzQ7markerzQ7marker"}`, "name"},
		"minimum":          {"", `{"name":"x","n":1}`, "n"},
		"int overflow":     {"", `{"name":"x","n":1e300}`, "n"},
		"item":             {"", `{"name":"x","sans":["ok","zQ7marker"]}`, "sans[1]"},
		"time":             {"", `{"name":"x","at":"zQ7marker"}`, "at"},
		"mail":             {"", `{"name":"x","mail":"zQ7marker <"}`, "mail"},
		"uri":              {"", `{"name":"x","link":"http://zQ7marker:port/%zz"}`, "link"},
		"id":               {"", `{"name":"x","owner_id":"own_zQ7marker"}`, "owner_id"},
		"id of another":    {"", `{"name":"x","owner_id":"crt_01h455vb4pex5vsknk084sn02q"}`, "owner_id"},
		"duration":         {"", `{"name":"x","ttl":"zQ7marker"}`, "ttl"},
		"duration bound":   {"", `{"name":"x","ttl":"99999999999d"}`, ""},
		"map value":        {"", `{"name":"x","tags":{"zQ7 marker":"zQ7marker"}}`, "tags.?"},
		"unknown field":    {"", `{"name":"x","shoe_size":"zQ7marker"}`, "shoe_size"},
		"unknown is long":  {"", `{"name":"x","certctl_01h455vb4pex5vsknk084sn02q_zQ7marker":1}`, "?"},
		"nested unknown":   {"", `{"name":"x","part":{"serial":"1","sereal":"zQ7marker"}}`, "part.sereal"},
		"case variant":     {"", `{"name":"x","N":-99}`, "N"},
		"two but for case": {"", `{"name":"x","NAME":"zQ7marker"}`, ""},
		"twice":            {"", `{"name":"x","name":"zQ7marker"}`, ""},
		"twice, escaped":   {"", `{"name":"x","n\u0061me":"zQ7marker"}`, ""},
		"Kelvin sign":      {"", `{"name":"x","kind":"a","\u212Aind":"zQ7marker"}`, ""},
		"twice in config":  {"", `{"name":"x","config":{"a":[{"b":1,"B":"zQ7marker"}]}}`, ""},
		"trailing":         {"", `{"name":"x"} zQ7marker`, ""},
		"two values":       {"", `{"name":"x"}{"name":"zQ7marker"}`, ""},
		"syntax":           {"", `{"name":zQ7marker}`, ""},
		"trailing comma":   {"", `{"name":"x",}`, ""},
		"not UTF-8":        {"", "{\"name\":\"zQ7marker\xff\"}", ""},
		"NUL":              {"", `{"name":"zQ7marker\u0000"}`, ""},
		"deep":             {"", `{"name":"x","config":` + strings.Repeat("[", 100) + strings.Repeat("]", 100) + `}`, ""},
		"array":            {"", `["zQ7marker"]`, "body"},
		"null":             {"", `null`, "body"},
		"query on a POST":  {"/api/v1/things?limit=5", `{"name":"x"}`, "limit"},
		"action body":      {aThing + "/poke", `{"name":"zQ7marker"}`, ""},
		"key":              {"", `{"name":"x"}`, "Idempotency-Key"},
	} {
		q := request{token: "operator", method: "POST", path: "/api/v1/things", body: c.body}
		if c.path != "" {
			q.path = c.path
		}
		if name == "key" {
			q.key = marker + " with a space"
		}
		w := q.do(t, rt)
		t.Run(name, func(t *testing.T) {
			p := problemOf(t, w, 400)
			if _, ok := fieldsOf(p)[c.field]; c.field != "" && !ok {
				t.Errorf("no error for the field %q: %s", c.field, w.Body)
			}
			if strings.Contains(w.Body.String(), marker) || strings.Contains(w.Body.String(), "zQ7") || strings.Contains(w.Body.String(), "1e300") {
				t.Errorf("the answer repeats what was sent: %s", w.Body)
			}
		})
	}
}

func TestBadQueriesAre400(t *testing.T) {
	t.Parallel()
	rt := house(nil)
	for query, field := range map[string]string{
		"limit=0": "limit", "limit=201": "limit", "limit=zQ7": "limit", "limit=": "limit", "limit=5&limit=6": "limit", "%6cimit=500": "limit",
		"shoe=zQ7": "shoe", "name=" + strings.Repeat("zQ7", 20): "name", "owner_id=own_zQ7": "owner_id", "wait=zQ7": "wait", "wait=5": "wait",
		"since=zQ7": "since", "cursor=zQ7": "cursor", "sort=zQ7": "sort", "total=zQ7": "total", "name=%ff": "name", "name=%00zQ7": "name",
		"a;b": "", "name=%zz": "", "a%20zQ7=1": "?",
	} {
		if query == "sort=zQ7" {
			continue // the noun knows its sorts: TestListsPage
		}
		w := request{token: "viewer", method: "GET", path: "/api/v1/things?" + query}.doRaw(t, rt, query)
		p := problemOf(t, w, 400)
		if _, ok := fieldsOf(p)[field]; field != "" && !ok {
			t.Errorf("%s: no error for %q: %s", query, field, w.Body)
		}
		if strings.Contains(w.Body.String(), "zQ7") {
			t.Errorf("%s: the answer repeats what was sent: %s", query, w.Body)
		}
	}
}

func TestMalformedIdentifiersInAPathAre404(t *testing.T) {
	t.Parallel()
	rt := house(nil)
	for _, s := range []string{"zQ7", "own_01h455vb4pex5vsknk084sn02q", "CRT_01h455vb4pex5vsknk084sn02q", "a%2Fb"} {
		w := request{token: "viewer", method: "GET", path: "/api/v1/things/" + s}.do(t, rt)
		problemOf(t, w, 404)
		if strings.Contains(w.Body.String(), s) {
			t.Errorf("repeats the path: %s", w.Body)
		}
	}
}

func TestBodyTypesAndBounds(t *testing.T) {
	t.Parallel()
	rt := house(nil)
	for name, c := range map[string]struct {
		body   string
		header map[string]string
		want   int
	}{
		"form":     {"a=b", map[string]string{"Content-Type": "application/x-www-form-urlencoded"}, 415},
		"none":     {`{"name":"x"}`, map[string]string{"Content-Type": ""}, 415},
		"latin":    {`{"name":"x"}`, map[string]string{"Content-Type": "application/json; charset=latin1"}, 415},
		"suffix":   {`{"name":"x"}`, map[string]string{"Content-Type": "application/x+json"}, 415},
		"gzip":     {`{"name":"x"}`, map[string]string{"Content-Encoding": "gzip"}, 415},
		"large":    {`{"name":"` + strings.Repeat("x", 5000) + `"}`, nil, 413},
		"utf-8 ok": {`{"n":1}`, map[string]string{"Content-Type": "Application/JSON; charset=UTF-8"}, 400},
	} {
		w := request{token: "operator", method: "POST", path: "/api/v1/things", body: c.body, header: c.header}.do(t, rt)
		if problemOf(t, w, c.want); t.Failed() {
			t.Log(name)
		}
	}
}

func TestRequestIdIsTakenOverOnlyWhenPlain(t *testing.T) {
	t.Parallel()
	rt := house(nil)
	for given, kept := range map[string]bool{"abc-123_X.=": true, "": false, "a b": false, "a\tb": false, `"><x`: false, strings.Repeat("a", 65): false, strings.Repeat("a", 64): true} {
		w := request{method: "GET", path: "/health", header: map[string]string{"X-Request-Id": given}}.do(t, rt)
		got := w.Header().Get("X-Request-Id")
		if (got == given && given != "") != kept || got == "" {
			t.Errorf("%q became %q", given, got)
		}
	}
}

func TestErrorsThatAreNoFaultsShowNothing(t *testing.T) {
	t.Parallel()
	rt := house(nil, func(rt *endpoint.Router) {
		endpoint.Read(rt, "GET /api/v1/broken", auth.Public, doc("broken"), func(context.Context, db.Querier, *struct{}) (*struct{}, error) {
			return nil, errors.New("password=hunter2")
		})
		endpoint.Read(rt, "GET /api/v1/panics", auth.Public, doc("panics"), func(context.Context, db.Querier, *struct{}) (*struct{}, error) {
			panic("password=hunter2")
		})
		endpoint.Read(rt, "GET /api/v1/unencodable", auth.Public, doc("unencodable"), func(context.Context, db.Querier, *struct{}) (*struct{ Body map[string]any }, error) {
			return &struct{ Body map[string]any }{Body: map[string]any{"x": func() {}}}, nil
		})
		endpoint.Read(rt, "GET /api/v1/away", auth.Public, doc("away"), func(context.Context, db.Querier, *struct{}) (*struct{}, error) {
			return nil, fault.Wrap(errors.New("hunter2"), fault.Unavailable, "Away.").After(1500e6)
		})
	})
	for _, path := range []string{"broken", "panics", "unencodable"} {
		w := request{method: "GET", path: "/api/v1/" + path}.do(t, rt)
		if p := problemOf(t, w, 500); kindOf(p) != fault.Internal || strings.Contains(w.Body.String(), "hunter2") {
			t.Errorf("%s: %s", path, w.Body)
		}
	}
	w := request{method: "GET", path: "/api/v1/away"}.do(t, rt)
	if p := problemOf(t, w, 503); p["retryable"] != true || w.Header().Get("Retry-After") != "2" {
		t.Errorf("%v %s", w.Header(), w.Body)
	}
}

func TestEveryKindHasAStatus(t *testing.T) {
	t.Parallel()
	if n := len(problem.Kinds()); n != 16 {
		t.Errorf("%d kinds: fault and this table have drifted apart", n)
	}
	if problem.Status("no such kind") != 500 {
		t.Error("an unknown kind must be internal")
	}
}

func TestReadsAreConditionalAndNotStored(t *testing.T) {
	t.Parallel()
	rt := house(nil)
	w := request{token: "viewer", method: "GET", path: aThing}.do(t, rt)
	tag := w.Header().Get("ETag")
	if w.Code != 200 || len(tag) < 10 || tag[0] != '"' || w.Header().Get("Cache-Control") != "no-store" {
		t.Fatalf("%d %v", w.Code, w.Header())
	}
	if got := w.Body.String(); !strings.Contains(got, `"sans":[]`) || !strings.Contains(got, `"tags":{}`) || !strings.Contains(got, `"owner_id":null`) || !strings.Contains(got, `"part":null`) {
		t.Errorf("absent values are not written as documented: %s", got)
	}
	for header, want := range map[string]int{tag: 304, `"x", W/` + tag: 304, "*": 304, `"x"`: 200} {
		w := request{token: "viewer", method: "GET", path: aThing, header: map[string]string{"If-None-Match": header}}.do(t, rt)
		if w.Code != want || want == 304 && w.Body.Len() > 0 {
			t.Errorf("If-None-Match %s: %d %s", header, w.Code, w.Body)
		}
	}
	head := request{token: "viewer", method: "HEAD", path: aThing}.do(t, rt)
	if head.Code != 200 || head.Body.Len() != 0 || head.Header().Get("ETag") != tag || head.Header().Get("Content-Length") != w.Header().Get("Content-Length") {
		t.Errorf("HEAD: %d %v %q", head.Code, head.Header(), head.Body)
	}
}

func TestAccessLogHasNoQueryAndNoBody(t *testing.T) {
	t.Parallel()
	var out strings.Builder
	rt := endpoint.New(endpoint.Config{Authenticate: authenticate, Log: slog.New(slog.NewJSONHandler(&out, &slog.HandlerOptions{Level: slog.LevelDebug}))})
	endpoint.Read(rt, "GET /api/v1/things/{id}", auth.Read, doc("get"), func(context.Context, db.Querier, *idInput) (*struct{}, error) { return nil, nil })
	request{token: "viewer", method: "GET", path: aThing, header: map[string]string{"X-Request-Id": "r-1"}}.do(t, rt)
	request{token: "viewer", method: "GET", path: aThing + "?x=zQ7"}.do(t, rt)
	for _, want := range []string{`"route":"GET /api/v1/things/{id}"`, `"status":204`, `"status":400`, `"principal":"vera"`, `"request":"r-1"`, `"level":"DEBUG"`, `"level":"INFO"`} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %s in %s", want, out.String())
		}
	}
	if strings.Contains(out.String(), "zQ7") {
		t.Errorf("the log has the query: %s", out.String())
	}
}
