// Package endpoint owns how the API's operations are mounted: an operation is a typed function, and everything around it
// (routing, authorization, validation, transactions, idempotency, problem documents, the OpenAPI document) is written once
// here. It knows no noun.
//
//	rt := endpoint.New(endpoint.Config{Pool: pool, Authenticate: authenticate, Version: version, Document: openapi})
//
//	type getInput struct {
//		ID id.Certificate `path:"id"`
//	}
//	type certificateOutput struct {
//		Body Certificate
//	}
//	endpoint.Read(rt, "GET /api/v1/certificates/{id}", auth.Read,
//		endpoint.Doc{ID: "getCertificate", Tag: "Certificates", Summary: "Get a certificate"},
//		func(ctx context.Context, q db.Querier, in *getInput) (*certificateOutput, error) { … })
//
//	type createInput struct {
//		Body struct {
//			Name string   `json:"name,omitempty" maxLength:"200"`
//			SANs []string `json:"sans" minItems:"1" maxItems:"100"`
//		}
//	}
//	type createdOutput struct {
//		Location string `header:"Location"`
//		Body     Certificate
//	}
//	endpoint.Write(rt, "POST /api/v1/certificates", auth.CertWrite,
//		endpoint.Doc{ID: "createCertificate", Tag: "Certificates", Summary: "Create a certificate", Status: 201,
//			Errors: []fault.Kind{fault.Conflict}},
//		func(ctx context.Context, tx pgx.Tx, in *createInput) (*createdOutput, error) { … })
//
//	type listInput struct {
//		endpoint.ListInput
//		Status string `query:"status" enum:"active,expiring"`
//	}
//	endpoint.Read(rt, "GET /api/v1/certificates", auth.Read, doc,
//		func(ctx context.Context, q db.Querier, in *listInput) (*endpoint.List[Certificate], error) {
//			res, err := cert.List(ctx, q, cert.Filter{Status: in.Status}, in.Request())
//			if err != nil {
//				return nil, err
//			}
//			return endpoint.ListOf(&in.ListInput, res, view), nil
//		})
//
// Inputs are structs with `path`, `query` and `header` fields and an optional Body; outputs are structs with `header`
// fields, an optional Status and an optional Body (a []byte Body is sent as it is, with Doc.Produces). Body fields without
// omitempty are required. Validation tags are huma's: minLength, maxLength, minimum, maximum, minItems, maxItems, pattern,
// enum, format, default, doc, example. The answer belongs to this package once the function has returned it: nil slices
// and maps in it become empty ones.
//
// The surprising rule: an answer is encoded before the transaction commits, and is sent only when the commit succeeded.
// An operation whose effect must outlive an error answer, or which talks to the network, uses Act and not Write.
package endpoint

import (
	"context"
	"log/slog"
	"net/http"
	"slices"
	"strings"

	"certctl/shared/auth"
	"certctl/shared/db"
	"certctl/shared/endpoint/problem"
	"certctl/shared/fault"
)

// Config of a Router.
type Config struct {
	Pool db.Beginner // opens connections lazily
	// Authenticate turns the request's credential into an actor. No credential is auth.Anonymous and nil; one that is not
	// accepted is an Unauthenticated fault. It is asked only for routes that are not public.
	Authenticate func(ctx context.Context, r *http.Request) (auth.Actor, error)
	Version      string       // of the API, shown in the document
	Document     []byte       // the committed OpenAPI document, served at GET /openapi.json; nil: made when first asked for
	MaxBody      int64        // bound of a request body; 0: 1 MiB
	Tags         []Tag        // the document's tags; when set, every operation's tag must be one of them
	Log          *slog.Logger // access log; nil: slog.Default()
}

// Tag groups operations in the document.
type Tag struct{ Name, Description string }

// Router is the HTTP surface: operations, raw handlers, and problem documents for everything else.
type Router struct {
	config   Config
	reserved *http.ServeMux // paths of protocols and of the API: never a redirect, never a catch-all of the rest
	rest     *http.ServeMux
	before   []before
	ops      []*operation
	routes   []Route
	document func() ([]byte, error)
}

// Route is one row of the authorization table.
type Route struct {
	Pattern    string          // as mounted: "GET /api/v1/certificates/{id}"
	Class      string          // api, agent, open, or what Raw and Before were given: pki, est, scep …
	Permission auth.Permission // what it asks for
	ID         string          // the operation's id, "" for raw routes
}

// Open reports whether the route is served without a credential.
func (r Route) Open() bool { return open(r.Permission) }

// New makes a Router that serves the OpenAPI document and nothing else yet.
func New(c Config) *Router {
	if c.MaxBody == 0 {
		c.MaxBody = 1 << 20
	}
	if c.Log == nil {
		c.Log = slog.Default()
	}
	rt := &Router{config: c, reserved: http.NewServeMux(), rest: http.NewServeMux()}
	rt.serveDocument()
	return rt
}

// Routes lists everything that is mounted, in the order of mounting.
func (rt *Router) Routes() []Route { return slices.Clone(rt.routes) }

// WriteProblem answers with the error's problem document; see problem.Write.
func WriteProblem(w http.ResponseWriter, r *http.Request, err error) { problem.Write(w, r, err) }

// Raw mounts a handler that speaks its own protocol (PKI, EST, SCEP, health). It has the same guard and the same 404 and
// 405 documents as operations; its class is for the authorization table.
func Raw(rt *Router, pattern string, p auth.Permission, class string, h http.Handler) {
	rt.mount(Route{Pattern: pattern, Class: class, Permission: p}, h)
}

// Before hands every request whose path starts with the prefix to h, ahead of the path checks and of routing. It exists
// for paths that are data, such as the base64 tail of an OCSP GET with its "//". Such paths need no credential.
func (rt *Router) Before(prefix, class string, h http.Handler) {
	rt.before = append(rt.before, before{prefix, h})
	rt.routes = append(rt.routes, Route{Pattern: prefix, Class: class, Permission: auth.Public})
}

type before struct {
	prefix  string
	handler http.Handler
}

// guarded is what stands in the mux: the handler behind its route's permission.
type guarded struct {
	Route
	rt *Router
	h  http.Handler
}

// mount puts a route behind its guard. A route without a known permission stops the start.
func (rt *Router) mount(route Route, h http.Handler) {
	if !known(route.Permission) {
		panic("endpoint: " + route.Pattern + " names no known permission")
	}
	if rt.config.Authenticate == nil && !open(route.Permission) {
		panic("endpoint: " + route.Pattern + " asks for a credential and Config.Authenticate is not set")
	}
	mux := rt.rest
	if isReserved(pathOf(route.Pattern)) {
		mux = rt.reserved
	}
	mux.Handle(route.Pattern, &guarded{route, rt, h})
	rt.routes = append(rt.routes, route)
}

func pathOf(pattern string) string { return pattern[strings.Index(pattern, "/"):] }

func isReserved(path string) bool {
	for _, p := range []string{"/api", "/.well-known", "/scep"} {
		if tail, ok := strings.CutPrefix(path, p); ok && (tail == "" || tail[0] == '/') {
			return true
		}
	}
	return false
}

// open permissions are those that ask for no bearer credential. An enrollment is authenticated by the token in its body.
func open(p auth.Permission) bool { return p == auth.Public || p == auth.EnrollAgents }

func known(p auth.Permission) bool {
	may := func(r auth.Role) bool { return r.Allows(p) }
	return open(p) || slices.ContainsFunc(auth.Roles, may) || may(auth.AgentRole)
}

// ServeHTTP lets the request through when its actor has the route's permission.
func (g *guarded) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if open(g.Permission) {
		g.h.ServeHTTP(w, r)
		return
	}
	actor, err := g.rt.config.Authenticate(r.Context(), r)
	if err != nil {
		if fault.Is(err, fault.Unauthenticated) {
			w.Header().Set("WWW-Authenticate", `Bearer error="invalid_token"`) // RFC 6750, section 3.1
		}
		problem.Write(w, r, db.Fault(err))
		return
	}
	v := visitOf(r.Context())
	v.actor = actor
	switch {
	case actor.Role.Allows(g.Permission):
		g.h.ServeHTTP(w, r.WithContext(auth.WithActor(r.Context(), actor)))
	case actor.Role == auth.Nobody || actor.Role == "":
		problem.Write(w, r, fault.New(fault.Unauthenticated, "This path needs a credential: send it as Authorization: Bearer."))
	default:
		problem.Write(w, r, fault.New(fault.Denied, "The role of this credential does not permit this."))
	}
}
