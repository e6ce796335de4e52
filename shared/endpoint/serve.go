package endpoint

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"log/slog"
	"net/http"
	"runtime/debug"
	"strings"
	"time"

	"certctl/shared/auth"
	"certctl/shared/endpoint/problem"
	"certctl/shared/fault"
)

// visit is what is known about one request while it is served; the access log reads it at the end.
type visit struct {
	actor   auth.Actor
	pattern string
	status  int
}

type visitKey struct{}

func visitOf(ctx context.Context) *visit {
	v, _ := ctx.Value(visitKey{}).(*visit)
	return v
}

// ServeHTTP serves one request: path checks, 404, 405, credential, permission, and then the operation.
func (rt *Router) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	start := time.Now()
	v := &visit{actor: auth.Anonymous}
	requestID := requestID(r)
	ctx := context.WithValue(auth.WithRequestID(r.Context(), requestID), visitKey{}, v)
	r = r.WithContext(ctx)
	w.Header().Set("X-Request-Id", requestID)
	sw := &statusWriter{ResponseWriter: w, v: v}
	defer rt.log(r, v, start)
	defer recovered(sw, r)
	rt.dispatch(sw, r)
}

func (rt *Router) dispatch(w http.ResponseWriter, r *http.Request) {
	for _, b := range rt.before {
		if strings.HasPrefix(r.URL.Path, b.prefix) {
			visitOf(r.Context()).pattern = b.prefix
			b.handler.ServeHTTP(w, r)
			return
		}
	}
	if !clean(r) {
		problem.Write(w, r, nothing())
		return
	}
	mux := rt.rest
	if isReserved(r.URL.Path) {
		mux = rt.reserved
	}
	h, pattern := mux.Handler(r)
	if _, ok := h.(*guarded); !ok {
		refuse(w, r, h)
		return
	}
	visitOf(r.Context()).pattern = pattern
	mux.ServeHTTP(w, r)
}

func nothing() error { return fault.New(fault.NotFound, "There is nothing at this path.") }

// clean reports whether the mux would take the path as it is. What it would redirect is refused instead: dot segments and
// empty segments, raw or escaped, and under the reserved prefixes a slash at the end.
func clean(r *http.Request) bool {
	path := r.URL.Path
	if !strings.HasPrefix(path, "/") || strings.Contains(path, "\x00") {
		return false
	}
	for _, p := range []string{path, r.URL.EscapedPath()} {
		for i, s := range strings.Split(p, "/") {
			last := i == strings.Count(p, "/")
			if s == "." || s == ".." || s == "" && i > 0 && !last {
				return false
			}
		}
	}
	return !isReserved(path) || !strings.HasSuffix(path, "/")
}

// refuse answers what no route matches. The mux says by its own answer whether another method would do; its redirects
// (to a path with a slash) are not followed.
func refuse(w http.ResponseWriter, r *http.Request, h http.Handler) {
	probe := &recorder{header: http.Header{}}
	h.ServeHTTP(probe, r)
	if probe.status != http.StatusMethodNotAllowed {
		problem.Write(w, r, nothing())
		return
	}
	allow := probe.header.Get("Allow")
	w.Header().Set("Allow", allow)
	problem.Write(w, r, fault.New(fault.BadMethod, "This path answers %s.", allow))
}

// requestID takes over the id that a proxy gave if it is a plain word, else the platform's, else it makes one.
func requestID(r *http.Request) string {
	s := r.Header.Get("X-Request-Id")
	plain := func(c rune) bool {
		return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.ContainsRune("-_.=", c)
	}
	if len(s) >= 1 && len(s) <= 64 && strings.IndexFunc(s, func(c rune) bool { return !plain(c) }) < 0 {
		return s
	}
	if given := auth.RequestIDOf(r.Context()); given != "" {
		return given
	}
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails since Go 1.24
	return hex.EncodeToString(b[:])
}

// recovered turns a panic into an internal problem, if nothing was sent yet.
func recovered(w *statusWriter, r *http.Request) {
	p := recover()
	if p == nil {
		return
	}
	if p == http.ErrAbortHandler || w.v.status != 0 {
		panic(p)
	}
	problem.Write(w, r, fmt.Errorf("panic: %v\n%s", p, debug.Stack()))
}

// log writes the access line: reads that succeed at debug, everything else at info. It has no query and no body.
func (rt *Router) log(r *http.Request, v *visit, start time.Time) {
	level := slog.LevelInfo
	if v.status < 400 && (r.Method == http.MethodGet || r.Method == http.MethodHead) {
		level = slog.LevelDebug
	}
	rt.config.Log.LogAttrs(r.Context(), level, "request",
		slog.String("request", auth.RequestIDOf(r.Context())), slog.String("method", r.Method),
		slog.String("route", v.pattern), slog.Int("status", v.status),
		slog.Int64("ms", time.Since(start).Milliseconds()), slog.String("principal", v.actor.Principal))
}

// statusWriter notes the status for the access log. Unwrap gives http.ResponseController the writer below.
type statusWriter struct {
	http.ResponseWriter
	v *visit
}

func (w *statusWriter) WriteHeader(status int) {
	if status >= 200 && w.v.status == 0 {
		w.v.status = status
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *statusWriter) Write(b []byte) (int, error) {
	if w.v.status == 0 {
		w.v.status = http.StatusOK
	}
	return w.ResponseWriter.Write(b)
}

func (w *statusWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }
