// Package blackbox tests the built programs as a stranger uses them: it builds them, starts them on real Postgres servers and
// free loopback ports, and looks at them only through HTTP, command lines, exit codes, files and SQL.
//
// It knows no Go type of a noun: what a client cannot see is not asserted here. Everything that a test starts ends with the
// test, and with the test binary however that ends. A waiting time that only a clock could bring (an expired lease) is brought
// by SQL. Tests log what they measured; run them with -v to read it.
package blackbox

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

var (
	long   = flag.Bool("long", os.Getenv("CERTCTL_TEST_LONG") != "", "run the largest loads too: 10,000 jobs over eight processes (also CERTCTL_TEST_LONG=1)")
	update = flag.Bool("update", false, "write generated files (docs/routes.md) instead of comparing them")
)

// binaries is where programs are built; it goes with the test binary.
var binaries string

func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "certctl-blackbox-")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer func() { _ = os.RemoveAll(dir) }()
		binaries = dir
		return m.Run()
	}())
}

var built sync.Map // package → func() (string, error)

// program builds a package of the module once per test binary, as the Makefile does, and answers the binary's path.
func program(t testing.TB, pkg string) string {
	t.Helper()
	build := sync.OnceValues(func() (string, error) {
		out := filepath.Join(binaries, strings.ReplaceAll(pkg, "/", "-"))
		args := []string{"build", "-trimpath", "-ldflags", "-s -w", "-o", out}
		if strings.HasPrefix(pkg, "functions/") {
			args = append(args, "-tags", "lambda.norpc")
		}
		c := exec.Command("go", append(args, "certctl/"+pkg)...)
		c.Env = append(os.Environ(), "CGO_ENABLED=0")
		said, err := c.CombinedOutput()
		if err != nil {
			err = fmt.Errorf("building %s: %w\n%s", pkg, err, said)
		}
		return out, err
	})
	once, _ := built.LoadOrStore(pkg, build)
	path, err := once.(func() (string, error))()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

func certctl(t testing.TB) string { t.Helper(); return program(t, "cmd/certctl") }

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

// process is a started program.
type process struct {
	cmd      *exec.Cmd
	out, log *text // standard output and standard error
	ended    chan struct{}
	err      error // of Wait; read after ended
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

// clean is an environment without any CERTCTL_ variable of whoever runs the tests.
func clean(env ...string) []string {
	var out []string
	for _, kv := range os.Environ() {
		if !strings.HasPrefix(kv, "CERTCTL_") && !strings.HasPrefix(kv, "AWS_") && !strings.HasPrefix(kv, "PORT=") {
			out = append(out, kv)
		}
	}
	return append(out, env...)
}

// begin starts a program; it is killed at the end of the test if it still runs.
func begin(t testing.TB, env []string, path string, args ...string) *process {
	t.Helper()
	p := &process{cmd: exec.Command(path, args...), out: &text{}, log: &text{}, ended: make(chan struct{})}
	p.cmd.Env, p.cmd.Stdout, p.cmd.Stderr = clean(env...), p.out, p.log
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	p.cmd.WaitDelay = 5 * time.Second
	started := make(chan error)
	spawner <- func() { started <- p.cmd.Start() }
	if err := <-started; err != nil {
		t.Fatalf("starting %s: %v", path, err)
	}
	go func() {
		p.err = p.cmd.Wait()
		close(p.ended)
	}()
	t.Cleanup(func() {
		p.kill()
		if t.Failed() {
			t.Logf("%s %s said:\n%s%s", filepath.Base(path), strings.Join(args, " "), p.out, tail(p.log.String(), 4000))
		}
	})
	return p
}

func tail(s string, n int) string { return s[max(0, len(s)-n):] }

// kill ends the process as a crash does.
func (p *process) kill() {
	_ = p.cmd.Process.Kill()
	<-p.ended
}

// stop asks the process to end and answers its exit code.
func (p *process) stop(t testing.TB) int {
	t.Helper()
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	return p.wait(t, 20*time.Second)
}

// wait answers the exit code of a process that ends by itself.
func (p *process) wait(t testing.TB, limit time.Duration) int {
	t.Helper()
	select {
	case <-p.ended:
	case <-time.After(limit):
		p.kill()
		t.Fatalf("%s did not end in %s:\n%s%s", p.cmd.Path, limit, p.out, tail(p.log.String(), 4000))
	}
	var exit *exec.ExitError
	if p.err != nil && !errors.As(p.err, &exit) {
		t.Fatalf("%s: %v", p.cmd.Path, p.err)
	}
	return p.cmd.ProcessState.ExitCode()
}

// running reports whether the process has not ended.
func (p *process) running() bool {
	select {
	case <-p.ended:
		return false
	default:
		return true
	}
}

// run runs a program to its end and answers its exit code and outputs.
func run(t testing.TB, env []string, path string, args ...string) (code int, out, log string) {
	t.Helper()
	p := begin(t, env, path, args...)
	code = p.wait(t, 2*time.Minute)
	return code, p.out.String(), p.log.String()
}

// tool runs a third party's program and answers its combined output and whether it exited with 0.
func tool(t testing.TB, name string, args ...string) (string, bool) {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Fatalf("%s is needed (Debian packages openssl and gnutls-bin; run make setup): %v", name, err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, path, args...).CombinedOutput()
	return string(out), err == nil
}

// folder is a new folder through which the account that Postgres runs as may pass, gone with the test.
func folder(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "cbb-")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o711); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Errorf("removing a test's folder: %v", err)
		}
	})
	return dir
}

// file writes a file of the test's own.
func file(t testing.TB, name string, data []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// eventually waits until ok.
func eventually(t testing.TB, limit time.Duration, what string, ok func() bool) time.Duration {
	t.Helper()
	start := time.Now()
	for !ok() {
		if time.Since(start) > limit {
			t.Fatalf("after %s: not %s", limit, what)
		}
		time.Sleep(20 * time.Millisecond)
	}
	return time.Since(start)
}

// below reports the programs whose working folder lies in dir.
func below(dir string) (names []string) {
	procs, _ := filepath.Glob("/proc/[0-9]*")
	for _, proc := range procs {
		if cwd, err := os.Readlink(filepath.Join(proc, "cwd")); err == nil && strings.HasPrefix(cwd, dir+"/") {
			comm, _ := os.ReadFile(filepath.Join(proc, "comm"))
			names = append(names, strings.TrimSpace(string(comm))+" "+filepath.Base(proc))
		}
	}
	return names
}
