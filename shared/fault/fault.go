// Package fault owns the errors that a caller acts on or a person reads.
//
// A fault carries a kind, a text that is safe to show, and the cause that stays in the log. Edges map kinds to their own
// wire form (HTTP problem documents, exit codes) in one place; nouns and operations never know about HTTP. An error that
// is not a fault is our own mistake: edges show it as "internal" and log it.
package fault

import (
	"errors"
	"fmt"
	"time"
)

// Kind says what the caller did or met. The list is closed: every kind is a documented problem type (docs/problems.md).
type Kind string

// The kinds. The text is the last path segment of the problem type's URL.
const (
	Invalid         Kind = "invalid-request"    // the input is malformed or names something that does not exist
	Unauthenticated Kind = "unauthenticated"    // no credential, or one that is not accepted
	Denied          Kind = "forbidden"          // the credential is good and does not permit this
	NotFound        Kind = "not-found"          // there is nothing at this path
	BadMethod       Kind = "method-not-allowed" // the path exists, the method does not
	Conflict        Kind = "conflict"           // the state or a unique name forbids it
	OpenJob         Kind = "open-job"           // the certificate already has an open issuance
	AlreadyRevoked  Kind = "already-revoked"    // the version is revoked already
	KeyReused       Kind = "idempotency-key"    // an Idempotency-Key was used with another body, or its answer held a secret
	StaleLease      Kind = "stale-lease"        // the job was claimed again by another run
	TooLarge        Kind = "payload-too-large"  // the body exceeds its bound
	BadMediaType    Kind = "unsupported-media"  // the body has a type that is not read here
	Throttled       Kind = "too-many-requests"  // slow down; RetryAfter says for how long
	Unavailable     Kind = "unavailable"        // a dependency is away; safe to try again after RetryAfter
	NotImplemented  Kind = "not-implemented"    // reserved, not offered by this server
	Internal        Kind = "internal"           // our mistake; the log holds the cause under the request id
)

// Field names one input field and what is wrong with it. Detail never repeats the submitted value.
type Field struct {
	Field  string `json:"field"`  // path of the field as the caller wrote it, e.g. "sans[2]"
	Detail string `json:"detail"` // what is wrong and what is accepted
}

// Error is a fault. Build it with the constructors below.
type Error struct {
	Kind       Kind
	Detail     string         // one sentence for people, with the way out
	Fields     []Field        // for Invalid
	Extra      map[string]any // extension members of the problem document, e.g. open_job_id
	RetryAfter time.Duration  // for Unavailable and Throttled; zero: unknown
	cause      error
}

func (e *Error) Error() string {
	s := string(e.Kind) + ": " + e.Detail
	for _, f := range e.Fields {
		s += "; " + f.Field + ": " + f.Detail
	}
	if e.cause != nil {
		s += ": " + e.cause.Error()
	}
	return s
}

func (e *Error) Unwrap() error { return e.cause }

// New makes a fault of a kind with a formatted detail that is safe to show.
func New(k Kind, format string, args ...any) *Error {
	return &Error{Kind: k, Detail: fmt.Sprintf(format, args...)}
}

// Wrap is New with the cause kept for the log.
func Wrap(cause error, k Kind, format string, args ...any) *Error {
	e := New(k, format, args...)
	e.cause = cause
	return e
}

// BadField is an Invalid fault about one field. The detail must not contain the submitted value.
func BadField(field, format string, args ...any) *Error {
	return BadFields(Field{Field: field, Detail: fmt.Sprintf(format, args...)})
}

// BadFields is an Invalid fault about several fields.
func BadFields(fields ...Field) *Error {
	return &Error{Kind: Invalid, Detail: "The request has fields that are not valid.", Fields: fields}
}

// With adds an extension member to the fault and returns it.
func (e *Error) With(name string, value any) *Error {
	if e.Extra == nil {
		e.Extra = map[string]any{}
	}
	e.Extra[name] = value
	return e
}

// After sets RetryAfter and returns the fault.
func (e *Error) After(d time.Duration) *Error {
	e.RetryAfter = d
	return e
}

// As returns the fault in err's chain, or nil.
func As(err error) *Error {
	var e *Error
	if errors.As(err, &e) {
		return e
	}
	return nil
}

// Is reports whether err's chain holds a fault of kind k.
func Is(err error, k Kind) bool {
	e := As(err)
	return e != nil && e.Kind == k
}
