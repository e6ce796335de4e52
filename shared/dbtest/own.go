package dbtest

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"certctl/shared/pglocal"

	"github.com/jackc/pgx/v5"
)

const binVariable = "CERTCTL_POSTGRES_BIN"

// startOwn starts this binary's server on a copy of the cached data folder and answers its URL.
func startOwn(n names) (string, error) {
	base, err := baseFolder()
	if err != nil {
		return "", err
	}
	dir, err := copyCache(base, n)
	if err != nil {
		return "", err
	}
	s, err := serve(dir)
	if err != nil {
		return "", err
	}
	return withDatabase(s.URL, n.tx), nil
}

func serve(dir string) (*pglocal.Server, error) {
	log, err := os.Create(filepath.Join(dir, "log")) // #nosec G304 -- our own folder
	if err != nil {
		return nil, err
	}
	defer func() { _ = log.Close() }()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	s, err := pglocal.Start(ctx, pglocal.Options{Dir: dir, Bin: os.Getenv(binVariable), Log: log, Volatile: true})
	if err != nil {
		said, _ := os.ReadFile(log.Name())
		return nil, fmt.Errorf("%w\n%s", err, said)
	}
	return s, nil
}

// fastFolder is memory where there is plenty (containers often have 64 MB only): copying a data folder of 2,000 files took
// 0.13 s there and 1.5 s on ext4.
func fastFolder() string {
	const memory, plenty = "/dev/shm", 2 << 30
	var st syscall.Statfs_t
	if syscall.Statfs(memory, &st) == nil && st.Bavail*uint64(st.Bsize) > plenty && syscall.Access(memory, 2) == nil { // #nosec G115 -- a block size is positive
		return memory
	}
	return os.TempDir()
}

// baseFolder is per user, and refused if somebody else made it.
func baseFolder() (string, error) {
	base := filepath.Join(fastFolder(), fmt.Sprintf("certctl-dbtest-%d", os.Geteuid()))
	if err := os.Mkdir(base, 0o711); err != nil && !os.IsExist(err) { // #nosec G301 -- as root, Postgres runs as another account
		return "", err
	}
	st, err := os.Lstat(base)
	if err != nil {
		return "", err
	}
	if sys := st.Sys().(*syscall.Stat_t); !st.IsDir() || int(sys.Uid) != os.Geteuid() {
		return "", fmt.Errorf("%s is not a folder of this user: remove it", base)
	}
	return base, os.Chmod(base, 0o711) // #nosec G302 -- as above, whatever the umask was
}

// copyCache copies the cached folder into one for this run, under the cache's lock.
func copyCache(base string, n names) (dir string, err error) {
	unlock, err := lock(filepath.Join(base, "lock"))
	if err != nil {
		return "", err
	}
	defer unlock()
	cached := filepath.Join(base, cacheName(n))
	if _, err := os.Stat(cached); err != nil {
		if err := makeCache(base, cached, n); err != nil {
			return "", fmt.Errorf("making the cached database: %w", err)
		}
	}
	dir, err = runFolder(base)
	if err != nil {
		return "", err
	}
	out, err := exec.Command("cp", "-a", "--reflink=auto", cached+"/.", dir).CombinedOutput() // #nosec G204 -- our own folders
	if err != nil {
		return "", fmt.Errorf("copying the cached database: %w: %s", err, out)
	}
	return dir, nil
}

// cacheName names the state of the migrations, and the server if one is named: its version may differ.
func cacheName(n names) string {
	sum := sha256.Sum256([]byte(n.hash + os.Getenv(binVariable)))
	return "cache-" + hex.EncodeToString(sum[:6])
}

// makeCache makes a data folder with the prepared databases, and removes those of other states of the migrations and what
// was left by a machine that stopped in the middle of a run.
func makeCache(base, cached string, n names) error {
	removeOld(base)
	fresh, err := runFolder(base)
	if err != nil {
		return err
	}
	s, err := serve(fresh)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	err = prepare(ctx, s.URL, n)
	if err == nil {
		err = slim(ctx, withDatabase(s.URL, n.tx))
	}
	if err := errors.Join(err, s.Stop()); err != nil {
		return err
	}
	return os.Rename(fresh, cached)
}

// slim drops initdb's databases that no test needs: two fifths of what each run copies.
func slim(ctx context.Context, url string) error {
	c, err := pgx.Connect(ctx, url)
	if err != nil {
		return err
	}
	defer func() { _ = c.Close(ctx) }()
	for _, sql := range []string{`ALTER DATABASE template1 IS_TEMPLATE false`, `DROP DATABASE template1`, `DROP DATABASE postgres`} {
		if _, err := c.Exec(ctx, sql); err != nil {
			return err
		}
	}
	return nil
}

func removeOld(base string) {
	found, _ := filepath.Glob(filepath.Join(base, "*-*"))
	for _, dir := range found {
		st, err := os.Stat(dir)
		if err == nil && time.Since(st.ModTime()) > time.Hour {
			_ = os.RemoveAll(dir)
		}
	}
}

// runFolder makes a folder that is removed when this process ends, also by kill -9: a shell waits for the end of a pipe
// that only this process holds open, and for the server, which the kernel ends at the same moment.
func runFolder(base string) (string, error) {
	dir, err := os.MkdirTemp(base, "run-")
	if err != nil {
		return "", err
	}
	if err := os.Chmod(dir, 0o711); err != nil { // #nosec G302 -- as root, Postgres runs as another account
		return "", err
	}
	const script = `cat; n=0; while [ -e "$0"/pg*/data/postmaster.pid ] && [ $n -lt 300 ]; do sleep 0.05; n=$((n+1)); done; rm -rf "$0"`
	c := exec.Command("/bin/sh", "-c", script, dir)     // #nosec G204 -- our own folder
	c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // a terminal's ^C must not reach it
	if _, err := c.StdinPipe(); err != nil {
		return "", err
	}
	waiting = append(waiting, c)
	return dir, c.Start()
}

// waiting keeps the pipes reachable: a collected one is closed.
var waiting []*exec.Cmd

func lock(path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600) // #nosec G304 -- our own folder
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != nil { // #nosec G115 -- a descriptor is small
		return nil, err
	}
	return func() { _ = f.Close() }, nil
}
