package endpoint

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"

	"certctl/shared/auth"
	"certctl/shared/endpoint/problem"
	"certctl/shared/fault"

	"github.com/danielgtaylor/huma/v2"
)

// humaConfig is the configuration of every huma API here: no documentation pages, no $schema links, one format.
func (rt *Router) humaConfig() huma.Config {
	return huma.Config{
		OpenAPI: &huma.OpenAPI{
			OpenAPI:    "3.1.0",
			Info:       &huma.Info{Title: "certctl", Version: rt.config.Version},
			Components: &huma.Components{Schemas: newRegistry(false)},
		},
		Formats: map[string]huma.Format{
			"application/json": {Marshal: huma.DefaultJSONFormat.Marshal, Unmarshal: unmarshal},
		},
		DefaultFormat:                "application/json",
		RejectUnknownQueryParameters: true,
	}
}

// OpenAPI registers every operation at once and gives the OpenAPI 3.1 document as indented JSON with sorted names. A bad
// tag, a path name without a field, two types of one name or an unknown tag are errors here, so a test must call it.
func (rt *Router) OpenAPI() (doc []byte, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("making the OpenAPI document: %v", p)
		}
	}()
	c, reg := rt.humaConfig(), newRegistry(true)
	c.Components.Schemas = reg
	c.Components.SecuritySchemes = map[string]*huma.SecurityScheme{"bearer": {
		Type: "http", Scheme: "bearer", Description: "An API key, an agent's credential, or an OIDC token.",
	}}
	c.Info.Description = "certctl runs the whole life of TLS certificates: issue, deploy, verify, renew, revoke, record."
	c.Info.License = &huma.License{Name: "Apache-2.0", Identifier: "Apache-2.0"}
	c.Info.Contact = &huma.Contact{Name: "certctl", URL: "https://certctl.dev"}
	c.Servers = []*huma.Server{{URL: "/", Description: "The server that this document comes from."}}
	c.Tags = rt.tags()
	h := &handle{}
	api := huma.NewAPI(c, h)
	for _, o := range rt.ops {
		h.op = nil
		o.register(api, o.describe(reg))
		o.finish(h.op, reg)
		if rt.config.Tags != nil && !slices.ContainsFunc(rt.config.Tags, func(t Tag) bool { return t.Name == o.doc.Tag }) {
			panic(o.route.Pattern + ": its tag is not in Config.Tags")
		}
	}
	raw, err := json.Marshal(api.OpenAPI())
	if err != nil {
		return nil, fmt.Errorf("encoding the OpenAPI document: %w", err)
	}
	var d any
	if err := json.Unmarshal(raw, &d); err != nil {
		return nil, fmt.Errorf("reading the OpenAPI document: %w", err)
	}
	standard(d)
	var out bytes.Buffer
	enc := json.NewEncoder(&out)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if err := enc.Encode(d); err != nil { // maps: the names come out sorted
		return nil, fmt.Errorf("indenting the OpenAPI document: %w", err)
	}
	return out.Bytes(), nil
}

// standard takes away what huma's schemas have beyond JSON Schema.
func standard(v any) {
	switch t := v.(type) {
	case map[string]any:
		if _, ok := t["pattern"].(string); ok {
			delete(t, "patternDescription")
		}
		for _, member := range t {
			standard(member)
		}
	case []any:
		for _, item := range t {
			standard(item)
		}
	}
}

// tags are the configured ones, else one for each name that operations use.
func (rt *Router) tags() (tags []*huma.Tag) {
	for _, t := range rt.config.Tags {
		tags = append(tags, &huma.Tag{Name: t.Name, Description: t.Description})
	}
	if tags != nil {
		return tags
	}
	used := map[string]bool{}
	for _, o := range rt.ops {
		used[o.doc.Tag] = true
	}
	for _, name := range slices.Sorted(maps.Keys(used)) {
		tags = append(tags, &huma.Tag{Name: name, Description: name + "."})
	}
	return tags
}

// describe is the operation for huma. With a registry it has all answers; to serve requests it needs none.
func (o *operation) describe(reg *registry) huma.Operation {
	op := huma.Operation{
		OperationID: o.doc.ID, Method: o.method, Path: o.path, Summary: o.doc.Summary, DefaultStatus: o.doc.Status,
		MaxBodyBytes: -1, // the body was read and bounded before huma sees it
	}
	if reg == nil {
		return op
	}
	op.Tags = []string{o.doc.Tag}
	op.Description = o.description()
	op.Security = []map[string][]string{{"bearer": {}}}
	if o.route.Open() {
		op.Security = []map[string][]string{}
	}
	op.Responses = o.problems(reg)
	for status, body := range o.doc.Answers {
		a := &huma.Response{Description: http.StatusText(status)}
		if body != nil {
			a.Content = jsonContent(reg.Schema(reflect.TypeOf(body), true, o.doc.ID+"Response"))
		}
		op.Responses[strconv.Itoa(status)] = a
	}
	if o.doc.Produces != "" {
		op.Responses[strconv.Itoa(o.status())] = &huma.Response{Description: http.StatusText(o.status()),
			Content: map[string]*huma.MediaType{o.doc.Produces: {Schema: &huma.Schema{Type: huma.TypeString}}}}
	}
	return op
}

func (o *operation) status() int {
	if o.doc.Status == 0 {
		return http.StatusOK
	}
	return o.doc.Status
}

// description ends with who may call the operation.
func (o *operation) description() string {
	text := o.doc.Description
	if text == "" {
		text = o.doc.Summary + "."
	}
	if o.route.Open() {
		return text + "\n\nNeeds no bearer credential."
	}
	var roles []string
	for _, r := range append(slices.Clone(auth.Roles), auth.AgentRole) {
		if r.Allows(o.route.Permission) {
			roles = append(roles, string(r))
		}
	}
	return text + "\n\nRoles: " + strings.Join(roles, ", ") + "."
}

// kinds are the faults that an operation may answer with.
func (o *operation) kinds() []fault.Kind {
	kinds := []fault.Kind{fault.Invalid, fault.Unavailable, fault.Internal}
	if !o.route.Open() {
		kinds = append(kinds, fault.Unauthenticated, fault.Denied)
	}
	if strings.Contains(o.path, "{") {
		kinds = append(kinds, fault.NotFound)
	}
	if o.method != http.MethodGet {
		kinds = append(kinds, fault.TooLarge, fault.BadMediaType)
	}
	if o.method == http.MethodPost {
		kinds = append(kinds, fault.KeyReused)
	}
	kinds = append(kinds, o.doc.Errors...)
	slices.Sort(kinds)
	return slices.Compact(kinds)
}

// problems are the error answers: one for each status, naming its kinds.
func (o *operation) problems(reg *registry) map[string]*huma.Response {
	schema := reg.Schema(reflect.TypeFor[problem.Document](), true, "")
	out := map[string]*huma.Response{}
	for _, k := range o.kinds() {
		code := strconv.Itoa(problem.Status(k))
		if r, ok := out[code]; ok {
			r.Description += ", `" + string(k) + "`"
			continue
		}
		out[code] = &huma.Response{
			Description: "Problem of the type `" + string(k) + "`",
			Content:     map[string]*huma.MediaType{problem.ContentType: {Schema: schema}},
			Headers:     problemHeaders(k),
		}
	}
	return out
}

func problemHeaders(k fault.Kind) map[string]*huma.Header {
	switch k {
	case fault.Unauthenticated:
		return map[string]*huma.Header{"WWW-Authenticate": {Schema: &huma.Schema{Type: huma.TypeString}}}
	case fault.Unavailable, fault.Throttled:
		return map[string]*huma.Header{"Retry-After": {Description: "seconds", Schema: &huma.Schema{Type: huma.TypeInteger}}}
	}
	return nil
}

// finish adds to the registered operation what huma does not know, and takes away what is not so.
func (o *operation) finish(op *huma.Operation, reg *registry) {
	named := map[string]bool{}
	for _, p := range op.Parameters {
		p.Schema.Nullable = false // a text in a path, query or header is there or not
		if p.In == "path" {
			named[p.Name] = true
		}
	}
	for s := range strings.SplitSeq(o.path, "/") {
		if name, ok := strings.CutPrefix(s, "{"); ok {
			name = strings.TrimSuffix(name, "}")
			if !named[name] {
				panic(o.route.Pattern + ": no input field reads {" + name + "}")
			}
			delete(named, name)
		}
	}
	if len(named) > 0 {
		panic(o.route.Pattern + ": an input field reads a name that is not in the path")
	}
	if op.Method == http.MethodPost {
		op.Parameters = append(op.Parameters, keyParameter())
	}
	if op.RequestBody != nil {
		op.RequestBody.Required = o.bodyRequired(op.RequestBody, reg)
	}
	for _, r := range op.Responses {
		delete(r.Headers, "Content-Type") // OpenAPI says it by the media type
		if len(r.Headers) == 0 {
			r.Headers = nil
		}
	}
}

// bodyRequired reports whether a request without a body lacks a required field.
func (o *operation) bodyRequired(b *huma.RequestBody, reg *registry) bool {
	for _, m := range b.Content {
		s := m.Schema
		if s.Ref != "" {
			s = reg.SchemaFromRef(s.Ref)
		}
		if len(s.Required) > 0 {
			return true
		}
	}
	return false
}

func keyParameter() *huma.Param {
	one, most := 1, maxKey
	return &huma.Param{
		Name: "Idempotency-Key", In: "header", Example: "0f5a9c7e-5d0c-4a40-8a5b-0b4a2f1e9c11",
		Description: "Makes the request safe to repeat for 24 hours: the same key with the same body gives the first answer again, and has no second effect.",
		Schema:      &huma.Schema{Type: huma.TypeString, MinLength: &one, MaxLength: &most, Pattern: `^[!-~]+$`},
	}
}

func jsonContent(s *huma.Schema) map[string]*huma.MediaType {
	return map[string]*huma.MediaType{"application/json": {Schema: s}}
}

// serveDocument mounts GET /openapi.json.
func (rt *Router) serveDocument() {
	rt.document = sync.OnceValues(func() ([]byte, error) {
		if rt.config.Document != nil {
			return rt.config.Document, nil
		}
		return rt.OpenAPI()
	})
	Raw(rt, "GET /openapi.json", auth.Public, "open", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		doc, err := rt.document()
		if err != nil {
			problem.Write(w, r, err)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Cache-Control", "no-cache")
		w.Header().Set("X-Content-Type-Options", "nosniff")
		w.Header().Set("Content-Length", strconv.Itoa(len(doc)))
		if r.Method != http.MethodHead {
			_, _ = w.Write(doc)
		}
	}))
}
