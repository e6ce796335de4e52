// Command api serves the REST API, the agents' paths and the enrollment protocols' paths as a function or a container.
package main

import (
	"context"
	"log/slog"
	"os"

	"certctl/migrations"
	"certctl/shared/agentapi"
	"certctl/shared/api"
	"certctl/shared/api/openapi"
	"certctl/shared/auth"
	"certctl/shared/boot"
	"certctl/shared/endpoint"
	"certctl/shared/enrollment"
	"certctl/shared/lifecycle"
	"certctl/shared/secret"
	"certctl/shared/target"
	"certctl/shared/target/files"
	"certctl/shared/target/nginx"
	"certctl/web"
)

var version = "dev"

type config struct {
	boot.Common
	boot.Agents
}

func main() { boot.Main(run) }

func run(ctx context.Context) error {
	c, err := boot.Load[config](os.Environ(), "CERTCTL_DATABASE_URL", "CERTCTL_MASTER_KEY", "CERTCTL_PUBLIC_URL")
	if err != nil {
		return err
	}
	log := boot.Logger(c.Common)
	slog.SetDefault(log)
	pool, err := c.Pool(ctx)
	if err != nil {
		return err
	}
	// It seals what it is given and opens nothing but the canary.
	box, err := c.Box(nil, []secret.Purpose{secret.CA, secret.Config})
	if err != nil {
		return err
	}
	settings := api.Config{Pool: pool, Box: box, URLs: lifecycle.URLs{Public: c.PublicURL, PKI: c.PKIURL}, Version: version, Document: openapi.Document, Log: log,
		Targets: target.Registry{"nginx": nginx.Open, "files": files.Open}}
	rt := api.NewRouter(settings)
	api.Mount(rt, settings)
	agentapi.Mount(rt, agentapi.Config{Pool: pool, Idle: c.PollInterval})
	enrollment.Mount(rt)
	checks := append(boot.DatabaseChecks(pool, migrations.Latest()), boot.Check{Name: "master key", Run: boot.Once(func(ctx context.Context) error { return lifecycle.CheckMasterKey(ctx, pool, box) })})
	endpoint.Raw(rt, "GET /health", auth.Public, "open", boot.Health())
	endpoint.Raw(rt, "GET /ready", auth.Public, "open", boot.Ready(log, checks...))
	endpoint.Raw(rt, "GET /{$}", auth.Public, "open", web.Page())
	return boot.Serve(ctx, rt, boot.ServeOptions{Log: log})
}
