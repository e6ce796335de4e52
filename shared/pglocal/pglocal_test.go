package pglocal_test

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"certctl/shared/pglocal"

	"github.com/jackc/pgx/v5"
)

// With this variable the test binary is an owner that starts a server in the folder named and waits to be killed.
const ownerVariable = "PGLOCAL_TEST_OWNER"

func TestMain(m *testing.M) {
	if dir := os.Getenv(ownerVariable); dir != "" {
		s, err := pglocal.Start(context.Background(), pglocal.Options{Dir: dir, Volatile: true})
		if err != nil {
			fmt.Println("error", err)
			os.Exit(1)
		}
		fmt.Println("ready", s.URL)
		select {}
	}
	os.Exit(m.Run())
}

func TestDataOutlivesStop(t *testing.T) {
	t.Parallel()
	dir := folder(t)
	s := start(t, dir)
	query(t, s.URL, `CREATE TABLE kept AS SELECT 42 AS v`)
	stop(t, s)
	expectNoServer(t, dir)
	if left, _ := filepath.Glob(filepath.Join(dir, "pg*", "socket")); len(left) != 0 {
		t.Errorf("the socket's folder was left: %v", left)
	}

	s = start(t, dir)
	if v := query(t, s.URL, `SELECT v::text FROM kept`); v != "42" {
		t.Errorf("after a restart the row reads %q, want 42", v)
	}
	select {
	case <-s.Done():
		t.Error("Done is closed while the server runs")
	default:
	}
	stop(t, s)
	<-s.Done()
}

func TestKilledOwnerTakesTheServerAlongAndARestartWorks(t *testing.T) {
	t.Parallel()
	dir := folder(t)
	owner, url := startOwner(t, dir)
	query(t, url, `CREATE TABLE kept AS SELECT 42 AS v`)

	if _, err := pglocal.Start(t.Context(), pglocal.Options{Dir: dir, Volatile: true}); err == nil ||
		!strings.Contains(err.Error(), "another process uses the database") {
		t.Errorf("a second owner got %v, want a refusal", err)
	}

	kill(t, owner)
	s := start(t, dir)
	if v := query(t, s.URL, `SELECT v::text FROM kept`); v != "42" {
		t.Errorf("after the kill the row reads %q, want 42", v)
	}
	stop(t, s)

	owner, _ = startOwner(t, dir)
	kill(t, owner)
	expectNoServer(t, dir)
}

// A stopped backend holds up the shutdown. (A stopped postmaster does not: the kernel continues the members of a process
// group whose parent dies.)
func TestARestartWaitsForTheServerOfAKilledOwner(t *testing.T) {
	t.Parallel()
	dir := folder(t)
	owner, url := startOwner(t, dir)
	c, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close(context.Background()) }()
	backend := int(c.PgConn().PID())
	if err := syscall.Kill(backend, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Kill(backend, syscall.SIGCONT) })
	kill(t, owner)

	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if _, err := pglocal.Start(ctx, pglocal.Options{Dir: dir, Volatile: true}); err == nil || !strings.Contains(err.Error(), "waiting for the Postgres server") {
		t.Errorf("beside a living backend Start got %v, want an error that says what it waited for", err)
	}
	if err := syscall.Kill(backend, syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	stop(t, start(t, dir))
}

func TestLockFilesOfAPidThatLivesAgainAreIgnored(t *testing.T) {
	t.Parallel()
	dir := folder(t)
	s := start(t, dir)
	data := filepath.Join(dir, fmt.Sprintf("pg%d", s.Version), "data")
	stop(t, s)
	foreign := fmt.Sprintf("%d\n%s\n0\n5432\n\n\n\nready\n", os.Getpid(), data)
	socket := filepath.Join(filepath.Dir(data), "socket")
	if err := os.Mkdir(socket, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, f := range []string{filepath.Join(data, "postmaster.pid"), filepath.Join(socket, ".s.PGSQL.5432.lock")} {
		if err := os.WriteFile(f, []byte(foreign), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s = start(t, dir)
	query(t, s.URL, `SELECT 'x'`)
	stop(t, s)
}

func TestKilledInitdbLeavesNothingInTheWay(t *testing.T) {
	t.Parallel()
	dir := folder(t)
	owner := command(t, dir)
	if err := owner.Start(); err != nil {
		t.Fatal(err)
	}
	fresh := filepath.Join(dir, "pg*", "data.new-*", "base")
	eventually(t, "initdb to be under way", func() bool { m, _ := filepath.Glob(fresh); return len(m) == 1 })
	kill(t, owner)
	if done, _ := filepath.Glob(filepath.Join(dir, "pg*", "data")); len(done) != 0 {
		t.Fatal("initdb was through before it could be killed")
	}
	s := start(t, dir)
	query(t, s.URL, `SELECT 'x'`)
	stop(t, s)
}

func TestALongPathGetsItsSocketElsewhere(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(folder(t), strings.Repeat("long", 25))
	s := start(t, dir)
	query(t, s.URL, `SELECT 'x'`)
	stop(t, s)
}

func TestStartEndsWithItsContext(t *testing.T) {
	t.Parallel()
	dir := folder(t)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := pglocal.Start(ctx, pglocal.Options{Dir: dir, Volatile: true}); err == nil {
		t.Fatal("a start within 50 ms, initdb included, is not to be believed")
	}
	expectNoServer(t, dir)
}

// folder lies where the account that runs Postgres as root may enter, which t.TempDir does not.
func folder(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "pglocal")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o711); err != nil {
		t.Fatal(err)
	}
	return dir
}

func start(t *testing.T, dir string) *pglocal.Server {
	t.Helper()
	s, err := pglocal.Start(t.Context(), pglocal.Options{Dir: dir, Volatile: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Stop() })
	return s
}

func stop(t *testing.T, s *pglocal.Server) {
	t.Helper()
	if err := s.Stop(); err != nil {
		t.Fatal(err)
	}
}

func command(t *testing.T, dir string) *exec.Cmd {
	t.Helper()
	c := exec.Command(os.Args[0])
	c.Env = append(os.Environ(), ownerVariable+"="+dir)
	t.Cleanup(func() { _ = c.Process.Kill(); _ = c.Wait() })
	return c
}

func startOwner(t *testing.T, dir string) (*exec.Cmd, string) {
	t.Helper()
	c := command(t, dir)
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	url, ok := strings.CutPrefix(strings.TrimSpace(line), "ready ")
	if err != nil || !ok {
		t.Fatalf("the owner said %q, %v", line, err)
	}
	return c, url
}

func kill(t *testing.T, c *exec.Cmd) {
	t.Helper()
	if err := c.Process.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	_ = c.Wait()
}

func query(t *testing.T, url, sql string) (value string) {
	t.Helper()
	c, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close(t.Context()) }()
	rows, err := c.Query(t.Context(), sql)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	for rows.Next() {
		if err := rows.Scan(&value); err != nil {
			t.Fatal(err)
		}
	}
	if rows.Err() != nil {
		t.Fatal(rows.Err())
	}
	return value
}

// expectNoServer looks for processes whose working folder is in dir.
func expectNoServer(t *testing.T, dir string) {
	t.Helper()
	eventually(t, "the server to be gone", func() bool {
		procs, _ := filepath.Glob("/proc/[0-9]*")
		for _, p := range procs {
			cwd, err := os.Readlink(filepath.Join(p, "cwd"))
			pid, _ := strconv.Atoi(filepath.Base(p))
			if err == nil && pid != os.Getpid() && strings.HasPrefix(cwd, dir) {
				return false
			}
		}
		return true
	})
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(5 * time.Second); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}
