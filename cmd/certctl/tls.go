package main

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/url"
	"slices"
	"sync/atomic"
	"time"

	"certctl/shared/auth"
	"certctl/shared/cert"
	"certctl/shared/db"
	"certctl/shared/issuer"
	"certctl/shared/lifecycle"
	"certctl/shared/page"

	"github.com/jackc/pgx/v5"
)

// tlsKeeper gives the TLS listener its certificate: from files, or a managed certificate of the own local CA, which is
// renewed like any other and shared by every instance on the same names.
type tlsKeeper struct {
	server *server
	house  *lifecycle.House
	ring   func(context.Context)

	current atomic.Pointer[tls.Certificate]
	root    atomic.Pointer[[32]byte] // SHA-256 of the own root; nil with files
	managed cert.Certificate
}

// certificateName is the name of the managed certificate; its tag tells it from a user's.
const certificateName = "certctl server"

var certificateTags = map[string]string{"certctl": "server"}

// rootHash is the fingerprint that enrollment tokens carry; nil when the TLS certificate is not of the own CA.
func (k *tlsKeeper) rootHash() []byte {
	if h := k.root.Load(); h != nil {
		return h[:]
	}
	return nil
}

func (k *tlsKeeper) certificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	if c := k.current.Load(); c != nil {
		return c, nil
	}
	return nil, errors.New("no TLS certificate yet")
}

// begin has a certificate in place before the listener answers.
func (k *tlsKeeper) begin(ctx context.Context, addr net.Addr) error {
	if k.server.TLSCert != "" || k.server.TLSKey != "" {
		return k.fromFiles()
	}
	if err := k.ensure(ctx, addr); err != nil {
		return fmt.Errorf("getting the server's own TLS certificate: %w", err)
	}
	deadline := time.Now().Add(20 * time.Second)
	for {
		k.ring(ctx)
		worker := &lifecycle.Worker{House: k.house, Concurrency: 1, Lease: k.server.Lease}
		if _, err := worker.Tick(ctx); err != nil {
			return err
		}
		if err := k.reload(ctx); err == nil {
			return nil
		} else if time.Now().After(deadline) {
			return fmt.Errorf("getting the server's own TLS certificate: %w", err)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(200 * time.Millisecond):
		}
	}
}

func (k *tlsKeeper) fromFiles() error {
	c, err := tls.LoadX509KeyPair(k.server.TLSCert, k.server.TLSKey)
	if err != nil {
		return fmt.Errorf("reading CERTCTL_TLS_CERT and CERTCTL_TLS_KEY: %w", err)
	}
	k.current.Store(&c)
	return nil
}

// names are what clients call this server.
func (k *tlsKeeper) names(addr net.Addr) []string {
	names := append([]string{"localhost", "127.0.0.1"}, k.server.TLSNames...)
	if u, err := url.Parse(k.server.PublicURL); err == nil && u.Hostname() != "" {
		names = append(names, u.Hostname())
	}
	if host, _, err := net.SplitHostPort(addr.String()); err == nil && !net.ParseIP(host).IsUnspecified() {
		names = append(names, host)
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// ensure finds the managed certificate of these names, or requests it.
func (k *tlsKeeper) ensure(ctx context.Context, addr net.Addr) error {
	ctx = auth.WithActor(ctx, auth.SystemActor("serve"))
	names := k.names(addr)
	return db.InTx(ctx, k.server.pool, func(tx pgx.Tx) error {
		if _, err := db.Exec(ctx, tx, `SELECT pg_advisory_xact_lock(7463120255)`); err != nil {
			return err
		}
		found, err := cert.List(ctx, tx, cert.Filter{Name: certificateName, Tags: certificateTags}, page.Request{Limit: page.MaxLimit})
		if err != nil {
			return err
		}
		for _, c := range found.Rows {
			have := slices.Sorted(slices.Values(c.SANs))
			if slices.Equal(have, names) {
				k.managed = c
				return nil
			}
		}
		k.managed, err = lifecycle.Request(ctx, tx, lifecycle.Wanted{Name: certificateName, SANs: names, Tags: certificateTags, Issue: true})
		return err
	})
}

// reload takes the current version if it is another one than the one in use.
func (k *tlsKeeper) reload(ctx context.Context) error {
	c, err := cert.Get(ctx, k.server.pool, k.managed.ID)
	if err != nil {
		return err
	}
	if c.CurrentVersionID.IsZero() {
		return errors.New("it is not issued yet")
	}
	if k.current.Load() != nil && c.CurrentVersionID == k.managed.CurrentVersionID {
		return nil
	}
	pair, err := k.house.KeyPair(ctx, c.CurrentVersionID)
	if err != nil {
		return err
	}
	v, err := cert.VersionByID(ctx, k.server.pool, c.CurrentVersionID)
	if err != nil {
		return err
	}
	// The generation that signed it, which after a re-key is not the newest.
	g, err := issuer.GetGeneration(ctx, k.server.pool, v.GenerationID)
	if err != nil {
		return err
	}
	root := g.Certificate
	if n := len(g.Parents); n > 0 {
		root = g.Parents[n-1]
	}
	// The root is sent along: an agent that enrolls by a token pins its fingerprint.
	pair.Certificate = append(pair.Certificate, root)
	sum := sha256.Sum256(root)
	k.root.Store(&sum)
	k.managed = c
	k.current.Store(pair)
	return nil
}

// watch follows renewals.
func (k *tlsKeeper) watch(ctx context.Context) {
	if k.server.TLSCert != "" {
		return
	}
	for t := time.NewTicker(time.Minute); ; {
		select {
		case <-ctx.Done():
			t.Stop()
			return
		case <-t.C:
			if err := k.reload(ctx); err != nil {
				k.server.log.WarnContext(ctx, "looking for a new TLS certificate", "err", err)
			}
		}
	}
}
