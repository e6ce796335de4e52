package lifecycle

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"certctl/shared/audit"
	"certctl/shared/cert"
	"certctl/shared/crash"
	"certctl/shared/db"
	"certctl/shared/fault"
	"certctl/shared/id"
	"certctl/shared/issuer"
	"certctl/shared/job"
	"certctl/shared/pki"
	"certctl/shared/secret"

	"github.com/jackc/pgx/v5"
)

// issuance is the checkpoint of an Issuance or Renewal job: the recorded steps.
type issuance struct {
	VersionID  id.Version    `json:"version_id"`           // fixed with the key: the sealed key is bound to it
	CSR        []byte        `json:"csr,omitempty"`        // DER
	SealedKey  []byte        `json:"sealed_key,omitempty"` // server custody
	Generation id.Generation `json:"generation,omitzero"`  // of a local CA: fixed before anything is signed
	Driver     []byte        `json:"driver,omitempty"`     // the driver's own steps
	Handle     []byte        `json:"handle,omitempty"`     // of a Pending answer
}

// How long a CA may take, and the wait after an answer that names none.
const (
	giveUpIssuance  = 24 * time.Hour
	pollIssuance    = 10 * time.Second
	backdateAllowed = 48 * time.Hour // CAs backdate by an hour and more
)

// work is what Issue gathers before it asks.
type work struct {
	lease   *job.Lease
	cert    cert.Certificate
	profile cert.Profile
	policy  cert.RenewalPolicy
	names   pki.Names
	issuer  issuer.Configured
	steps   issuance
	csr     *x509.CertificateRequest
}

// Issue runs an Issuance or Renewal job: key and request kept, CA asked, answer checked, version stored.
func (h *House) Issue(ctx context.Context, l *job.Lease) error {
	w, err := h.gather(ctx, l)
	if err != nil {
		return h.endIssuance(ctx, l, err)
	}
	if err := h.keepRequest(ctx, w); err != nil {
		return h.endIssuance(ctx, l, err)
	}
	res, err := h.askCA(ctx, w)
	if err != nil {
		return h.endIssuance(ctx, l, err)
	}
	switch r := res.(type) {
	case issuer.Pending:
		w.steps.Handle = r.Handle
		if err := l.Save(ctx, h.Pool, w.steps); err != nil {
			return err
		}
		return l.Postpone(ctx, h.Pool, max(r.After, time.Second), giveUpIssuance, errors.New("the CA has not finished"))
	case issuer.Issued:
		if err := h.check(w, r.Chain); err != nil {
			return h.endIssuance(ctx, l, err)
		}
		return h.storeVersion(ctx, w, r.Chain)
	}
	return h.endIssuance(ctx, l, fmt.Errorf("issuer %s answered %T", w.issuer.ID, res))
}

func (h *House) gather(ctx context.Context, l *job.Lease) (*work, error) {
	w := &work{lease: l}
	if err := json.Unmarshal(l.Checkpoint, &w.steps); err != nil {
		return nil, fmt.Errorf("reading the checkpoint of job %s: %w", l.ID, err)
	}
	var err error
	if w.cert, err = cert.Get(ctx, h.Pool, l.CertificateID); err != nil {
		return nil, err
	}
	if w.profile, err = cert.GetProfile(ctx, h.Pool, w.cert.ProfileID); err != nil {
		return nil, err
	}
	if w.policy, err = cert.GetRenewalPolicy(ctx, h.Pool, w.cert.RenewalPolicyID); err != nil {
		return nil, err
	}
	if w.issuer, err = issuer.Get(ctx, h.Pool, w.cert.IssuerID); err != nil {
		return nil, err
	}
	if w.names, err = w.cert.Names(); err != nil {
		return nil, err
	}
	return w, w.profile.Permits(w.names) // the profile may have changed since the request
}

// keepRequest makes sure that the certificate request, and under server custody its key, are stored before a CA is asked.
func (h *House) keepRequest(ctx context.Context, w *work) error {
	l := w.lease
	switch {
	case len(w.steps.CSR) > 0:
	case w.cert.KeyCustody == cert.AgentCustody:
		if len(l.CSR) == 0 {
			return fault.New(fault.Invalid, "The agent's certificate request is missing.")
		}
		w.steps.VersionID, w.steps.CSR = id.New[id.Version](), l.CSR
		if err := h.keep(ctx, w); err != nil {
			return err
		}
	default:
		if err := h.makeKey(ctx, w); err != nil {
			return err
		}
	}
	csr, err := pki.ParseCSR(w.steps.CSR)
	if err != nil {
		return err
	}
	if err := pki.AdmitCSR(csr, w.names, w.profile.Algorithms()); err != nil {
		return err
	}
	spki := pki.SPKIHash(csr.PublicKey)
	if blocked, err := cert.KeyBlocked(ctx, h.Pool, spki[:]); err != nil {
		return err
	} else if blocked {
		return fault.BadField("csr_pem", "uses a key that was reported compromised")
	}
	w.csr = csr
	return nil
}

// makeKey makes the key on the server, seals it to the version that it will belong to, and stores both steps.
func (h *House) makeKey(ctx context.Context, w *work) error {
	key, err := pki.Generate(pki.KeyAlgorithm(w.profile.KeyAlgorithms[0]))
	if err != nil {
		return err
	}
	csr, err := pki.NewCSR(key, w.names)
	if err != nil {
		return err
	}
	w.steps.VersionID, w.steps.CSR = id.New[id.Version](), csr
	if w.steps.SealedKey, err = h.sealKey(ctx, secret.Leaf, "version_keys", "sealed", w.steps.VersionID.UUID(), key); err != nil {
		return err
	}
	return h.keep(ctx, w)
}

// keep stores the request's own steps under the lease.
func (h *House) keep(ctx context.Context, w *work) error {
	crash.At(crash.IssueKeep, crash.Before)
	if err := w.lease.Save(ctx, h.Pool, w.steps); err != nil {
		return err
	}
	crash.At(crash.IssueKeep, crash.After)
	return nil
}

// askCA submits or polls, with every step of the driver stored under the lease before it goes on.
func (h *House) askCA(ctx context.Context, w *work) (issuer.Result, error) {
	ca, err := h.driver(ctx, w)
	if err != nil {
		return nil, err
	}
	req := issuer.Request{
		Key: w.lease.ID.String(), CSR: w.steps.CSR, Names: w.names, TTL: w.profile.MaxTTL.Std(), EKUs: w.profile.EKUs,
		MustStaple: w.profile.MustStaple, PublicTLS: w.profile.PublicTLS, Checkpoint: w.steps.Driver,
		Save: func(ctx context.Context, checkpoint []byte) error {
			w.steps.Driver = checkpoint
			crash.At(crash.IssueSave, crash.Before)
			if err := w.lease.Save(ctx, h.Pool, w.steps); err != nil {
				return err
			}
			crash.At(crash.IssueSave, crash.After)
			return nil
		},
	}
	if len(w.steps.Handle) > 0 {
		p, ok := ca.(issuer.Poller)
		if !ok {
			return nil, fmt.Errorf("issuer type %s cannot be polled", w.issuer.Type)
		}
		return p.Poll(ctx, req, w.steps.Handle)
	}
	return ca.Submit(ctx, req)
}

// check holds the answer against the request before anything is stored.
func (h *House) check(w *work, chain []*x509.Certificate) error {
	return pki.CheckIssued(chain, pki.Expected{Names: w.names, PublicKey: w.csr.PublicKey, Now: time.Now(), MaxTTL: w.profile.MaxTTL.Std(), Backdate: backdateAllowed})
}

// storeVersion ends the job: its completion, the version, the desired deployments and the audit event are one transaction.
// The job's row is locked before the certificate's, as in every statement that ends an issuance.
func (h *House) storeVersion(ctx context.Context, w *work, chain []*x509.Certificate) error {
	leaf := chain[0]
	renewAt, reason := w.policy.RenewAt(w.steps.VersionID, leaf.NotBefore, leaf.NotAfter)
	return commit(ctx, h.Pool, crash.IssueStore, func(tx pgx.Tx) error {
		if err := w.lease.Complete(ctx, tx, map[string]any{"version_id": w.steps.VersionID, "serial": pki.FormatSerial(leaf.SerialNumber)}); err != nil {
			return err
		}
		v, err := cert.Store(ctx, tx, cert.NewVersion{ID: w.steps.VersionID, CertificateID: w.cert.ID, IssuerID: w.issuer.ID, GenerationID: w.steps.Generation, JobID: w.lease.ID,
			Chain: chain, CSR: w.steps.CSR, SealedKey: w.steps.SealedKey, RenewAt: renewAt, RenewReason: reason})
		if err != nil {
			return err
		}
		if _, err := desire(ctx, tx, w.cert.ID, v.ID); err != nil {
			return err
		}
		return audit.Record(ctx, tx, audit.Entry{Action: "certificate.issued", ResourceType: "certificate", ResourceID: w.cert.ID.String(),
			Details: map[string]any{"job_id": w.lease.ID, "version_id": v.ID, "serial": v.SerialText(), "issuer_id": w.issuer.ID, "not_after": v.NotAfter}})
	})
}

// endIssuance decides what an error means: the caller's or the CA's final word fails the job, a lost lease is left alone, and
// everything else is tried again with a growing wait.
func (h *House) endIssuance(ctx context.Context, l *job.Lease, cause error) error {
	if errors.Is(cause, job.ErrLeaseLost) {
		return cause
	}
	return db.InTx(detached(ctx), h.Pool, func(tx pgx.Tx) error {
		if err := settle(ctx, tx, l, cause); err != nil || l.Status != job.Failed {
			return err
		}
		return audit.Record(ctx, tx, audit.Entry{Action: "certificate.issuance_failed", ResourceType: "certificate", ResourceID: l.CertificateID.String(),
			Details: map[string]any{"job_id": l.ID, "error": cause.Error()}})
	})
}

// settle fails a job whose cause will not go away, gives one back that this program was told to stop, and retries any other.
func settle(ctx context.Context, q db.Querier, l *job.Lease, cause error) error {
	ctx = detached(ctx)
	if errors.Is(cause, context.Canceled) {
		return l.Release(ctx, q)
	}
	if final(cause) {
		return l.Fail(ctx, q, cause)
	}
	if f := fault.As(cause); f != nil && f.RetryAfter > 0 {
		return l.RetryAfter(ctx, q, cause, f.RetryAfter)
	}
	return l.Retry(ctx, q, cause)
}

func final(cause error) bool {
	f := fault.As(cause)
	var n *pki.NotAsAsked
	return errors.As(cause, &n) || f != nil && (f.Kind == fault.Invalid || f.Kind == fault.Denied || f.Kind == fault.NotFound || f.Kind == fault.Conflict || f.Kind == fault.NotImplemented)
}

// detached lets the end of a job reach the database when the job's own time is over. The lease still fences it.
func detached(ctx context.Context) context.Context { return context.WithoutCancel(ctx) }
