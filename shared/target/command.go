package target

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"
)

const (
	commandTimeout = time.Minute
	outputKept     = 4 << 10
)

// Run runs a command by sh -c, exactly as configured: nothing is put into its text. It gets no standard input and none of
// certctl's own variables. At the time limit its whole process group is killed. The error holds the end of its output.
func (h *Host) Run(ctx context.Context, command string) error {
	limit := h.Timeout
	if limit == 0 {
		limit = commandTimeout
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, "/bin/sh", "-c", command) // #nosec G204 -- the command is the operator's config, permitted by the host (AGT-4)
	cmd.Env = commandEnv(os.Environ())
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = 2 * time.Second
	var out tail
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	switch {
	case err == nil, errors.Is(err, exec.ErrWaitDelay) && ctx.Err() == nil: // a daemon it started may keep the pipe open
		return nil
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		err = fmt.Errorf("killed after %s", limit)
	}
	if words := strings.TrimSpace(out.String()); words != "" {
		return fmt.Errorf("%w: %s", err, words)
	}
	return err
}

func commandEnv(env []string) []string {
	var out []string
	for _, e := range env {
		if !strings.HasPrefix(e, "CERTCTL_") {
			out = append(out, e)
		}
	}
	return out
}

// tail keeps the last outputKept bytes that were written. One goroutine writes: exec shares it when both outputs are equal.
type tail struct {
	kept []byte
	cut  bool
}

func (t *tail) Write(p []byte) (int, error) {
	t.kept = append(t.kept, p...)
	if over := len(t.kept) - outputKept; over > 0 {
		t.kept, t.cut = append(t.kept[:0], t.kept[over:]...), true
	}
	return len(p), nil
}

func (t *tail) String() string {
	text := strings.ToValidUTF8(string(t.kept), "?")
	if t.cut {
		return "… " + text
	}
	return text
}
