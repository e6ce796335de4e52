package boot

import (
	"context"
	"crypto"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"

	"certctl/shared/auth"

	"golang.org/x/term"
)

// Logger writes to standard error: text on a terminal, JSON elsewhere. Each record carries the request's (or the run's) id
// from its context under "request". Private keys, credentials in URLs and headers, and values under keys such as token are
// written as ***. It warns of CERTCTL_ variables that the program does not read.
func Logger(c Common) *slog.Logger {
	text := c.LogFormat == "text" || c.LogFormat != "json" && term.IsTerminal(int(os.Stderr.Fd())) // #nosec G115 -- a file descriptor fits an int
	log := newLogger(os.Stderr, c.LogLevel, text)
	if len(c.unknown) > 0 {
		log.Warn("environment variables that this program does not read", "variables", c.unknown)
	}
	return log
}

func newLogger(w io.Writer, level slog.Level, text bool) *slog.Logger {
	o := &slog.HandlerOptions{Level: level, ReplaceAttr: redact}
	if text {
		return slog.New(withRequest{slog.NewTextHandler(w, o)})
	}
	return slog.New(withRequest{slog.NewJSONHandler(w, o)})
}

// withRequest adds the id of the request or run to each record.
type withRequest struct{ slog.Handler }

func (h withRequest) Handle(ctx context.Context, r slog.Record) error {
	if id := auth.RequestIDOf(ctx); id != "" && !has(r, "request") {
		r = r.Clone()
		r.AddAttrs(slog.String("request", id))
	}
	return h.Handler.Handle(ctx, r)
}

func has(r slog.Record, key string) (found bool) {
	r.Attrs(func(a slog.Attr) bool {
		found = a.Key == key
		return !found
	})
	return found
}

func (h withRequest) WithAttrs(as []slog.Attr) slog.Handler {
	return withRequest{h.Handler.WithAttrs(as)}
}
func (h withRequest) WithGroup(name string) slog.Handler {
	return withRequest{h.Handler.WithGroup(name)}
}

// secretKeys name values that are secret whatever their type.
var secretKeys = []string{"authorization", "cookie", "credential", "password", "private_key", "secret", "token"}

const stars = "***"

// redact is the last line of defence: a secret should have a type that prints *** by itself.
func redact(_ []string, a slog.Attr) slog.Attr {
	if a.Value.Kind() == slog.KindTime {
		return slog.Time(a.Key, a.Value.Time().UTC())
	}
	if slices.Contains(secretKeys, strings.ToLower(a.Key)) {
		return slog.String(a.Key, stars)
	}
	if a.Value.Kind() != slog.KindAny {
		return a
	}
	switch v := a.Value.Any().(type) {
	case interface{ Public() crypto.PublicKey }:
		return slog.String(a.Key, stars)
	case *url.URL:
		if v != nil {
			return slog.String(a.Key, v.Redacted())
		}
	case http.Header:
		return slog.Any(a.Key, redactHeader(v))
	}
	return a
}

func redactHeader(h http.Header) http.Header {
	h = h.Clone()
	for _, name := range []string{"Authorization", "Proxy-Authorization", "Cookie", "Set-Cookie"} {
		if h.Get(name) != "" {
			h.Set(name, stars)
		}
	}
	return h
}
