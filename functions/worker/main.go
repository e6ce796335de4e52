// Command worker runs due jobs, once per doorbell, schedule event, authenticated POST or --once.
package main

import (
	"context"
	"log/slog"
	"os"
	"time"

	"certctl/migrations"
	"certctl/shared/boot"
	"certctl/shared/dial"
	"certctl/shared/issuer/localca/certlint"
	"certctl/shared/lifecycle"
	"certctl/shared/secret"
	"certctl/shared/target"
)

type config struct {
	boot.Common
	// Concurrency is how many jobs run at once.
	Concurrency int `env:"CERTCTL_WORKER_CONCURRENCY" envDefault:"2"`
	// Lease is how long a dead run of this worker holds its jobs: 2s to 15m. A job may run for three quarters of it.
	Lease time.Duration `env:"CERTCTL_WORKER_LEASE" envDefault:"2m"`
}

func main() { boot.Main(run) }

func run(ctx context.Context) error {
	c, err := boot.Load[config](os.Environ(), "CERTCTL_DATABASE_URL", "CERTCTL_MASTER_KEY", "CERTCTL_PKI_URL")
	if err != nil {
		return err
	}
	if err := lifecycle.CheckLease(c.Lease); err != nil {
		return err
	}
	log := boot.Logger(c.Common)
	slog.SetDefault(log)
	pool, err := c.Pool(ctx)
	if err != nil {
		return err
	}
	box, err := c.Box([]secret.Purpose{secret.CA, secret.OCSP, secret.Leaf, secret.Config}, []secret.Purpose{secret.CA, secret.OCSP, secret.Leaf})
	if err != nil {
		return err
	}
	allowed := dial.Policy{AllowPrivate: c.PrivatePurposes(), Lambda: boot.OnLambda()}
	house := &lifecycle.House{Pool: pool, Box: box, URLs: lifecycle.URLs{Public: c.PublicURL, PKI: c.PKIURL}, Dial: target.DialContext(allowed.Dialer(dial.Verify)), Lint: certlint.Check, Log: log}
	worker := &lifecycle.Worker{House: house, Concurrency: c.Concurrency, Lease: c.Lease}
	proven := boot.Once(func(ctx context.Context) error { return lifecycle.CheckMasterKey(ctx, pool, box) })
	tick := func(ctx context.Context) (any, error) {
		if err := proven(ctx); err != nil {
			return nil, err
		}
		return worker.Tick(ctx)
	}
	return boot.Tick(ctx, tick, boot.TickOptions{Kind: "work", Log: log, Token: c.TickToken, Once: c.Once, Checks: boot.DatabaseChecks(pool, migrations.Latest())})
}
