package nginx_test

import (
	"crypto/tls"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"certctl/shared/fault"
	"certctl/shared/id"
	"certctl/shared/target"
	"certctl/shared/target/nginx"
	"certctl/shared/target/targettest"
	"certctl/shared/wire"
)

var subject = targettest.Subject{
	Kind:   "nginx",
	Driver: nginx.Open,
	Config: func(dir string, chain bool, validate, reload string) map[string]any {
		c := map[string]any{
			"cert_path": filepath.Join(dir, targettest.CertFile), "key_path": filepath.Join(dir, targettest.KeyFile),
			"validate_command": validate, "reload_command": reload,
		}
		if chain {
			c["chain_path"] = filepath.Join(dir, targettest.ChainFile)
		}
		return c
	},
	Serve: serve,
}

func TestMain(m *testing.M) { targettest.Main(m, subject) }

func TestNginxConformance(t *testing.T) { targettest.Run(t, subject) }

func TestReloadCommandIsRequired(t *testing.T) {
	t.Parallel()
	_, err := nginx.Open(json.RawMessage(`{"cert_path":"/a.pem","key_path":"/b.pem","reload_command":" "}`))
	if f := fault.As(err); f == nil || f.Fields[0].Field != "config.reload_command" {
		t.Errorf("fault %v", err)
	}
}

// nginx -t is what notices; its words must reach the operator, and the running server must not have seen the bad state.
func TestNginxOwnTestRefusesAndItsWordsAreKept(t *testing.T) {
	t.Parallel()
	dir, agent := t.TempDir(), t.TempDir()
	ca := targettest.NewCA(t)
	old := ca.Issue(t, "a.example.com")
	e := &target.Engine{Dir: agent, Drivers: target.Registry{"nginx": nginx.Open}, Patience: 20 * time.Second}
	deploy := func(validate, reload string, b *target.Bundle) (wire.Receipt, error) {
		text, err := json.Marshal(subject.Config(dir, false, validate, reload))
		if err != nil {
			t.Fatal(err)
		}
		return e.Deploy(t.Context(), wire.Target{ID: targetID, Type: "nginx", Config: text}, b)
	}
	if _, err := deploy("", "true", old); err != nil {
		t.Fatal(err)
	}
	server := serve(t, dir)
	before := targettest.Snapshot(t, dir)
	conf := filepath.Join(dir, "server-nginx.conf")
	broken := fmt.Sprintf("sed -i 's/listen/lissten/' %s; ", conf)
	repaired := fmt.Sprintf("sed -i 's/lissten/listen/' %s; ", conf)
	receipt, err := deploy(broken+server.Validate+`; s=$?; `+repaired+`exit $s`, server.Reload, ca.Issue(t, "a.example.com"))
	if err == nil || !strings.Contains(err.Error(), `unknown directive "lissten"`) {
		t.Errorf("nginx's words are missing: %v", err)
	}
	if !receipt.RolledBack {
		t.Error("not rolled back")
	}
	for name, was := range before {
		if got := targettest.Snapshot(t, dir)[name]; got != was {
			t.Errorf("%s changed", name)
		}
	}
	if got := served(t, server.Address); got != target.Fingerprint(old.Chain[0]) {
		t.Error("the old certificate is not served")
	}
}

var targetID = id.New[id.Target]()

func served(t *testing.T, address string) string {
	t.Helper()
	conn, err := tls.Dial("tcp", address, &tls.Config{InsecureSkipVerify: true}) // #nosec G402 -- only the served leaf is read
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	return target.Fingerprint(conn.ConnectionState().PeerCertificates[0])
}

// serve starts the real nginx on files in dir, as a child of the test on a free loopback port.
func serve(t *testing.T, dir string) targettest.Server {
	t.Helper()
	binary, err := exec.LookPath("nginx")
	if err != nil {
		if binary = "/usr/sbin/nginx"; !exists(binary) {
			t.Fatal("nginx is not installed; these tests need the real one: apt-get install nginx-light")
		}
	}
	conf, errors := filepath.Join(dir, "server-nginx.conf"), filepath.Join(dir, "server-error.log")
	run := fmt.Sprintf("%s -e %s -p %s -c %s", binary, errors, dir, conf)
	for range 5 { // another process may take the free port first
		address := freeAddress(t)
		writeConf(t, conf, dir, address)
		// Not bound to the test's context: that would kill the master before the clean-up and orphan its workers.
		cmd := exec.Command(binary, "-e", errors, "-p", dir, "-c", conf) // #nosec G204 -- the test's own
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		done := make(chan struct{})
		go func() { _ = cmd.Wait(); close(done) }()
		if listening(address, done) {
			t.Cleanup(func() { _ = cmd.Process.Signal(syscall.SIGTERM); <-done })
			return targettest.Server{
				Address:  address,
				Validate: fmt.Sprintf("%s -e stderr -t -p %s -c %s", binary, dir, conf),
				Reload:   run + " -s reload",
			}
		}
		_ = cmd.Process.Signal(syscall.SIGTERM)
		<-done
	}
	log, _ := os.ReadFile(errors) // #nosec G304 -- the test's own
	t.Fatalf("nginx does not start: %s", log)
	return targettest.Server{}
}

func exists(path string) bool { _, err := os.Stat(path); return err == nil }

func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	return l.Addr().String()
}

func listening(address string, done <-chan struct{}) bool {
	for range 100 {
		select {
		case <-done:
			return false
		case <-time.After(20 * time.Millisecond):
		}
		if c, err := net.Dial("tcp", address); err == nil {
			_ = c.Close()
			return true
		}
	}
	return false
}

func writeConf(t *testing.T, path, dir, address string) {
	t.Helper()
	temp := ""
	for _, kind := range []string{"client_body", "proxy", "fastcgi", "uwsgi", "scgi"} {
		temp += fmt.Sprintf("  %s_temp_path %s/server-%s;\n", kind, dir, kind)
	}
	text := fmt.Sprintf(`daemon off;
worker_processes 1;
pid %[1]s/server-nginx.pid;
events { worker_connections 64; }
http {
  access_log off;
%[2]s  server {
    listen %[3]s ssl;
    ssl_certificate %[1]s/%[4]s;
    ssl_certificate_key %[1]s/%[5]s;
    return 200 "ok";
  }
}
`, dir, temp, address, targettest.CertFile, targettest.KeyFile)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}
