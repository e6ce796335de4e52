package endpoint_test

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"slices"
	"strings"
	"testing"

	"certctl/shared/auth"
	"certctl/shared/db"
	"certctl/shared/endpoint"
	"certctl/shared/page"
)

func TestTheDocumentIsTheSameEveryTimeAndServed(t *testing.T) {
	t.Parallel()
	a, err := house(nil).OpenAPI()
	if err != nil {
		t.Fatal(err)
	}
	rt := house(nil)
	b, err := rt.OpenAPI()
	if err != nil || !bytes.Equal(a, b) {
		t.Fatalf("two documents differ (%v)", err)
	}
	w := request{method: "GET", path: "/openapi.json"}.do(t, rt)
	if w.Code != 200 || !bytes.Equal(w.Body.Bytes(), a) || w.Header().Get("Content-Type") != "application/json" {
		t.Errorf("GET /openapi.json: %d %v", w.Code, w.Header())
	}
	given := endpoint.New(endpoint.Config{Document: []byte(`{"given":true}`)})
	if w := (request{method: "GET", path: "/openapi.json"}).do(t, given); w.Body.String() != `{"given":true}` {
		t.Errorf("the committed document is not served: %s", w.Body)
	}
	if path := os.Getenv("CERTCTL_TEST_OPENAPI_OUT"); path != "" { // for redocly and spectral
		if err := os.WriteFile(path, a, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

type operation struct {
	Security   []map[string][]string `json:"security"`
	Parameters []struct {
		Name, In string
		Required bool
		Schema   map[string]any
	} `json:"parameters"`
	RequestBody *struct{ Required bool } `json:"requestBody"`
	Responses   map[string]struct {
		Content map[string]any
		Headers map[string]any
	} `json:"responses"`
}

func TestTheDocumentSaysWhatTheServerDoes(t *testing.T) {
	t.Parallel()
	raw, err := house(nil).OpenAPI()
	if err != nil {
		t.Fatal(err)
	}
	var d struct {
		Paths      map[string]map[string]operation
		Components struct{ Schemas map[string]map[string]any }
	}
	if err := json.Unmarshal(raw, &d); err != nil {
		t.Fatal(err)
	}
	create := d.Paths["/api/v1/things"]["post"]
	for status, want := range map[string]bool{"201": true, "400": true, "401": true, "403": true, "404": false, "409": true, "413": true, "415": true, "422": false, "429": false, "500": true, "503": true, "default": false} {
		if _, ok := create.Responses[status]; ok != want {
			t.Errorf("createThing and status %s: documented %v, want %v", status, ok, want)
		}
	}
	if create.Responses["201"].Headers["Location"] == nil || create.Responses["409"].Content["application/problem+json"] == nil {
		t.Error("createThing lacks Location or its problem")
	}
	if i := slices.IndexFunc(create.Parameters, func(p struct {
		Name, In string
		Required bool
		Schema   map[string]any
	}) bool {
		return p.Name == "Idempotency-Key" && p.In == "header" && !p.Required
	}); i < 0 {
		t.Error("createThing does not document the Idempotency-Key")
	}
	if !create.RequestBody.Required || len(create.Security) != 1 {
		t.Error("createThing: body or security")
	}
	if info := d.Paths["/api/v1/info"]["get"]; info.Security == nil || len(info.Security) != 0 {
		t.Errorf("a public operation must say security: [], has %v", info.Security)
	}
	if strings.Contains(string(raw), `"$schema"`) {
		t.Error("the document speaks of $schema")
	}
	thing, _ := json.Marshal(d.Components.Schemas["Thing"]["properties"])
	for _, want := range []string{`"type":"string"},"name"`, `"pattern":"^own_[0-7][0-9a-hjkmnp-tv-z]{25}$","type":["string","null"]`, `"anyOf":[{"$ref":"#/components/schemas/Part"},{"type":"null"}]`, `"format":"date-time"`} {
		if !strings.Contains(string(thing), want) {
			t.Errorf("Thing has no %s: %s", want, thing)
		}
	}
}

func TestMistakesAreFoundWhenTheDocumentIsMade(t *testing.T) {
	t.Parallel()
	for name, mount := range map[string]func(*endpoint.Router){
		"a path name that nobody reads": func(rt *endpoint.Router) {
			endpoint.Read(rt, "GET /api/v1/x/{id}", auth.Read, doc("x"), func(context.Context, db.Querier, *struct{}) (*struct{}, error) { return nil, nil })
		},
		"a field for a name that is not there": func(rt *endpoint.Router) {
			endpoint.Read(rt, "GET /api/v1/x", auth.Read, doc("x"), func(context.Context, db.Querier, *idInput) (*struct{}, error) { return nil, nil })
		},
		"an unknown tag": func(rt *endpoint.Router) {
			endpoint.Read(rt, "GET /api/v1/x", auth.Read, endpoint.Doc{ID: "x", Tag: "Nope"}, func(context.Context, db.Querier, *struct{}) (*struct{}, error) { return nil, nil })
		},
		"an id used twice": func(rt *endpoint.Router) {
			endpoint.Read(rt, "GET /api/v1/x", auth.Read, doc("getThing"), func(context.Context, db.Querier, *struct{}) (*struct{}, error) { return nil, nil })
		},
	} {
		if _, err := house(nil, mount).OpenAPI(); err == nil {
			t.Errorf("%s was not found", name)
		}
	}
}

func TestOtherMediaTypesAndAnswersAreDocumentedAndSent(t *testing.T) {
	t.Parallel()
	type pem struct{ Body []byte }
	type either struct {
		Status int
		Body   any
	}
	rt := house(nil, func(rt *endpoint.Router) {
		d := doc("getPEM")
		d.Produces = "application/pem-certificate-chain"
		endpoint.Read(rt, "GET /api/v1/pem", auth.Read, d, func(context.Context, db.Querier, *struct{}) (*pem, error) { return &pem{[]byte("PEM")}, nil })
		d = doc("revoke")
		d.Answers = map[int]any{200: thing{}, 202: part{}}
		endpoint.Act(rt, "POST /api/v1/revoke", auth.CertWrite, d, func(context.Context, db.Beginner, *struct{}) (*either, error) {
			return &either{202, part{Serial: "1"}}, nil
		})
	})
	w := request{token: "viewer", method: "GET", path: "/api/v1/pem"}.do(t, rt)
	if w.Header().Get("Content-Type") != "application/pem-certificate-chain" || w.Body.String() != "PEM" {
		t.Errorf("%v %q", w.Header(), w.Body)
	}
	if w := (request{token: "operator", method: "POST", path: "/api/v1/revoke"}).do(t, rt); w.Code != 202 || w.Body.String() != "{\"serial\":\"1\"}\n" {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	raw, err := rt.OpenAPI()
	if err != nil {
		t.Fatal(err)
	}
	var d struct {
		Paths map[string]map[string]operation
	}
	if err := json.Unmarshal(raw, &d); err != nil {
		t.Fatal(err)
	}
	if got := d.Paths["/api/v1/pem"]["get"].Responses["200"]; got.Content["application/pem-certificate-chain"] == nil || len(got.Content) != 1 || got.Headers["Content-Type"] != nil {
		t.Errorf("getPEM: %v", got)
	}
	got, _ := json.Marshal(d.Paths["/api/v1/revoke"]["post"].Responses["200"].Content)
	other, _ := json.Marshal(d.Paths["/api/v1/revoke"]["post"].Responses["202"].Content)
	if !strings.Contains(string(got), "schemas/Thing") || !strings.Contains(string(other), "schemas/Part") {
		t.Errorf("revoke: %s %s", got, other)
	}
}

func FuzzDecodeCursor(f *testing.F) {
	at := page.Position{Value: "2026-01-01T00:00:00Z", ID: "01890a5d-ac96-774b-bcce-b302099a8057"}
	f.Add(endpoint.EncodeCursor(page.Newest, at, "f"))
	f.Add("")
	f.Add("eyJzIjoiLWNyZWF0ZWRfYXQifQ")
	f.Fuzz(func(t *testing.T, text string) {
		got, err := endpoint.DecodeCursor(text, page.Newest, "f")
		if (got == nil) == (err == nil) {
			t.Fatalf("%v %v", got, err)
		}
		if err != nil && len(text) > 8 && strings.Contains(err.Error(), text) {
			t.Fatal("the error repeats the cursor")
		}
		if got != nil {
			again, err := endpoint.DecodeCursor(endpoint.EncodeCursor(page.Newest, *got, "f"), page.Newest, "f")
			if err != nil || *again != *got {
				t.Fatalf("%v became %v (%v)", got, again, err)
			}
			byTime := page.Keys[int]{ID: "id", By: map[string]page.Key[int]{"created_at": {SQL: "created_at", Type: page.Time}}}
			where, _, err := byTime.SQL(page.Request{After: got}, map[string]any{})
			if err == nil && !strings.HasPrefix(where, "(created_at, id) < (@page_value") {
				t.Fatal(where)
			}
		}
	})
}

func BenchmarkRead(b *testing.B) {
	rt := house(nil)
	request{token: "viewer", method: "GET", path: aThing}.do(b, rt)
	b.ReportAllocs()
	for b.Loop() {
		request{token: "viewer", method: "GET", path: aThing}.do(b, rt)
	}
}
