// Package pglocal runs a private Postgres server as a child process: the laptop's database of `certctl serve`, and the
// tests' server.
//
// It knows no table and links no driver. It starts `postgres` itself rather than through pg_ctl, so that the server ends
// with its owner: a fast shutdown even when the owner is killed. One process owns a folder at a time. Data lies in
// <Dir>/pg<major>/data, and a folder that holds data of one major version is never served by another.
//
// Linux only: it relies on the parent-death signal and on Unix credentials.
package pglocal

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// Options of a server.
type Options struct {
	Dir      string    // home of the database; made if missing. As root it must lie where the account of Postgres may enter
	Bin      string    // folder of initdb and postgres; "" looks for an installed server of version 14 or newer
	Fetch    Fetcher   // asked when no fitting server is installed; nil: none
	Log      io.Writer // output of initdb and postgres; nil: dropped
	Volatile bool      // trade durability for speed (no fsync, small WAL): for tests
}

// Fetcher puts a server on this machine and answers its bin folder. major 0 leaves the version to the fetcher.
type Fetcher func(ctx context.Context, major int) (bin string, err error)

// Server is a running server.
type Server struct {
	URL     string // postgres://…, over a Unix socket, as the superuser certctl
	Version int    // major version

	home home
	cmd  *exec.Cmd
	done chan struct{}
	end  error // how the process ended; read after done
}

// Start finds a server, makes the database if Dir holds none, and returns when it takes connections. Errors name the way
// out: no server found, data of another major version, a second owner, a folder that Postgres may not enter.
func Start(ctx context.Context, o Options) (*Server, error) {
	if o.Dir == "" {
		return nil, errors.New("starting postgres: no folder given for its data")
	}
	dir, err := filepath.Abs(o.Dir)
	if err != nil {
		return nil, fmt.Errorf("starting postgres: %w", err)
	}
	o.Dir = dir
	bin, err := choose(ctx, o)
	if err != nil {
		return nil, err
	}
	h, err := openHome(o, bin)
	if err != nil {
		return nil, err
	}
	s := &Server{Version: bin.major, home: h, done: make(chan struct{})}
	if err := s.start(ctx, o); err != nil {
		s.home.close()
		return nil, err
	}
	return s, nil
}

func (s *Server) start(ctx context.Context, o Options) error {
	h := &s.home
	if err := h.initdb(ctx, o); err != nil {
		return err
	}
	password, err := os.ReadFile(h.passwordFile())
	if err != nil {
		return fmt.Errorf("reading the database password: %w", err)
	}
	if err := h.awaitPredecessor(ctx); err != nil {
		return err
	}
	if err := h.makeSocketFolder(); err != nil {
		return err
	}
	s.cmd = h.command("postgres", o.Log, serverArgs(h, o.Volatile)...)
	if err := s.launch(); err != nil {
		return fmt.Errorf("starting postgres: %w", err)
	}
	if err := s.awaitReady(ctx); err != nil {
		return err
	}
	s.URL = socketURL(h.socket, string(password))
	return nil
}

func serverArgs(h *home, volatile bool) []string {
	args := []string{"-D", h.data(), "-k", h.socket, "-p", "5432",
		"-c", "listen_addresses=", "-c", "unix_socket_permissions=0700", "-c", "shared_buffers=64MB"}
	if volatile {
		args = append(args, "-c", "fsync=off", "-c", "synchronous_commit=off", "-c", "full_page_writes=off",
			"-c", "min_wal_size=2MB", "-c", "dynamic_shared_memory_type=mmap") // in the folder, which goes as a whole
	}
	return args
}

func socketURL(socket, password string) string {
	u := url.URL{
		Scheme:   "postgres",
		User:     url.UserPassword("certctl", password),
		Path:     "/postgres",
		RawQuery: url.Values{"host": {socket}, "port": {"5432"}}.Encode(),
	}
	return u.String()
}

func (s *Server) launch() error {
	ended, err := spawn(s.cmd)
	if err != nil {
		return err
	}
	go func() {
		s.end = <-ended
		close(s.done)
	}()
	return nil
}

// awaitReady polls the status line of postmaster.pid: no driver is needed to see it.
func (s *Server) awaitReady(ctx context.Context) error {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-s.done:
			return fmt.Errorf("postgres ended while it started (%v); its log says why", s.end)
		case <-ctx.Done():
			_ = s.signalAndWait()
			return fmt.Errorf("starting postgres: %w", ctx.Err())
		case <-tick.C:
		}
		b, err := os.ReadFile(s.home.pidFile())
		if err == nil && strings.Contains(string(b), "\nready") {
			return nil
		}
	}
}

// Done is closed when the server has ended, asked or not.
func (s *Server) Done() <-chan struct{} { return s.done }

// Stop asks for a fast shutdown, after 20 s for an immediate one, and frees the folder.
func (s *Server) Stop() error {
	defer s.home.close()
	return s.signalAndWait()
}

func (s *Server) signalAndWait() error {
	_ = s.cmd.Process.Signal(syscall.SIGINT)
	select {
	case <-s.done:
		return s.end
	case <-time.After(20 * time.Second):
		_ = s.cmd.Process.Signal(syscall.SIGQUIT)
		<-s.done
		return errors.New("postgres did not stop in 20 s and was ended at once; it recovers at the next start")
	}
}
