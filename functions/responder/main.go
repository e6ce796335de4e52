// Command responder serves CRLs, CA certificates and OCSP answers as a function or a container.
package main

import (
	"context"
	"log/slog"
	"net/http"
	"os"
	"strings"

	"certctl/migrations"
	"certctl/shared/boot"
	"certctl/shared/endpoint/problem"
	"certctl/shared/fault"
	"certctl/shared/responder"
	"certctl/shared/secret"
)

func main() { boot.Main(run) }

func run(ctx context.Context) error {
	c, err := boot.Load[boot.Common](os.Environ(), "CERTCTL_DATABASE_URL", "CERTCTL_MASTER_KEY")
	if err != nil {
		return err
	}
	log := boot.Logger(c)
	slog.SetDefault(log)
	pool, err := c.Pool(ctx)
	if err != nil {
		return err
	}
	box, err := c.Box([]secret.Purpose{secret.OCSP}, nil)
	if err != nil {
		return err
	}
	pki, health, ready := &responder.Handler{DB: pool, Box: box, Log: log}, boot.Health(), boot.Ready(log, boot.DatabaseChecks(pool, migrations.Latest())...)
	// No mux: it would redirect the double slashes of an OCSP GET.
	return boot.Serve(ctx, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch p := r.URL.Path; {
		case strings.HasPrefix(p, responder.Prefix):
			pki.ServeHTTP(w, r)
		case p == "/health":
			health.ServeHTTP(w, r)
		case p == "/ready":
			ready.ServeHTTP(w, r)
		default:
			problem.Write(w, r, fault.New(fault.NotFound, "There is nothing at this path."))
		}
	}), boot.ServeOptions{Log: log})
}
