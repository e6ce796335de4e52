package endpoint

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"reflect"
	"strconv"
	"strings"
	"sync"
	"time"

	"certctl/shared/auth"
	"certctl/shared/crash"
	"certctl/shared/db"
	"certctl/shared/endpoint/problem"
	"certctl/shared/fault"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"
	"github.com/jackc/pgx/v5"
)

// Doc describes an operation for the document, and what this package cannot see in its types.
type Doc struct {
	ID          string       // operation id, unique: "createCertificate"
	Summary     string       // a few words
	Description string       // sentences; default: the summary
	Tag         string       // one of Config.Tags
	Status      int          // of success; default 200, 204 without a Body
	Answers     map[int]any  // further successful statuses and a value of their body's type; also the body of Status when Body is any
	Errors      []fault.Kind // beyond those that follow from the route: NotFound when the path has a name in it, and so on
	Secret      bool         // the answer holds a secret: it is never stored, and a replay of its key is 409
	Produces    string       // media type of a []byte Body
	MaxBody     int64        // bound of the request body; 0: Config.MaxBody
}

// Read mounts an operation that changes nothing in the database. The function gets the pool.
func Read[I, O any](rt *Router, pattern string, p auth.Permission, doc Doc, fn func(ctx context.Context, q db.Querier, in *I) (*O, error)) {
	mountOperation(rt, pattern, p, doc, func(ctx context.Context, c *call, in *I) (*O, error) {
		return fn(ctx, rt.config.Pool, in)
	})
}

// Write mounts an operation with an effect. The function runs in a transaction that commits after its answer was encoded,
// if that has a status below 400; with it commits the record of the Idempotency-Key (POST). An error rolls all back.
func Write[I, O any](rt *Router, pattern string, p auth.Permission, doc Doc, fn func(ctx context.Context, tx pgx.Tx, in *I) (*O, error)) {
	mountOperation(rt, pattern, p, doc, func(ctx context.Context, c *call, in *I) (*O, error) {
		if err := c.begin(ctx); err != nil || c.replay != nil {
			return nil, err
		}
		return fn(ctx, c.tx, in)
	})
}

// Act mounts an operation that has no one transaction: it talks to the network, or works in several steps. The function
// makes its own transactions and must be safe to repeat, since the answer is not stored under an Idempotency-Key.
func Act[I, O any](rt *Router, pattern string, p auth.Permission, doc Doc, fn func(ctx context.Context, b db.Beginner, in *I) (*O, error)) {
	mountOperation(rt, pattern, p, doc, func(ctx context.Context, c *call, in *I) (*O, error) {
		return fn(ctx, rt.config.Pool, in)
	})
}

// AfterCommit has f run once the operation's transaction is committed and before the answer is sent, e.g. to ring a
// doorbell. Within an operation without a transaction f runs after the function. It must not be needed for correctness.
func AfterCommit(ctx context.Context, f func(ctx context.Context)) {
	if c := callOf(ctx); c != nil {
		c.after = append(c.after, f)
	}
}

// operation is one mounted function: its route, and how to make its huma handler.
type operation struct {
	route    Route
	doc      Doc
	method   string
	path     string
	hasBody  bool // the input has a Body
	list     bool // the answer is a page: no ETag
	rt       *Router
	register func(huma.API, huma.Operation)
	handle   func() *handle // made on the first request
}

type handle struct {
	op *huma.Operation
	f  func(huma.Context)
}

func mountOperation[I, O any](rt *Router, pattern string, p auth.Permission, doc Doc, run func(context.Context, *call, *I) (*O, error)) {
	method, path, ok := strings.Cut(pattern, " ")
	if !ok || doc.ID == "" {
		panic("endpoint: " + pattern + " needs a method, a path and Doc.ID")
	}
	in, out := reflect.TypeFor[I](), reflect.TypeFor[O]()
	_, hasBody := in.FieldByName("Body")
	body, hasAnswer := out.FieldByName("Body")
	if _, raw := in.FieldByName("RawBody"); raw || hasAnswer && body.Type == reflect.TypeFor[[]byte]() && doc.Produces == "" {
		panic("endpoint: " + pattern + ": a raw input belongs to Raw, and a []byte Body needs Doc.Produces")
	}
	o := &operation{
		route: Route{Pattern: pattern, Class: class(p), Permission: p, ID: doc.ID}, doc: doc, rt: rt,
		method: method, path: path, hasBody: hasBody,
		list: hasAnswer && body.Type.Implements(reflect.TypeFor[interface{ isPage() }]()),
	}
	o.register = func(api huma.API, op huma.Operation) {
		huma.Register(api, op, func(ctx context.Context, in *I) (*O, error) {
			c := callOf(ctx)
			if b, ok := any(in).(interface{ bind(*http.Request) error }); ok {
				if c.err = b.bind(c.r); c.err != nil {
					return nil, nil
				}
			}
			answer, err := run(ctx, c, in)
			if err != nil {
				c.err = db.Fault(err)
				return nil, nil // the error is written by the call, not by huma
			}
			if answer != nil {
				fillNil(reflect.ValueOf(answer).Elem())
			}
			return answer, nil
		})
	}
	o.handle = sync.OnceValue(o.build)
	rt.mount(o.route, o)
	rt.ops = append(rt.ops, o)
}

func class(p auth.Permission) string {
	switch p {
	case auth.Public:
		return "open"
	case auth.AgentOnly, auth.EnrollAgents:
		return "agent"
	}
	return "api"
}

// build registers the operation with a small API of its own: a registry of schemas cannot be shared by requests that come
// at the same time, and an operation that is never called costs nothing.
func (o *operation) build() *handle {
	h := &handle{}
	o.register(huma.NewAPI(o.rt.humaConfig(), h), o.describe(nil))
	return h
}

// Handle implements huma.Adapter: it keeps the handler instead of mounting it.
func (h *handle) Handle(op *huma.Operation, f func(huma.Context)) { h.op, h.f = op, f }

// ServeHTTP implements huma.Adapter and is not used.
func (h *handle) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	w.WriteHeader(http.StatusNotFound)
}

// call is one request to an operation.
type call struct {
	o      *operation
	r      *http.Request
	body   []byte
	key    string // the Idempotency-Key, "" without one
	rec    recorder
	err    error // the outcome, when it is not the recorded answer
	tx     pgx.Tx
	replay *stored
	after  []func(context.Context)
}

type callKey struct{}

func callOf(ctx context.Context) *call {
	c, _ := ctx.Value(callKey{}).(*call)
	return c
}

// ServeHTTP runs the operation. The permission has been checked.
func (o *operation) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c := &call{o: o, rec: recorder{header: http.Header{}}}
	c.r = r.WithContext(context.WithValue(r.Context(), callKey{}, c))
	defer c.rollback()
	if err := c.run(w); err != nil {
		problem.Write(w, r, err)
		return
	}
	c.send(w)
}

func (c *call) run(w http.ResponseWriter) error {
	if err := c.readQuery(); err != nil {
		return err
	}
	if err := c.readKey(); err != nil {
		return err
	}
	if err := c.readBody(w); err != nil {
		return err
	}
	h := c.o.handle()
	h.f(humago.NewContext(h.op, c.r, &c.rec))
	switch {
	case c.err != nil:
		return c.err
	case c.replay != nil:
		c.replay.answer(&c.rec)
		return nil
	}
	return c.commit()
}

// begin starts the transaction and, with an Idempotency-Key, takes the key in it or finds the answer to replay.
func (c *call) begin(ctx context.Context) error {
	tx, err := c.o.rt.config.Pool.Begin(ctx)
	if err != nil {
		return db.Fault(err)
	}
	c.tx = tx
	if c.key == "" {
		return nil
	}
	c.replay, err = c.takeKey(ctx)
	return err
}

func (c *call) commit() error {
	ctx := c.r.Context()
	if c.tx != nil && c.rec.code() < 400 {
		if c.key != "" {
			if err := c.storeAnswer(ctx); err != nil {
				return db.Fault(err)
			}
		}
		tx := c.tx
		c.tx = nil
		crash.At(crash.Answer, crash.Before)
		if err := tx.Commit(ctx); err != nil {
			return db.Fault(err)
		}
		crash.At(crash.Answer, crash.After)
	}
	for _, f := range c.after {
		f(ctx)
	}
	return nil
}

// rollback ends the transaction if it is still open. The request may be over already; the rollback must still arrive.
func (c *call) rollback() {
	if c.tx == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(c.r.Context()), 2*time.Second)
	defer cancel()
	_ = c.tx.Rollback(ctx)
	c.tx = nil
}

// send gives the recorded answer to the client.
func (c *call) send(w http.ResponseWriter) {
	body, status := c.rec.buf.Bytes(), c.rec.code()
	h := w.Header()
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	if c.o.doc.Produces != "" && status < 300 {
		h.Set("Content-Type", c.o.doc.Produces)
	}
	for name, values := range c.rec.header {
		h[name] = values
	}
	read := c.r.Method == http.MethodGet || c.r.Method == http.MethodHead
	if read && status == http.StatusOK && !c.o.list {
		sum := sha256.Sum256(body)
		tag := `"` + hex.EncodeToString(sum[:16]) + `"`
		h.Set("ETag", tag)
		if matches(c.r.Header.Values("If-None-Match"), tag) {
			h.Del("Content-Type")
			w.WriteHeader(http.StatusNotModified)
			return
		}
	}
	if len(body) == 0 {
		h.Del("Content-Type")
	}
	if status != http.StatusNoContent {
		h.Set("Content-Length", strconv.Itoa(len(body)))
	}
	w.WriteHeader(status)
	if c.r.Method != http.MethodHead {
		_, _ = w.Write(body) // #nosec G705 -- JSON, or a media type that is no markup, with nosniff
	}
}

// matches is the weak comparison of RFC 9110, section 13.1.2.
func matches(ifNoneMatch []string, tag string) bool {
	for _, line := range ifNoneMatch {
		for t := range strings.SplitSeq(line, ",") {
			if t = strings.TrimSpace(t); t == "*" || strings.TrimPrefix(t, "W/") == tag {
				return true
			}
		}
	}
	return false
}

// recorder keeps an answer until it is known that it may be sent.
type recorder struct {
	header http.Header
	status int
	buf    bytes.Buffer
}

func (r *recorder) Header() http.Header { return r.header }

func (r *recorder) WriteHeader(status int) {
	if r.status == 0 {
		r.status = status
	}
}

func (r *recorder) Write(b []byte) (int, error) { return r.buf.Write(b) }

func (r *recorder) code() int {
	if r.status == 0 {
		return http.StatusOK
	}
	return r.status
}

// fillNil makes nil slices and maps in an answer empty, because the document says that they are never null.
func fillNil(v reflect.Value) {
	switch v.Kind() {
	case reflect.Pointer, reflect.Interface:
		if !v.IsNil() {
			fillNil(v.Elem())
		}
	case reflect.Struct:
		for i := range v.NumField() {
			if v.Type().Field(i).IsExported() && hasNil(v.Type().Field(i).Type) {
				fillNil(v.Field(i))
			}
		}
	case reflect.Slice:
		if v.Type().Elem().Kind() == reflect.Uint8 {
			return // bytes: raw JSON, or a body
		}
		if v.IsNil() && v.CanSet() {
			v.Set(reflect.MakeSlice(v.Type(), 0, 0))
		}
		if hasNil(v.Type().Elem()) {
			for i := range v.Len() {
				fillNil(v.Index(i))
			}
		}
	case reflect.Map:
		if v.IsNil() && v.CanSet() {
			v.Set(reflect.MakeMap(v.Type()))
		}
	}
}

var withNil sync.Map // reflect.Type → bool

// hasNil reports whether values of the type may hold a slice or a map. A type is taken to hold one while it is looked at,
// which ends the recursion of types that contain themselves.
func hasNil(t reflect.Type) bool {
	if known, ok := withNil.Load(t); ok {
		return known.(bool)
	}
	withNil.Store(t, true)
	is := false
	switch t.Kind() {
	case reflect.Slice, reflect.Map, reflect.Interface:
		is = true
	case reflect.Pointer:
		is = hasNil(t.Elem())
	case reflect.Struct:
		for i := range t.NumField() {
			is = is || t.Field(i).IsExported() && hasNil(t.Field(i).Type)
		}
	}
	withNil.Store(t, is)
	return is
}
