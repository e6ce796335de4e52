package db_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"certctl/shared/db"
	"certctl/shared/dbtest"
	"certctl/shared/fault"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

func TestInTxCommitsOrLeavesNothing(t *testing.T) {
	t.Parallel()
	pool := dbtest.Pool(t)
	insert := func(tx pgx.Tx, name string) error {
		_, err := db.Exec(t.Context(), tx, `INSERT INTO teams (id, name) VALUES (uuid7(), $1)`, name)
		return err
	}
	boom := errors.New("boom")
	for name, fn := range map[string]func(tx pgx.Tx) error{
		"kept":   func(tx pgx.Tx) error { return insert(tx, "kept") },
		"failed": func(tx pgx.Tx) error { return errors.Join(insert(tx, "failed"), boom) },
		"inner fails": func(tx pgx.Tx) error {
			_ = db.InTx(t.Context(), tx, func(tx pgx.Tx) error { return errors.Join(insert(tx, "inner"), boom) })
			return insert(tx, "outer")
		},
	} {
		if err := db.InTx(t.Context(), pool, fn); (err != nil) != (name == "failed") {
			t.Errorf("%s: %v", name, err)
		}
	}
	func() {
		defer func() { _ = recover() }()
		_ = db.InTx(t.Context(), pool, func(tx pgx.Tx) error { _ = insert(tx, "panicked"); panic("x") })
	}()
	got, err := db.Scalar[string](t.Context(), pool, `SELECT string_agg(name, ' ' ORDER BY name) FROM teams`)
	if err != nil || got != "kept outer" {
		t.Errorf("%q, %v", got, err)
	}
	for end := time.Now().Add(5 * time.Second); pool.Stat().AcquiredConns() != 0; time.Sleep(time.Millisecond) { // the pool takes back in the background
		if time.Now().After(end) {
			t.Fatalf("%d connections are held", pool.Stat().AcquiredConns())
		}
	}
}

func TestATransactionWhoseCallerIsGoneIsRolledBack(t *testing.T) {
	t.Parallel()
	pool := dbtest.Pool(t)
	ctx, cancel := context.WithCancel(t.Context())
	err := db.InTx(ctx, pool, func(tx pgx.Tx) error {
		_, err := db.Exec(ctx, tx, `INSERT INTO teams (id, name) VALUES (uuid7(), 'x')`)
		cancel()
		return err
	})
	if err == nil {
		t.Error("committed for a caller that is gone")
	}
	if n, err := db.Scalar[int](t.Context(), pool, `SELECT count(*)::int FROM teams`); err != nil || n != 0 {
		t.Errorf("%d rows, %v", n, err)
	}
}

func TestWhatTheServerSaysBecomesAFault(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		err  error
		want fault.Kind
	}{
		"unique":          {&pgconn.PgError{Code: "23505"}, fault.Conflict},
		"serialization":   {&pgconn.PgError{Code: "40001"}, fault.Unavailable},
		"deadlock":        {&pgconn.PgError{Code: "40P01"}, fault.Unavailable},
		"shutdown":        {&pgconn.PgError{Code: "57P01"}, fault.Unavailable},
		"too many":        {&pgconn.PgError{Code: "53300"}, fault.Unavailable},
		"read only":       {&pgconn.PgError{Code: "25006"}, fault.Unavailable},
		"connection":      {fmt.Errorf("reading: %w", io.ErrUnexpectedEOF), fault.Unavailable},
		"check violation": {&pgconn.PgError{Code: "23514"}, ""},
		"permission":      {&pgconn.PgError{Code: "42501"}, ""},
		"our mistake":     {errors.New("x"), ""},
	} {
		got := db.Fault(c.err)
		if f := fault.As(got); (f == nil) != (c.want == "") || f != nil && f.Kind != c.want || !errors.Is(got, c.err) {
			t.Errorf("%s: %v", name, got)
		}
	}
	already := fault.New(fault.Denied, "no")
	if db.Fault(already) != error(already) || db.Fault(nil) != nil || db.Fault(pgx.ErrNoRows) != pgx.ErrNoRows {
		t.Error("what needs no translation was translated")
	}
}

func TestNoRowIsNotFoundAndSaysWhat(t *testing.T) {
	t.Parallel()
	tx := dbtest.Tx(t)
	type row struct{ N int }
	if _, err := db.One[row](t.Context(), tx, "team", `SELECT 1 AS n WHERE false`); !fault.Is(err, fault.NotFound) || !strings.Contains(err.Error(), "no such team") {
		t.Error(err)
	}
	if got, err := db.Many[row](t.Context(), tx, `SELECT 1 AS n WHERE false`); err != nil || len(got) != 0 {
		t.Errorf("%v, %v", got, err)
	}
}

func TestAMalformedURLIsNotRepeated(t *testing.T) {
	t.Parallel()
	_, err := db.Open(t.Context(), db.Config{URL: "postgres://user:hunter2@host:port/x"})
	if err == nil || strings.Contains(err.Error(), "hunter2") {
		t.Error(err)
	}
}

func TestAConnectionThatDiedWhileIdleIsReplaced(t *testing.T) {
	t.Parallel()
	pool, err := db.Open(t.Context(), db.Config{URL: dbtest.URL(t), MaxConns: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	admin := dbtest.Pool(t)
	pid, err := db.Scalar[int](t.Context(), pool, `SELECT pg_backend_pid()`)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := admin.Exec(t.Context(), `SELECT pg_terminate_backend($1)`, pid); err != nil {
		t.Fatal(err)
	}
	time.Sleep(3100 * time.Millisecond) // idle for longer than is trusted
	if next, err := db.Scalar[int](t.Context(), pool, `SELECT pg_backend_pid()`); err != nil || next == pid {
		t.Errorf("%d after %d, %v", next, pid, err)
	}
}

func TestTheSchemaVersionOfAnEmptyDatabaseIsZero(t *testing.T) {
	t.Parallel()
	pool, err := db.Open(t.Context(), db.Config{URL: dbtest.EmptyURL(t), MaxConns: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	if v, err := db.SchemaVersion(t.Context(), pool); err != nil || v != 0 {
		t.Errorf("%d, %v", v, err)
	}
}
