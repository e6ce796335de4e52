// Package lambdahttp serves HTTP API (payload 2.0) and function URL events with an http.Handler.
//
// aws-lambda-go-api-proxy turns events into requests and back; this package is the layer around it that mends where the
// result would differ from net/http's server: headers, addresses, paths, silent handlers, panics, binary answers. What it
// cannot give is what the payload cannot carry: streaming, trailers, and several values of one response header other than
// Set-Cookie (they are joined with a comma). Events of any other shape are refused with ErrShape, so that the platform
// counts an error instead of a success.
//
// On an HTTP API the gateway has decoded the path before: an escaped slash or question mark is lost there. A function URL
// keeps the path as the client wrote it.
package lambdahttp

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"mime"
	"net"
	"net/http"
	"net/url"
	"runtime/debug"
	"strings"

	"certctl/shared/endpoint/problem"
	"certctl/shared/fault"

	"github.com/aws/aws-lambda-go/events"
	"github.com/awslabs/aws-lambda-go-api-proxy/httpadapter"
)

type (
	request  = events.APIGatewayV2HTTPRequest
	response = events.APIGatewayV2HTTPResponse
	eventKey struct{}
)

// ErrShape is the error of an event that is not an HTTP event in payload format 2.0.
var ErrShape = errors.New("not an HTTP event in payload format 2.0")

// maxResponse is what fits into Lambda's 6 MB beside headers and JSON.
const maxResponse = 6<<20 - 64<<10

// Handler is a Lambda handler that serves events with h. Faults of the client and of h become answers; only a foreign
// event shape is an error. Panics are logged to log.
func Handler(h http.Handler, log *slog.Logger) func(context.Context, json.RawMessage) (events.APIGatewayV2HTTPResponse, error) {
	lib := httpadapter.NewV2(mend(h, log))
	return func(ctx context.Context, raw json.RawMessage) (response, error) {
		var ev request
		err := json.Unmarshal(raw, &ev)
		if err != nil || ev.Version != "2.0" || ev.RequestContext.HTTP.Method == "" {
			return response{}, ErrShape
		}
		return serve(ctx, lib, ev, log), nil
	}
}

func serve(ctx context.Context, lib *httpadapter.HandlerAdapterV2, ev request, log *slog.Logger) response {
	orig := ev
	if wrong := prepare(&ev); wrong != "" {
		return refusal(ctx, fault.New(fault.Invalid, "%s", wrong))
	}
	res, err := lib.ProxyWithContext(context.WithValue(ctx, eventKey{}, &orig), ev)
	if err != nil { // prepare lets nothing through that is known to end here
		log.WarnContext(ctx, "event refused by the proxy library", "err", err)
		return refusal(ctx, fault.New(fault.Invalid, "The request is malformed."))
	}
	if !res.IsBase64Encoded && res.Body != "" && !textual(res.Headers) {
		res.Body, res.IsBase64Encoded = base64.StdEncoding.EncodeToString([]byte(res.Body)), true
	}
	if len(res.Body) > maxResponse {
		log.ErrorContext(ctx, "answer exceeds what Lambda can carry", "bytes", len(res.Body))
		return refusal(ctx, fault.New(fault.Internal, "The answer is too large for this server."))
	}
	return res
}

// prepare makes an event that the library converts without loss or error. It returns what is wrong with the request, if
// anything. Headers are left out, since the library splits them at commas; mend takes them from the original event.
func prepare(ev *request) string {
	if !token(ev.RequestContext.HTTP.Method) {
		return "The method is malformed."
	}
	path := ev.RawPath
	if path == "" {
		path = ev.RequestContext.HTTP.Path
	}
	var ok bool
	if ev.RawPath, ok = clean(path, "?# "); !ok || !strings.HasPrefix(ev.RawPath, "/") {
		return "The path is malformed."
	}
	if ev.RawQueryString, ok = clean(ev.RawQueryString, "# "); !ok {
		return "The query is malformed."
	}
	if ev.IsBase64Encoded {
		if _, err := base64.StdEncoding.DecodeString(ev.Body); err != nil {
			return "The body is malformed."
		}
	}
	ev.Headers, ev.Cookies = nil, nil
	return ""
}

// clean escapes what would end or break this part of a URL: a % that begins no escape, bytes outside ASCII, and the given
// characters. Control characters are refused.
func clean(s, escape string) (string, bool) {
	var b strings.Builder
	for i := range len(s) {
		c := s[i]
		switch {
		case c == '%' && i+2 < len(s) && isHex(s[i+1]) && isHex(s[i+2]):
			b.WriteByte(c)
		case c < ' ' || c == 0x7f:
			return "", false
		case c == '%' || c >= 0x80 || strings.IndexByte(escape, c) >= 0:
			fmt.Fprintf(&b, "%%%02X", c)
		default:
			b.WriteByte(c)
		}
	}
	_, err := url.PathUnescape(b.String())
	return b.String(), err == nil
}

func isHex(c byte) bool { return strings.IndexByte("0123456789abcdefABCDEF", c) >= 0 }

// token reports whether s is an RFC 9110 token of letters, which is what every method in use is.
func token(s string) bool {
	return s != "" && strings.Trim(strings.ToUpper(s), "ABCDEFGHIJKLMNOPQRSTUVWXYZ-") == ""
}

// textual reports whether an answer's body is text by its type, so that the same endpoint is always encoded alike.
func textual(h map[string]string) bool {
	if ce := h["Content-Encoding"]; ce != "" && ce != "identity" {
		return false
	}
	t, _, _ := mime.ParseMediaType(h["Content-Type"])
	switch t {
	case "application/javascript", "application/yaml", "application/x-pem-file", "application/pem-certificate-chain":
		return true
	}
	return strings.HasPrefix(t, "text/") || strings.HasSuffix(t, "json") || strings.HasSuffix(t, "xml")
}

// refusal is the layer's own answer, a problem document.
func refusal(ctx context.Context, f *fault.Error) response {
	doc := problem.Of(ctx, f)
	body, err := json.Marshal(doc)
	if err != nil {
		body = []byte("{}") // cannot happen: strings and a number
	}
	return response{
		StatusCode: doc.Status, Body: string(body),
		Headers: map[string]string{"Content-Type": problem.ContentType, "Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"},
	}
}

// mend gives h the request that net/http's server would have made, and the library the answer it would have sent.
func mend(h http.Handler, log *slog.Logger) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		restore(r, r.Context().Value(eventKey{}).(*request))
		buf := &recorder{head: make(http.Header)}
		if !run(h, buf, r, log) {
			res := refusal(r.Context(), fault.New(fault.Internal, "The server made a mistake; its log holds the cause."))
			buf = &recorder{head: make(http.Header)}
			for k, v := range res.Headers {
				buf.head.Set(k, v)
			}
			buf.WriteHeader(res.StatusCode)
			buf.body.WriteString(res.Body)
		}
		buf.sendTo(w, r.Method == http.MethodHead)
	})
}

// restore sets from the event what the library leaves out or gets wrong.
func restore(r *http.Request, ev *request) {
	r.Header = make(http.Header, len(ev.Headers)+1)
	for k, v := range ev.Headers {
		r.Header.Set(k, v)
	}
	if len(ev.Cookies) > 0 {
		r.Header.Set("Cookie", strings.Join(ev.Cookies, "; "))
	}
	if host := r.Header.Get("Host"); host != "" {
		r.Host = host
		r.Header.Del("Host")
	}
	r.URL.Scheme, r.URL.Host = "", "" // a server's request has a path and a query only
	r.RemoteAddr = net.JoinHostPort(ev.RequestContext.HTTP.SourceIP, "0")
	r.TLS = tlsOf(ev, r)
}

// tlsOf is the client's TLS as far as the event tells: gateways and function URLs speak HTTPS only, a CDN says what its
// viewer used. A client certificate that the gateway verified (mutual TLS) is the only peer certificate.
func tlsOf(ev *request, r *http.Request) *tls.ConnectionState {
	if r.Header.Get("X-Forwarded-Proto") == "http" || r.Header.Get("Cloudfront-Forwarded-Proto") == "http" {
		return nil
	}
	state := &tls.ConnectionState{HandshakeComplete: true, Version: tls.VersionTLS12, ServerName: r.Host}
	block, _ := pem.Decode([]byte(ev.RequestContext.Authentication.ClientCert.ClientCertPem))
	if block == nil {
		return state
	}
	if c, err := x509.ParseCertificate(block.Bytes); err == nil {
		state.PeerCertificates = []*x509.Certificate{c}
	}
	return state
}

// run reports whether h returned. A panic is logged, unless it is the one by which handlers give up silently.
func run(h http.Handler, w http.ResponseWriter, r *http.Request, log *slog.Logger) (ok bool) {
	defer func() {
		if p := recover(); p != nil && p != http.ErrAbortHandler {
			log.ErrorContext(r.Context(), "panic in a handler", "value", fmt.Sprint(p), "stack", string(debug.Stack()))
		}
	}()
	h.ServeHTTP(w, r)
	return true
}

// recorder keeps net/http's rules: informational statuses are not the answer, the first final status counts, and the
// headers are fixed with it.
type recorder struct {
	head, sent http.Header
	code       int
	body       bytes.Buffer
}

func (r *recorder) Header() http.Header { return r.head }

// Flush does nothing: an event is answered at once and whole. Handlers that insist on a Flusher work.
func (r *recorder) Flush() {}

func (r *recorder) WriteHeader(code int) {
	if code < 100 || code > 999 {
		panic(fmt.Sprintf("invalid status code %d", code))
	}
	if r.code == 0 && code >= 200 {
		r.code, r.sent = code, r.head.Clone()
	}
}

func (r *recorder) Write(b []byte) (int, error) {
	if r.code == 0 {
		r.WriteHeader(http.StatusOK)
	}
	if r.code == http.StatusNoContent || r.code == http.StatusNotModified {
		return 0, http.ErrBodyNotAllowed
	}
	if r.body.Len() == 0 && len(b) > 0 && r.sent.Get("Content-Type") == "" && r.sent.Get("Content-Encoding") == "" {
		r.sent.Set("Content-Type", http.DetectContentType(b))
	}
	return r.body.Write(b)
}

func (r *recorder) sendTo(w http.ResponseWriter, headOnly bool) {
	if r.code == 0 {
		r.WriteHeader(http.StatusOK)
	}
	for k, v := range r.sent {
		w.Header()[k] = v
	}
	w.WriteHeader(r.code)
	if !headOnly && r.body.Len() > 0 {
		_, _ = w.Write(r.body.Bytes()) // a buffer
	}
}
