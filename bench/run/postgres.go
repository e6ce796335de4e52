package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"certctl/shared/issuer/localca/certlint"
	"certctl/shared/lifecycle"
	"certctl/shared/migrate"
	"certctl/shared/secret"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// postgres is a server of this run: durable (fsync on), 1 GB of buffers, no parallel plans that would take the other core.
type postgres struct {
	bin, dir string
	as       *syscall.Credential
	cmd      *exec.Cmd
}

var settings = []string{"listen_addresses=", "fsync=on", "synchronous_commit=on", "shared_buffers=1GB", "max_wal_size=8GB", "jit=off", "max_connections=200", "checkpoint_timeout=15min", "autovacuum_naptime=10s",
	"shared_preload_libraries=pg_stat_statements", "pg_stat_statements.track_planning=on", "pg_stat_statements.track=none"}

func startPostgres(ctx context.Context, dir string) (*postgres, error) {
	p := &postgres{dir: filepath.Join(dir, "pg")}
	found, _ := filepath.Glob("/usr/lib/postgresql/*/bin")
	if len(found) == 0 {
		return nil, errors.New("no Postgres in /usr/lib/postgresql: apt-get install postgresql")
	}
	p.bin = found[len(found)-1]
	if err := os.Mkdir(p.dir, 0o700); err != nil {
		return nil, err
	}
	if os.Geteuid() == 0 { // Postgres refuses to run as root
		u, err := user.Lookup("postgres")
		if err != nil {
			return nil, err
		}
		uid, _ := strconv.ParseUint(u.Uid, 10, 32)
		gid, _ := strconv.ParseUint(u.Gid, 10, 32)
		p.as = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
		if err := os.Chown(p.dir, int(uid), int(gid)); err != nil {
			return nil, err
		}
	}
	if out, err := p.command("initdb", "-D", p.dir+"/data", "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C").CombinedOutput(); err != nil {
		return nil, fmt.Errorf("initdb: %w: %s", err, out)
	}
	args := []string{"-D", p.dir + "/data", "-k", p.dir}
	for _, s := range settings {
		args = append(args, "-c", s)
	}
	p.cmd = p.command("postgres", args...)
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	return p, p.await(ctx)
}

func (p *postgres) command(name string, args ...string) *exec.Cmd {
	c := exec.Command(filepath.Join(p.bin, name), args...) // #nosec G204 -- a benchmark of this machine's own programs
	c.Dir = p.dir
	c.SysProcAttr = &syscall.SysProcAttr{Credential: p.as, Pdeathsig: syscall.SIGINT, Setpgid: true}
	return c
}

func (p *postgres) await(ctx context.Context) error {
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		c, err := pgx.Connect(ctx, p.url("postgres"))
		if err == nil {
			return c.Close(ctx)
		}
		if time.Now().After(deadline) {
			return err
		}
	}
}

func (p *postgres) stop() error {
	_ = p.cmd.Process.Signal(syscall.SIGINT)
	err := p.cmd.Wait()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return nil
	}
	return err
}

func (p *postgres) url(database string) string {
	return "postgres://postgres@/" + database + "?host=" + p.dir
}

func (p *postgres) cpu() time.Duration { return cpuTree(p.cmd.Process.Pid) }

// pgbench runs it against a database and answers transactions per second.
func (p *postgres) pgbench(ctx context.Context, database string, args ...string) (float64, error) {
	c := exec.CommandContext(ctx, filepath.Join(p.bin, "pgbench"), append(args, "-h", p.dir, "-U", "postgres", database)...) // #nosec G204 -- as above
	out, err := c.CombinedOutput()
	if err != nil {
		return 0, fmt.Errorf("pgbench: %w: %s", err, out)
	}
	for line := range strings.SplitSeq(string(out), "\n") {
		if rest, ok := strings.CutPrefix(line, "tps = "); ok {
			return strconv.ParseFloat(strings.Fields(rest)[0], 64)
		}
	}
	return 0, errors.New("pgbench named no tps")
}

// house is a migrated and started database with the product's programs' settings.
type house struct {
	name string
	url  string
	key  secret.MasterKey
	box  *secret.Box
	pool *pgxpool.Pool
	b    *bench
	adm  string // an admin key
}

var quiet = slog.New(slog.NewTextHandler(io.Discard, nil))

func (b *bench) house(ctx context.Context, name string) (*house, error) {
	h := &house{name: name, url: b.pg.url(name), key: secret.GenerateMasterKey(), b: b}
	h.box = secret.New(secret.NewMaster(h.key))
	if err := b.createDatabase(ctx, name); err != nil {
		return nil, err
	}
	if err := migrate.Up(ctx, h.url, quiet); err != nil {
		return nil, err
	}
	pc, err := pgxpool.ParseConfig(h.url)
	if err != nil {
		return nil, err
	}
	pc.MaxConns = 40
	if h.pool, err = pgxpool.NewWithConfig(ctx, pc); err != nil {
		return nil, err
	}
	if _, err := lifecycle.Start(ctx, h.pool, lifecycle.First{Box: h.box, KeepAdminKey: func(s string) error { h.adm = s; return nil }}); err != nil {
		return nil, err
	}
	_, err = h.worker().Tick(ctx) // the first CRL and the responder's certificate
	return h, err
}

func (b *bench) createDatabase(ctx context.Context, name string) error {
	c, err := pgx.Connect(ctx, b.pg.url("postgres"))
	if err != nil {
		return err
	}
	defer func() { _ = c.Close(ctx) }()
	_, err = c.Exec(ctx, "CREATE DATABASE "+pgx.Identifier{name}.Sanitize())
	return err
}

// close drops the database: a million rows take a gigabyte.
func (h *house) close(ctx context.Context) {
	h.pool.Close()
	c, err := pgx.Connect(ctx, h.b.pg.url("postgres"))
	if err != nil {
		return
	}
	defer func() { _ = c.Close(ctx) }()
	_, _ = c.Exec(ctx, "DROP DATABASE "+pgx.Identifier{h.name}.Sanitize()+" WITH (FORCE)")
}

func (h *house) worker() *lifecycle.Worker {
	return &lifecycle.Worker{House: &lifecycle.House{Pool: h.pool, Box: h.box, URLs: lifecycle.URLs{Public: "http://127.0.0.1", PKI: "http://127.0.0.1"}, Lint: certlint.Check, Log: quiet}}
}

// env is what the product's programs are started with.
func (h *house) env() []string {
	return append(os.Environ(), "CERTCTL_DATABASE_URL="+h.url, "CERTCTL_MASTER_KEY="+h.key.Encode(), "CERTCTL_PUBLIC_URL=http://127.0.0.1", "CERTCTL_PKI_URL=http://127.0.0.1",
		"CERTCTL_TICK_TOKEN=bench-bench-bench-bench", "CERTCTL_LOG_LEVEL=warn", "CERTCTL_POLL_INTERVAL=5m")
}
