package migrate_test

import (
	"context"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"certctl/migrations"
	"certctl/shared/db"
	"certctl/shared/dbtest"
	"certctl/shared/migrate"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"
)

// slow applies for half a second, so that two callers meet; applied twice, it fails.
var slow = fstest.MapFS{
	"0001_slow.sql": {Data: []byte("-- +goose Up\nCREATE TABLE once (i int);\nSELECT pg_sleep(0.5);\n")},
	"0002_next.sql": {Data: []byte("-- +goose Up\nALTER TABLE once ADD j int;\n")},
}

func TestTwoAtOnceOnAnEmptyDatabaseBothSucceed(t *testing.T) {
	t.Parallel()
	url := dbtest.EmptyURL(t)
	var g errgroup.Group
	for range 3 {
		g.Go(func() error { return migrate.UpFiles(t.Context(), url, slow, nil) })
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	if n := number(t, url, `SELECT count(*) FROM goose_db_version WHERE version_id > 0`); n != 2 {
		t.Errorf("%d migrations are recorded, want 2", n)
	}
}

func TestUpBringsTheSchemaAndStatusSaysSo(t *testing.T) {
	t.Parallel()
	url := dbtest.EmptyURL(t)
	expect(t, url, migrate.State{0, migrations.Latest()}, true)
	if n := number(t, url, `SELECT count(*) FROM pg_class WHERE relname = 'goose_db_version'`); n != 0 {
		t.Error("Status left a table in an empty database")
	}
	for range 2 { // the second finds nothing to do
		if err := migrate.Up(t.Context(), url, nil); err != nil {
			t.Fatal(err)
		}
		expect(t, url, migrate.State{migrations.Latest(), migrations.Latest()}, false)
	}
}

func TestADatabaseAheadOfTheProgramIsLeftAlone(t *testing.T) {
	t.Parallel()
	url := dbtest.URL(t)
	number(t, url, `INSERT INTO goose_db_version (version_id, is_applied) VALUES (9000, true) RETURNING 0`)
	if err := migrate.Up(t.Context(), url, nil); err != nil {
		t.Fatal(err)
	}
	expect(t, url, migrate.State{9000, migrations.Latest()}, false)
}

func TestAFailedMigrationLeavesNothingBehindAndFreesTheLock(t *testing.T) {
	t.Parallel()
	url := dbtest.EmptyURL(t)
	broken := fstest.MapFS{"0001_broken.sql": {Data: []byte("-- +goose Up\nCREATE TABLE half (i int);\nSELECT 1/0;\n")}}
	if err := migrate.UpFiles(t.Context(), url, broken, nil); err == nil {
		t.Fatal("a broken migration succeeded")
	}
	if err := migrate.UpFiles(t.Context(), url, slow, nil); err != nil {
		t.Fatal(err)
	}
	if n := number(t, url, `SELECT count(*) FROM pg_class WHERE relname = 'half'`); n != 0 {
		t.Error("half of the broken migration stayed")
	}
}

func TestWaitingForTheLockEndsWithTheContext(t *testing.T) {
	t.Parallel()
	url := dbtest.EmptyURL(t)
	c := connect(t, url)
	if _, err := c.Exec(t.Context(), `SELECT pg_advisory_lock($1)`, migrate.LockID); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if err := migrate.UpFiles(ctx, url, slow, nil); err == nil {
		t.Error("migrated although another session holds the lock")
	}
}

func TestAMalformedURLIsNotRepeated(t *testing.T) {
	for _, err := range []error{
		migrate.Up(t.Context(), "postgres://u:hunter2@[::1:5432/x", nil),
		func() error { _, err := migrate.Status(t.Context(), "postgres://u:hunter2@[::1:5432/x"); return err }(),
	} {
		if err == nil || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("got %v", err)
		}
	}
}

func expect(t *testing.T, url string, want migrate.State, pending bool) {
	t.Helper()
	got, err := migrate.Status(t.Context(), url)
	if err != nil || got != want || got.Pending() != pending {
		t.Errorf("status is %+v, %v; want %+v", got, err, want)
	}
}

func connect(t *testing.T, url string) *pgx.Conn {
	t.Helper()
	c, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close(context.Background()) })
	return c
}

func number(t *testing.T, url, sql string) int64 {
	t.Helper()
	n, err := db.Scalar[int64](t.Context(), connect(t, url), sql)
	if err != nil {
		t.Fatal(err)
	}
	return n
}
