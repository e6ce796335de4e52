package boot

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/json"
	"log/slog"
	"mime"
	"net/http"
	"strings"
	"sync"
	"time"

	"certctl/shared/fault"
)

// TickHandler runs fn for each POST to / or /events/{o.Kind} with the bearer token o.Token: a bare POST (Cloud Scheduler,
// a Kubernetes CronJob with curl) or a CloudEvent 1.0, binary or structured (Knative, Eventarc). It answers 200 with the
// report as JSON, 401 without the token, 503 or 500 when the run failed, so that the platform tries again, and 409 with
// Retry-After while a run is on: what was to be done then may have come too late for that run. GET /health and /ready
// are answered as well. A run ends early when its client goes or when stopping ends.
func TickHandler(stopping context.Context, fn TickFunc, o TickOptions) http.Handler {
	o = o.filled()
	t := &trigger{stopping: stopping, fn: fn, o: o, token: sha256.Sum256([]byte(o.Token.Reveal()))}
	health, ready := Health(), Ready(o.Log, o.Checks...)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/health":
			health.ServeHTTP(w, r)
		case "/ready":
			ready.ServeHTTP(w, r)
		case "/", "/events/" + o.Kind:
			t.ServeHTTP(w, r.WithContext(withRun(r.Context())))
		default:
			refuse(w, r, fault.New(fault.NotFound, "There is nothing at this path."))
		}
	})
}

type trigger struct {
	stopping context.Context // ends with the program, not with a call
	fn       TickFunc
	o        TickOptions
	token    [sha256.Size]byte
	running  sync.Mutex
}

func (t *trigger) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch {
	case !t.authentic(r):
		w.Header().Set("WWW-Authenticate", `Bearer realm="certctl"`)
		refuse(w, r, fault.New(fault.Unauthenticated, "A tick needs the bearer token of CERTCTL_TICK_TOKEN."))
		return
	case r.Method != http.MethodPost:
		w.Header().Set("Allow", http.MethodPost)
		refuse(w, r, fault.New(fault.BadMethod, "A tick is triggered by POST."))
		return
	}
	body, err := readSmall(w, r, maxTrigger)
	if err != nil || !eventOK(r, body) {
		refuse(w, r, fault.New(fault.Invalid, "The body is neither empty, nor JSON, nor a CloudEvent 1.0 of at most 64 KB."))
		return
	}
	if !t.running.TryLock() {
		refuse(w, r, fault.New(fault.Conflict, "A run is on.").After(5*time.Second))
		return
	}
	defer t.running.Unlock()
	t.run(w, r)
}

const maxTrigger = 64 << 10

func (t *trigger) run(w http.ResponseWriter, r *http.Request) {
	// A run may take longer than an ordinary request. Not every writer has a deadline to lift.
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(t.o.Timeout + time.Minute))
	ctx, cancel := context.WithTimeout(r.Context(), t.o.Timeout)
	defer cancel()
	defer context.AfterFunc(t.stopping, cancel)()
	report, err := runTick(ctx, t.fn, t.o.Log, slog.LevelInfo)
	switch {
	case fault.Is(err, fault.Unavailable):
		refuse(w, r, fault.As(err))
	case err != nil:
		refuse(w, r, fault.New(fault.Internal, "The run failed; the log holds the cause."))
	case report == nil:
		writeJSON(w, http.StatusOK, "application/json", struct{}{})
	default:
		writeJSON(w, http.StatusOK, "application/json", report)
	}
}

// authentic compares digests, so that neither the token nor its length shows in the time that it takes.
func (t *trigger) authentic(r *http.Request) bool {
	scheme, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	got := sha256.Sum256([]byte(token))
	return subtle.ConstantTimeCompare(got[:], t.token[:]) == 1 && strings.EqualFold(scheme, "Bearer") && !t.o.Token.IsZero()
}

// eventOK checks a CloudEvent's required attributes (CloudEvents 1.0, section 3.1); of a bare POST, that a JSON body is
// JSON. What the event says besides is not used: the job table is the truth.
func eventOK(r *http.Request, body []byte) bool {
	media, _, _ := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if media == "application/cloudevents+json" {
		var e struct{ SpecVersion, ID, Source, Type string }
		return json.Unmarshal(body, &e) == nil && e.SpecVersion == "1.0" && e.ID != "" && e.Source != "" && e.Type != ""
	}
	if v := r.Header.Get("Ce-Specversion"); v != "" {
		return v == "1.0" && r.Header.Get("Ce-Id") != "" && r.Header.Get("Ce-Source") != "" && r.Header.Get("Ce-Type") != ""
	}
	return media != "application/json" || len(body) == 0 || json.Valid(body)
}
