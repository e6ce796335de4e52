package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"
)

// build makes the product's programs as a release does, and the limits beside them.
func (b *bench) build(ctx context.Context) error {
	b.bins = map[string]string{}
	for name, pkg := range map[string]string{"certctl": "./cmd/certctl", "api": "./functions/api", "sweep": "./functions/sweep", "worker": "./functions/worker",
		"responder": "./functions/responder", "agentpoll": "./functions/agentpoll", "bare": "./bench/bare"} {
		b.bins[name] = filepath.Join(b.dir, name)
		c := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", "-s -w", "-tags", "lambda.norpc", "-o", b.bins[name], pkg) // #nosec G204 -- our own packages
		c.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := c.CombinedOutput(); err != nil {
			return fmt.Errorf("building %s: %w: %s", pkg, err, out)
		}
	}
	return nil
}

// program is a running server.
type program struct {
	cmd  *exec.Cmd
	addr string
}

func freePort() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer func() { _ = l.Close() }()
	_, port, err := net.SplitHostPort(l.Addr().String())
	return port, err
}

// serve starts one of the programs with one CPU's worth of threads and waits for its first 200. It answers how long that took.
func (b *bench) serve(name string, env []string) (*program, time.Duration, error) {
	port, err := freePort()
	if err != nil {
		return nil, 0, err
	}
	p := &program{cmd: exec.Command(b.bins[name]), addr: "127.0.0.1:" + port} // #nosec G204 -- built above
	p.cmd.Env = append(env, "PORT="+port)
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	began := time.Now()
	if err := p.cmd.Start(); err != nil {
		return nil, 0, err
	}
	for time.Since(began) < 20*time.Second {
		if c, err := net.DialTimeout("tcp", p.addr, time.Second); err == nil {
			_ = c.Close()
			res, err := http.Get("http://" + p.addr + "/health") // #nosec G107 -- loopback
			if err == nil {
				_ = res.Body.Close()
				if res.StatusCode == 200 {
					return p, time.Since(began), nil
				}
			}
		}
		time.Sleep(200 * time.Microsecond)
	}
	return nil, 0, errors.Join(fmt.Errorf("%s did not answer", name), p.cmd.Process.Kill())
}

func (p *program) stop() {
	_ = p.cmd.Process.Kill()
	_ = p.cmd.Wait()
}

func (p *program) cpu() time.Duration { return cpu(p.cmd.Process.Pid) }
