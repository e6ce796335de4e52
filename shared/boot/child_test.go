package boot

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"testing"
	"time"

	"certctl/shared/auth"
)

// The test binary plays the programs too: with childVar set it is one of them.
const childVar = "BOOT_TEST_PROGRAM"

func TestMain(m *testing.M) {
	programs := map[string]func(context.Context) error{"serve": serveProgram, "tick": tickProgram}
	if p := programs[os.Getenv(childVar)]; p != nil {
		Main(p)
		return
	}
	os.Exit(m.Run())
}

// program is the test binary as one of its programs, with further variables.
func program(t testing.TB, name string, env ...string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), self)
	cmd.Env = append([]string{childVar + "=" + name, "PATH=" + os.Getenv("PATH")}, env...)
	return cmd
}

func serveProgram(ctx context.Context) error {
	cfg, err := Load[Common](os.Environ())
	if err != nil {
		return err
	}
	return Serve(ctx, http.HandlerFunc(echo), ServeOptions{
		Log: Logger(cfg), Drain: 2 * time.Second,
		Addr: "127.0.0.1:0", OnListen: func(a net.Addr) { fmt.Println(a) },
	})
}

// echo tells what it was asked, and can be slow or panic.
func echo(w http.ResponseWriter, r *http.Request) {
	switch r.URL.Path {
	case "/panic":
		panic("boom")
	case "/slow":
		_, _ = fmt.Fprintln(w, "slow")
		_ = http.NewResponseController(w).Flush()
		select {
		case <-time.After(500 * time.Millisecond):
		case <-r.Context().Done():
			return
		}
		_, _ = fmt.Fprintln(w, "done")
		return
	case "/stuck":
		<-r.Context().Done()
		return
	}
	body, _ := io.ReadAll(r.Body)
	_, port, err := net.SplitHostPort(r.RemoteAddr)
	writeJSON(w, http.StatusOK, "application/json", map[string]any{
		"method": r.Method, "path": r.URL.Path, "escaped": r.URL.EscapedPath(), "query": r.URL.Query(), "host": r.Host, "cookies": len(r.Cookies()),
		"body": body, "etag": r.Header.Get("If-None-Match"), "from": r.RemoteAddr, "port_ok": err == nil && port != "", "request": auth.RequestIDOf(r.Context()),
		"left_ms": min(Remaining(r.Context()), time.Hour).Milliseconds(), "proto": r.Proto, "tls": r.TLS != nil,
	})
}

func tickProgram(ctx context.Context) error {
	cfg, err := Load[Common](os.Environ())
	if err != nil {
		return err
	}
	n := 0
	return Tick(ctx, func(ctx context.Context) (any, error) {
		n++
		switch os.Getenv("BOOT_TEST_TICK") {
		case "fail":
			return nil, errors.New("the database is away")
		case "panic":
			panic("boom")
		case "wait":
			<-ctx.Done()
		}
		return map[string]any{"run": n, "left_ms": min(Remaining(ctx), time.Hour).Milliseconds(), "request": auth.RequestIDOf(ctx)}, nil
	}, TickOptions{Kind: "sweep", Log: Logger(cfg), Token: cfg.TickToken, Once: cfg.Once, Serve: ServeOptions{
		Addr: "127.0.0.1:0", OnListen: func(a net.Addr) { fmt.Println(a) },
	}})
}
