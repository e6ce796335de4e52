// Package lambdatest runs a function's real program as a child process under a runtime API of its own
// (https://docs.aws.amazon.com/lambda/latest/dg/runtimes-api.html), as Lambda does: one event at a time, with deadline,
// request id and function name. It knows nothing of what events mean.
//
// It does not freeze the process between events and it kills it with the test.
package lambdatest

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// Runtime is a function's process and the runtime API that feeds it.
type Runtime struct {
	events  chan event
	mu      sync.Mutex
	pending map[string]chan Result
	exited  chan struct{}
	count   int
}

type event struct {
	id       string
	payload  []byte
	deadline time.Time
}

// Result is what the function answered.
type Result struct {
	ID    string // the invocation's id
	Body  []byte // the answer, if Error is nil
	Error *FunctionError
}

// FunctionError is a handler's error or panic as the platform records it.
type FunctionError struct {
	Message string `json:"errorMessage"`
	Type    string `json:"errorType"`
}

// Start runs cmd (a bootstrap, or a test binary that plays one) until the test ends. Its standard error goes to the
// test's log unless cmd sets one.
func Start(t testing.TB, cmd *exec.Cmd) *Runtime {
	t.Helper()
	r := &Runtime{events: make(chan event), pending: map[string]chan Result{}, exited: make(chan struct{})}
	srv := httptest.NewServer(r.api())
	if cmd.Env == nil {
		cmd.Env = os.Environ()
	}
	cmd.Env = append(cmd.Env, "AWS_LAMBDA_RUNTIME_API="+strings.TrimPrefix(srv.URL, "http://"), "AWS_LAMBDA_FUNCTION_NAME=test")
	if cmd.Stderr == nil {
		cmd.Stderr = t.Output()
	}
	if err := cmd.Start(); err != nil {
		t.Fatalf("starting the function: %v", err)
	}
	go func() {
		_ = cmd.Wait()
		close(r.exited)
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-r.exited
		srv.CloseClientConnections()
		srv.Close()
	})
	return r
}

// Exited is closed when the process has ended.
func (r *Runtime) Exited() <-chan struct{} { return r.exited }

// Invoke sends one event with a deadline after timeout and waits for the answer. The error says that the process ended or
// did not answer; a function's own error is in the Result.
func (r *Runtime) Invoke(ctx context.Context, payload []byte, timeout time.Duration) (Result, error) {
	answer := make(chan Result, 1)
	r.mu.Lock()
	r.count++
	e := event{fmt.Sprintf("8476a536-e9f4-11e8-9739-%012d", r.count), payload, time.Now().Add(timeout)}
	r.pending[e.id] = answer
	r.mu.Unlock()
	ctx, cancel := context.WithDeadline(ctx, e.deadline.Add(5*time.Second))
	defer cancel()
	select {
	case r.events <- e:
	case <-r.exited:
		return Result{}, fmt.Errorf("the function's process has ended")
	case <-ctx.Done():
		return Result{}, fmt.Errorf("the function does not ask for events: %w", ctx.Err())
	}
	select {
	case res := <-answer:
		return res, nil
	case <-r.exited:
		return Result{}, fmt.Errorf("the function's process ended during an event")
	case <-ctx.Done():
		return Result{}, fmt.Errorf("the function did not answer: %w", ctx.Err())
	}
}

func (r *Runtime) api() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /2018-06-01/runtime/invocation/next", r.next)
	mux.HandleFunc("POST /2018-06-01/runtime/invocation/{id}/response", func(w http.ResponseWriter, q *http.Request) {
		r.finish(w, q, func(body []byte) Result { return Result{Body: body} })
	})
	mux.HandleFunc("POST /2018-06-01/runtime/invocation/{id}/error", func(w http.ResponseWriter, q *http.Request) {
		r.finish(w, q, func(body []byte) Result {
			var e FunctionError
			if err := json.Unmarshal(body, &e); err != nil {
				e.Message = string(body)
			}
			return Result{Error: &e}
		})
	})
	return mux
}

func (r *Runtime) next(w http.ResponseWriter, q *http.Request) {
	select {
	case e := <-r.events:
		w.Header().Set("Lambda-Runtime-Aws-Request-Id", e.id)
		w.Header().Set("Lambda-Runtime-Deadline-Ms", strconv.FormatInt(e.deadline.UnixMilli(), 10))
		w.Header().Set("Lambda-Runtime-Invoked-Function-Arn", "arn:aws:lambda:eu-central-1:000000000000:function:test")
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.Copy(w, bytes.NewReader(e.payload))
	case <-q.Context().Done():
	}
}

// finish hands an answer to its invocation. An id that nobody waits for is refused, as the platform does.
func (r *Runtime) finish(w http.ResponseWriter, q *http.Request, result func([]byte) Result) {
	body, err := io.ReadAll(q.Body)
	r.mu.Lock()
	answer := r.pending[q.PathValue("id")]
	delete(r.pending, q.PathValue("id"))
	r.mu.Unlock()
	if err != nil || answer == nil {
		http.Error(w, `{"errorType":"InvalidRequestID"}`, http.StatusBadRequest)
		return
	}
	w.WriteHeader(http.StatusAccepted)
	res := result(body)
	res.ID = q.PathValue("id")
	answer <- res
}
