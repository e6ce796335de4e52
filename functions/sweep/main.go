// Command sweep finds what is due and enqueues it, once per schedule event, authenticated POST or --once. It holds no secret
// but the database's address.
package main

import (
	"context"
	"log/slog"
	"os"

	"certctl/migrations"
	"certctl/shared/boot"
	"certctl/shared/lifecycle"
)

func main() { boot.Main(run) }

func run(ctx context.Context) error {
	c, err := boot.Load[boot.Common](os.Environ(), "CERTCTL_DATABASE_URL")
	if err != nil {
		return err
	}
	log := boot.Logger(c)
	slog.SetDefault(log)
	pool, err := c.Pool(ctx)
	if err != nil {
		return err
	}
	tick := func(ctx context.Context) (any, error) { return lifecycle.Sweep(ctx, pool) }
	return boot.Tick(ctx, tick, boot.TickOptions{Kind: "sweep", Log: log, Token: c.TickToken, Once: c.Once, Checks: boot.DatabaseChecks(pool, migrations.Latest())})
}
