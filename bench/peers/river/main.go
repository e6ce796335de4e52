// Command river runs no-op jobs through River with the settings of its own benchmark, and prints jobs per second and how long
// inserting them took.
package main

import (
	"context"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/riverqueue/river"
	"github.com/riverqueue/river/riverdriver/riverpgxv5"
	"github.com/riverqueue/river/rivermigrate"
)

type nothing struct{}

func (nothing) Kind() string { return "nothing" }

type worker struct {
	river.WorkerDefaults[nothing]
	done *atomic.Int64
}

func (w *worker) Work(context.Context, *river.Job[nothing]) error {
	w.done.Add(1)
	return nil
}

func main() {
	database := flag.String("database", "", "the database's URL")
	jobs := flag.Int("jobs", 50_000, "how many jobs")
	flag.Parse()
	if err := run(context.Background(), *database, *jobs); err != nil {
		fmt.Fprintln(os.Stderr, "river:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, database string, jobs int) error {
	pool, err := pgxpool.New(ctx, database)
	if err != nil {
		return err
	}
	defer pool.Close()
	driver := riverpgxv5.New(pool)
	migrator, err := rivermigrate.New(driver, &rivermigrate.Config{Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		return err
	}
	if _, err := migrator.Migrate(ctx, rivermigrate.DirectionUp, nil); err != nil {
		return err
	}
	if _, err := pool.Exec(ctx, `TRUNCATE river_job`); err != nil {
		return err
	}
	w := &worker{done: &atomic.Int64{}}
	workers := river.NewWorkers()
	river.AddWorker(workers, w)
	client, err := river.NewClient(driver, &river.Config{Workers: workers, Queues: map[string]river.QueueConfig{river.QueueDefault: {MaxWorkers: 2000}},
		FetchCooldown: 2 * time.Millisecond, FetchPollInterval: 20 * time.Millisecond, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		return err
	}
	began := time.Now()
	if err := insert(ctx, client, jobs); err != nil {
		return err
	}
	loading := time.Since(began)
	if _, err := pool.Exec(ctx, `ANALYZE river_job`); err != nil {
		return err
	}
	began = time.Now()
	if err := client.Start(ctx); err != nil {
		return err
	}
	for left := 1; left > 0; time.Sleep(5 * time.Millisecond) {
		if w.done.Load() < int64(jobs) {
			continue
		}
		if err := pool.QueryRow(ctx, `SELECT count(*) FROM river_job WHERE state <> 'completed'`).Scan(&left); err != nil {
			return err
		}
	}
	fmt.Printf("%.0f %s\n", float64(jobs)/time.Since(began).Seconds(), loading)
	return client.Stop(ctx)
}

func insert[T any](ctx context.Context, client *river.Client[T], jobs int) error {
	for left := jobs; left > 0; {
		n := min(left, 5000)
		batch := make([]river.InsertManyParams, n)
		for i := range batch {
			batch[i] = river.InsertManyParams{Args: nothing{}}
		}
		if _, err := client.InsertManyFast(ctx, batch); err != nil {
			return err
		}
		left -= n
	}
	return nil
}
