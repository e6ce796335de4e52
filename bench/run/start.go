package main

import (
	"compress/gzip"
	"context"
	"fmt"
	"io"
	"os"
)

// start measures each function from its start to its first 200, in turns with a program that is net/http alone.
func (b *bench) start(ctx context.Context) error {
	h, err := b.house(ctx, "start")
	if err != nil {
		return err
	}
	defer h.close(ctx)
	names := []string{"bare", "api", "sweep", "worker", "responder", "agentpoll"}
	times := series{}
	for range pick(b, 20, 7) {
		for _, name := range names {
			p, took, err := b.serve(name, h.env())
			if err != nil {
				return err
			}
			p.stop()
			times.add(name, float64(took.Microseconds())/1000)
		}
	}
	b.report.dump("ms", times)
	bare := times.median("bare")
	for _, name := range names[1:] {
		least := 1.5
		if name == "worker" || name == "sweep" {
			least = 2.5
		}
		ms := times.median(name)
		b.report.add(figure{what: name + ": start to first 200", value: fmt.Sprintf("%.1f ms", ms), against: fmt.Sprintf("net/http %.1f ms", bare), ratio: ms / bare, goal: atMost(least),
			why: "it links more than net/http; which package costs what was not traced"})
	}
	for _, name := range names[1:] {
		size, zipped, err := sizes(b.bins[name])
		if err != nil {
			return err
		}
		b.report.add(figure{what: name + ": stripped binary", value: fmt.Sprintf("%.1f MB", size), against: "15 MB", ratio: size / 15, goal: atMost(1)})
		b.report.add(figure{what: name + ": compressed", value: fmt.Sprintf("%.1f MB", zipped), against: "6 MB", ratio: zipped / 6, goal: atMost(1)})
	}
	return nil
}

type counter struct{ n int64 }

func (c *counter) Write(b []byte) (int, error) { c.n += int64(len(b)); return len(b), nil }

func sizes(path string) (size, zipped float64, err error) {
	f, err := os.Open(path) // #nosec G304 -- built above
	if err != nil {
		return 0, 0, err
	}
	defer func() { _ = f.Close() }()
	var c counter
	z := gzip.NewWriter(&c)
	n, err := io.Copy(z, f)
	if err != nil {
		return 0, 0, err
	}
	if err := z.Close(); err != nil {
		return 0, 0, err
	}
	return float64(n) / 1e6, float64(c.n) / 1e6, nil
}
