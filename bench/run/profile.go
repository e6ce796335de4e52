package main

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime/pprof"
	"time"

	"certctl/bench/fleet"
	"certctl/shared/agentapi"
	"certctl/shared/endpoint"
	"certctl/shared/responder"
	"certctl/shared/wire"

	"github.com/jackc/pgx/v5"
)

// profile runs the three largest paths inside this process and keeps, for each, a CPU profile and what Postgres planned and
// ran: bench/out/{issue,poll,ocsp}.pprof and the raw lines. It is not part of a run unless it is named.
func (b *bench) profile(ctx context.Context) error {
	h, err := b.house(ctx, "profile")
	if err != nil {
		return err
	}
	defer h.close(ctx)
	if err := h.watchStatements(ctx); err != nil {
		return err
	}
	if err := h.fleet(ctx, fleet.Size{Certificates: 10_000}); err != nil {
		return err
	}
	n := pick(b, 600, 200)
	if err := h.order(ctx, n); err != nil {
		return err
	}
	if err := h.profiled(ctx, "issue", n, func() error { _, err := h.worker().Tick(ctx); return err }); err != nil {
		return err
	}
	n = pick(b, 20_000, 4000)
	if err := h.profilePoll(ctx, n); err != nil {
		return err
	}
	return h.profileOCSP(ctx, n)
}

// watchStatements makes the database count what it plans and runs. A setting of the database wins over the command line.
func (h *house) watchStatements(ctx context.Context) error {
	c, err := pgx.Connect(ctx, h.url)
	if err != nil {
		return err
	}
	defer func() { _ = c.Close(ctx) }()
	for _, sql := range []string{`CREATE EXTENSION pg_stat_statements`, `ALTER DATABASE profile SET pg_stat_statements.track = 'top'`} {
		if _, err := c.Exec(ctx, sql); err != nil {
			return err
		}
	}
	h.pool.Reset() // new connections read the setting
	return nil
}

func (h *house) profilePoll(ctx context.Context, n int) error {
	agents, err := h.enroll(ctx, 100)
	if err != nil {
		return err
	}
	rt := endpoint.New(endpoint.Config{Pool: h.pool, Authenticate: agentapi.Authenticate(h.pool), Log: quiet})
	agentapi.Mount(rt, agentapi.Config{Pool: h.pool, Idle: 5 * time.Minute})
	return h.profiled(ctx, "poll", n, func() error {
		return each(n, rt, func(i int) *http.Request {
			a := agents[i%len(agents)]
			r := httptest.NewRequestWithContext(ctx, "GET", "/api/v1/agents/"+a.AgentID.String()+"/work", nil)
			r.Header.Set("Authorization", "Bearer "+a.Credential)
			r.Header.Set(wire.RunHeader, "run")
			return r
		})
	})
}

func (h *house) profileOCSP(ctx context.Context, n int) error {
	issuer, requests, err := h.ocspRequests(ctx, 10_000)
	if err != nil {
		return err
	}
	answers := &responder.Handler{DB: h.pool, Box: h.box, Log: quiet}
	return h.profiled(ctx, "ocsp", n, func() error {
		return each(n, answers, func(i int) *http.Request {
			return httptest.NewRequestWithContext(ctx, "POST", "/.well-known/pki/ocsp/"+issuer.String(), bytes.NewReader(requests[i%len(requests)]))
		})
	})
}

func each(n int, h http.Handler, request func(int) *http.Request) error {
	for i := range n {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, request(i))
		if w.Code != 200 {
			return fmt.Errorf("%d %s", w.Code, w.Body)
		}
	}
	return nil
}

// profiled runs f, which does a thing n times, and keeps its profiles.
func (h *house) profiled(ctx context.Context, name string, n int, f func() error) error {
	if _, err := h.pool.Exec(ctx, `SELECT pg_stat_statements_reset()`); err != nil {
		return err
	}
	out, err := os.Create(filepath.Join(h.b.out, name+".pprof")) // #nosec G304 -- named by whoever runs this
	if err != nil {
		return err
	}
	defer func() { _ = out.Close() }()
	if err := pprof.StartCPUProfile(out); err != nil {
		return err
	}
	mine, db, began := cpu(os.Getpid()), h.b.pg.cpu(), time.Now()
	err = f()
	pprof.StopCPUProfile()
	if err != nil {
		return err
	}
	per := func(d time.Duration) string { return fmt.Sprintf("%d us", d.Microseconds()/int64(n)) }
	h.b.report.say(name, fmt.Sprintf("%d times: %s wall, %s CPU, %s Postgres each", n, per(time.Since(began)), per(cpu(os.Getpid())-mine), per(h.b.pg.cpu()-db)))
	return h.statements(ctx, name, n)
}

func (h *house) statements(ctx context.Context, name string, n int) error {
	rows, err := h.pool.Query(ctx, `SELECT calls, total_plan_time * 1000, total_exec_time * 1000, left(regexp_replace(query, '\s+', ' ', 'g'), 110) FROM pg_stat_statements
		ORDER BY total_plan_time + total_exec_time DESC LIMIT 14`)
	if err != nil {
		return err
	}
	var calls int64
	var plan, exec float64
	var query string
	_, err = pgx.ForEachRow(rows, []any{&calls, &plan, &exec, &query}, func() error {
		h.b.report.say(name+" SQL", fmt.Sprintf("%.2f calls, plan %.0f us, run %.0f us each: %s", float64(calls)/float64(n), plan/float64(n), exec/float64(n), query))
		return nil
	})
	return err
}
