package pglocal

import (
	"context"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
)

// command runs one of the server's programs as the account, in a process group of its own (a terminal's ^C is its owner's
// to handle), ended by the kernel when the owner dies.
func (h *home) command(name string, log io.Writer, args ...string) *exec.Cmd {
	c := exec.Command(filepath.Join(h.bin.dir, name), args...) // #nosec G204 -- the operator's own server
	c.Dir, c.Env = h.dir, append(os.Environ(), "LC_ALL=C", "TZ=UTC")
	if log != nil {
		c.Stdout, c.Stderr = log, log
	}
	c.SysProcAttr = &syscall.SysProcAttr{Credential: h.as.credential, Setpgid: true, Pdeathsig: syscall.SIGINT}
	return c
}

// spawn starts a command and answers where its end will be told. The parent-death signal belongs to the thread that forks,
// so that thread is kept for as long as the command runs.
func spawn(c *exec.Cmd) (<-chan error, error) {
	started, ended := make(chan error), make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		err := c.Start()
		started <- err
		if err == nil {
			ended <- c.Wait()
		}
	}()
	return ended, <-started
}

// run runs a command to its end, which ctx may bring about early.
func run(ctx context.Context, c *exec.Cmd) error {
	ended, err := spawn(c)
	if err != nil {
		return err
	}
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
		_ = c.Process.Signal(syscall.SIGINT)
		<-ended
		return ctx.Err()
	}
}
