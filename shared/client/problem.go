package client

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"mime"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// Field names one input field that the server did not accept.
type Field struct {
	Field  string `json:"field"`
	Detail string `json:"detail"`
}

// Problem is an answer of 300 and above: the server's problem document (RFC 9457), or what could be told of an answer that
// was none, e.g. a proxy's.
type Problem struct {
	Type       string                     // a URL whose last segment is the kind
	Title      string                     // the kind in words
	Status     int                        // HTTP status
	Detail     string                     // what happened, and the way out
	RequestID  string                     // under which the server's log knows more
	Fields     []Field                    // of an invalid request
	Retryable  bool                       // the same request may succeed later
	RetryAfter time.Duration              // when to try again; 0: not said
	Extra      map[string]json.RawMessage // extension members, e.g. open_job_id
}

// Kind is the last segment of the type, e.g. "open-job"; "" for an answer that was no problem document.
func (p *Problem) Kind() string {
	return p.Type[strings.LastIndex(p.Type, "/")+1:]
}

// Member is an extension member that is a text, or "".
func (p *Problem) Member(name string) string {
	var s string
	_ = json.Unmarshal(p.Extra[name], &s) // another form is not a text
	return s
}

func (p *Problem) Error() string {
	s := p.Detail
	if s == "" {
		s = p.Title
	}
	for _, f := range p.Fields {
		s += "; " + f.Field + ": " + f.Detail
	}
	return s
}

const maxProblem = 1 << 20

// readProblem makes a Problem of an answer. What is no problem document is described by its status only: a proxy's page
// says nothing that helps here.
func readProblem(res *http.Response) *Problem {
	p := &Problem{Status: res.StatusCode, Title: http.StatusText(res.StatusCode), RequestID: res.Header.Get("X-Request-Id"), RetryAfter: retryAfter(res.Header.Get("Retry-After"))}
	b, err := io.ReadAll(io.LimitReader(res.Body, maxProblem))
	media, _, _ := mime.ParseMediaType(res.Header.Get("Content-Type"))
	var doc struct {
		Type      string  `json:"type"`
		Title     string  `json:"title"`
		Detail    string  `json:"detail"`
		Instance  string  `json:"instance"`
		Errors    []Field `json:"errors"`
		Retryable bool    `json:"retryable"`
	}
	if err != nil || media != "application/problem+json" || json.Unmarshal(b, &doc) != nil {
		p.Detail = fmt.Sprintf("The server answered %d without a problem document; is there a proxy in between, or is this not a certctl server?", res.StatusCode)
		p.Retryable = res.StatusCode == http.StatusBadGateway || res.StatusCode == http.StatusServiceUnavailable || res.StatusCode == http.StatusGatewayTimeout || res.StatusCode == http.StatusTooManyRequests
		return p
	}
	p.Type, p.Title, p.Detail, p.Fields, p.Retryable = doc.Type, doc.Title, doc.Detail, doc.Errors, doc.Retryable
	if doc.Instance != "" {
		p.RequestID = doc.Instance
	}
	_ = json.Unmarshal(b, &p.Extra) // it decoded as an object above
	for _, name := range []string{"type", "title", "status", "detail", "instance", "errors", "retryable"} {
		delete(p.Extra, name)
	}
	return p
}

func retryAfter(s string) time.Duration {
	if n, err := strconv.Atoi(s); err == nil && n >= 0 && n < 1<<20 {
		return time.Duration(n) * time.Second
	}
	if at, err := http.ParseTime(s); err == nil {
		return max(0, time.Until(at))
	}
	return 0
}

// Unreachable says that there was no answer: the server is away, or the connection broke. It wraps the cause.
type Unreachable struct{ cause error }

func (e *Unreachable) Error() string { return "the server did not answer: " + e.cause.Error() }

func (e *Unreachable) Unwrap() error { return e.cause }

// unreachable keeps the end of the caller's own context apart from a server that is away.
func unreachable(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return fmt.Errorf("%w: %w", ctx.Err(), err)
	}
	return &Unreachable{err}
}

// backoff says how long to wait before the nth try is followed by another, and whether it is worth one. A certificate that
// is not trusted does not get better by asking again.
func backoff(err error, n int) (time.Duration, bool) {
	var p *Problem
	if errors.As(err, &p) {
		if !p.Retryable {
			return 0, false
		}
		if p.RetryAfter > 0 {
			return p.RetryAfter, p.RetryAfter <= maxPause
		}
	} else {
		var away *Unreachable
		var untrusted *tls.CertificateVerificationError
		if !errors.As(err, &away) || errors.As(err, &untrusted) {
			return 0, false
		}
	}
	d := 200 * time.Millisecond << (n - 1)
	return d/2 + rand.N(d), true // #nosec G404 -- jitter
}
