package pglocal

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// server makes a folder that claims to be a server of a version.
func server(t *testing.T, major int) string {
	t.Helper()
	dir := t.TempDir()
	script := fmt.Sprintf("#!/bin/sh\necho 'postgres (PostgreSQL) %d.1'\n", major)
	for _, name := range []string{"initdb", "postgres"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(script), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func withData(t *testing.T, majors ...int) string {
	t.Helper()
	dir := t.TempDir()
	for _, m := range majors {
		data := filepath.Join(dir, fmt.Sprintf("pg%d", m), "data")
		if err := os.MkdirAll(data, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(data, "PG_VERSION"), fmt.Appendln(nil, m), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// fetcher has the versions named, and takes the first when it may choose.
func fetcher(t *testing.T, majors ...int) Fetcher {
	return func(_ context.Context, major int) (string, error) {
		for _, m := range majors {
			if major == 0 || major == m {
				return server(t, m), nil
			}
		}
		return "", errors.New("no network")
	}
}

// 90 and above are versions that no machine has installed.
func TestTheDataSettlesTheVersion(t *testing.T) {
	for name, c := range map[string]struct {
		o    Options
		want int
	}{
		"an empty folder takes the named server":    {Options{Dir: withData(t), Bin: server(t, 91)}, 91},
		"the named server fits":                     {Options{Dir: withData(t, 91), Bin: server(t, 91)}, 91},
		"fetched for the data":                      {Options{Dir: withData(t, 91), Fetch: fetcher(t, 92, 91)}, 91},
		"of two databases the newer":                {Options{Dir: withData(t, 91, 92), Bin: server(t, 92)}, 92},
		"a half-made database is none":              {Options{Dir: t.TempDir(), Bin: server(t, 90)}, 90},
		"three digits sort as numbers, not as text": {Options{Dir: withData(t, 99, 100), Bin: server(t, 100)}, 100},
	} {
		t.Run(name, func(t *testing.T) {
			b, err := choose(t.Context(), c.o)
			if err != nil || b.major != c.want {
				t.Errorf("chose version %d, %v; want %d", b.major, err, c.want)
			}
		})
	}
}

func TestDataOfAnotherVersionIsRefusedWithTheWayOut(t *testing.T) {
	for name, o := range map[string]Options{
		"only other servers installed":   {},
		"another server named":           {Bin: server(t, 92)},
		"fetching fails":                 {Fetch: fetcher(t)},
		"fetching brings something else": {Fetch: func(context.Context, int) (string, error) { return server(t, 92), nil }},
	} {
		t.Run(name, func(t *testing.T) {
			o.Dir = withData(t, 91)
			_, err := Start(t.Context(), o)
			if err == nil {
				t.Fatal("started")
			}
			for _, part := range []string{o.Dir + "/pg91", "postgresql-91", "CERTCTL_POSTGRES_BIN", "pg_dumpall"} {
				if !strings.Contains(err.Error(), part) {
					t.Errorf("%q is missing from: %v", part, err)
				}
			}
			if made, _ := filepath.Glob(filepath.Join(o.Dir, "pg*")); len(made) != 1 {
				t.Errorf("beside the data there is %v", made)
			}
		})
	}
}

func TestAnOldOrBrokenServerIsRefused(t *testing.T) {
	for _, bin := range []string{server(t, 13), t.TempDir()} {
		if _, err := choose(t.Context(), Options{Dir: t.TempDir(), Bin: bin}); err == nil || !strings.Contains(err.Error(), "CERTCTL_POSTGRES_BIN") {
			t.Errorf("got %v, want an error that names CERTCTL_POSTGRES_BIN", err)
		}
	}
}

func TestAFolderThatTheAccountMayNotEnterIsNamed(t *testing.T) {
	other := account{credential: &syscall.Credential{Uid: 54321, Gid: 54321}, name: "other"}
	closed := filepath.Join(t.TempDir(), "closed")
	if err := os.MkdirAll(filepath.Join(closed, "open"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(closed, 0o700); err != nil {
		t.Fatal(err)
	}
	err := other.mayEnter(filepath.Join(closed, "open"))
	if err == nil || !strings.Contains(err.Error(), closed) || !strings.Contains(err.Error(), "other") {
		t.Errorf("got %v, want an error that names the account and %s", err, closed)
	}
	if err := other.mayEnter("/usr"); err != nil {
		t.Errorf("everybody may enter /usr: %v", err)
	}
}

func TestAForeignFolderInTheWayIsRefused(t *testing.T) {
	self := account{}
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(t.TempDir(), link); err != nil {
		t.Fatal(err)
	}
	if err := self.ownFolder(link); err == nil {
		t.Error("a symlink was taken for a folder")
	}
	other := account{credential: &syscall.Credential{Uid: 54321, Gid: 54321}}
	if os.Geteuid() != 0 {
		if err := other.ownFolder(t.TempDir()); err == nil {
			t.Error("a folder of another user was taken")
		}
	}
}
