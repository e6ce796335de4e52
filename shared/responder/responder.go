// Package responder owns the public PKI paths: CRLs, CA certificates and OCSP answers under /.well-known/pki/ (RFC 8615),
// unauthenticated and cacheable. It reads published material and signs OCSP answers with delegated keys; it links no issuer,
// no deployment and no write.
//
// It parses the raw path itself, before any mux: an OCSP GET carries base64 with / and // in it, which a mux would redirect.
package responder

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"log/slog"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"certctl/shared/db"
	"certctl/shared/endpoint/problem"
	"certctl/shared/fault"
	"certctl/shared/id"
	"certctl/shared/revocation"
	"certctl/shared/secret"
)

// Prefix is where the handler belongs.
const Prefix = "/.well-known/pki/"

// Handler serves the public PKI paths.
type Handler struct {
	DB  db.Querier
	Box *secret.Box // opens purpose ocsp
	Log *slog.Logger

	signers sync.Map // id.Responder → *signer
}

// ServeHTTP answers GET and HEAD of crl and ca, and GET, HEAD and POST of ocsp.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("X-Content-Type-Options", "nosniff")
	rest, ok := strings.CutPrefix(r.URL.EscapedPath(), Prefix)
	kind, rest, _ := strings.Cut(rest, "/")
	name, tail, more := strings.Cut(rest, "/")
	i, err := id.Parse[id.Issuer](name)
	if !ok || err != nil || i.IsZero() || more && tail == "" {
		h.missing(w, r)
		return
	}
	read := r.Method == http.MethodGet || r.Method == http.MethodHead
	switch {
	case kind == "crl" && read:
		h.crl(w, r, i, tail)
	case kind == "ca" && read:
		h.ca(w, r, i, tail)
	case kind == "ocsp" && read && more:
		h.ocspGet(w, r, i, tail)
	case kind == "ocsp" && r.Method == http.MethodPost && !more:
		h.ocspPost(w, r, i)
	case kind == "crl" || kind == "ca":
		h.wrongMethod(w, r, "GET, HEAD")
	case kind == "ocsp" && more:
		h.wrongMethod(w, r, "GET, HEAD")
	case kind == "ocsp":
		h.wrongMethod(w, r, "POST")
	default:
		h.missing(w, r)
	}
}

func (h *Handler) missing(w http.ResponseWriter, r *http.Request) {
	h.refuse(w, r, fault.New(fault.NotFound, "There is nothing at this path."))
}

func (h *Handler) wrongMethod(w http.ResponseWriter, r *http.Request, allow string) {
	w.Header().Set("Allow", allow)
	h.refuse(w, r, fault.New(fault.BadMethod, "This path answers %s.", allow))
}

func (h *Handler) refuse(w http.ResponseWriter, r *http.Request, err error) {
	w.Header().Set("Cache-Control", "no-store")
	problem.Write(w, r, err)
}

// generationTail reads "", "<number>" or "<number>-<shard>".
func generationTail(tail string) (number int, shard int16, ok bool) {
	if tail == "" {
		return 0, 0, true
	}
	n, s, sharded := strings.Cut(tail, "-")
	number, err := strconv.Atoi(n)
	if err != nil || number < 1 || number > 1<<20 || strconv.Itoa(number) != n {
		return 0, 0, false
	}
	if !sharded {
		return number, 0, true
	}
	k, err := strconv.ParseInt(s, 10, 16)
	return number, int16(k), err == nil && k >= 0 && strconv.FormatInt(k, 10) == s
}

func (h *Handler) crl(w http.ResponseWriter, r *http.Request, i id.Issuer, tail string) {
	number, shard, ok := generationTail(tail)
	if !ok {
		h.missing(w, r)
		return
	}
	c, err := revocation.Current(r.Context(), h.DB, i, number, shard)
	switch {
	case errors.Is(err, revocation.ErrNotYet):
		h.refuse(w, r, fault.New(fault.Unavailable, "The first CRL of this CA is being made.").After(time.Second))
		return
	case err != nil:
		h.refuse(w, r, err)
		return
	}
	send(w, r, answer{body: c.DER, sum: c.SHA256, media: "application/pkix-crl", modified: c.ThisUpdate, expires: c.NextUpdate, maxAge: crlMaxAge(time.Now(), c.NextUpdate)})
}

// crlMaxAge lets caches keep a CRL for as long as a revocation may take to be seen, and never past its nextUpdate.
func crlMaxAge(now, next time.Time) time.Duration {
	return max(0, min(5*time.Minute, next.Sub(now)-time.Second))
}

func (h *Handler) ca(w http.ResponseWriter, r *http.Request, i id.Issuer, tail string) {
	number, _, ok := generationTail(tail)
	if !ok || strings.Contains(tail, "-") {
		h.missing(w, r)
		return
	}
	der, notAfter, err := revocation.CACertificate(r.Context(), h.DB, i, number)
	if err != nil {
		h.refuse(w, r, err)
		return
	}
	sum := sha256.Sum256(der)
	age := time.Hour // the newest may change with a re-key
	if number > 0 {
		age = 24 * time.Hour
	}
	send(w, r, answer{body: der, sum: sum[:], media: "application/pkix-cert", expires: notAfter, maxAge: age})
}

// answer is a cacheable binary answer.
type answer struct {
	body     []byte
	sum      []byte // SHA-256 of body
	media    string
	modified time.Time     // zero: unknown
	expires  time.Time     // until when the content is good
	maxAge   time.Duration // how long caches may keep it without asking
}

// send writes an answer with the headers of RFC 9919, section 6.2, and honours If-None-Match.
func send(w http.ResponseWriter, r *http.Request, a answer) {
	head := w.Header()
	tag := `"` + hex.EncodeToString(a.sum) + `"`
	head.Set("ETag", tag)
	head.Set("Cache-Control", "max-age="+strconv.Itoa(int(a.maxAge/time.Second))+", public, no-transform, must-revalidate")
	head.Set("Expires", a.expires.UTC().Format(http.TimeFormat))
	if !a.modified.IsZero() {
		head.Set("Last-Modified", a.modified.UTC().Format(http.TimeFormat))
	}
	if matches(r.Header.Values("If-None-Match"), tag) {
		w.WriteHeader(http.StatusNotModified)
		return
	}
	write(w, r, a.media, a.body)
}

func write(w http.ResponseWriter, r *http.Request, media string, body []byte) {
	w.Header().Set("Content-Type", media)
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(http.StatusOK)
	if r.Method != http.MethodHead {
		_, _ = w.Write(body) // #nosec G705 -- DER with its own media type and nosniff
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

// Ready proves that the database answers.
func Ready(ctx context.Context, q db.Querier) error {
	_, err := db.Scalar[int](ctx, q, `SELECT 1`)
	return err
}
