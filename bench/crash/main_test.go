//go:build crashtest

package crash

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	steps "certctl/shared/crash"
	"certctl/shared/dbtest"

	"github.com/jackc/pgx/v5/pgxpool"
)

// binaries are the programs under test, built with the tag crashtest.
var binaries string

func TestMain(m *testing.M) {
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "certctl-crash-")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer func() { _ = os.RemoveAll(dir) }()
		binaries = dir
		for name, pkg := range map[string]string{"certctl": "cmd/certctl", "agent": "cmd/certctl-agent", "api": "functions/api"} {
			c := exec.Command("go", "build", "-tags", "crashtest lambda.norpc", "-o", filepath.Join(dir, name), "certctl/"+pkg)
			c.Env = append(os.Environ(), "CGO_ENABLED=0")
			if said, err := c.CombinedOutput(); err != nil {
				fmt.Fprintf(os.Stderr, "building %s: %v\n%s", pkg, err, said)
				return 1
			}
		}
		return m.Run()
	}())
}

// spawner starts every process from one thread that never ends: the parent-death signal is tied to the thread.
var spawner = func() chan<- func() {
	work := make(chan func())
	go func() {
		runtime.LockOSThread()
		for f := range work {
			f()
		}
	}()
	return work
}()

type process struct {
	cmd   *exec.Cmd
	out   *text
	ended chan struct{}
}

// text is a growing output that can be read while it grows.
type text struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (x *text) Write(b []byte) (int, error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.buf.Write(b)
}

func (x *text) String() string {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.buf.String()
}

func begin(t testing.TB, env []string, name string, args ...string) *process {
	t.Helper()
	p := &process{cmd: exec.Command(filepath.Join(binaries, name), args...), out: &text{}, ended: make(chan struct{})}
	for _, kv := range os.Environ() {
		if !strings.HasPrefix(kv, "CERTCTL_") && !strings.HasPrefix(kv, "AWS_") && !strings.HasPrefix(kv, "PORT=") {
			p.cmd.Env = append(p.cmd.Env, kv)
		}
	}
	p.cmd.Env = append(p.cmd.Env, env...)
	p.cmd.Stdout, p.cmd.Stderr = p.out, p.out
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	p.cmd.WaitDelay = 5 * time.Second
	started := make(chan error)
	spawner <- func() { started <- p.cmd.Start() }
	if err := <-started; err != nil {
		t.Fatalf("starting %s: %v", name, err)
	}
	go func() { _ = p.cmd.Wait(); close(p.ended) }()
	t.Cleanup(func() {
		p.kill()
		if t.Failed() {
			s := p.out.String()
			t.Logf("%s %v said:\n%s", name, args, s[max(0, len(s)-1500):])
		}
	})
	return p
}

func (p *process) kill() { _ = p.cmd.Process.Kill(); <-p.ended }

// wait answers whether the process ended by SIGKILL.
func (p *process) wait(t testing.TB, limit time.Duration) (killed bool, code int) {
	t.Helper()
	select {
	case <-p.ended:
	case <-time.After(limit):
		p.kill()
		t.Fatalf("%s did not end in %s: %s", p.cmd.Path, limit, p.out)
	}
	status, ok := p.cmd.ProcessState.Sys().(syscall.WaitStatus)
	return ok && status.Signaled() && status.Signal() == syscall.SIGKILL, p.cmd.ProcessState.ExitCode()
}

// house is one installation: a database and the programs on it.
type house struct {
	testing.TB
	url, master, key, dir, trace string
	port                         int
	db                           *pgxpool.Pool
}

func freePort(t testing.TB) int {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	return l.Addr().(*net.TCPAddr).Port
}

// master seals the houses of this run.
var master = func() string {
	var b [32]byte
	_, _ = rand.Read(b[:])
	return base64.StdEncoding.EncodeToString(b[:])
}()

func empty(t testing.TB) *house { return at(t, dbtest.URL(t)) }

func at(t testing.TB, url string) *house {
	t.Helper()
	dir, err := os.MkdirTemp("", "crash-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	h := &house{TB: t, url: url, master: master, dir: dir, trace: filepath.Join(dir, "trace"), port: freePort(t)}
	if h.db, err = pgxpool.New(t.Context(), url); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(h.db.Close)
	return h
}

// newHouse is a house with a first start behind it.
func newHouse(t testing.TB) *house {
	t.Helper()
	h := empty(t)
	h.serve().stop(h)
	h.readKey()
	if err := os.Remove(h.trace); err != nil {
		t.Fatal(err)
	}
	return h
}

func (h *house) readKey() {
	h.Helper()
	b, err := os.ReadFile(filepath.Join(h.dir, "admin.key"))
	if err != nil {
		h.Fatal(err)
	}
	h.key = strings.TrimSpace(string(b))
}

func (h *house) env(more ...string) []string {
	base := fmt.Sprintf("http://127.0.0.1:%d", h.port)
	return append([]string{"CERTCTL_DATABASE_URL=" + h.url, "CERTCTL_MASTER_KEY=" + h.master, "CERTCTL_PUBLIC_URL=" + base, "CERTCTL_PKI_URL=" + base, "CERTCTL_DATA_DIR=" + h.dir,
		fmt.Sprintf("CERTCTL_LISTEN=127.0.0.1:%d", h.port), fmt.Sprintf("PORT=%d", h.port), "CERTCTL_WORKER_LEASE=2s", "CERTCTL_POOL_SIZE=5", "CERTCTL_POLL_INTERVAL=1s",
		"CERTCTL_ALLOW_PRIVATE=verify", "CERTCTL_LOG_LEVEL=warn", steps.TraceVariable + "=" + h.trace}, more...)
}

// listening starts a server and waits until it answers or dies.
func (h *house) listening(name string, args []string, more ...string) *process {
	h.Helper()
	p := begin(h, h.env(more...), name, args...)
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		select {
		case <-p.ended:
			return p
		default:
		}
		res, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d/ready", h.port))
		if err == nil {
			_ = res.Body.Close()
			if res.StatusCode == 200 {
				return p
			}
		}
		if time.Now().After(end) {
			h.Fatalf("%s does not answer: %s", name, p.out)
		}
	}
}

func (h *house) serve(more ...string) *process {
	return h.listening("certctl", []string{"serve"}, more...)
}
func (h *house) api(more ...string) *process { return h.listening("api", nil, more...) }

func (p *process) stop(h *house) {
	h.Helper()
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	p.wait(h, 20*time.Second)
}

// once runs work or sweep to its end.
func (h *house) once(what string, more ...string) (killed bool) {
	h.Helper()
	killed, _ = begin(h, h.env(more...), "certctl", what, "--once").wait(h, time.Minute)
	return killed
}

// agentOnce lets the host's agent ask for work a single time.
func (h *house) agentOnce(more ...string) (killed bool) {
	h.Helper()
	killed, _ = begin(h, append([]string{fmt.Sprintf("CERTCTL_URL=http://127.0.0.1:%d", h.port), "CERTCTL_AGENT_DIR=" + filepath.Join(h.dir, "agent"), "CERTCTL_AGENT_NAME=host",
		"CERTCTL_ENROLL_TOKEN_FILE=" + filepath.Join(h.dir, "token")}, more...), "agent", "run", "--once").wait(h, time.Minute)
	return killed
}

var client = &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}

type object map[string]any

// try sends a request as the admin.
func (h *house) try(method, path string, body any, header ...string) (int, object, []byte, error) {
	var r io.Reader
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return 0, nil, nil, err
		}
		r = bytes.NewReader(b)
	}
	req, err := http.NewRequest(method, fmt.Sprintf("http://127.0.0.1:%d%s", h.port, path), r)
	if err != nil {
		return 0, nil, nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Authorization", "Bearer "+h.key)
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	res, err := client.Do(req)
	if err != nil {
		return 0, nil, nil, err
	}
	defer func() { _ = res.Body.Close() }()
	raw, err := io.ReadAll(res.Body)
	var o object
	_ = json.Unmarshal(raw, &o)
	return res.StatusCode, o, raw, err
}

func (h *house) call(method, path string, body any, header ...string) object {
	h.Helper()
	status, o, raw, err := h.try(method, path, body, header...)
	if err != nil || status >= 300 {
		h.Fatalf("%s %s: %d %s %v", method, path, status, raw, err)
	}
	return o
}

func (h *house) number(sql string, args ...any) (n int) {
	h.Helper()
	if err := h.db.QueryRow(context.Background(), sql, args...).Scan(&n); err != nil {
		h.Fatalf("%s: %v", sql, err)
	}
	return n
}

func (h *house) exec(sql string, args ...any) {
	h.Helper()
	tag, err := h.db.Exec(context.Background(), sql, args...)
	if err != nil || tag.RowsAffected() == 0 {
		h.Fatalf("%s: %v, %d rows", sql, err, tag.RowsAffected())
	}
}

// passed counts how often a place was passed.
func (h *house) passed(step steps.Step, m steps.Moment) (n int) {
	b, err := os.ReadFile(h.trace)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		h.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if strings.TrimSpace(line) == string(step)+":"+string(m) {
			n++
		}
	}
	return n
}
