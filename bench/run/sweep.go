package main

import (
	"context"
	"fmt"
	"time"

	"certctl/bench/fleet"
	"certctl/shared/auth"
	"certctl/shared/lifecycle"
)

const due = 1000

// What the sweep asks for, without the rest of its statement.
const findDue = `SELECT count(*) FROM (SELECT id FROM certificates WHERE open_job_id IS NULL AND auto_renew AND archived_at IS NULL AND greatest(renew_at, next_try_at) <= now()
	ORDER BY greatest(renew_at, next_try_at) LIMIT 1000) x`

// sweep measures finding 1,000 due certificates, and the product's sweep that makes their jobs, at several sizes of the fleet.
func (b *bench) sweep(ctx context.Context) error {
	sizes := pick(b, []int{10_000, 1_000_000}, []int{10_000, 100_000})
	if b.huge {
		sizes = append(sizes, 10_000_000)
	}
	find, scan, enqueue := map[int]float64{}, map[int]float64{}, map[int]float64{}
	houses := map[int]*house{}
	for _, n := range sizes {
		h, err := b.house(ctx, fmt.Sprintf("sweep%d", n))
		if err != nil {
			return err
		}
		defer h.close(ctx)
		if err := h.fleet(ctx, fleet.Size{Certificates: n, Due: due, Narrow: true}); err != nil {
			return err
		}
		houses[n] = h
	}
	times := series{}
	for range b.rounds() + 2 { // sizes in turns; the first round warms
		for _, n := range sizes {
			if err := houses[n].sweepRound(ctx, fmt.Sprint(n), times); err != nil {
				return err
			}
		}
	}
	b.report.dump("ms", times)
	for _, n := range sizes {
		k := fmt.Sprint(n)
		find[n], scan[n], enqueue[n] = median(times["find "+k][1:]), median(times["scan "+k][1:]), median(times["sweep "+k][1:])
	}
	small, large := sizes[0], sizes[len(sizes)-1]
	var far goal
	if large == 10_000_000 {
		far = atLeast(500)
	}
	b.report.add(figure{what: fmt.Sprintf("find %d due among %d", due, large), value: fmt.Sprintf("%.2f ms", find[large]), against: fmt.Sprintf("among %d %.2f ms", small, find[small]), ratio: find[large] / find[small], goal: atMost(1.3)})
	b.report.add(figure{what: fmt.Sprintf("find %d due among %d", due, large), value: fmt.Sprintf("%.2f ms", find[large]), against: fmt.Sprintf("scan %.0f ms", scan[large]), ratio: scan[large] / find[large], goal: far})
	b.report.add(figure{what: fmt.Sprintf("sweep of %d due among %d", due, large), value: fmt.Sprintf("%.1f ms", enqueue[large]), against: fmt.Sprintf("among %d %.1f ms", small, enqueue[small]), ratio: enqueue[large] / enqueue[small], goal: atMost(1.6)})
	perRow := enqueue[large] * 1000 / due
	b.report.add(figure{what: "sweep per due certificate", value: fmt.Sprintf("%.1f us", perRow), against: "30 us", ratio: perRow / 30, goal: atMost(1),
		why: "besides the job it writes the audit event with its canonical form and leaf hash, in the same statement"})
	return nil
}

func (h *house) sweepRound(ctx context.Context, size string, times series) error {
	ask := func(name string, before ...string) error {
		tx, err := h.pool.Begin(ctx)
		if err != nil {
			return err
		}
		defer func() { _ = tx.Rollback(context.WithoutCancel(ctx)) }()
		for _, sql := range before {
			if _, err := tx.Exec(ctx, sql); err != nil {
				return err
			}
		}
		var n int
		began := time.Now()
		// A plan is kept by its text, so the scan must not share the text of the other.
		if err := tx.QueryRow(ctx, "/* "+name+" */ "+findDue).Scan(&n); err != nil || n != due {
			return fmt.Errorf("%d of %d due were found (%v)", n, due, err)
		}
		times.add(name+" "+size, float64(time.Since(began).Microseconds())/1000)
		return nil
	}
	if err := ask("scan", `SET LOCAL enable_indexscan = off`, `SET LOCAL enable_bitmapscan = off`, `SET LOCAL enable_indexonlyscan = off`, `SET LOCAL max_parallel_workers_per_gather = 0`); err != nil {
		return err
	}
	for range 3 {
		if err := ask("find", `SELECT 1`); err != nil {
			return err
		}
	}
	began := time.Now()
	done, err := lifecycle.Sweep(auth.WithActor(ctx, auth.SystemActor("bench")), h.pool)
	if err != nil || done.Renewals != due {
		return fmt.Errorf("the sweep did %+v (%v)", done, err)
	}
	times.add("sweep "+size, float64(time.Since(began).Microseconds())/1000)
	return h.unsweep(ctx)
}

// unsweep puts the fleet back to before a sweep. Foreign keys are off meanwhile: nothing of the product deletes jobs, so no
// index helps to find out who refers to one.
func (h *house) unsweep(ctx context.Context) error {
	c, err := h.pool.Acquire(ctx)
	if err != nil {
		return err
	}
	defer c.Release()
	for _, sql := range []string{`SET session_replication_role = replica`,
		`WITH j AS (SELECT id, certificate_id FROM jobs WHERE status = 'Pending' AND type IN ('Issuance','Renewal')) UPDATE certificates c SET open_job_id = NULL FROM j WHERE c.id = j.certificate_id`,
		`DELETE FROM jobs WHERE status = 'Pending' AND type IN ('Issuance','Renewal')`, `RESET session_replication_role`, `VACUUM certificates, jobs`,
	} {
		if _, err := c.Exec(ctx, sql); err != nil {
			return fmt.Errorf("%s: %w", sql, err)
		}
	}
	return nil
}
