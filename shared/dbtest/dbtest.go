// Package dbtest gives tests a real Postgres with the schema in it.
//
// Each test binary has a server of its own, started at first use (0.2 to 0.3 s) from a cached, migrated data folder and
// gone with the binary, however that ends. With CERTCTL_TEST_DATABASE_URL, a superuser's URL, that server is used instead,
// and databases certctl_test_* are made in it.
//
// Tx is the usual way: a transaction that is rolled back. Code that commits, or that needs several connections, takes Pool;
// a program under test takes URL.
package dbtest

import (
	"context"
	"crypto/rand"
	"fmt"
	"net/url"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"certctl/shared/db"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// Variable names a server to use instead of an own one.
const Variable = "CERTCTL_TEST_DATABASE_URL"

type server struct {
	admin *pgxpool.Pool // on the database that databases are made from
	tx    *pgxpool.Pool // on the database that only transactions use that are rolled back
	url   string
	names names
}

var shared = sync.OnceValues(start)

func start() (*server, error) {
	n := nameAll()
	url, err := serverURL(n)
	if err != nil {
		return nil, err
	}
	s := &server{url: url, names: n}
	if s.admin, err = db.Open(context.Background(), db.Config{URL: url, MaxConns: 4}); err != nil {
		return nil, err
	}
	s.tx, err = db.Open(context.Background(), db.Config{URL: withDatabase(url, n.tx), MaxConns: 40})
	return s, err
}

// serverURL answers a server that holds the template and the database for transactions.
func serverURL(n names) (string, error) {
	url := os.Getenv(Variable)
	if url == "" {
		return startOwn(n)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	return url, prepare(ctx, url, n)
}

func serverFor(t testing.TB) *server {
	t.Helper()
	s, err := shared()
	if err != nil {
		t.Fatalf("no Postgres for tests: %v", err)
	}
	return s
}

// Tx is a transaction that is rolled back at the end of the test. Parallel tests share one database: a unique value that
// another open transaction has inserted is waited for, so names are best made random.
func Tx(t testing.TB) pgx.Tx {
	t.Helper()
	tx, err := serverFor(t).tx.Begin(t.Context())
	if err != nil {
		t.Fatalf("beginning a test's transaction: %v", err)
	}
	t.Cleanup(func() { _ = tx.Rollback(context.Background()) })
	return tx
}

// Pool is a pool on a database of the test's own, dropped at its end.
func Pool(t testing.TB) *pgxpool.Pool {
	t.Helper()
	p, err := db.Open(context.Background(), db.Config{URL: URL(t), MaxConns: 16})
	if err != nil {
		t.Fatalf("opening a test's database: %v", err)
	}
	t.Cleanup(p.Close)
	return p
}

// URL is that of a database of the test's own with the schema in it, as a superuser, dropped at its end.
func URL(t testing.TB) string {
	t.Helper()
	return clone(t, "TEMPLATE "+serverFor(t).names.template)
}

// EmptyURL is URL without the schema.
func EmptyURL(t testing.TB) string {
	t.Helper()
	return clone(t, "TEMPLATE template0")
}

func clone(t testing.TB, options string) string {
	t.Helper()
	s := serverFor(t)
	name := "certctl_test_" + strings.ToLower(rand.Text()[:12])
	if _, err := s.admin.Exec(t.Context(), "CREATE DATABASE "+name+" "+options); err != nil {
		t.Fatalf("making a test's database: %v", err)
	}
	t.Cleanup(func() {
		if _, err := s.admin.Exec(context.Background(), "DROP DATABASE "+name+" WITH (FORCE)"); err != nil {
			t.Errorf("dropping the test's database: %v", err)
		}
	})
	return withDatabase(s.url, name)
}

func withDatabase(root, name string) string {
	u, err := url.Parse(root)
	if err != nil {
		panic(fmt.Sprintf("%s is no URL", Variable))
	}
	u.Path = "/" + name
	return u.String()
}
