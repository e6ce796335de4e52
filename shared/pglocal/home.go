package pglocal

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"
)

// home is the folder of one major version: data, password, and the socket's folder unless the path is too long for one.
type home struct {
	bin    binaries
	as     account
	dir    string
	socket string
	lock   *os.File
}

func (h *home) data() string         { return filepath.Join(h.dir, "data") }
func (h *home) passwordFile() string { return filepath.Join(h.dir, "password") }
func (h *home) pidFile() string      { return filepath.Join(h.data(), "postmaster.pid") }

// openHome makes the folders and takes the lock, so that everything after it has the folder alone.
func openHome(o Options, bin binaries) (home, error) {
	h := home{bin: bin, dir: filepath.Join(o.Dir, fmt.Sprintf("pg%d", bin.major))}
	var err error
	if h.as, err = accountFor(h.dir); err != nil {
		return h, err
	}
	if err := h.as.makeRoot(o.Dir); err != nil {
		return h, err
	}
	for _, dir := range []string{o.Dir, bin.dir} {
		if err := h.as.mayEnter(dir); err != nil {
			return h, err
		}
	}
	if h.lock, err = lock(filepath.Join(o.Dir, "pg.lock")); err != nil {
		return h, err
	}
	h.socket = socketFolder(h.dir)
	if err := h.as.ownFolder(h.dir); err != nil {
		h.close()
		return h, err
	}
	return h, nil
}

func lock(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600) // #nosec G304 -- below the data folder
	if err != nil {
		return nil, fmt.Errorf("locking the data folder: %w", err)
	}
	err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) // #nosec G115 -- a descriptor is small
	if err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("another process uses the database in %s", filepath.Dir(path))
	}
	return f, nil
}

// longestSocketFolder leaves room for "/.s.PGSQL.5432" in the 107 bytes that a socket's path may have.
const longestSocketFolder = 107 - len("/.s.PGSQL.5432")

// socketFolder lies in the home, or in /tmp under a name that follows from the home: what a killed owner left behind is
// used again, not added to.
func socketFolder(home string) string {
	if in := filepath.Join(home, "socket"); len(in) <= longestSocketFolder {
		return in
	}
	sum := sha256.Sum256([]byte(home))
	return filepath.Join("/tmp", "certctl-pg-"+hex.EncodeToString(sum[:8]))
}

// makeSocketFolder comes after awaitPredecessor: a lock file beside an old socket may name a pid that lives again.
func (h *home) makeSocketFolder() error {
	if err := h.as.ownFolder(h.socket); err != nil {
		return err
	}
	for _, name := range []string{".s.PGSQL.5432", ".s.PGSQL.5432.lock"} {
		if err := ignoreMissing(os.Remove(filepath.Join(h.socket, name))); err != nil {
			return fmt.Errorf("clearing an old socket: %w", err)
		}
	}
	return nil
}

func (h *home) close() {
	if h.socket != "" {
		_ = os.RemoveAll(h.socket)
	}
	if h.lock != nil {
		_ = h.lock.Close()
	}
}

// initdb makes the database unless there is one. It is renamed when whole: a killed initdb leaves nothing that looks like
// a database.
func (h *home) initdb(ctx context.Context, o Options) error {
	if _, err := os.Stat(filepath.Join(h.data(), "PG_VERSION")); err == nil {
		return nil
	}
	if err := h.writePassword(); err != nil {
		return fmt.Errorf("writing the database password: %w", err)
	}
	unfinished, _ := filepath.Glob(h.data() + ".new-*")
	for _, dir := range unfinished {
		_ = os.RemoveAll(dir) // its initdb, if its owner was killed just now, removes it too
	}
	fresh := h.data() + ".new-" + rand.Text()[:8]
	var said bytes.Buffer
	log := io.Writer(&said)
	if o.Log != nil {
		log = io.MultiWriter(&said, o.Log)
	}
	if err := run(ctx, h.command("initdb", log, initdbArgs(h, fresh, o.Volatile)...)); err != nil {
		return fmt.Errorf("initdb: %w: %s", err, bytes.TrimSpace(said.Bytes()))
	}
	if err := os.Rename(fresh, h.data()); err != nil {
		return fmt.Errorf("finishing initdb: %w", err)
	}
	return syncFolder(h.dir)
}

func initdbArgs(h *home, data string, volatile bool) []string {
	args := []string{"-D", data, "-U", "certctl", "--pwfile", h.passwordFile(), "-A", "scram-sha-256", "-E", "UTF8",
		"--no-instructions", "--locale=C"}
	if h.bin.major >= 17 {
		args = append(args, "--locale-provider=builtin", "--builtin-locale=C.UTF-8")
	}
	if volatile {
		args = append(args, "--no-sync", "--wal-segsize=1")
	}
	return args
}

func (h *home) writePassword() error {
	f, err := os.OpenFile(h.passwordFile(), os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.WriteString(rand.Text())
	return errors.Join(err, h.as.own(h.passwordFile()), f.Sync(), f.Close())
}

func syncFolder(dir string) error {
	f, err := os.Open(dir) // #nosec G304 -- below the data folder
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// awaitPredecessor waits up to 15 s for servers that a killed owner left going down, then removes a lock file that nobody
// holds. Postgres alone would refuse to start when its pid belongs to another program meanwhile, as small pids in
// containers do; it must not be removed while any old backend still writes to the folder.
func (h *home) awaitPredecessor(ctx context.Context) error {
	if _, err := os.Stat(h.pidFile()); err != nil {
		return nil
	}
	deadline := time.Now().Add(15 * time.Second)
	for {
		pid := serverIn(h.data())
		if pid == 0 {
			return ignoreMissing(os.Remove(h.pidFile()))
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("a Postgres server (pid %d) still runs on %s", pid, h.data())
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waiting for the Postgres server (pid %d) on %s to end: %w", pid, h.data(), ctx.Err())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// serverIn is the pid of some postgres process whose working folder is data, 0 if there is none.
func serverIn(data string) int {
	here, err := os.Stat(data)
	if err != nil {
		return 0
	}
	procs, _ := filepath.Glob("/proc/[0-9]*")
	for _, proc := range procs {
		cwd, err := os.Stat(filepath.Join(proc, "cwd"))
		if err != nil || !os.SameFile(cwd, here) {
			continue
		}
		comm, _ := os.ReadFile(filepath.Join(proc, "comm")) // #nosec G304 -- procfs
		if string(bytes.TrimSpace(comm)) == "postgres" {
			pid, _ := strconv.Atoi(filepath.Base(proc))
			return pid
		}
	}
	return 0
}

func ignoreMissing(err error) error {
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}
