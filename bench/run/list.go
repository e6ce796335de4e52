package main

import (
	"context"
	"fmt"
	"time"

	"certctl/bench/fleet"
	"certctl/shared/cert"
	"certctl/shared/page"
)

// list measures the product's list on its first and last page at two sizes, beside OFFSET, over HTTP, and the statistics.
func (b *bench) list(ctx context.Context) error {
	small, large := 10_000, pick(b, 1_000_000, 100_000)
	lists := series{}
	var small1, large1 *house
	for _, n := range []int{small, large} {
		h, err := b.house(ctx, fmt.Sprintf("list%d", n))
		if err != nil {
			return err
		}
		defer h.close(ctx)
		if err := h.fleet(ctx, fleet.Size{Certificates: n, Revoked: n / 100}); err != nil {
			return err
		}
		small1, large1 = large1, h
	}
	for range b.rounds() {
		for _, x := range []struct {
			h *house
			n int
		}{{small1, small}, {large1, large}} {
			if err := x.h.listRound(ctx, x.n, pick(b, 200, 60), lists); err != nil {
				return err
			}
		}
	}
	if err := b.listHTTP(ctx, large1, lists); err != nil {
		return err
	}
	b.report.dump("us", lists)
	b.listFigures(small, large, lists)
	return nil
}

func (b *bench) listFigures(small, large int, us series) {
	first, last, offset := us.median(fmt.Sprintf("first %d", large)), us.median(fmt.Sprintf("last %d", large)), us.median(fmt.Sprintf("offset %d", large))
	tiny := us.median(fmt.Sprintf("first %d", small))
	micro := func(v float64) string { return fmt.Sprintf("%.0f us", v) }
	b.report.add(figure{what: fmt.Sprintf("last page of %d", large), value: micro(last), against: "first page " + micro(first), ratio: last / first, goal: atMost(1.5)})
	b.report.add(figure{what: fmt.Sprintf("first page of %d", large), value: micro(first), against: fmt.Sprintf("of %d %s", small, micro(tiny)), ratio: first / tiny, goal: atMost(1.3)})
	far := goal{}
	if large == 1_000_000 {
		far = atLeast(500)
	}
	b.report.add(figure{what: fmt.Sprintf("last page of %d", large), value: micro(last), against: "OFFSET " + micro(offset), ratio: offset / last, goal: far,
		why: "the goal was set for narrow rows of one tenant; this list reads whole rows, and without a filter"})
	b.report.add(figure{what: "GET of a list", value: micro(us.median("HTTP")), against: "its SQL " + micro(first), ratio: us.median("HTTP") / first, goal: atMost(3)})
	b.report.add(figure{what: fmt.Sprintf("statistics of %d", large), value: micro(us.median("stats")), against: "exact counts (SPEC R7)"})
}

func (h *house) listRound(ctx context.Context, n, times int, us series) error {
	size := fmt.Sprint(n)
	// The oldest hundredth begins here: the fleet was made over a year, and the newest come first.
	deep := &page.Position{Value: page.TimeText(time.Now().AddDate(0, 0, -365).Add(3 * 24 * time.Hour)), ID: "00000000-0000-0000-0000-000000000000"}
	for name, after := range map[string]*page.Position{"first ": nil, "last ": deep} {
		var took []float64
		for range times {
			began := time.Now()
			r, err := cert.List(ctx, h.pool, cert.Filter{}, page.Request{After: after})
			if err != nil || len(r.Rows) != page.DefaultLimit {
				return fmt.Errorf("a page of %d (%v)", len(r.Rows), err)
			}
			took = append(took, float64(time.Since(began).Microseconds()))
		}
		us.add(name+size, median(took))
	}
	var took []float64
	for range 5 {
		began := time.Now()
		if _, err := h.pool.Exec(ctx, `SELECT * FROM certificates WHERE archived_at IS NULL ORDER BY created_at DESC, id DESC OFFSET `+fmt.Sprint(n*97/100)+` LIMIT 50`); err != nil {
			return err
		}
		took = append(took, float64(time.Since(began).Microseconds()))
	}
	us.add("offset "+size, median(took))
	return nil
}

func (b *bench) listHTTP(ctx context.Context, h *house, us series) error {
	p, _, err := b.serve("api", h.env())
	if err != nil {
		return err
	}
	defer p.stop()
	bearer := "Authorization: Bearer " + h.adm
	for range b.rounds() {
		for name, path := range map[string]string{"HTTP": "/api/v1/certificates", "stats": "/api/v1/stats/summary"} {
			x, err := b.burst(get(p.addr, path, bearer), 1, pick(b, 2*time.Second, time.Second), p.cpu)
			if err != nil {
				return err
			}
			us.add(name, float64(x.p50.Microseconds()))
		}
	}
	return ctx.Err()
}
