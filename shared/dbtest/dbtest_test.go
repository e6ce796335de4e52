package dbtest_test

import (
	"bufio"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"certctl/migrations"
	"certctl/shared/db"
	"certctl/shared/dbtest"
)

func TestTxIsRolledBackAndSeesTheSchema(t *testing.T) {
	v, err := db.SchemaVersion(t.Context(), dbtest.Tx(t))
	if err != nil || v != migrations.Latest() || v == 0 {
		t.Fatalf("schema version %d, %v; want %d", v, err, migrations.Latest())
	}
	t.Run("first", func(t *testing.T) { makeTable(t) })
	t.Run("second finds nothing of the first", func(t *testing.T) { makeTable(t) })
}

func makeTable(t *testing.T) {
	t.Helper()
	if _, err := dbtest.Tx(t).Exec(t.Context(), `CREATE TABLE once (i int)`); err != nil {
		t.Fatal(err)
	}
}

func TestPoolIsADatabaseOfTheTestsOwn(t *testing.T) {
	for range 2 {
		t.Run("pool", func(t *testing.T) {
			t.Parallel()
			p := dbtest.Pool(t)
			if _, err := p.Exec(t.Context(), `CREATE TABLE once (i int)`); err != nil {
				t.Fatal(err)
			}
			if v, err := db.SchemaVersion(t.Context(), p); err != nil || v != migrations.Latest() {
				t.Errorf("schema version %d, %v; want %d", v, err, migrations.Latest())
			}
		})
	}
}

// With this variable TestOwner is the test of another process: it says where its server is and then waits.
const ownerVariable = "DBTEST_TEST_OWNER"

func TestOwner(t *testing.T) {
	if os.Getenv(ownerVariable) == "" {
		return
	}
	fmt.Println("url", dbtest.URL(t))
	select {}
}

func TestAKilledTestBinaryLeavesNoServerAndNoFolder(t *testing.T) {
	t.Parallel()
	c := exec.Command(os.Args[0], "-test.run=^TestOwner$")
	c.Env = append(os.Environ(), ownerVariable+"=1", dbtest.Variable+"=")
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Process.Kill(); _ = c.Wait() }()
	folder := runFolder(t, bufio.NewScanner(out))
	if _, err := os.Stat(folder); err != nil {
		t.Fatal(err)
	}
	if err := c.Process.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if _, err := os.Stat(folder); os.IsNotExist(err) && !serverIn(folder) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("after 10 s %s or its server is still there", folder)
		}
	}
}

// runFolder is the folder of the process whose output is read: <folder>/pg<major>/socket is in its URL.
func runFolder(t *testing.T, out *bufio.Scanner) string {
	t.Helper()
	for out.Scan() {
		if text, ok := strings.CutPrefix(out.Text(), "url "); ok {
			u, err := url.Parse(text)
			if err != nil {
				t.Fatal(err)
			}
			return filepath.Dir(filepath.Dir(u.Query().Get("host")))
		}
	}
	t.Fatal("the other process did not say where its server is")
	return ""
}

func serverIn(folder string) bool {
	procs, _ := filepath.Glob("/proc/[0-9]*/cwd")
	for _, p := range procs {
		if cwd, err := os.Readlink(p); err == nil && strings.HasPrefix(cwd, folder) {
			return true
		}
	}
	return false
}
