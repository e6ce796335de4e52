package lifecycle

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"certctl/shared/audit"
	"certctl/shared/cert"
	"certctl/shared/db"
	"certctl/shared/fault"
	"certctl/shared/id"
	"certctl/shared/issuer"
	"certctl/shared/issuer/localca"
	"certctl/shared/job"
	"certctl/shared/secret"

	"github.com/jackc/pgx/v5"
)

// exportInput names whom a server-held key is given to.
type exportInput struct {
	PublicKey string `json:"public_key"` // JWK that the asking process made for this one answer
}

// RequestExport asks the worker for a server-held key, encrypted to a public key that lives as long as the request. The API
// holds no key that opens leaf keys; the worker does.
func RequestExport(ctx context.Context, tx pgx.Tx, i id.Certificate, jwk string) (job.Job, error) {
	c, err := cert.Get(ctx, tx, i)
	if err != nil {
		return job.Job{}, err
	}
	switch {
	case c.CurrentVersionID.IsZero():
		return job.Job{}, fault.New(fault.Conflict, "The certificate has no version yet.")
	case c.KeyCustody != cert.ServerCustody:
		return job.Job{}, fault.New(fault.Conflict, "The key was made on an agent and never leaves it, so it cannot be exported.")
	}
	j, err := job.Enqueue(ctx, tx, job.New{Type: job.Export, CertificateID: i, VersionID: c.CurrentVersionID, Priority: job.Urgent, MaxAttempts: 2, GiveUpAfter: time.Minute, Input: exportInput{jwk}})
	if err != nil {
		return j, err
	}
	return j, audit.Record(ctx, tx, audit.Entry{Action: "certificate.key_exported", ResourceType: "certificate", ResourceID: i.String(), Details: map[string]any{"version_id": c.CurrentVersionID, "job_id": j.ID}})
}

// exportResult is what an Export job leaves for the process that asked; only that process can open it.
type exportResult struct {
	Key string `json:"key"` // JWE of the PKCS#8
}

// ExportedKey is the JWE in a finished Export job.
func ExportedKey(j job.Job) string {
	var r exportResult
	_ = json.Unmarshal(j.Result, &r)
	return r.Key
}

// ForgetExport removes the encrypted key from a finished Export job.
func ForgetExport(ctx context.Context, q db.Querier, j id.Job) error {
	_, err := db.Exec(ctx, q, `UPDATE jobs SET result = NULL WHERE id = $1 AND type = 'Export' AND status = 'Completed'`, j)
	return err
}

// Export runs an Export job.
func (h *House) Export(ctx context.Context, l *job.Lease) error {
	err := h.export(ctx, l)
	if err == nil || errors.Is(err, job.ErrLeaseLost) {
		return err
	}
	return settle(ctx, h.Pool, l, err)
}

func (h *House) export(ctx context.Context, l *job.Lease) error {
	var in exportInput
	if err := json.Unmarshal(l.Input, &in); err != nil {
		return fmt.Errorf("reading the input of job %s: %w", l.ID, err)
	}
	v, err := cert.VersionByID(ctx, h.Pool, l.VersionID)
	if err != nil {
		return err
	}
	der, err := h.openLeafKey(ctx, v)
	if err != nil {
		return err
	}
	defer clear(der)
	jwe, err := sealTo(in.PublicKey, der)
	if err != nil {
		return err
	}
	return l.Complete(ctx, h.Pool, exportResult{jwe})
}

// RequestCARenewal asks the worker for a generation with the same key and a new lifetime. Only the worker opens CA keys.
func RequestCARenewal(ctx context.Context, tx pgx.Tx, i id.Issuer) (job.Job, error) {
	conf, err := issuer.Get(ctx, tx, i)
	if err != nil {
		return job.Job{}, err
	}
	if conf.Type != LocalType || conf.ArchivedAt != nil {
		return job.Job{}, fault.New(fault.Conflict, "Only a live local issuer has generations.")
	}
	j, err := job.Enqueue(ctx, tx, job.New{Type: job.CARenewal, IssuerID: i, Priority: job.Urgent, MaxAttempts: 3})
	if err != nil {
		return j, err
	}
	return j, audit.Record(ctx, tx, audit.Entry{Action: "issuer.renewal_requested", ResourceType: "issuer", ResourceID: i.String(), Details: map[string]any{"job_id": j.ID}})
}

// RenewCA runs a CARenewal job.
func (h *House) RenewCA(ctx context.Context, l *job.Lease) error {
	err := h.renewCA(ctx, l)
	if err == nil || errors.Is(err, job.ErrLeaseLost) {
		return err
	}
	return settle(ctx, h.Pool, l, err)
}

func (h *House) renewCA(ctx context.Context, l *job.Lease) error {
	old, err := issuer.LatestGeneration(ctx, h.Pool, l.IssuerID)
	if err != nil {
		return err
	}
	gen, err := h.openGeneration(ctx, old)
	if err != nil {
		return err
	}
	next, err := localca.Renew(gen, old.NotAfter.Sub(old.NotBefore), time.Now())
	if err != nil {
		return err
	}
	n := issuer.NewGeneration{ID: id.New[id.Generation](), IssuerID: l.IssuerID, Cert: next.Cert, Parents: next.Chain}
	if old.KeyURI != nil {
		n.KeyURI = *old.KeyURI
	} else if n.SealedKey, err = h.sealKey(ctx, secret.CA, "ca_generations", "sealed_key", n.ID.UUID(), gen.Signer); err != nil {
		return err
	}
	return db.InTx(ctx, h.Pool, func(tx pgx.Tx) error {
		if err := l.Complete(ctx, tx, map[string]any{"not_after": next.Cert.NotAfter}); err != nil {
			return err
		}
		return storeGeneration(ctx, tx, n)
	})
}

// TestIssuer runs an IssuerTest job: the issuer is opened and, where it can be, asked.
func (h *House) TestIssuer(ctx context.Context, l *job.Lease) error {
	conf, err := issuer.Get(ctx, h.Pool, l.IssuerID)
	if err != nil {
		return settle(ctx, h.Pool, l, err)
	}
	err = h.testIssuer(ctx, conf)
	detail := "the issuer answered"
	if err != nil {
		detail = "the issuer cannot be used: " + shown(err)
	}
	return db.InTx(detached(ctx), h.Pool, func(tx pgx.Tx) error {
		if err != nil {
			if e := l.Fail(ctx, tx, errors.New(detail)); e != nil {
				return e
			}
		} else if e := l.Complete(ctx, tx, map[string]any{"detail": detail}); e != nil {
			return e
		}
		return issuer.RecordTest(ctx, tx, conf.ID, err == nil, detail)
	})
}

// shown is the part of an error that people may read.
func shown(err error) string {
	if f := fault.As(err); f != nil {
		return f.Detail
	}
	return "see the worker's log"
}

func (h *House) testIssuer(ctx context.Context, conf issuer.Configured) error {
	var ca issuer.Issuer
	if conf.Type == LocalType {
		g, err := issuer.LatestGeneration(ctx, h.Pool, conf.ID)
		if err != nil {
			return err
		}
		if ca, err = h.localCA(ctx, g); err != nil {
			return err
		}
	} else {
		var err error
		if ca, err = h.configured(ctx, conf); err != nil {
			return err
		}
	}
	if t, ok := ca.(issuer.Tester); ok {
		return t.Test(ctx)
	}
	return nil
}
