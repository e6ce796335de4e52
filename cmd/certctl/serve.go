package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"time"

	"certctl/shared/boot"
	"certctl/shared/dial"
	"certctl/shared/fault"
	"certctl/shared/lifecycle"
	"certctl/shared/pglocal"
	"certctl/shared/pglocal/pgfetch"
	"certctl/shared/secret"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
)

// How often the loops run without being rung.
const (
	workEvery  = 2 * time.Second
	sweepEvery = 30 * time.Second
)

func serveCommand() *cobra.Command {
	return &cobra.Command{Use: "serve", Short: "Run everything in one process", Args: cobra.NoArgs,
		Long: `Runs the API, the sweep, the worker, the CRL and OCSP responder and the agents' edge in one process.

Without CERTCTL_DATABASE_URL it owns a Postgres in the data folder (CERTCTL_DATA_DIR). The first start makes the database,
one local CA and one admin key, which it writes to admin.key in the data folder. It prints "ready URL" when it serves.`,
		RunE: func(cmd *cobra.Command, _ []string) error { return serve(cmd.Context(), cmd) }}
}

func serve(ctx context.Context, cmd *cobra.Command) error {
	c, err := boot.Load[config](os.Environ())
	if err != nil {
		return err
	}
	s := &server{config: c, log: boot.Logger(c.Common)}
	slog.SetDefault(s.log)
	dir, err := prepareDataDir(c)
	if err != nil {
		return err
	}
	// Listening first settles the port, which the public address may need; nobody is answered before everything is up.
	plain, err := net.Listen("tcp", c.Listen)
	if err != nil {
		return fmt.Errorf("listening on CERTCTL_LISTEN: %w", err)
	}
	defer func() { _ = plain.Close() }()
	s.defaults(plain.Addr())
	stopDatabase, died, err := s.database(ctx, dir)
	if err != nil {
		return err
	}
	defer stopDatabase()
	if err := s.start(ctx, dir); err != nil {
		return err
	}
	return s.run(ctx, dir, plain, died, cmd)
}

func prepareDataDir(c config) (string, error) {
	dir, err := c.dataDir()
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(dir, 0o711); err != nil { // #nosec G301 -- as root the database's account must pass through; what is secret has 0600
		return "", fmt.Errorf("making the data folder: %w", err)
	}
	return dir, nil
}

// defaults derives what was not set: addresses from the listener, and on a loopback listener private addresses are allowed.
func (s *server) defaults(addr net.Addr) {
	host, port, _ := net.SplitHostPort(addr.String())
	ip := net.ParseIP(host)
	if ip.IsUnspecified() {
		host = "127.0.0.1"
		if name, err := os.Hostname(); err == nil {
			host = name
		}
	}
	if s.PublicURL == "" {
		s.PublicURL = "http://" + net.JoinHostPort(host, port)
	}
	if s.PKIURL == "" {
		s.PKIURL = s.PublicURL
	}
	if os.Getenv("CERTCTL_ALLOW_PRIVATE") == "" && ip.IsLoopback() {
		for p := range dial.AllowAll() {
			s.AllowPrivate = append(s.AllowPrivate, string(p))
		}
	}
}

// database starts the embedded Postgres when no URL is given. died is closed when it ends by itself.
func (s *server) database(ctx context.Context, dir string) (stop func(), died <-chan struct{}, err error) {
	if !s.DatabaseURL.IsZero() {
		return func() {}, nil, nil
	}
	cache := filepath.Join(dir, "cache")
	if os.Geteuid() == 0 && s.DataDir == "" {
		cache = "/var/cache/certctl"
	}
	log, err := os.OpenFile(filepath.Join(dir, "postgres.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, nil, fmt.Errorf("opening the database's log: %w", err)
	}
	pg, err := pglocal.Start(ctx, pglocal.Options{Dir: filepath.Join(dir, "postgres"), Bin: s.PostgresBin, Fetch: pgfetch.Into(cache, s.PostgresMirror), Log: log})
	if err != nil {
		return nil, nil, errors.Join(fmt.Errorf("%w (see %s)", err, log.Name()), log.Close())
	}
	s.DatabaseURL = secret.NewText(pg.URL)
	if s.MasterKey.IsZero() {
		key, err := masterKey(dir)
		if err != nil {
			_ = pg.Stop()
			return nil, nil, err
		}
		s.MasterKey = secret.NewText(key.Encode())
	}
	return func() {
		if err := pg.Stop(); err != nil {
			s.log.Warn("stopping postgres", "err", err)
		}
		_ = log.Close()
	}, pg.Done(), nil
}

// masterKey reads the data folder's master key, or makes it before the database is first used.
func masterKey(dir string) (secret.MasterKey, error) {
	path := filepath.Join(dir, "master.key")
	if b, err := os.ReadFile(path); err == nil { // #nosec G304 -- the data folder is the operator's
		return secret.ParseMasterKey(string(trimmed(b)))
	} else if !errors.Is(err, os.ErrNotExist) {
		return secret.MasterKey{}, fmt.Errorf("reading the master key: %w", err)
	}
	key := secret.GenerateMasterKey()
	return key, keep(path, key.Encode())
}

func trimmed(b []byte) []byte {
	for len(b) > 0 && (b[len(b)-1] == '\n' || b[len(b)-1] == '\r') {
		b = b[:len(b)-1]
	}
	return b
}

// keep writes a secret durably: mode 0600, synced with its folder, and whole or not at all.
func keep(path, text string) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".new-*") // made with mode 0600
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(f.Name()) }()
	_, err = f.WriteString(text + "\n")
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	d, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// start migrates and makes what an empty database needs, or proves the master key.
func (s *server) start(ctx context.Context, dir string) error {
	if err := s.open(ctx); err != nil {
		return err
	}
	if s.box == nil {
		return errors.New("CERTCTL_MASTER_KEY is not set: with CERTCTL_DATABASE_URL the key is yours to keep; make one with openssl rand -base64 32")
	}
	if err := s.migrate(ctx); err != nil {
		return err
	}
	path := filepath.Join(dir, "admin.key")
	first, err := lifecycle.Start(ctx, s.pool, lifecycle.First{Box: s.box, KeepAdminKey: func(text string) error { return keep(path, text) }})
	if err == nil && first {
		s.log.Info("first start: one admin key was made", "file", path)
	}
	return err
}

// run serves until the context ends or something that must live dies.
func (s *server) run(ctx context.Context, dir string, plain net.Listener, died <-chan struct{}, cmd *cobra.Command) error {
	house, err := s.house(dir)
	if err != nil {
		return err
	}
	bell, sweepBell := boot.NewBell(), boot.NewBell()
	worker := &lifecycle.Worker{House: house, Concurrency: s.Concurrency, Lease: s.Lease}
	work := func(ctx context.Context) (any, error) { return worker.Tick(ctx) }
	sweep := func(ctx context.Context) (any, error) {
		defer bell.Ring(ctx)
		return lifecycle.Sweep(ctx, s.pool)
	}
	// What the first start enqueued (CRL, responder certificate) is done before anybody is told that this is ready.
	first, cancel := context.WithTimeout(ctx, 15*time.Second)
	if _, err := worker.Tick(first); err != nil {
		s.log.WarnContext(ctx, "the first tick of the worker failed; the loop goes on", "err", err)
	}
	cancel()
	keeper := &tlsKeeper{server: s, house: house, ring: bell.Ring}
	rt := s.router(bell.Ring, keeper.rootHash)
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { boot.Loop(ctx, work, workEvery, bell, s.log); return nil })
	group.Go(func() error { boot.Loop(ctx, sweep, sweepEvery, sweepBell, s.log); return nil })
	var ready sync.WaitGroup
	if s.TLSListen != "" {
		ready.Add(1)
		if err := s.serveTLS(ctx, group, keeper, rt, &ready); err != nil {
			return err
		}
	}
	ready.Add(1)
	group.Go(func() error {
		return boot.Serve(ctx, s.onPlain(plain, rt), boot.ServeOptions{Log: s.log, Listener: plain, OnListen: func(net.Addr) { ready.Done() }})
	})
	group.Go(func() error {
		select {
		case <-died:
			return errors.New("the embedded postgres ended; see postgres.log in the data folder")
		case <-ctx.Done():
			return nil
		}
	})
	go func() {
		ready.Wait()
		fmt.Fprintln(cmd.OutOrStdout(), "ready", s.PublicURL)
	}()
	return group.Wait()
}

// onPlain limits a plain listener that others can reach to public PKI material, unless the operator says otherwise.
func (s *server) onPlain(l net.Listener, h http.Handler) http.Handler {
	host, _, _ := net.SplitHostPort(l.Addr().String())
	if s.AllowHTTP || net.ParseIP(host).IsLoopback() {
		return h
	}
	return onlyPKI(h)
}

func plainRefused() error {
	return fault.New(fault.Denied, "This plain HTTP listener serves only /.well-known/pki/. Use the TLS listener (CERTCTL_TLS_LISTEN), or set CERTCTL_ALLOW_HTTP=true.")
}

func (s *server) serveTLS(ctx context.Context, group *errgroup.Group, k *tlsKeeper, h http.Handler, ready *sync.WaitGroup) error {
	l, err := net.Listen("tcp", s.TLSListen)
	if err != nil {
		return fmt.Errorf("listening on CERTCTL_TLS_LISTEN: %w", err)
	}
	if err := k.begin(ctx, l.Addr()); err != nil {
		return errors.Join(err, l.Close())
	}
	group.Go(func() error { k.watch(ctx); return nil })
	group.Go(func() error {
		return boot.Serve(ctx, h, boot.ServeOptions{Log: s.log, Listener: l, OnListen: func(net.Addr) { ready.Done() },
			TLS: &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: k.certificate, ClientAuth: tls.RequestClientCert}})
	})
	return nil
}
