package lambdahttp

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/awslabs/aws-lambda-go-api-proxy/httpadapter"
	"github.com/google/go-cmp/cmp"
)

func TestMain(m *testing.M) {
	log.SetOutput(io.Discard) // the library prints what it refuses
	os.Exit(m.Run())
}

// outcome is what came of an event: what the handler saw and what the platform is told.
type outcome struct {
	res      response
	err      error
	panicked any
	req      *http.Request // nil: the handler was not reached
}

func event(method, path string, headers map[string]string) request {
	e := request{Version: "2.0", RawPath: path, Headers: headers}
	e.RequestContext.HTTP.Method, e.RequestContext.HTTP.Path = method, path
	e.RequestContext.HTTP.SourceIP, e.RequestContext.DomainName = "2001:db8::7", "id.execute-api.example"
	return e
}

// both serves ev by the library alone and by the layer.
func both(t *testing.T, h http.HandlerFunc, ev request) (lib, layer outcome) {
	t.Helper()
	try := func(serve func(http.Handler) (response, error)) (o outcome) {
		defer func() { o.panicked = recover() }()
		o.res, o.err = serve(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			o.req = r
			h(w, r)
		}))
		return o
	}
	raw, err := json.Marshal(ev)
	if err != nil {
		t.Fatal(err)
	}
	lib = try(func(h http.Handler) (response, error) { return httpadapter.NewV2(h).ProxyWithContext(t.Context(), ev) })
	layer = try(func(h http.Handler) (response, error) { return Handler(h, quiet())(t.Context(), raw) })
	return lib, layer
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

func silent(http.ResponseWriter, *http.Request) {}

func answer(contentType, body string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", contentType)
		_, _ = io.WriteString(w, body)
	}
}

// Each case is a fault of the library: broken must hold of what the library does, so that a release which mends it is
// noticed here and the layer can shrink; mended must hold of the layer.
func TestTheLayerMendsWhatTheLibraryGetsWrong(t *testing.T) {
	t.Parallel()
	status := func(code int) func(outcome) bool {
		return func(o outcome) bool { return o.res.StatusCode == code && o.err == nil && o.panicked == nil }
	}
	refused := func(o outcome) bool { return o.res.StatusCode == http.StatusGatewayTimeout && o.err != nil }
	badRequest := func(o outcome) bool { return status(http.StatusBadRequest)(o) && o.req == nil }
	values := func(name string, n int) func(outcome) bool {
		return func(o outcome) bool { return len(o.req.Header[name]) == n }
	}
	base64ed := func(yes bool) func(outcome) bool { return func(o outcome) bool { return o.res.IsBase64Encoded == yes } }
	path := func(path, query string) func(outcome) bool {
		return func(o outcome) bool { return o.req.URL.Path == path && o.req.URL.RawQuery == query }
	}
	withBody := func(body string) request {
		e := event("POST", "/x", nil)
		e.Body, e.IsBase64Encoded = body, true
		return e
	}
	cases := []struct {
		name           string
		handler        http.HandlerFunc
		event          request
		broken, mended func(outcome) bool
	}{
		{"1 a handler that writes nothing answers 200", silent, event("GET", "/x", nil), refused, status(200)},
		{"2 Date is one value", silent, event("GET", "/x", map[string]string{"date": "Tue, 15 Nov 1994 08:12:31 GMT"}), values("Date", 2), values("Date", 1)},
		{"2 If-None-Match is one value", silent, event("GET", "/x", map[string]string{"if-none-match": `"a,b"`}), values("If-None-Match", 2), values("If-None-Match", 1)},
		{"2 X-Forwarded-For is one value", silent, event("GET", "/x", map[string]string{"x-forwarded-for": "192.0.2.1, 192.0.2.2"}), values("X-Forwarded-For", 2), values("X-Forwarded-For", 1)},
		{"3 RemoteAddr has a port", silent, event("GET", "/x", nil),
			func(o outcome) bool { _, _, err := net.SplitHostPort(o.req.RemoteAddr); return err != nil },
			func(o outcome) bool {
				host, _, err := net.SplitHostPort(o.req.RemoteAddr)
				return err == nil && host == "2001:db8::7"
			}},
		{"4 a stray percent sign is a path", silent, event("GET", "/ocsp/100%", nil), refused, path("/ocsp/100%", "")},
		{"5 DER that happens to be UTF-8 is base64", answer("application/ocsp-response", "0\x03\x0a\x01\x06"), event("GET", "/x", nil), base64ed(false), base64ed(true)},
		{"6 a control character in the path is the client's fault", silent, event("GET", "/a\x01b", nil), refused, badRequest},
		{"6 a broken base64 body is the client's fault", silent, withBody("%%%"), refused, badRequest},
		{"7 a decoded number sign stays in the path", answer("text/plain", "x"), event("GET", "/x#y", nil), path("/x", ""), path("/x#y", "")},
		{"7 a decoded question mark starts no query", answer("text/plain", "x"), event("GET", "/x?y=1", nil), path("/x", "y=1"), path("/x?y=1", "")},
		{"8 a panic is an answer", func(http.ResponseWriter, *http.Request) { panic("boom") }, event("GET", "/x", nil),
			func(o outcome) bool { return o.panicked == "boom" }, status(500)},
		{"9 the first status counts", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(409); w.WriteHeader(200) }, event("GET", "/x", nil), status(200), status(409)},
		{"10 an informational status is not the answer", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(103); _, _ = io.WriteString(w, "x") }, event("GET", "/x", nil), status(103), status(200)},
		{"11 HEAD has no body", answer("application/json", "{}"), event("HEAD", "/x", nil),
			func(o outcome) bool { return o.res.Body == "{}" }, func(o outcome) bool { return o.res.Body == "" && o.res.StatusCode == 200 }},
		{"12 Host is the request's host", silent, event("GET", "/x", map[string]string{"host": "api.example"}),
			func(o outcome) bool { return o.req.Host == "id.execute-api.example" && o.req.Header.Get("Host") != "" },
			func(o outcome) bool { return o.req.Host == "api.example" && o.req.Header.Get("Host") == "" }},
		{"13 what Lambda cannot carry is an error here", answer("application/json", strings.Repeat("x", 7<<20)), event("GET", "/x", nil), status(200), status(500)},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			lib, layer := both(t, c.handler, c.event)
			if !c.broken(lib) {
				t.Errorf("the library does this right now: the layer may leave it out (%s)", show(lib))
			}
			if !c.mended(layer) {
				t.Errorf("the layer does not mend it: %s", show(layer))
			}
		})
	}
}

func show(o outcome) string {
	s := fmt.Sprintf("status %d, base64 %v, %d bytes, err %v, panic %v", o.res.StatusCode, o.res.IsBase64Encoded, len(o.res.Body), o.err, o.panicked)
	if o.req != nil {
		s += fmt.Sprintf(", path %q, query %q, from %q, header %q", o.req.URL.Path, o.req.URL.RawQuery, o.req.RemoteAddr, o.req.Header)
	}
	return s
}

// The same raw request goes to net/http's server and, as an event, to the layer: handlers must not see a difference.
func TestHandlersSeeTheRequestThatAServerWouldGiveThem(t *testing.T) {
	t.Parallel()
	type seen struct {
		Method, Path, Escaped, Query, Host, Cookie, Body, URI string
		Header                                                http.Header
		Length                                                int64
	}
	var got seen
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		r.Header.Del("Content-Length")
		got = seen{r.Method, r.URL.Path, r.URL.EscapedPath(), r.URL.RawQuery, r.Host, r.Header.Get("Cookie"), string(b), r.RequestURI, r.Header, r.ContentLength}
		if r.URL.Scheme != "" || r.URL.Host != "" {
			t.Errorf("the URL has scheme %q and host %q", r.URL.Scheme, r.URL.Host)
		}
	})
	srv := httptest.NewServer(h)
	defer srv.Close()
	for _, target := range []string{"/a/b?x=1&y=%2F", "/.well-known/pki/ocsp/i/MEs//A%2Bb%3D%3D", "/a/../b/./c", "//double", "/%C3%BC?q=a+b", "/x%2Fy"} {
		conn, err := net.Dial("tcp", srv.Listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		_, _ = fmt.Fprintf(conn, "POST %s HTTP/1.1\r\nHost: api.example\r\nCookie: a=1; b=2\r\nDate: Tue, 15 Nov 1994 08:12:31 GMT\r\nContent-Length: 3\r\nConnection: close\r\n\r\nabc", target)
		_, _ = io.Copy(io.Discard, conn)
		_ = conn.Close()
		want := got
		want.Header.Del("Connection")

		path, query, _ := strings.Cut(target, "?")
		e := event("POST", path, map[string]string{"host": "api.example", "date": "Tue, 15 Nov 1994 08:12:31 GMT"})
		e.RawQueryString, e.Body, e.Cookies = query, "abc", []string{"a=1", "b=2"}
		raw, _ := json.Marshal(e)
		if _, err := Handler(h, quiet())(t.Context(), raw); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s: server (-) and layer (+) differ:\n%s", target, diff)
		}
	}
}

func TestAForeignEventIsAnErrorAndNeverAnAnswer(t *testing.T) {
	t.Parallel()
	h := Handler(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("the handler was called") }), quiet())
	for _, name := range []string{"scheduler", "scheduler-input", "rule", "sqs", "async", "direct", "rest-api", "websocket", "s3", "eventbridge-other"} {
		if res, err := h(t.Context(), golden(t, name)); !errors.Is(err, ErrShape) {
			t.Errorf("%s: answered %d, error %v", name, res.StatusCode, err)
		}
	}
	for _, raw := range []string{`null`, `[]`, `"x"`, `{"version":"2.0"}`, `{"version":2}`,
		`{"version":"1.0","rawPath":"/x","requestContext":{"http":{"method":"GET"}}}`} {
		if res, err := h(t.Context(), json.RawMessage(raw)); !errors.Is(err, ErrShape) {
			t.Errorf("%s: answered %d, error %v", raw, res.StatusCode, err)
		}
	}
}

func TestBinaryBodiesAreExactBothWays(t *testing.T) {
	t.Parallel()
	body := make([]byte, 70_000)
	for i := range body {
		body[i] = byte(i * 7)
	}
	h := Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/ocsp-response")
		_, _ = io.Copy(w, r.Body)
	}), quiet())
	e := event("POST", "/x", nil)
	e.Body, e.IsBase64Encoded = base64.StdEncoding.EncodeToString(body), true
	raw, _ := json.Marshal(e)
	res, err := h(t.Context(), raw)
	if err != nil || !res.IsBase64Encoded {
		t.Fatalf("%v %v", res.IsBase64Encoded, err)
	}
	if got, _ := base64.StdEncoding.DecodeString(res.Body); !bytes.Equal(got, body) {
		t.Error("the body came back changed")
	}
}

func TestTLSIsSeenUnlessTheViewerUsedPlainHTTP(t *testing.T) {
	t.Parallel()
	var got *http.Request
	h := Handler(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { got = r }), quiet())
	if _, err := h(t.Context(), golden(t, "http-api")); err != nil || got.TLS == nil {
		t.Errorf("HTTP API: TLS %v, error %v", got.TLS, err)
	}
	if _, err := h(t.Context(), golden(t, "cloudfront-function-url")); err != nil || got.TLS != nil {
		t.Errorf("plain HTTP at the CDN: TLS %v, error %v", got.TLS, err)
	}
}

func TestAClientCertificateThatTheGatewayVerifiedIsThePeer(t *testing.T) {
	t.Parallel()
	srv := httptest.NewTLSServer(nil)
	defer srv.Close()
	var got *http.Request
	h := Handler(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { got = r }), quiet())
	e := event("GET", "/x", nil)
	e.RequestContext.Authentication.ClientCert.ClientCertPem = "-----BEGIN CERTIFICATE-----\n" +
		base64.StdEncoding.EncodeToString(srv.Certificate().Raw) + "\n-----END CERTIFICATE-----\n"
	raw, _ := json.Marshal(e)
	if _, err := h(t.Context(), raw); err != nil {
		t.Fatal(err)
	}
	if len(got.TLS.PeerCertificates) != 1 || !got.TLS.PeerCertificates[0].Equal(srv.Certificate()) {
		t.Errorf("peer certificates: %d", len(got.TLS.PeerCertificates))
	}
}

func TestSetCookieLinesStayApart(t *testing.T) {
	t.Parallel()
	_, layer := both(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Add("Set-Cookie", "a=1")
		w.Header().Add("Set-Cookie", "b=2; Expires=Tue, 15 Nov 1994 08:12:31 GMT")
	}, event("GET", "/x", nil))
	if len(layer.res.Cookies) != 2 || layer.res.Headers["Set-Cookie"] != "" {
		t.Errorf("cookies %q, headers %q", layer.res.Cookies, layer.res.Headers)
	}
}

func FuzzEveryHTTPEventIsAnswered(f *testing.F) {
	f.Add("GET", "/a%2", "x=%", "aGk=", true)
	f.Add("get", "//../%zz", "#\x7f", "\xff", false)
	h := Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.Copy(w, r.Body) }), quiet())
	f.Fuzz(func(t *testing.T, method, path, query, body string, b64 bool) {
		e := event(method, path, nil)
		e.RawQueryString, e.Body, e.IsBase64Encoded = query, body, b64
		raw, err := json.Marshal(e)
		if err != nil || method == "" {
			return
		}
		if res, err := h(context.Background(), raw); err != nil || res.StatusCode != 200 && res.StatusCode != 400 {
			t.Errorf("status %d, error %v", res.StatusCode, err)
		}
	})
}

func golden(t testing.TB, name string) json.RawMessage {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("..", "testdata", "events", name+".json"))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func BenchmarkEvent(b *testing.B) {
	raw := golden(b, "http-api")
	h := http.HandlerFunc(answer("application/json", `{"ok":true}`))
	var ev request
	if err := json.Unmarshal(raw, &ev); err != nil {
		b.Fatal(err)
	}
	b.Run("library", func(b *testing.B) {
		lib := httpadapter.NewV2(h)
		for b.Loop() {
			_, _ = lib.ProxyWithContext(b.Context(), ev)
		}
	})
	b.Run("layer with decoding", func(b *testing.B) {
		layer := Handler(h, quiet())
		for b.Loop() {
			_, _ = layer(b.Context(), raw)
		}
	})
}
