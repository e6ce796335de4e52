// Package migrate brings a database's schema up to the embedded migrations, forward only.
//
// Only the operator's program links it; functions compare db.SchemaVersion with migrations.Latest.
package migrate

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"time"

	"certctl/migrations"
	"certctl/shared/db"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"
)

// State is what a database has and what this program brings.
type State struct {
	Current int64 // 0: an empty database
	Latest  int64
}

// Pending reports whether Up has something to do. A Current above Latest means that a newer program migrated.
func (s State) Pending() bool { return s.Current < s.Latest }

// Up applies what is missing, each migration in its own transaction. Several callers at once are fine: one applies, the
// others wait for it and find nothing left. A database that is ahead of this program is left alone. log may be nil.
func Up(ctx context.Context, url string, log *slog.Logger) error {
	return up(ctx, url, migrations.FS, log)
}

func up(ctx context.Context, url string, files fs.FS, log *slog.Logger) error {
	c, err := connConfig(url)
	if err != nil {
		return err
	}
	conns := stdlib.OpenDB(*c)
	defer func() { _ = conns.Close() }()
	p, err := goose.NewProvider(goose.DialectPostgres, conns, files,
		goose.WithSessionLocker(advisory{}), goose.WithDisableGlobalRegistry(true))
	if err != nil {
		return fmt.Errorf("reading the migrations: %w", err)
	}
	applied, err := p.Up(ctx)
	if err != nil {
		return fmt.Errorf("migrating the database: %w", err)
	}
	for _, m := range applied {
		if log != nil {
			log.InfoContext(ctx, "migrated", "migration", m.Source.Path, "took", m.Duration)
		}
	}
	return nil
}

// Status reads both versions and changes nothing.
func Status(ctx context.Context, url string) (State, error) {
	c, err := connConfig(url)
	if err != nil {
		return State{}, err
	}
	conn, err := pgx.ConnectConfig(ctx, c)
	if err != nil {
		return State{}, fmt.Errorf("reading the schema version: %w", db.Fault(err))
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	current, err := db.SchemaVersion(ctx, conn)
	return State{Current: current, Latest: migrations.Latest()}, err
}

func connConfig(url string) (*pgx.ConnConfig, error) {
	c, err := pgx.ParseConfig(url)
	if err != nil {
		return nil, errors.New("the database URL is malformed") // the cause would repeat the URL and its password
	}
	c.ConnectTimeout = 10 * time.Second
	c.RuntimeParams["timezone"] = "UTC"
	return c, nil
}

// advisory is a lock on the one connection that goose migrates on. It polls instead of waiting in pg_advisory_lock, whose
// snapshot would hold up a CREATE INDEX CONCURRENTLY of the migrator it waits for, for ever.
type advisory struct{}

const lockID = 0x63657274_6d696772 // "certmigr"

// SessionLock implements lock.SessionLocker.
func (advisory) SessionLock(ctx context.Context, c *sql.Conn) error {
	for {
		var got bool
		if err := c.QueryRowContext(ctx, `SELECT pg_try_advisory_lock($1)`, int64(lockID)).Scan(&got); err != nil {
			return fmt.Errorf("locking the database for migration: %w", err)
		}
		if got {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waiting for another migration: %w", ctx.Err())
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// SessionUnlock implements lock.SessionLocker.
func (advisory) SessionUnlock(ctx context.Context, c *sql.Conn) error {
	_, err := c.ExecContext(ctx, `SELECT pg_advisory_unlock($1)`, int64(lockID))
	return err
}
