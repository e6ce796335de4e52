package boot

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"certctl/shared/auth"
	"certctl/shared/fault"
	"certctl/shared/secret"
)

const tickToken = "3f6c1f2b7a9d4e58a1b2c3d4e5f60718"

func discard() *slog.Logger { return slog.New(slog.DiscardHandler) }

func tickServer(t *testing.T, fn TickFunc, checks ...Check) *httptest.Server {
	t.Helper()
	srv := httptest.NewServer(TickHandler(t.Context(), fn, TickOptions{Kind: "sweep", Log: discard(), Token: secret.NewText(tickToken), Checks: checks}))
	t.Cleanup(srv.Close)
	return srv
}

func send(t *testing.T, method, url, body string, header ...string) (*http.Response, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	b, _ := io.ReadAll(res.Body)
	return res, string(b)
}

func TestATickNeedsItsToken(t *testing.T) {
	t.Parallel()
	var runs atomic.Int32
	srv := tickServer(t, func(ctx context.Context) (any, error) {
		runs.Add(1)
		if auth.RequestIDOf(ctx) == "" {
			t.Error("the run has no id")
		}
		return map[string]int{"done": 3}, nil
	})
	for _, h := range []string{"", "Bearer", "Bearer ", "Bearer x" + tickToken, "Basic " + tickToken, tickToken} {
		res, body := send(t, "POST", srv.URL, "", "Authorization", h)
		if res.StatusCode != 401 || res.Header.Get("Content-Type") != "application/problem+json" || res.Header.Get("Www-Authenticate") == "" {
			t.Errorf("%q: %d %s", h, res.StatusCode, body)
		}
	}
	if runs.Load() != 0 {
		t.Fatal("a run without the token")
	}
	for _, path := range []string{"/", "/events/sweep"} {
		if res, body := send(t, "POST", srv.URL+path, "", "Authorization", "bearer "+tickToken); res.StatusCode != 200 || strings.TrimSpace(body) != `{"done":3}` {
			t.Errorf("%s: %d %s", path, res.StatusCode, body)
		}
	}
	if res, _ := send(t, "GET", srv.URL, "", "Authorization", "Bearer "+tickToken); res.StatusCode != 405 || res.Header.Get("Allow") != "POST" {
		t.Errorf("GET: %d", res.StatusCode)
	}
	if res, _ := send(t, "POST", srv.URL+"/events/work", "", "Authorization", "Bearer "+tickToken); res.StatusCode != 404 {
		t.Errorf("another kind's path: %d", res.StatusCode)
	}
}

func TestNoTokenConfiguredIsNoTokenAccepted(t *testing.T) {
	t.Parallel()
	h := TickHandler(t.Context(), func(context.Context) (any, error) { return nil, nil }, TickOptions{Kind: "sweep", Log: discard()})
	for _, value := range []string{"", "Bearer ", "Bearer"} {
		w, r := httptest.NewRecorder(), httptest.NewRequest("POST", "/", nil)
		r.Header.Set("Authorization", value)
		if h.ServeHTTP(w, r); w.Code != 401 {
			t.Errorf("%q: %d", value, w.Code)
		}
	}
	if err := Tick(t.Context(), nil, TickOptions{Kind: "sweep"}); err == nil || !strings.Contains(err.Error(), "CERTCTL_TICK_TOKEN") {
		t.Errorf("started without a token: %v", err)
	}
}

func TestATriggerIsAPostOrACloudEvent(t *testing.T) {
	t.Parallel()
	srv := tickServer(t, func(context.Context) (any, error) { return nil, nil })
	for _, c := range []struct {
		want   int
		body   string
		header []string
	}{
		{200, "", nil},
		{200, "{}", []string{"Content-Type", "application/json"}},
		{400, "{", []string{"Content-Type", "application/json"}},
		{200, "", []string{"Ce-Specversion", "1.0", "Ce-Id", "1", "Ce-Source", "/ping", "Ce-Type", "dev.knative.sources.ping"}},
		{400, "", []string{"Ce-Specversion", "1.0", "Ce-Id", "1", "Ce-Source", "/ping"}},
		{400, "", []string{"Ce-Specversion", "0.3", "Ce-Id", "1", "Ce-Source", "/ping", "Ce-Type", "x"}},
		{200, `{"specversion":"1.0","id":"1","source":"/p","type":"x"}`, []string{"Content-Type", "application/cloudevents+json; charset=utf-8"}},
		{400, `{"specversion":"1.0","id":"1"}`, []string{"Content-Type", "application/cloudevents+json"}},
		{400, strings.Repeat("x", maxTrigger+1), nil},
	} {
		res, body := send(t, "POST", srv.URL, c.body, append([]string{"Authorization", "Bearer " + tickToken}, c.header...)...)
		if res.StatusCode != c.want {
			t.Errorf("%.60s %v: %d %s, want %d", c.body, c.header, res.StatusCode, body, c.want)
		}
	}
}

func TestARunThatFailsIsAnErrorWithoutItsCause(t *testing.T) {
	t.Parallel()
	for want, fn := range map[int]TickFunc{
		500: func(context.Context) (any, error) { return nil, errors.New("hunter2") },
		503: func(context.Context) (any, error) {
			return nil, fault.Wrap(errors.New("hunter2"), fault.Unavailable, "The database is away.").After(7 * time.Second)
		},
	} {
		res, body := send(t, "POST", tickServer(t, fn).URL, "", "Authorization", "Bearer "+tickToken)
		if res.StatusCode != want || strings.Contains(body, "hunter2") || (want == 503) != (res.Header.Get("Retry-After") == "7") {
			t.Errorf("%d %s", res.StatusCode, body)
		}
	}
	res, body := send(t, "POST", tickServer(t, func(context.Context) (any, error) { panic("hunter2") }).URL, "", "Authorization", "Bearer "+tickToken)
	if res.StatusCode != 500 || strings.Contains(body, "hunter2") {
		t.Errorf("panic: %d %s", res.StatusCode, body)
	}
}

func TestOneRunAtATime(t *testing.T) {
	t.Parallel()
	entered, leave := make(chan struct{}), make(chan struct{})
	srv := tickServer(t, func(context.Context) (any, error) {
		entered <- struct{}{}
		<-leave
		return nil, nil
	})
	first := make(chan int, 1)
	go func() {
		res, _ := send(t, "POST", srv.URL, "", "Authorization", "Bearer "+tickToken)
		first <- res.StatusCode
	}()
	<-entered
	if res, body := send(t, "POST", srv.URL, "", "Authorization", "Bearer "+tickToken); res.StatusCode != 409 || res.Header.Get("Retry-After") == "" {
		t.Errorf("a second trigger: %d %s", res.StatusCode, body)
	}
	close(leave)
	if code := <-first; code != 200 {
		t.Errorf("the first: %d", code)
	}
}

func TestARunEndsWhenTheProgramIsToldToStop(t *testing.T) {
	t.Parallel()
	stopping, stop := context.WithCancel(t.Context())
	entered := make(chan struct{})
	h := TickHandler(stopping, func(ctx context.Context) (any, error) {
		close(entered)
		<-ctx.Done()
		return nil, nil
	}, TickOptions{Kind: "sweep", Log: discard(), Token: secret.NewText(tickToken)})
	go func() { <-entered; stop() }()
	w, r := httptest.NewRecorder(), httptest.NewRequest("POST", "/", nil)
	r.Header.Set("Authorization", "Bearer "+tickToken)
	if h.ServeHTTP(w, r); w.Code != 200 {
		t.Errorf("%d", w.Code)
	}
}

func TestASingleRunPrintsItsReport(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	err := Tick(t.Context(), func(ctx context.Context) (any, error) {
		if Remaining(ctx) > time.Minute {
			t.Errorf("%s remain", Remaining(ctx))
		}
		return map[string]int{"claimed": 2}, errors.New("one is left")
	}, TickOptions{Once: true, Log: discard(), Stdout: &out, Timeout: time.Minute})
	if err == nil || out.String() != "{\"claimed\":2}\n" {
		t.Errorf("%q, %v", &out, err)
	}
}

func TestWithoutADeadlineThereIsTimeEnough(t *testing.T) {
	t.Parallel()
	if Remaining(context.Background()) < 1000*time.Hour {
		t.Error("no time without a deadline")
	}
}

func TestTheReserveIsAtMostAQuarter(t *testing.T) {
	t.Parallel()
	for left, want := range map[time.Duration]time.Duration{time.Minute: 58 * time.Second, 4 * time.Second: 3 * time.Second} {
		ctx, cancel := context.WithTimeout(t.Context(), left)
		short, stop := withReserve(ctx, 2*time.Second)
		if got := Remaining(short); got > want || got < want-500*time.Millisecond {
			t.Errorf("of %s remain %s", left, got)
		}
		stop()
		cancel()
	}
}

// The synthetic clock makes the two seconds exact, whatever else the machine does.
func TestReadySaysWhichCheckFailedWithinTwoSeconds(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ready := Ready(discard(),
			Check{"database", func(context.Context) error { return nil }},
			Check{"schema", func(context.Context) error { return fault.New(fault.Unavailable, "Run certctl migrate.") }},
			Check{"secret", func(context.Context) error { return errors.New("hunter2") }},
			Check{"deaf", func(context.Context) error { time.Sleep(4 * time.Second); return nil }},
			Check{"broken", func(context.Context) error { panic("hunter2") }},
		)
		res := httptest.NewRecorder()
		start := time.Now()
		ready.ServeHTTP(res, httptest.NewRequest("GET", "/ready", nil))
		if took := time.Since(start); took > 2*time.Second {
			t.Errorf("answered after %s", took)
		}
		time.Sleep(4 * time.Second) // the deaf check must have ended before the bubble does
		var doc struct {
			Status int
			Checks map[string]string
		}
		if err := json.Unmarshal(res.Body.Bytes(), &doc); err != nil || res.Code != 503 || doc.Status != 503 || res.Header().Get("Content-Type") != "application/problem+json" {
			t.Fatalf("%d %s", res.Code, res.Body)
		}
		want := map[string]string{"database": "ok", "schema": "Run certctl migrate.", "secret": "failed", "deaf": "no answer in time", "broken": "failed"}
		for name, verdict := range want {
			if doc.Checks[name] != verdict {
				t.Errorf("%s: %q, want %q", name, doc.Checks[name], verdict)
			}
		}
	})
}

func TestAFloodOnReadyCostsOneQuery(t *testing.T) {
	t.Parallel()
	var queries atomic.Int32
	srv := httptest.NewServer(Ready(discard(), Check{"database", func(context.Context) error {
		queries.Add(1)
		time.Sleep(300 * time.Millisecond)
		return nil
	}}))
	defer srv.Close()
	codes := make(chan int, 30)
	for range cap(codes) {
		go func() { res, _ := send(t, "GET", srv.URL, ""); codes <- res.StatusCode }()
	}
	for range cap(codes) {
		if code := <-codes; code != 200 {
			t.Errorf("%d", code)
		}
	}
	if n := queries.Load(); n > 5 {
		t.Errorf("%d queries for thirty requests", n)
	}
}

func TestHealthAsksNobody(t *testing.T) {
	t.Parallel()
	srv := tickServer(t, nil, Check{"database", func(context.Context) error { return errors.New("away") }})
	if res, body := send(t, "GET", srv.URL+"/health", ""); res.StatusCode != 200 || strings.TrimSpace(body) != `{"status":"ok"}` {
		t.Errorf("health: %d %s", res.StatusCode, body)
	}
	if res, _ := send(t, "GET", srv.URL+"/ready", ""); res.StatusCode != 503 {
		t.Errorf("ready: %d", res.StatusCode)
	}
	if res, _ := send(t, "POST", srv.URL+"/ready", ""); res.StatusCode != 405 {
		t.Errorf("POST: %d", res.StatusCode)
	}
}
