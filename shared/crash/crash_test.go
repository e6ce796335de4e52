//go:build crashtest

package crash

import (
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
)

func TestAStepThatIsNotListedPanics(t *testing.T) {
	defer func() {
		if recover() == nil {
			t.Error("it was passed")
		}
	}()
	At("made-up", Before)
}

func TestStepsAreListedOnceAndExplained(t *testing.T) {
	seen := map[Step]bool{}
	for _, e := range Steps {
		if seen[e.Step] || e.Step == "" || e.Operation == "" || e.Meaning == "" {
			t.Errorf("%+v", e)
		}
		seen[e.Step] = true
	}
}

// The process of this test that has Variable passes Claim three times.
func TestMain(m *testing.M) {
	if os.Getenv(Variable) != "" {
		for range 3 {
			At(Claim, Before)
			At(Claim, After)
		}
		os.Exit(7)
	}
	os.Exit(m.Run())
}

func TestTheNthPassKills(t *testing.T) {
	for at, passes := range map[string]int{"claim:before": 1, "claim:after": 2, "claim:after#3": 6, "claim:after#4": -6, "reap:before": -6} {
		file := filepath.Join(t.TempDir(), "trace")
		c := exec.Command(os.Args[0]) // #nosec G204 -- this test's own binary
		c.Env = append(os.Environ(), Variable+"="+at, TraceVariable+"="+file)
		_ = c.Run()
		status := c.ProcessState.Sys().(syscall.WaitStatus)
		killed := status.Signaled() && status.Signal() == syscall.SIGKILL
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		lines := 0
		for _, c := range b {
			if c == '\n' {
				lines++
			}
		}
		if killed != (passes > 0) || lines != max(passes, -passes) {
			t.Errorf("%s: killed %v after %d places", at, killed, lines)
		}
	}
}
