package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"certctl/shared/job"
)

// cell is one way to claim.
type cell struct {
	claimers, batch, jobs int
	finish                bool
}

func (c cell) String() string {
	what := "claim"
	if c.finish {
		what = "claim and finish"
	}
	return fmt.Sprintf("%s, batch %d, %d claimers", what, c.batch, c.claimers)
}

// claim measures the product's claim and its end of a job, in turns with pgbench -N and River on the same server.
func (b *bench) claim(ctx context.Context) error {
	h, err := b.house(ctx, "claim")
	if err != nil {
		return err
	}
	defer h.close(ctx)
	if err := b.createDatabase(ctx, "pgbench"); err != nil {
		return err
	}
	if _, err := b.pg.pgbench(ctx, "pgbench", "-i", "-s", "20", "-q"); err != nil {
		_ = err // initialising names no tps
	}
	river, err := b.river(ctx)
	if err != nil {
		b.report.say("River", "left out: "+err.Error())
	}
	cells := pick(b, allCells(), []cell{{8, 1, 2000, false}, {4, 100, 20_000, false}, {8, 100, 20_000, false}, {32, 100, 20_000, false}, {8, 100, 4000, true}})
	rate, cpus := series{}, series{}
	for range b.rounds() {
		if err := b.claimRound(ctx, h, cells, "", rate, cpus); err != nil {
			return err
		}
		if err := b.claimPeers(ctx, river, rate, cpus); err != nil {
			return err
		}
	}
	many := pick(b, 1_000_000, 200_000)
	if _, err := h.pool.Exec(ctx, finishedJobs, many); err != nil {
		return err
	}
	if _, err := h.pool.Exec(ctx, `VACUUM ANALYZE jobs`); err != nil {
		return err
	}
	for range b.rounds() {
		if err := b.claimRound(ctx, h, []cell{{8, 100, 20_000, false}}, " beside finished jobs", rate, cpus); err != nil {
			return err
		}
	}
	b.report.dump("jobs/s", rate)
	b.report.dump("Postgres CPU us/job", cpus)
	b.claimFigures(rate, cpus, many)
	return nil
}

const finishedJobs = `INSERT INTO jobs (id, type, runner, status, requested_by, requested_role, lease_no, created_at, started_at, completed_at)
	SELECT gen_random_uuid(), 'IssuerTest', 'worker', 'Completed', 'bench', 'system', 1, now(), now(), now() FROM generate_series(1, $1)`

func allCells() (all []cell) {
	for _, claimers := range []int{1, 4, 8, 32} {
		for _, batch := range []int{1, 10, 100} {
			all = append(all, cell{claimers, batch, map[int]int{1: 4000, 10: 20_000, 100: 40_000}[batch], false})
		}
	}
	return append(all, cell{8, 1, 4000, true}, cell{8, 10, 8000, true}, cell{4, 100, 8000, true}, cell{8, 100, 8000, true})
}

func (b *bench) claimRound(ctx context.Context, h *house, cells []cell, suffix string, rate, cpus series) error {
	for _, c := range cells {
		if _, err := h.pool.Exec(ctx, `INSERT INTO jobs (id, type, runner, status, requested_by, requested_role) SELECT uuid7(), 'IssuerTest', 'worker', 'Pending', 'bench', 'system' FROM generate_series(1, $1)`, c.jobs); err != nil {
			return err
		}
		if _, err := h.pool.Exec(ctx, `ANALYZE jobs`); err != nil {
			return err
		}
		used := b.pg.cpu()
		began := time.Now()
		n, err := runClaim(ctx, h, c)
		if err != nil {
			return err
		}
		if n != int64(c.jobs) {
			return fmt.Errorf("%s: %d of %d jobs", c, n, c.jobs)
		}
		rate.add(c.String()+suffix, float64(n)/time.Since(began).Seconds())
		cpus.add(c.String()+suffix, float64((b.pg.cpu()-used).Microseconds())/float64(n))
		for _, sql := range []string{`TRUNCATE job_attempts`, `DELETE FROM jobs WHERE requested_by = 'bench' AND lease_run = 'bench'`, `VACUUM jobs`} {
			if _, err := h.pool.Exec(ctx, sql); err != nil {
				return err
			}
		}
	}
	return nil
}

func runClaim(ctx context.Context, h *house, c cell) (int64, error) {
	var n atomic.Int64
	errs := make(chan error, c.claimers)
	var g sync.WaitGroup
	for range c.claimers {
		g.Go(func() { errs <- claimAll(ctx, h, c, &n) })
	}
	g.Wait()
	for range c.claimers {
		if err := <-errs; err != nil {
			return 0, err
		}
	}
	return n.Load(), nil
}

func claimAll(ctx context.Context, h *house, c cell, n *atomic.Int64) error {
	for n.Load() < int64(c.jobs) {
		leases, err := job.ClaimPending(ctx, h.pool, job.Claim{Limit: c.batch, Lease: time.Hour, Run: "bench"})
		if err != nil {
			return err
		}
		if len(leases) == 0 {
			return nil // others hold the rest
		}
		if c.finish {
			for _, l := range leases {
				if err := l.Complete(ctx, h.pool, nil); err != nil {
					return err
				}
			}
		}
		n.Add(int64(len(leases)))
	}
	return nil
}

func (b *bench) claimPeers(ctx context.Context, river string, rate, cpus series) error {
	seconds := pick(b, "5", "2")
	tps, err := b.pg.pgbench(ctx, "pgbench", "-N", "-n", "-c", "8", "-j", "2", "-T", seconds, "-M", "prepared")
	if err != nil {
		return err
	}
	rate.add("pgbench -N, 8 clients", tps)
	if river == "" {
		return nil
	}
	jobs := pick(b, 50_000, 10_000)
	used := b.pg.cpu()
	c := exec.CommandContext(ctx, river, "-database", b.pg.url("river"), "-jobs", strconv.Itoa(jobs)) // #nosec G204 -- built by us
	out, err := c.CombinedOutput()
	if err != nil {
		return fmt.Errorf("river: %w: %s", err, out)
	}
	f := strings.Fields(string(out))
	perSecond, err := strconv.ParseFloat(f[0], 64)
	if err != nil {
		return err
	}
	loading, err := time.ParseDuration(f[1]) // what inserting the jobs cost the server is not the queue's
	if err != nil {
		return err
	}
	rate.add("River", perSecond)
	cpus.add("River with inserts of "+loading.Round(time.Millisecond).String(), float64((b.pg.cpu()-used).Microseconds())/float64(jobs))
	return nil
}

// river builds the peer, which is a module of its own so that the product does not require it.
func (b *bench) river(ctx context.Context) (string, error) {
	bin := filepath.Join(b.dir, "river")
	c := exec.CommandContext(ctx, "go", "build", "-o", bin, "./river") // #nosec G204 -- our own
	c.Dir = filepath.Join(b.root, "bench", "peers")
	c.Env = append(os.Environ(), "GOWORK=off")
	if out, err := c.CombinedOutput(); err != nil {
		return "", fmt.Errorf("building: %w: %.300s", err, out)
	}
	return bin, b.createDatabase(ctx, "river")
}

func (b *bench) claimFigures(rate, cpus series, many int) {
	const tps = "pgbench -N, 8 clients"
	show := func(k string) string {
		return fmt.Sprintf("%.0f jobs/s, %.0f us", rate.median(k), cpus.median(k))
	}
	against := fmt.Sprintf("pgbench -N %.0f tx/s", rate.median(tps))
	for _, c := range pick(b, allCells(), nil) {
		k := c.String()
		b.report.add(figure{what: k, value: show(k), against: against, ratio: rate.median(k) / rate.median(tps)})
	}
	one, hundred, empty := cell{8, 1, 0, false}.String(), cell{8, 100, 0, false}.String(), cell{8, 100, 0, true}.String()
	const twoWrites = "a claim also writes its job_attempts row, and a job moves between partial indexes; the shares were not measured apart"
	b.report.add(figure{what: one, value: show(one), against: against, ratio: rate.median(one) / rate.median(tps), goal: atLeast(0.9), why: twoWrites})
	b.report.add(figure{what: hundred, value: show(hundred), against: against, ratio: rate.median(hundred) / rate.median(tps), goal: atLeast(12), why: twoWrites})
	beside := hundred + " beside finished jobs"
	b.report.add(figure{what: fmt.Sprintf("CPU of a claim beside %d finished jobs", many), value: show(beside), against: show(hundred), ratio: cpus.median(beside) / cpus.median(hundred), goal: atMost(1.3)})
	four, crowd := cell{4, 100, 0, false}.String(), cell{32, 100, 0, false}.String()
	b.report.add(figure{what: "CPU of a claim, 32 claimers as 4", value: show(crowd), against: show(four), ratio: cpus.median(crowd) / cpus.median(four), goal: atMost(1.3)})
	if len(rate["River"]) > 0 {
		b.report.add(figure{what: empty, value: show(empty), against: fmt.Sprintf("River %.0f jobs/s", rate.median("River")), ratio: rate.median(empty) / rate.median("River"), goal: atLeast(2.5),
			why: "each job ends in the transaction of its own effect (SPEC R2), so ends are not batched; issuing costs ten times as much as the end of its job"})
	}
}
