package cli_test

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"certctl/shared/api/openapi"
)

// contract checks requests and answers against the committed OpenAPI document, so that neither the program under test nor
// the server that stands in for the real one can drift from it.
type contract struct {
	t    *testing.T
	doc  document
	next http.Handler
	key  string

	mu   sync.Mutex
	used map[string]string // Idempotency-Key → what it was used for
}

type document struct {
	Paths      map[string]map[string]operation `json:"paths"`
	Components struct {
		Schemas map[string]schema `json:"schemas"`
	} `json:"components"`
}

type operation struct {
	Parameters []struct {
		Name, In string
		Schema   schema
	}
	RequestBody struct {
		Required bool
		Content  map[string]struct{ Schema schema }
	}
	Responses map[string]struct {
		Content map[string]struct{ Schema schema }
	}
}

type schema struct {
	Ref                  string            `json:"$ref"`
	Type                 any               `json:"type"`
	Properties           map[string]schema `json:"properties"`
	Required             []string          `json:"required"`
	AdditionalProperties any               `json:"additionalProperties"`
	Items                *schema           `json:"items"`
	Enum                 []any             `json:"enum"`
	AnyOf                []schema          `json:"anyOf"`
	Pattern              string            `json:"pattern"`
}

func newContract(t *testing.T, key string, next http.Handler) *contract {
	c := &contract{t: t, next: next, key: key, used: map[string]string{}}
	if err := json.Unmarshal(openapi.Document, &c.doc); err != nil {
		t.Fatal(err)
	}
	return c
}

func (c *contract) find(r *http.Request) (operation, bool) {
	have := strings.Split(r.URL.Path, "/")
	best, fits := "", operation{}
	for path, methods := range c.doc.Paths {
		want := strings.Split(path, "/")
		op, ok := methods[strings.ToLower(r.Method)]
		if !ok || len(want) != len(have) {
			continue
		}
		ok = true
		for i := range want {
			ok = ok && (want[i] == have[i] || strings.HasPrefix(want[i], "{"))
		}
		if ok && (best == "" || strings.Count(path, "{") < strings.Count(best, "{")) {
			best, fits = path, op
		}
	}
	return fits, best != ""
}

func (c *contract) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	r.Body = io.NopCloser(strings.NewReader(string(body)))
	if r.URL.Path == "/api/v1/audit/export" { // streamed, and outside the document
		c.next.ServeHTTP(w, r)
		return
	}
	op, ok := c.find(r)
	if !ok {
		c.t.Errorf("no operation %s %s", r.Method, r.URL.Path)
		http.Error(w, "", http.StatusNotFound)
		return
	}
	for _, bad := range c.request(op, r, body) {
		c.t.Errorf("%s %s: %s", r.Method, r.URL, bad)
	}
	rec := &recorded{header: http.Header{}, status: 200}
	c.next.ServeHTTP(rec, r)
	for _, bad := range c.answer(op, rec) {
		c.t.Errorf("the stand-in's own answer to %s %s: %s", r.Method, r.URL, bad)
	}
	for k, v := range rec.header {
		w.Header()[k] = v
	}
	w.WriteHeader(rec.status)
	_, _ = io.WriteString(w, rec.body.String())
}

func (c *contract) request(op operation, r *http.Request, body []byte) (bad []string) {
	for name, values := range r.URL.Query() {
		i := slices.IndexFunc(op.Parameters, func(p struct {
			Name, In string
			Schema   schema
		}) bool {
			return p.In == "query" && p.Name == name
		})
		if i < 0 {
			bad = append(bad, "unknown query name "+name)
		}
		if len(values) != 1 || values[0] == "" {
			bad = append(bad, "query name without one value: "+name)
		}
	}
	key := r.Header.Get("Idempotency-Key")
	if r.Method == http.MethodPost && !regexp.MustCompile(`^[!-~]{16,255}$`).MatchString(key) {
		bad = append(bad, "a POST without a proper Idempotency-Key")
	}
	if r.Method != http.MethodPost && key != "" {
		bad = append(bad, "an Idempotency-Key where none belongs")
	}
	c.mu.Lock()
	what := r.Method + r.URL.String() + string(body)
	if old, ok := c.used[key]; key != "" && ok && old != what {
		bad = append(bad, "an Idempotency-Key used for two actions")
	}
	c.used[key] = what
	c.mu.Unlock()
	content, takesBody := op.RequestBody.Content["application/json"]
	switch {
	case len(body) > 0 && !takesBody:
		bad = append(bad, "a body where none belongs: "+string(body))
	case len(body) > 0:
		if r.Header.Get("Content-Type") != "application/json" {
			bad = append(bad, "a body without Content-Type: application/json")
		}
		bad = append(bad, c.judge("body", content.Schema, body)...)
	case takesBody && op.RequestBody.Required:
		bad = append(bad, "no body")
	}
	return bad
}

func (c *contract) answer(op operation, rec *recorded) []string {
	if rec.status >= 400 {
		return nil
	}
	r, ok := op.Responses[fmt.Sprint(rec.status)]
	if !ok {
		return []string{fmt.Sprintf("status %d is not documented", rec.status)}
	}
	content, ok := r.Content["application/json"]
	if !ok {
		return nil
	}
	return c.judge("answer", content.Schema, []byte(rec.body.String()))
}

func (c *contract) judge(at string, s schema, raw []byte) []string {
	var v any
	if err := json.Unmarshal(raw, &v); err != nil {
		return []string{at + " is no JSON"}
	}
	return c.check(at, s, v)
}

// check is as much of JSON Schema as the document uses.
func (c *contract) check(at string, s schema, v any) (bad []string) {
	if s.Ref != "" {
		s = c.doc.Components.Schemas[s.Ref[strings.LastIndex(s.Ref, "/")+1:]]
	}
	if len(s.AnyOf) > 0 {
		for _, o := range s.AnyOf {
			if bad = c.check(at, o, v); bad == nil {
				return nil
			}
		}
		return bad
	}
	if !typed(s.Type, v) {
		return []string{fmt.Sprintf("%s is not of type %v", at, s.Type)}
	}
	if v != nil && s.Enum != nil && !slices.Contains(s.Enum, v) {
		return []string{fmt.Sprintf("%s is none of %v", at, s.Enum)}
	}
	switch t := v.(type) {
	case string:
		if s.Pattern != "" && !regexp.MustCompile(s.Pattern).MatchString(t) {
			bad = append(bad, at+" does not match "+s.Pattern)
		}
	case []any:
		for i, e := range t {
			if s.Items != nil {
				bad = append(bad, c.check(fmt.Sprintf("%s[%d]", at, i), *s.Items, e)...)
			}
		}
	case map[string]any:
		bad = append(bad, c.object(at, s, t)...)
	}
	return bad
}

func (c *contract) object(at string, s schema, m map[string]any) (bad []string) {
	for _, name := range s.Required {
		if _, ok := m[name]; !ok {
			bad = append(bad, at+" lacks "+name)
		}
	}
	for name, v := range m {
		p, known := s.Properties[name]
		if !known && s.AdditionalProperties == false {
			bad = append(bad, at+" has an unknown "+name)
		}
		if known {
			bad = append(bad, c.check(at+"."+name, p, v)...)
		}
	}
	return bad
}

func typed(want any, v any) bool {
	var names []any
	switch t := want.(type) {
	case nil:
		return true
	case string:
		names = []any{t}
	case []any:
		names = t
	}
	for _, n := range names {
		ok := false
		switch n {
		case "null":
			ok = v == nil
		case "string":
			_, ok = v.(string)
		case "boolean":
			_, ok = v.(bool)
		case "integer", "number":
			_, ok = v.(float64)
		case "array":
			_, ok = v.([]any)
		case "object":
			_, ok = v.(map[string]any)
		}
		if ok {
			return true
		}
	}
	return false
}

type recorded struct {
	header http.Header
	status int
	body   strings.Builder
}

func (r *recorded) Header() http.Header         { return r.header }
func (r *recorded) WriteHeader(status int)      { r.status = status }
func (r *recorded) Write(b []byte) (int, error) { return r.body.Write(b) }
