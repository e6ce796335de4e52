package lifecycle_test

import (
	"context"
	"crypto"
	"io"
	"sync"

	"certctl/shared/db"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// points is a database whose use is counted: before and after each statement, begin and commit, at is called with the number
// of the moment. A panic in it is a process that is killed there; anything else is what other processes do meanwhile.
type points struct {
	db.Beginner
	n  int
	at func(n int)
}

func (p *points) pass() {
	p.n++
	p.at(p.n)
}

func (p *points) Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error) {
	p.pass()
	defer p.after()()
	return p.Beginner.Exec(ctx, sql, args...)
}

// after passes a moment when the caller is done, unless it panics already.
func (p *points) after() func() {
	return func() {
		if r := recover(); r != nil {
			panic(r)
		}
		p.pass()
	}
}

func (p *points) Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error) {
	p.pass()
	rows, err := p.Beginner.Query(ctx, sql, args...)
	if err != nil {
		return rows, err
	}
	return &endingRows{Rows: rows, end: p.pass}, nil
}

func (p *points) QueryRow(ctx context.Context, sql string, args ...any) pgx.Row {
	p.pass()
	return endingRow{p.Beginner.QueryRow(ctx, sql, args...), p.pass}
}

func (p *points) Begin(ctx context.Context) (pgx.Tx, error) {
	p.pass()
	tx, err := p.Beginner.Begin(ctx)
	if err != nil {
		return nil, err
	}
	return &pointsTx{Tx: tx, points: &points{Beginner: tx, at: func(int) { p.pass() }}}, nil
}

// endingRows passes its moment once the server has carried the statement out.
type endingRows struct {
	pgx.Rows
	end  func()
	once sync.Once
}

func (r *endingRows) Close() {
	r.Rows.Close()
	r.once.Do(r.end)
}

type endingRow struct {
	pgx.Row
	end func()
}

func (r endingRow) Scan(to ...any) error {
	err := r.Row.Scan(to...)
	r.end()
	return err
}

type pointsTx struct {
	pgx.Tx
	points *points
}

func (t *pointsTx) Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error) {
	return t.points.Exec(ctx, sql, args...)
}

func (t *pointsTx) Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error) {
	return t.points.Query(ctx, sql, args...)
}

func (t *pointsTx) QueryRow(ctx context.Context, sql string, args ...any) pgx.Row {
	return t.points.QueryRow(ctx, sql, args...)
}

func (t *pointsTx) Commit(ctx context.Context) error {
	t.points.pass()
	err := t.Tx.Commit(ctx)
	t.points.pass()
	return err
}

type killed struct{}

// killedAt runs fn on a database that ends at moment k, and reports whether it came so far.
func killedAt(b db.Beginner, k int, fn func(b db.Beginner)) (died bool) {
	defer func() {
		switch r := recover(); r {
		case nil:
		case killed{}:
			died = true
		default:
			panic(r)
		}
	}()
	fn(&points{Beginner: b, at: func(n int) {
		if n == k {
			panic(killed{})
		}
	}})
	return false
}

// signatures counts the different digests that a key was asked to sign: one per certificate.
type signatures struct {
	crypto.Signer
	mu      sync.Mutex
	digests map[string]bool
}

// Deterministic says what the wrapped key is, one of the standard library's.
func (s *signatures) Deterministic() {}

func (s *signatures) Sign(random io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.digests[string(digest)] = true
	return s.Signer.Sign(random, digest, opts)
}

func (s *signatures) take() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := len(s.digests)
	clear(s.digests)
	return n
}
