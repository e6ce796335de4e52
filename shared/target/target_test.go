package target_test

import (
	"crypto"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"certctl/shared/fault"
	"certctl/shared/target"
	"certctl/shared/target/targettest"
)

// listen serves TLS with a config until the test ends.
func listen(t *testing.T, config *tls.Config) string {
	t.Helper()
	config.MinVersion = tls.VersionTLS12
	l, err := tls.Listen("tcp", "127.0.0.1:0", config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				if c, ok := conn.(*tls.Conn); ok {
					_ = c.Handshake()
				}
				_ = conn.Close()
			}()
		}
	}()
	return l.Addr().String()
}

func pair(b *target.Bundle, key crypto.Signer, certificates int) tls.Certificate {
	p := tls.Certificate{PrivateKey: key}
	for _, c := range b.Chain[:certificates] {
		p.Certificate = append(p.Certificate, c.Raw)
	}
	return p
}

func TestProbe(t *testing.T) {
	t.Parallel()
	ca := targettest.NewCA(t)
	bundle, other := ca.Issue(t, "a.example.com", "127.0.0.1"), ca.Issue(t, "a.example.com")
	wildcard, future := ca.Issue(t, "*.example.com"), ca.IssueAt(t, time.Now().Add(time.Hour), "a.example.com")
	for name, c := range map[string]struct {
		served     tls.Certificate
		want       target.Want
		err, notes string
	}{
		"right":                       {pair(bundle, bundle.Key, 2), target.Want{Chain: bundle.Chain}, "", ""},
		"by address":                  {pair(bundle, bundle.Key, 2), target.Want{Chain: bundle.Chain, ServerName: "127.0.0.1"}, "", ""},
		"wildcard":                    {pair(wildcard, wildcard.Key, 2), target.Want{Chain: wildcard.Chain}, "", ""},
		"another certificate":         {pair(other, other.Key, 2), target.Want{Chain: bundle.Chain}, "another certificate", ""},
		"right serial, foreign key":   {pair(bundle, other.Key, 2), target.Want{Chain: bundle.Chain}, "handshake does not complete", ""},
		"without the intermediate":    {pair(bundle, bundle.Key, 1), target.Want{Chain: bundle.Chain}, "without its intermediate", ""},
		"wrong name":                  {pair(bundle, bundle.Key, 2), target.Want{Chain: bundle.Chain, ServerName: "b.example.com"}, "not good for the name", ""},
		"starts in an hour (clock -)": {pair(future, future.Key, 2), target.Want{Chain: future.Chain}, "", "becomes valid in"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c.want.Patience = 2 * time.Second
			address := listen(t, &tls.Config{Certificates: []tls.Certificate{c.served}})
			got, err := target.Probe(t.Context(), new(net.Dialer).DialContext, address, c.want)
			if c.err == "" && (err != nil || got.Fingerprint != target.Fingerprint(c.want.Chain[0])) {
				t.Errorf("served %+v, error %v", got, err)
			}
			if c.err != "" && (err == nil || !strings.Contains(err.Error(), c.err)) {
				t.Errorf("error %v, want %q", err, c.err)
			}
			if !strings.Contains(got.Note, c.notes) || c.notes == "" && got.Note != "" {
				t.Errorf("note %q", got.Note)
			}
		})
	}
}

func TestProbeTriesAgainUntilTheServerHasReloaded(t *testing.T) {
	t.Parallel()
	ca := targettest.NewCA(t)
	old, next := ca.Issue(t, "a.example.com"), ca.Issue(t, "a.example.com")
	start := time.Now()
	address := listen(t, &tls.Config{GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
		b := old
		if time.Since(start) > 300*time.Millisecond {
			b = next
		}
		p := pair(b, b.Key, 2)
		return &p, nil
	}})
	got, err := target.Probe(t.Context(), new(net.Dialer).DialContext, address, target.Want{Chain: next.Chain})
	if err != nil || got.Attempts < 2 {
		t.Errorf("%+v %v", got, err)
	}
}

func TestResolveRefusesWhatCannotWork(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	allowed, outside := filepath.Join(dir, "allowed"), filepath.Join(dir, "outside")
	for _, d := range []string{allowed, outside, filepath.Join(allowed, "folder")} {
		if err := os.Mkdir(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	link := func(to, name string) {
		if err := os.Symlink(to, filepath.Join(allowed, name)); err != nil {
			t.Fatal(err)
		}
	}
	link(outside, "linked-folder")
	link(filepath.Join(dir, "nothing"), "dangling")
	link(filepath.Join(allowed, "folder"), "linked-inside")
	h := target.Host{Paths: []string{allowed}}
	for path, kind := range map[string]fault.Kind{
		"x.pem": "", "folder/x.pem": "", "linked-inside/x.pem": "",
		"linked-folder/x.pem": fault.Denied, "../outside/x.pem": fault.Invalid, "missing/x.pem": fault.Invalid,
		"dangling": fault.Invalid, "folder": fault.Invalid,
	} {
		got, err := h.Resolve("cert_path", allowed+"/"+path)
		if kind == "" && err != nil || kind != "" && !fault.Is(err, kind) {
			t.Errorf("%s: %q, %v", path, got, err)
		}
	}
	if _, err := h.Resolve("cert_path", allowed+"-not/x.pem"); !fault.Is(err, fault.Denied) {
		t.Errorf("a sibling with the root's name as prefix: %v", err)
	}
}

func TestCommandKeepsTheEndOfItsOutput(t *testing.T) {
	t.Parallel()
	err := new(target.Host).Run(t.Context(), "i=0; while [ $i -lt 2000 ]; do echo line $i; i=$((i+1)); done; exit 3")
	if err == nil || !strings.Contains(err.Error(), "exit status 3") || !strings.Contains(err.Error(), "line 1999") || len(err.Error()) > 4200 {
		t.Errorf("%v", err)
	}
}

func TestCommandAndItsChildrenAreKilledAtTheLimit(t *testing.T) {
	t.Parallel()
	mark := filepath.Join(t.TempDir(), "pid")
	h := target.Host{Timeout: 300 * time.Millisecond}
	start := time.Now()
	err := h.Run(t.Context(), fmt.Sprintf("sleep 60 & echo $! > %s; wait", mark))
	if err == nil || !strings.Contains(err.Error(), "killed after") || time.Since(start) > 10*time.Second {
		t.Fatalf("%v after %s", err, time.Since(start))
	}
	text, err := os.ReadFile(mark) // #nosec G304 -- the test's own
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		t.Fatal(err)
	}
	for range 100 { // an orphan in a container without a reaper stays a zombie
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid)) // #nosec G304 -- the test's own
		if errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) || err == nil && strings.Contains(string(stat), ") Z ") {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Error("the command's child outlived the limit")
}

func TestCommandThatLeavesADaemonSucceeds(t *testing.T) {
	t.Parallel()
	start := time.Now()
	if err := new(target.Host).Run(t.Context(), "sleep 20 & true"); err != nil || time.Since(start) > 10*time.Second {
		t.Errorf("%v after %s", err, time.Since(start))
	}
}

func TestCommandsDoNotSeeCertctlsOwnVariables(t *testing.T) {
	t.Setenv("CERTCTL_ENROLL_TOKEN", "cet1_secret")
	if err := new(target.Host).Run(t.Context(), `test -z "$CERTCTL_ENROLL_TOKEN"`); err != nil {
		t.Error("the enrollment token reached a command")
	}
}

// A journal is data on disk: files that the host does not allow any more are not touched through it.
func TestRecoverObeysTheHost(t *testing.T) {
	t.Parallel()
	dir, victim := t.TempDir(), filepath.Join(t.TempDir(), "victim")
	if err := os.WriteFile(victim, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "journal"), 0o700); err != nil {
		t.Fatal(err)
	}
	journal := fmt.Sprintf(`{"target":"tgt_x","swapping":true,"files":[{"role":"key","path":%q,"staged":"/nonexistent/s","new_sha256":"2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"}]}`, victim)
	if err := os.WriteFile(filepath.Join(dir, "journal", "tgt_x.json"), []byte(journal), 0o600); err != nil {
		t.Fatal(err)
	}
	e := target.Engine{Dir: dir, Host: target.Host{Paths: []string{"/nonexistent"}}}
	if _, err := e.Recover(t.Context()); !fault.Is(err, fault.Denied) {
		t.Errorf("%v", err)
	}
	if _, err := os.Stat(victim); err != nil {
		t.Error("a file outside the allowed folders was removed")
	}
	e.Host.Paths = nil
	if done, err := e.Recover(t.Context()); err != nil || len(done) != 1 || !done[0].Restored {
		t.Errorf("%v %v", done, err)
	}
	if _, err := os.Stat(victim); err == nil {
		t.Error("the new file was not taken back")
	}
}
