package boot

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// running is a program on a port of its own.
type running struct {
	cmd  *exec.Cmd
	addr string
	out  *bufio.Reader
	done chan error
}

func startProgram(t *testing.T, cmd *exec.Cmd) *running {
	t.Helper()
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = t.Output()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p := &running{cmd: cmd, out: bufio.NewReader(stdout), done: make(chan error, 1)}
	line, err := p.out.ReadString('\n')
	if err != nil {
		t.Fatalf("the program says no address: %v", err)
	}
	p.addr = strings.TrimSpace(line)
	go func() { p.done <- cmd.Wait() }()
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	return p
}

func (p *running) exit(t *testing.T, within time.Duration) error {
	t.Helper()
	select {
	case err := <-p.done:
		return err
	case <-time.After(within):
		t.Fatalf("still running after %s", within)
		return nil
	}
}

func TestServeLetsOpenRequestsFinishAtSIGTERM(t *testing.T) {
	t.Parallel()
	p := startProgram(t, program(t, "serve"))
	res, err := http.Get("http://" + p.addr + "/slow")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	stopChild(t, p.cmd)
	if b, err := io.ReadAll(res.Body); err != nil || string(b) != "slow\ndone\n" {
		t.Errorf("%q, %v", b, err)
	}
	if err := p.exit(t, 3*time.Second); err != nil {
		t.Errorf("exit: %v", err)
	}
	if c, err := net.Dial("tcp", p.addr); err == nil {
		_ = c.Close()
		t.Error("still listening")
	}
}

func TestServeWaitsNoLongerThanDrain(t *testing.T) {
	t.Parallel()
	p := startProgram(t, program(t, "serve"))
	go func() { _, _ = http.Get("http://" + p.addr + "/stuck") }() //nolint:bodyclose // never answered
	time.Sleep(200 * time.Millisecond)
	start := time.Now()
	stopChild(t, p.cmd)
	if err := p.exit(t, 6*time.Second); err == nil {
		t.Error("exit 0 with a request open")
	}
	if took := time.Since(start); took < 1500*time.Millisecond || took > 4*time.Second {
		t.Errorf("drained for %s", took)
	}
}

func TestATickProgramServesAndRunsOnce(t *testing.T) {
	t.Parallel()
	p := startProgram(t, program(t, "tick", "CERTCTL_TICK_TOKEN="+tickToken))
	res, body := send(t, "POST", "http://"+p.addr+"/events/sweep", "", "Authorization", "Bearer "+tickToken)
	if res.StatusCode != 200 || !strings.Contains(body, `"run":1`) {
		t.Errorf("%d %s", res.StatusCode, body)
	}
	for _, cmd := range []*exec.Cmd{program(t, "tick", "CERTCTL_ONCE=true"), withArgs(program(t, "tick"), "--once")} {
		if out, err := cmd.Output(); err != nil || !strings.HasPrefix(string(out), "{") {
			t.Errorf("once: %q, %v", out, err)
		}
	}
	for _, mode := range []string{"fail", "panic"} {
		if out, err := program(t, "tick", "CERTCTL_ONCE=true", "BOOT_TEST_TICK="+mode).Output(); err == nil || len(out) > 0 {
			t.Errorf("%s: exit 0, %q", mode, out)
		}
	}
}

func withArgs(cmd *exec.Cmd, args ...string) *exec.Cmd {
	cmd.Args = append(cmd.Args, args...)
	return cmd
}

// inProcess serves h until the test ends.
func inProcess(t *testing.T, h http.Handler, o ServeOptions) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	o.Listener, o.Log = l, discard()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- Serve(ctx, h, o) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return l.Addr().String()
}

// raw sends bytes and returns what comes back until the server closes.
func raw(t *testing.T, addr, request string) (string, time.Duration) {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	start := time.Now()
	_ = c.SetDeadline(start.Add(10 * time.Second))
	_, _ = io.WriteString(c, request)
	b, _ := io.ReadAll(c)
	return string(b), time.Since(start)
}

func TestSlowClientsAreCutOff(t *testing.T) {
	t.Parallel()
	addr := inProcess(t, http.HandlerFunc(echo), ServeOptions{headTimeout: 200 * time.Millisecond, bodyTimeout: 2 * time.Second})
	if _, took := raw(t, addr, "GET / HTTP/1.1\r\nHost: x\r\n"); took > 1500*time.Millisecond {
		t.Errorf("an unfinished header was waited for %s", took)
	}
	if _, took := raw(t, addr, "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nabc"); took > 5*time.Second {
		t.Errorf("an unfinished body was waited for %s", took)
	}
}

func TestAHandlerMayTakeLongerThanTheClientMay(t *testing.T) {
	t.Parallel()
	addr := inProcess(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		select {
		case <-r.Context().Done():
		case <-time.After(700 * time.Millisecond):
			_, _ = io.WriteString(w, "done")
		}
	}), ServeOptions{bodyTimeout: 200 * time.Millisecond})
	for _, method := range []string{"GET", "POST"} {
		if res, body := send(t, method, "http://"+addr, "body"); res.StatusCode != 200 || body != "done" {
			t.Errorf("%s: %d %q", method, res.StatusCode, body)
		}
	}
}

func TestOldAndOddClientsAreServed(t *testing.T) {
	t.Parallel()
	addr := inProcess(t, http.HandlerFunc(echo), ServeOptions{})
	if got, _ := raw(t, addr, "GET /x HTTP/1.0\r\n\r\n"); !strings.HasPrefix(got, "HTTP/1.0 200") || !strings.Contains(got, `"path":"/x"`) {
		t.Errorf("HTTP/1.0: %s", got)
	}
	if got, _ := raw(t, addr, "GET / HTTP/1.1\r\nHost: x\r\nX: "+strings.Repeat("x", 200<<10)+"\r\n\r\n"); !strings.HasPrefix(got, "HTTP/1.1 431") {
		t.Errorf("large header: %.80s", got)
	}
}

func TestServeSpeaksTLS(t *testing.T) {
	t.Parallel()
	borrowed := httptest.NewTLSServer(nil)
	defer borrowed.Close()
	addr := inProcess(t, http.HandlerFunc(echo), ServeOptions{TLS: &tls.Config{Certificates: borrowed.TLS.Certificates, MinVersion: tls.VersionTLS12}})
	pool := x509.NewCertPool()
	pool.AddCert(borrowed.Certificate())
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, ServerName: "example.com", MinVersion: tls.VersionTLS12}, ForceAttemptHTTP2: true}}
	defer client.CloseIdleConnections()
	res, err := client.Get("https://" + addr + "/x")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	if b, _ := io.ReadAll(res.Body); res.ProtoMajor != 2 || !strings.Contains(string(b), `"tls":true`) {
		t.Errorf("%s %s", res.Proto, b)
	}
}

func TestServeTakesThePortOfTheEnvironment(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := fmt.Sprint(l.Addr().(*net.TCPAddr).Port)
	_ = l.Close()
	t.Setenv("PORT", port)
	ctx, cancel := context.WithCancel(t.Context())
	err = Serve(ctx, http.HandlerFunc(echo), ServeOptions{Log: discard(), OnListen: func(a net.Addr) {
		if !strings.HasSuffix(a.String(), ":"+port) {
			t.Errorf("listening on %s, not at %s", a, port)
		}
		cancel()
	}})
	if err != nil {
		t.Error(err)
	}
}

func TestAnAddressThatIsTakenIsAnError(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	if err := Serve(t.Context(), http.HandlerFunc(echo), ServeOptions{Log: discard(), Addr: l.Addr().String()}); err == nil {
		t.Error("two servers at one address")
	}
}
