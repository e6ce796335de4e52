// Command run is certctl's benchmark: the product's own handlers, SQL and binaries beside what limits them and beside their
// peers, in the same run, candidate and peer in turns, medians of at least three rounds. It starts a Postgres of its own with
// fsync on, keeps every raw line in bench/out, and ends with a table that holds each ratio against its goal.
//
//	make bench                            everything
//	make bench-quick                      every part small, below four minutes
//	go run ./bench/run -part crl,ocsp     some parts
//
// It never fails because of a figure: a missed goal stays in the table. It fails when something cannot be measured.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// bench is one run.
type bench struct {
	root   string // the module
	dir    string // what is thrown away
	out    string // what is kept
	quick  bool
	huge   bool // 10 million certificates in the sweep
	pg     *postgres
	bins   map[string]string
	report report
}

type part struct {
	name string
	run  func(*bench, context.Context) error
}

var parts = []part{
	{"start", (*bench).start}, {"crl", (*bench).crl}, {"claim", (*bench).claim}, {"sweep", (*bench).sweep}, {"list", (*bench).list},
	{"ocsp", (*bench).ocsp}, {"poll", (*bench).poll}, {"api", (*bench).api}, {"issue", (*bench).issue},
	{"profile", (*bench).profile},
}

func main() {
	if len(os.Args) > 1 && os.Args[1] == "child" {
		child(os.Args[2:])
		return
	}
	var b bench
	only := flag.String("part", "", "parts to run, separated by commas; empty: all")
	flag.BoolVar(&b.quick, "quick", false, "small and short")
	flag.BoolVar(&b.huge, "huge", false, "also sweep 10 million certificates (some minutes and 6 GB of disk)")
	flag.StringVar(&b.out, "out", "bench/out", "folder for raw lines")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := b.all(ctx, *only); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func (b *bench) all(ctx context.Context, only string) (err error) {
	if b.root, err = os.Getwd(); err != nil {
		return err
	}
	if err := os.MkdirAll(b.out, 0o755); err != nil {
		return err
	}
	if b.dir, err = os.MkdirTemp("", "certctl-bench-"); err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(b.dir) }()
	if err := os.Chmod(b.dir, 0o711); err != nil {
		return err
	}
	if err := b.report.open(filepath.Join(b.out, "raw-"+time.Now().UTC().Format("20060102-150405")+".txt")); err != nil {
		return err
	}
	b.report.say("machine", machine())
	if err := b.build(ctx); err != nil {
		return err
	}
	if b.pg, err = startPostgres(ctx, b.dir); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.pg.stop()) }()
	failed := b.runParts(ctx, only)
	b.report.table(os.Stdout)
	return errors.Join(failed, b.report.close())
}

func (b *bench) runParts(ctx context.Context, only string) (failed error) {
	for _, p := range parts {
		if only == "" && p.name == "profile" || only != "" && !slices.Contains(strings.Split(only, ","), p.name) {
			continue
		}
		began := time.Now()
		b.report.part = p.name
		b.report.say("load before", load())
		if err := p.run(b, ctx); err != nil {
			failed = errors.Join(failed, fmt.Errorf("part %s: %w", p.name, err))
			b.report.say("failed", err.Error())
		}
		b.report.say("load after", load()+fmt.Sprintf(", %.0f s", time.Since(began).Seconds()))
	}
	return failed
}

// rounds is how often candidate and peer take turns.
func (b *bench) rounds() int { return 3 }

// pick is the full size, or the small one of a quick run.
func pick[T any](b *bench, full, quick T) T {
	if b.quick {
		return quick
	}
	return full
}
