package agentrun_test

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"certctl/shared/agentrun"
	"certctl/shared/id"
	"certctl/shared/target"
	"certctl/shared/target/files"
	"certctl/shared/wire"
)

// childVar makes this test binary an agent that works once and is killed at a point.
const childVar = "AGENTRUN_CHILD"

type child struct{ URL, Token, Dir, CrashAt string }

func TestMain(m *testing.M) {
	if text := os.Getenv(childVar); text != "" {
		runChild(text)
	}
	os.Exit(m.Run())
}

func runChild(text string) {
	var c child
	if err := json.Unmarshal([]byte(text), &c); err != nil {
		panic(err)
	}
	a, err := agentrun.Open(agentrun.Config{
		URL: c.URL, Token: c.Token, Dir: c.Dir, Name: "host-1", Version: "test", Drivers: target.Registry{"files": files.Open},
		Hook: func(point string, w target.Moment) {
			if c.CrashAt == point+":"+string(w) {
				_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
				select {}
			}
		},
	})
	if err != nil {
		panic(err)
	}
	fmt.Println("the agent ended:", a.Once(context.Background()))
	os.Exit(0)
}

// A killed agent, started again, ends its job at once and under the same lease: the files are one version, whole, and the
// server is told once how it ended.
func TestKilledAtEachPoint(t *testing.T) {
	t.Parallel()
	points := append(append([]string{}, agentrun.Points...), target.Points...)
	for _, point := range points {
		for _, moment := range []target.Moment{target.Before, target.After} {
			t.Run(fmt.Sprintf("%s %s", moment, point), func(t *testing.T) {
				t.Parallel()
				killedAt(t, point, moment)
			})
		}
	}
}

func killedAt(t *testing.T, point string, moment target.Moment) {
	s, dir, www := newServer(t), t.TempDir(), t.TempDir()
	s.look(func() { s.nextPoll = 60 })
	address := serveFiles(t, www)
	certificate := id.New[id.Certificate]()
	where := wire.Target{ID: id.New[id.Target](), Type: "files", Verify: &wire.Verify{Address: address}, Config: filesConfig(www, map[string]any{"chain_path": filepath.Join(www, "chain.pem"), "fullchain": true})}
	issue := func() { s.awaitCSR(certificate, "a.example.com"); must(t, once(t, config(s, dir))) }

	issue() // the version that is served before
	first := s.deployment(certificate, s.latest().VersionID, where)
	must(t, once(t, config(s, dir)))
	if status, detail := s.end(first); status != "Completed" {
		t.Fatalf("before the crash: %s %s", status, detail)
	}

	at := point + ":" + string(moment)
	if point == agentrun.PointStoreKey || point == agentrun.PointPostCSR {
		s.awaitCSR(certificate, "a.example.com")
		crash(t, s, dir, at)
		must(t, once(t, config(s, dir)))
		s.look(func() {
			if len(s.versions) != 2 {
				t.Errorf("%d versions after the restart", len(s.versions))
			}
		})
		return
	}
	issue()
	wants := "Completed"
	if undone(point) { // the roll back is reached by a hook that fails each time
		where.Config, wants = filesConfig(www, map[string]any{"chain_path": filepath.Join(www, "chain.pem"), "hook": "exit 5"}), "Failed"
	}
	before, next := loaded(t, www), s.latest()
	j := s.deployment(certificate, next.VersionID, where)
	crash(t, s, dir, at)
	must(t, once(t, config(s, dir)))
	if at == agentrun.PointStoreWork+":"+string(target.Before) { // as if the poll's answer was lost: the lease must end first
		s.look(func() { j.run = "" })
		must(t, once(t, config(s, dir)))
	}
	if status, detail := s.end(j); status != wants {
		t.Fatalf("after the restart the job is %q, want %s: %s", status, wants, detail)
	}
	if got := loaded(t, www); wants == "Completed" && got != next.FingerprintSHA256 || wants == "Failed" && got != before {
		t.Error("the files hold the other version")
	}
	empty(t, dir, "work", "reports", "journal")
	if left, _ := filepath.Glob(filepath.Join(www, ".certctl-*")); len(left) > 0 {
		t.Errorf("%v is left", left)
	}
}

// The half swap is undone before anything else, so also while the server is away.
func TestHalfSwapIsUndoneWithoutTheServer(t *testing.T) {
	t.Parallel()
	s, dir, www := newServer(t), t.TempDir(), t.TempDir()
	certificate := id.New[id.Certificate]()
	where := wire.Target{ID: id.New[id.Target](), Type: "files", Config: filesConfig(www, nil)}
	for range 2 {
		s.awaitCSR(certificate, "a.example.com")
		must(t, once(t, config(s, dir)))
		s.deployment(certificate, s.latest().VersionID, where)
		if len(s.versions) == 1 {
			must(t, once(t, config(s, dir)))
		}
	}
	before := loaded(t, www)
	crash(t, s, dir, target.PointRenameKey+":"+string(target.Before))
	if _, err := tls.LoadX509KeyPair(filepath.Join(www, "cert.pem"), filepath.Join(www, "key.pem")); err == nil {
		t.Fatal("the crash left no half swap to undo")
	}
	s.look(func() { s.refuse["status"], s.refuse["work"] = 9, 9 })
	if err := once(t, config(s, dir)); err == nil {
		t.Error("the server was not away")
	}
	if got := loaded(t, www); got != before {
		t.Error("the files hold the new version")
	}
}

func undone(point string) bool {
	return point == target.StepRestore || point == target.StepValidateAfterUndo || point == target.StepReloadAfterUndo
}

// loaded reads the pair, which must match, and answers the leaf's fingerprint.
func loaded(t *testing.T, www string) string {
	t.Helper()
	pair, err := tls.LoadX509KeyPair(filepath.Join(www, "cert.pem"), filepath.Join(www, "key.pem"))
	if err != nil {
		t.Fatalf("half a version: %v", err)
	}
	return target.Fingerprint(pair.Leaf)
}

func crash(t *testing.T, s *server, dir, at string) {
	t.Helper()
	text, err := json.Marshal(child{URL: s.URL, Token: s.token, Dir: dir, CrashAt: at})
	must(t, err)
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^$") // #nosec G204 G702 -- this test's own binary
	cmd.Env = append(os.Environ(), childVar+"="+string(text))
	out, err := cmd.CombinedOutput()
	status, ok := cmd.ProcessState.Sys().(syscall.WaitStatus)
	if !ok || !status.Signaled() || status.Signal() != syscall.SIGKILL {
		t.Fatalf("the point %s was not reached: %v %s", at, err, out)
	}
}
