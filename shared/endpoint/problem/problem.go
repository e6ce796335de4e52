// Package problem owns the HTTP form of faults: RFC 9457 problem documents, and the table from kinds to statuses.
//
// It is the one place that turns an error into an answer, and the one place that logs what the answer does not say. It
// links nothing but the standard library, so that edges without the endpoint package (the responder) answer alike.
package problem

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"maps"
	"math"
	"net/http"
	"slices"
	"strconv"
	"time"

	"certctl/shared/auth"
	"certctl/shared/fault"
)

// Base is the start of every problem type; the kind follows. The pages are docs/problems.md.
const Base = "https://certctl.dev/problems/"

// ContentType of a problem document (RFC 9457, section 3).
const ContentType = "application/problem+json"

type form struct {
	status int
	title  string
}

var forms = map[fault.Kind]form{
	fault.Invalid:         {http.StatusBadRequest, "The request is not valid"},
	fault.Unauthenticated: {http.StatusUnauthorized, "A credential is needed"},
	fault.Denied:          {http.StatusForbidden, "Not permitted"},
	fault.NotFound:        {http.StatusNotFound, "Not found"},
	fault.BadMethod:       {http.StatusMethodNotAllowed, "Method not allowed"},
	fault.Conflict:        {http.StatusConflict, "Conflict"},
	fault.OpenJob:         {http.StatusConflict, "An issuance is open"},
	fault.AlreadyRevoked:  {http.StatusConflict, "Revoked already"},
	fault.KeyReused:       {http.StatusConflict, "The idempotency key was used"},
	fault.StaleLease:      {http.StatusConflict, "The lease is stale"},
	fault.TooLarge:        {http.StatusRequestEntityTooLarge, "The body is too large"},
	fault.BadMediaType:    {http.StatusUnsupportedMediaType, "Unsupported media type"},
	fault.Throttled:       {http.StatusTooManyRequests, "Too many requests"},
	fault.Unavailable:     {http.StatusServiceUnavailable, "Not available at the moment"},
	fault.NotImplemented:  {http.StatusNotImplemented, "Not implemented"},
	fault.Internal:        {http.StatusInternalServerError, "Internal error"},
}

// Kinds are all kinds of fault, sorted: the closed list that the documentation shows.
func Kinds() []fault.Kind { return slices.Sorted(maps.Keys(forms)) }

// Status is the HTTP status of a kind, 500 for one that is not in the list.
func Status(k fault.Kind) int {
	if f, ok := forms[k]; ok {
		return f.status
	}
	return http.StatusInternalServerError
}

// Document is a problem document. Extension members of a fault stand beside these.
type Document struct {
	_         struct{}      `additionalProperties:"true"`
	Type      string        `json:"type" format:"uri" doc:"the kind of problem, one of a closed list" example:"https://certctl.dev/problems/invalid-request"`
	Title     string        `json:"title" doc:"the kind of problem in words" example:"The request is not valid"`
	Status    int           `json:"status" doc:"the HTTP status" example:"400"`
	Detail    string        `json:"detail" doc:"what happened here, and the way out"`
	Instance  string        `json:"instance" doc:"the request id, under which the server's log knows more"`
	Errors    []fault.Field `json:"errors,omitempty" doc:"the input fields that are not valid"`
	Retryable bool          `json:"retryable,omitempty" doc:"true if the same request may succeed later"`
}

// Error makes the document an error of huma.
func (d *Document) Error() string { return d.Title }

// GetStatus is the HTTP status.
func (d *Document) GetStatus() int { return d.Status }

// Of describes a fault for the request that the context belongs to.
func Of(ctx context.Context, f *fault.Error) Document {
	kind := f.Kind
	if _, ok := forms[kind]; !ok {
		kind = fault.Internal
	}
	return Document{
		Type: Base + string(kind), Title: forms[kind].title, Status: forms[kind].status,
		Detail: f.Detail, Instance: auth.RequestIDOf(ctx), Errors: f.Fields,
		Retryable: kind == fault.Unavailable || kind == fault.Throttled,
	}
}

// Write answers the request with the error's problem document. An error that is no fault is shown as "internal" and
// nothing more; it is logged here, under the request id, and should not be logged by the caller.
func Write(w http.ResponseWriter, r *http.Request, err error) {
	f := shown(r, err)
	doc := Of(r.Context(), f)
	h := w.Header()
	for _, name := range []string{"Etag", "Last-Modified", "Content-Encoding", "Location", "Expires"} {
		h.Del(name) // meant for the answer that is not given
	}
	h.Set("Content-Type", ContentType)
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	if f.RetryAfter > 0 {
		h.Set("Retry-After", strconv.Itoa(int(math.Ceil(f.RetryAfter.Seconds()))))
	}
	if doc.Status == http.StatusUnauthorized && h.Get("WWW-Authenticate") == "" {
		h.Set("WWW-Authenticate", "Bearer")
	}
	body := encode(doc, f.Extra)
	h.Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(doc.Status)
	if r.Method != http.MethodHead {
		_, _ = w.Write(body)
	}
}

// shown is the fault that the caller sees; what it hides is logged.
func shown(r *http.Request, err error) *fault.Error {
	ctx := r.Context()
	f := fault.As(err)
	switch {
	case errors.Is(err, context.Canceled) && ctx.Err() != nil:
		return fault.New(fault.Unavailable, "The request was given up by its sender.")
	case f == nil && errors.Is(err, context.DeadlineExceeded):
		f = fault.Wrap(err, fault.Unavailable, "The request took too long; it may be tried again.").After(5 * time.Second)
	case f == nil:
		f = fault.Wrap(err, fault.Internal, "Something went wrong in the server.")
	}
	if Status(f.Kind) >= http.StatusInternalServerError && f.Kind != fault.NotImplemented {
		slog.LogAttrs(ctx, slog.LevelError, "request failed",
			slog.String("request", auth.RequestIDOf(ctx)), slog.String("method", r.Method), slog.Any("err", err))
	}
	return f
}

// encode puts the extension members behind the standard ones, in the order of their names. A standard name is not
// overwritten by an extension.
func encode(doc Document, extra map[string]any) []byte {
	body, err := json.Marshal(doc)
	if err != nil {
		return []byte(`{}`) // strings, a number and a bool always encode
	}
	standard := []string{"type", "title", "status", "detail", "instance", "errors", "retryable"}
	for _, name := range slices.Sorted(maps.Keys(extra)) {
		if slices.Contains(standard, name) {
			continue
		}
		member, err := json.Marshal(map[string]any{name: extra[name]})
		if err != nil {
			slog.Error("a problem's extension member does not encode", "name", name, "err", err)
			continue
		}
		body = append(append(body[:len(body)-1], ','), member[1:]...)
	}
	return append(body, '\n')
}
