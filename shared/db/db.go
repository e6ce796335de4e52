// Package db owns the way to Postgres: opening a pool that survives frozen functions and poolers, transactions, and the
// translation of constraint violations and lost connections into faults.
//
// It knows no table. Nouns hold their SQL beside the function that runs it and take a Querier, so that the same function
// runs on a pool, in a transaction, or in a test's transaction that is rolled back.
package db

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"time"

	"certctl/shared/fault"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// Querier is what a read or a single statement needs: a pool or a transaction.
type Querier interface {
	Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error)
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

// Beginner starts transactions: a pool, or a transaction (then a savepoint, which is what tests use).
type Beginner interface {
	Querier
	Begin(ctx context.Context) (pgx.Tx, error)
}

// Config of a pool.
type Config struct {
	URL      string // postgres://…; default_query_exec_mode may be set there for poolers
	MaxConns int32  // 0: pgx's default
}

// idle connections older than this (wall clock, which goes on while a function is frozen) are pinged before use.
const trustedIdle = 3 * time.Second

// Open makes a pool. It opens no connection: a function that is not asked pays nothing.
func Open(ctx context.Context, c Config) (*pgxpool.Pool, error) {
	pc, err := pgxpool.ParseConfig(c.URL)
	if err != nil {
		return nil, errors.New("the database URL is malformed") // the cause would repeat the URL and its password
	}
	if c.MaxConns > 0 {
		pc.MaxConns = c.MaxConns
	}
	pc.ConnConfig.ConnectTimeout = 5 * time.Second
	if pc.ConnConfig.RuntimeParams["application_name"] == "" {
		pc.ConnConfig.RuntimeParams["application_name"] = "certctl"
	}
	pc.ConnConfig.RuntimeParams["timezone"] = "UTC"
	pc.AfterRelease = func(c *pgx.Conn) bool {
		c.PgConn().CustomData()["used"] = time.Now().Round(0) // Round drops the monotonic reading
		return true
	}
	pc.PrepareConn = func(ctx context.Context, c *pgx.Conn) (bool, error) {
		used, ok := c.PgConn().CustomData()["used"].(time.Time)
		if !ok || time.Since(used) < trustedIdle {
			return true, nil
		}
		ctx, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		return c.Ping(ctx) == nil, nil
	}
	return pgxpool.NewWithConfig(ctx, pc)
}

// InTx runs fn in one transaction at read committed and commits if it returns nil.
func InTx(ctx context.Context, b Beginner, fn func(tx pgx.Tx) error) error {
	tx, err := b.Begin(ctx)
	if err != nil {
		return Fault(err)
	}
	defer func() {
		// The caller's context may be over already; a rollback must still reach the server.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
		defer cancel()
		_ = tx.Rollback(ctx)
	}()
	if err := fn(tx); err != nil {
		return Fault(err)
	}
	return Fault(tx.Commit(ctx))
}

// Exec runs a statement and returns the number of rows it changed.
func Exec(ctx context.Context, q Querier, sql string, args ...any) (int64, error) {
	tag, err := q.Exec(ctx, sql, args...)
	return tag.RowsAffected(), Fault(err)
}

// Many collects all rows into structs by column name.
func Many[T any](ctx context.Context, q Querier, sql string, args ...any) ([]T, error) {
	rows, err := q.Query(ctx, sql, args...)
	if err != nil {
		return nil, Fault(err)
	}
	out, err := pgx.CollectRows(rows, pgx.RowToStructByName[T])
	return out, Fault(err)
}

// One reads exactly one row into a struct by column name. No row is a NotFound fault whose text says what is missing.
func One[T any](ctx context.Context, q Querier, what, sql string, args ...any) (T, error) {
	rows, err := q.Query(ctx, sql, args...)
	if err != nil {
		var zero T
		return zero, Fault(err)
	}
	out, err := pgx.CollectOneRow(rows, pgx.RowToStructByName[T])
	if errors.Is(err, pgx.ErrNoRows) {
		return out, fault.New(fault.NotFound, "There is no such %s.", what)
	}
	return out, Fault(err)
}

// Scalar reads one value of one row. No row is pgx.ErrNoRows.
func Scalar[T any](ctx context.Context, q Querier, sql string, args ...any) (T, error) {
	var v T
	err := q.QueryRow(ctx, sql, args...).Scan(&v)
	return v, Fault(err)
}

// Constraint is the name of the violated constraint in err's chain, or "".
func Constraint(err error) string {
	var pe *pgconn.PgError
	if errors.As(err, &pe) {
		return pe.ConstraintName
	}
	return ""
}

// Fault turns what the server or the network said into a fault. Nouns turn constraints that a caller can meet into better
// texts before this; what is left is our mistake and stays as it is.
func Fault(err error) error {
	if err == nil || fault.As(err) != nil || errors.Is(err, pgx.ErrNoRows) {
		return err
	}
	var pe *pgconn.PgError
	if errors.As(err, &pe) {
		switch {
		case pe.Code == "23505": // unique_violation
			return fault.Wrap(err, fault.Conflict, "A record with this name or key exists already.")
		case pe.Code == "40001", pe.Code == "40P01": // serialization, deadlock: safe to try again
			return fault.Wrap(err, fault.Unavailable, "The database asked to try again.").After(time.Second)
		case strings.HasPrefix(pe.Code, "08"), strings.HasPrefix(pe.Code, "57P"), pe.Code == "53300", pe.Code == "25006":
			return away(err)
		}
		return err
	}
	var ce *pgconn.ConnectError
	var ne net.Error
	switch {
	case errors.As(err, &ce), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, io.EOF), errors.Is(err, net.ErrClosed),
		pgconn.SafeToRetry(err), pgconn.Timeout(err), errors.As(err, &ne), strings.Contains(err.Error(), "conn closed"):
		return away(err)
	}
	return err
}

func away(err error) error {
	return fault.Wrap(err, fault.Unavailable, "The database is away. Nothing was changed, or the answer was lost; try again with the same Idempotency-Key.").After(5 * time.Second)
}

// SchemaVersion is the version that the migrations have reached, 0 on an empty database.
func SchemaVersion(ctx context.Context, q Querier) (int64, error) {
	v, err := Scalar[int64](ctx, q, `SELECT coalesce(max(version_id) FILTER (WHERE is_applied), 0) FROM goose_db_version`)
	var pe *pgconn.PgError
	if errors.As(err, &pe) && pe.Code == "42P01" { // undefined_table
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("reading the schema version: %w", err)
	}
	return v, nil
}
