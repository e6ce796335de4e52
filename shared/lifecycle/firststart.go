package lifecycle

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"certctl/shared/audit"
	"certctl/shared/auth"
	"certctl/shared/cert"
	"certctl/shared/crash"
	"certctl/shared/db"
	"certctl/shared/fault"
	"certctl/shared/id"
	"certctl/shared/issuer"
	"certctl/shared/secret"
	"certctl/shared/span"

	"github.com/jackc/pgx/v5"
)

// First is what the first start is given.
type First struct {
	Box *secret.Box
	// KeepAdminKey stores the admin key's secret, durably, before the transaction commits; nil: no admin key is made.
	KeepAdminKey func(secret string) error
}

// Start makes what an empty database needs, in one transaction under an advisory lock, or proves the master key against one
// that has started before. It answers whether this was the first start.
func Start(ctx context.Context, b db.Beginner, f First) (first bool, err error) {
	ctx = auth.WithActor(ctx, auth.SystemActor("first-start"))
	err = commit(ctx, b, crash.StartCommit, func(tx pgx.Tx) error {
		if _, err := db.Exec(ctx, tx, `SELECT pg_advisory_xact_lock(7463120254)`); err != nil {
			return err
		}
		started, err := db.Scalar[bool](ctx, tx, `SELECT EXISTS (SELECT 1 FROM instance)`)
		if err != nil {
			return err
		}
		if started {
			return CheckMasterKey(ctx, tx, f.Box)
		}
		first = true
		return firstStart(ctx, tx, f)
	})
	return first, err
}

// ErrNotStarted says that the database holds no instance yet.
var ErrNotStarted = fault.New(fault.Unavailable, "The database has not been started: run “certctl serve” or “certctl bootstrap” on it once.")

// CheckMasterKey opens the canary. A program whose key does not open it must not start.
func CheckMasterKey(ctx context.Context, q db.Querier, box *secret.Box) error {
	var instance string
	var sealed []byte
	err := q.QueryRow(ctx, `SELECT id::text, canary FROM instance`).Scan(&instance, &sealed)
	if errors.Is(err, pgx.ErrNoRows) {
		return ErrNotStarted
	}
	if err != nil {
		return db.Fault(err)
	}
	return box.CheckCanary(ctx, secret.Binding{Table: "instance", Column: "canary", Row: instance}, sealed)
}

func firstStart(ctx context.Context, tx pgx.Tx, f First) error {
	if err := putCanary(ctx, tx, f.Box); err != nil {
		return err
	}
	if err := defaults(ctx, tx, f.Box); err != nil {
		return err
	}
	if f.KeepAdminKey == nil {
		return nil
	}
	key, text, err := auth.Create(ctx, tx, auth.NewKey{Name: "first admin", Principal: "admin", Role: auth.Admin})
	if err != nil {
		return err
	}
	if err := audit.Record(ctx, tx, audit.Entry{Action: "key.created", ResourceType: "key", ResourceID: key.ID.String(),
		Details: map[string]any{"name": key.Name, "principal": key.Principal, "role": key.Role}}); err != nil {
		return err
	}
	crash.At(crash.StartKeepKey, crash.Before)
	if err := f.KeepAdminKey(text); err != nil {
		return fmt.Errorf("keeping the admin key: %w", err)
	}
	crash.At(crash.StartKeepKey, crash.After)
	return nil
}

func putCanary(ctx context.Context, tx pgx.Tx, box *secret.Box) error {
	instance := id.New[id.Event]().UUID()
	sealed, err := box.SealCanary(ctx, secret.Binding{Table: "instance", Column: "canary", Row: instance})
	if err != nil {
		return err
	}
	_, err = db.Exec(ctx, tx, `INSERT INTO instance (id, canary) VALUES (@id, @canary)`, pgx.NamedArgs{"id": instance, "canary": sealed})
	return err
}

// defaults are an issuer, a profile and a policy that serve requests which name nothing else.
func defaults(ctx context.Context, tx pgx.Tx, box *secret.Box) error {
	if _, err := cert.InsertProfile(ctx, tx, cert.Profile{ID: id.New[id.Profile](), Name: DefaultProfile,
		KeyAlgorithms: []string{"ecdsa-p256", "ecdsa-p384", "rsa-2048", "rsa-3072", "rsa-4096"}, MaxTTL: span.Of(47 * 24 * time.Hour), EKUs: []string{"serverAuth", "clientAuth"}}); err != nil {
		return err
	}
	if _, err := cert.InsertRenewalPolicy(ctx, tx, cert.RenewalPolicy{ID: id.New[id.RenewalPolicy](), Name: DefaultPolicy, RenewAtFraction: 0.67, Jitter: 0.05, AutoRenew: true,
		AlertFractions: []float64{0.8, 0.95}}); err != nil {
		return err
	}
	_, err := CreateIssuer(ctx, tx, box, NewIssuer{Name: DefaultIssuer, Type: LocalType, Config: json.RawMessage(`{"common_name":"certctl local CA"}`)})
	return err
}

// NewIssuer is what an issuer is made from.
type NewIssuer struct {
	Name   string
	Type   string
	Config json.RawMessage
}

// CreateIssuer stores an issuer; a local one gets its first generation in the same transaction.
func CreateIssuer(ctx context.Context, tx pgx.Tx, box *secret.Box, n NewIssuer) (issuer.Configured, error) {
	if n.Name == "" || len(n.Name) > 200 {
		return issuer.Configured{}, fault.BadField("name", "must have 1 to 200 characters")
	}
	if n.Type != LocalType {
		return issuer.Configured{}, fault.BadField("type", "must be one of: local")
	}
	var c LocalConfig
	if err := strictJSON(n.Config, &c); err != nil {
		return issuer.Configured{}, err
	}
	public := c
	public.Key = "" // write-only, and not kept: the generation holds it sealed
	config, err := json.Marshal(public)
	if err != nil {
		return issuer.Configured{}, err
	}
	i, err := issuer.Insert(ctx, tx, issuer.Configured{ID: id.New[id.Issuer](), Name: n.Name, Type: n.Type, Config: config}, nil)
	if db.Constraint(err) == "issuers_name" {
		return i, fault.New(fault.Conflict, "An issuer of this name exists.")
	}
	if err != nil {
		return i, err
	}
	if err := audit.Record(ctx, tx, audit.Entry{Action: "issuer.created", ResourceType: "issuer", ResourceID: i.ID.String(), Details: map[string]any{"name": i.Name, "type": i.Type}}); err != nil {
		return i, err
	}
	return i, AddLocalCA(ctx, tx, box, i, c)
}
