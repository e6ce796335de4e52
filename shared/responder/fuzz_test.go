package responder_test

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"testing"

	"certctl/shared/responder"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// gone is a database that nobody reaches: what gets that far was taken for a question.
type gone struct{}

var errGone = &pgconn.ConnectError{Config: &pgconn.Config{}}

func (gone) Exec(context.Context, string, ...any) (pgconn.CommandTag, error) {
	return pgconn.CommandTag{}, errGone
}
func (gone) Query(context.Context, string, ...any) (pgx.Rows, error) { return nil, errGone }
func (gone) QueryRow(context.Context, string, ...any) pgx.Row        { return goneRow{} }

type goneRow struct{}

func (goneRow) Scan(...any) error { return errGone }

// Any path, method and body is answered: with a problem, or on OCSP paths with an unsigned status; never with a redirect and
// never with an internal error.
func FuzzEveryPKIPathIsAnswered(f *testing.F) {
	h := &responder.Handler{DB: gone{}, Log: slog.New(slog.DiscardHandler)}
	const iss = "iss_01h455vb4pex5vsknk084sn02q"
	for _, tail := range []string{"crl/" + iss, "crl/" + iss + "/1-2", "crl/" + iss + "/-1", "ca/" + iss + "/3", "ocsp/" + iss + "/MEIwQDA%2BMDwwOjAJBgUrDgMCGgUABBQ%3D",
		"ocsp/" + iss + "/MEo//w==", "ocsp/" + iss + "/0aff", "ocsp/" + iss, "ocsp/" + iss + "/", "ocsp//", "x/y/z", "%2e%2e/%00", ""} {
		f.Add("GET", tail, []byte(nil))
	}
	f.Add("POST", "ocsp/"+iss, []byte{0x30, 0x03, 0x0a, 0x01, 0x06})
	f.Fuzz(func(t *testing.T, method, tail string, body []byte) {
		u, err := url.Parse("http://pki.example" + responder.Prefix + tail)
		if err != nil {
			return // a server's parser refuses it first
		}
		r := &http.Request{Method: method, URL: u, Header: http.Header{}, Body: io.NopCloser(bytes.NewReader(body)), ContentLength: int64(len(body))}
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r.WithContext(t.Context()))
		switch w.Code {
		case 404, 405, 503:
			if w.Header().Get("Content-Type") != "application/problem+json" {
				t.Fatalf("%d with %s", w.Code, w.Header().Get("Content-Type"))
			}
		case 200:
			status := w.Body.Bytes()
			if method != http.MethodHead && (len(status) != 5 || status[4] != 1 && status[4] != 3) || w.Header().Get("Content-Type") != "application/ocsp-response" {
				t.Fatalf("200 with % x", status)
			}
		default:
			t.Fatalf("%s %q: %d %s", method, tail, w.Code, w.Body)
		}
	})
}
