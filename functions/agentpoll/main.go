// Command agentpoll serves the agents' paths as a function or a container: enrollment, work, certificate requests, pickup and
// reports. It opens no secret.
package main

import (
	"context"
	"log/slog"
	"os"

	"certctl/migrations"
	"certctl/shared/agentapi"
	"certctl/shared/auth"
	"certctl/shared/boot"
	"certctl/shared/endpoint"
)

var version = "dev"

type config struct {
	boot.Common
	boot.Agents
}

func main() { boot.Main(run) }

func run(ctx context.Context) error {
	c, err := boot.Load[config](os.Environ(), "CERTCTL_DATABASE_URL")
	if err != nil {
		return err
	}
	log := boot.Logger(c.Common)
	slog.SetDefault(log)
	pool, err := c.Pool(ctx)
	if err != nil {
		return err
	}
	rt := endpoint.New(endpoint.Config{Pool: pool, Authenticate: agentapi.Authenticate(pool), Version: version, Log: log})
	agentapi.Mount(rt, agentapi.Config{Pool: pool, Idle: c.PollInterval})
	endpoint.Raw(rt, "GET /health", auth.Public, "open", boot.Health())
	endpoint.Raw(rt, "GET /ready", auth.Public, "open", boot.Ready(log, boot.DatabaseChecks(pool, migrations.Latest())...))
	return boot.Serve(ctx, rt, boot.ServeOptions{Log: log})
}
