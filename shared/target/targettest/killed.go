package targettest

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"certctl/shared/pki"
	"certctl/shared/target"
	"certctl/shared/wire"
)

// childVar holds the child's order; a test binary that has it deploys once instead of testing.
const childVar = "TARGETTEST_CHILD"

type order struct {
	Dir        string
	Target     wire.Target
	Chain, Key string
	CrashAt    string // point:moment
}

// Main is the TestMain of a driver's tests: it runs the tests, or, in a process that the suite started, one deployment that
// ends in SIGKILL.
func Main(m *testing.M, s Subject) {
	if text := os.Getenv(childVar); text != "" {
		child(s, text)
	}
	os.Exit(m.Run())
}

func child(s Subject, text string) {
	var o order
	if err := json.Unmarshal([]byte(text), &o); err != nil {
		panic(err)
	}
	chain, err := pki.ParseBundle([]byte(o.Chain))
	if err != nil {
		panic(err)
	}
	key, err := pki.ParseKey([]byte(o.Key))
	if err != nil {
		panic(err)
	}
	e := engine(s, o.Dir)
	e.Hook = func(point string, w target.Moment) {
		if o.CrashAt == point+":"+string(w) {
			_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {}
		}
	}
	_, err = e.Deploy(context.Background(), o.Target, &target.Bundle{Chain: chain, Key: key})
	fmt.Println("the deployment ended:", err)
	os.Exit(0)
}

// killed kills a deployment before and after each point and starts again: old or new, never half, and the next deployment
// succeeds. The points of the roll back are reached by a reload that fails once.
func (s Subject) killed(t *testing.T) {
	undoing := false
	for _, point := range target.Points {
		undoing = undoing || point == target.StepRestore
		for _, moment := range []target.Moment{target.Before, target.After} {
			t.Run(fmt.Sprintf("%s %s", moment, point), func(t *testing.T) { s.killedAt(t, point, moment, undoing) })
		}
	}
}

func (s Subject) killedAt(t *testing.T, point string, moment target.Moment, undoing bool) {
	b := s.bench(t)
	old, next := b.ca.IssueFromRoot(t, "a.example.com"), b.ca.IssueFromRoot(t, "a.example.com")
	server := b.serving(true, old)
	if undoing {
		b.configure(true, server.Validate, failOnce(b.dir)+server.Reload)
	}
	before := b.files()
	b.crash(next, point+":"+string(moment))

	if _, err := b.engine.Recover(t.Context()); err != nil {
		t.Fatalf("recovering: %v", err)
	}
	b.closed()
	after := b.files()
	committed := strings.Contains(after[CertFile], string(next.LeafPEM()))
	if committed {
		b.consistent(next, before, after)
		b.serves(server.Address, next)
	} else {
		b.unchanged(before)
		b.serves(server.Address, old)
	}
	b.configure(true, server.Validate, server.Reload)
	b.deploy(next)
	b.consistent(next, before, b.files())
	b.serves(server.Address, next)
}

// crash runs the deployment in a child and demands that it was killed at the point.
func (b *bench) crash(bundle *target.Bundle, at string) {
	b.t.Helper()
	key, err := bundle.KeyPEM()
	if err != nil {
		b.t.Fatal(err)
	}
	text, err := json.Marshal(order{Dir: b.engine.Dir, Target: b.target, Chain: string(bundle.FullChainPEM()), Key: string(key), CrashAt: at})
	if err != nil {
		b.t.Fatal(err)
	}
	cmd := exec.CommandContext(b.t.Context(), os.Args[0], "-test.run=^$") // #nosec G204 G702 -- this test's own binary
	cmd.Env = append(os.Environ(), childVar+"="+string(text))
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err = cmd.Run()
	status, ok := cmd.ProcessState.Sys().(syscall.WaitStatus)
	if !ok || !status.Signaled() || status.Signal() != syscall.SIGKILL {
		b.t.Fatalf("the point %s was not reached: %v %s", at, err, out.String())
	}
}

// consistent checks that all files hold the bundle, with the modes and owners of before, and that nothing else lies around.
func (b *bench) consistent(bundle *target.Bundle, before, after map[string]string) {
	b.t.Helper()
	key, err := bundle.KeyPEM()
	if err != nil {
		b.t.Fatal(err)
	}
	want := map[string]string{CertFile: string(bundle.LeafPEM()), KeyFile: string(key), ChainFile: string(bundle.IntermediatesPEM())}
	if len(after) != len(want) {
		b.t.Errorf("%d files lie in the folder, want %d", len(after), len(want))
	}
	for name, content := range want {
		head, _, _ := strings.Cut(before[name], "\n")
		if after[name] != head+"\n"+content {
			b.t.Errorf("%s is not the new version with the old owner and mode", name)
		}
	}
}

func probe(ctx context.Context, address string, bundle *target.Bundle) (target.Served, error) {
	return target.Probe(ctx, new(net.Dialer).DialContext, address, target.Want{Chain: bundle.Chain[:1], Patience: 20 * time.Second})
}
