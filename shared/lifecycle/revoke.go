package lifecycle

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"certctl/shared/audit"
	"certctl/shared/auth"
	"certctl/shared/cert"
	"certctl/shared/crash"
	"certctl/shared/db"
	"certctl/shared/fault"
	"certctl/shared/id"
	"certctl/shared/issuer"
	"certctl/shared/job"
	"certctl/shared/pki"
	"certctl/shared/revocation"

	"github.com/jackc/pgx/v5"
)

// Revoked is the outcome of Revoke: done, or a job that asks the CA.
type Revoked struct {
	Certificate cert.Certificate
	Job         *job.Job       // set when the CA must be asked
	SharedKey   []cert.Version // keyCompromise: other live versions that use the key
}

// Revoke revokes a version of a certificate, the current one when none is named. Of a local CA it is done with the
// transaction; of another CA a job asks it.
func Revoke(ctx context.Context, tx pgx.Tx, i id.Certificate, version id.Version, reason pki.Reason) (Revoked, error) {
	c, err := cert.Lock(ctx, tx, i)
	if err != nil {
		return Revoked{}, err
	}
	v, err := revocable(ctx, tx, c, version, reason)
	if err != nil {
		return Revoked{}, err
	}
	out := Revoked{}
	if reason == pki.KeyCompromise {
		if out.SharedKey, err = cert.BlockKey(ctx, tx, v, auth.ActorOf(ctx).Principal); err != nil {
			return out, err
		}
	}
	if v.GenerationID.IsZero() {
		return out, askToRevoke(ctx, tx, &out, c, v, reason)
	}
	crash.At(crash.Revoke, crash.Before)
	if err := markRevoked(ctx, tx, v, reason); err != nil {
		return out, err
	}
	crash.At(crash.Revoke, crash.After)
	out.Certificate, err = cert.Get(ctx, tx, i)
	return out, err
}

func revocable(ctx context.Context, q db.Querier, c cert.Certificate, version id.Version, reason pki.Reason) (cert.Version, error) {
	if version.IsZero() {
		version = c.CurrentVersionID
	}
	if version.IsZero() {
		return cert.Version{}, fault.New(fault.Conflict, "The certificate has no version to revoke.")
	}
	v, err := cert.GetVersion(ctx, q, c.ID, version)
	if fault.Is(err, fault.NotFound) {
		return v, fault.BadField("version_id", "is not a version of this certificate")
	}
	if err != nil {
		return v, err
	}
	if was, revoked := v.Reason(); revoked && (was != pki.CertificateHold || reason == pki.CertificateHold) {
		return v, fault.New(fault.AlreadyRevoked, "The version is revoked already (%s).", was).With("version_id", v.ID)
	}
	expired, err := db.Scalar[bool](ctx, q, `SELECT $1 <= now()`, v.NotAfter)
	if err == nil && expired {
		err = fault.New(fault.Conflict, "The version has expired; revoking it would tell nobody anything.")
	}
	return v, err
}

// markRevoked writes what follows from a revocation that is certain: the version, the CRL entry, its publication, the record.
func markRevoked(ctx context.Context, tx pgx.Tx, v cert.Version, reason pki.Reason) error {
	marked, changed, err := cert.MarkRevoked(ctx, tx, v.ID, reason)
	if err != nil {
		return err
	}
	if !changed {
		return fault.New(fault.AlreadyRevoked, "The version is revoked already.").With("version_id", v.ID)
	}
	if !v.GenerationID.IsZero() && !v.RevocationExempt {
		if err := revocation.Add(ctx, tx, revocation.Entry{GenerationID: v.GenerationID, Shard: v.CRLShard, Serial: v.Serial, Reason: reason,
			RevokedAt: *marked.RevokedAt, ExpiresAt: v.NotAfter, VersionID: v.ID}); err != nil {
			return err
		}
		if err := enqueueCRL(ctx, tx, v.IssuerID, v.GenerationID, v.CRLShard); err != nil {
			return err
		}
	}
	return audit.Record(ctx, tx, audit.Entry{Action: "certificate.revoked", ResourceType: "certificate", ResourceID: v.CertificateID.String(),
		Details: map[string]any{"version_id": v.ID, "serial": v.SerialText(), "reason": reason.String()}})
}

type revocationInput struct {
	Reason pki.Reason `json:"reason"`
}

func askToRevoke(ctx context.Context, tx pgx.Tx, out *Revoked, c cert.Certificate, v cert.Version, reason pki.Reason) error {
	j, err := job.Enqueue(ctx, tx, job.New{Type: job.Revocation, CertificateID: c.ID, VersionID: v.ID, IssuerID: v.IssuerID, Priority: job.Urgent, MaxAttempts: 10, Input: revocationInput{reason}})
	if db.Constraint(err) == "jobs_one_open_revocation" {
		return fault.New(fault.Conflict, "The revocation of this version is under way.")
	}
	if err != nil {
		return err
	}
	out.Certificate, out.Job = c, &j
	return audit.Record(ctx, tx, audit.Entry{Action: "certificate.revocation_requested", ResourceType: "certificate", ResourceID: c.ID.String(),
		Details: map[string]any{"version_id": v.ID, "serial": v.SerialText(), "reason": reason.String(), "job_id": j.ID}})
}

// RevokeAtCA runs a Revocation job: the CA is asked, then the revocation is recorded with the job's end.
func (h *House) RevokeAtCA(ctx context.Context, l *job.Lease) error {
	err := h.revokeAtCA(ctx, l)
	if err == nil || errors.Is(err, job.ErrLeaseLost) {
		return err
	}
	return settle(ctx, h.Pool, l, err)
}

func (h *House) revokeAtCA(ctx context.Context, l *job.Lease) error {
	var in revocationInput
	if err := json.Unmarshal(l.Input, &in); err != nil {
		return fmt.Errorf("reading the input of job %s: %w", l.ID, err)
	}
	v, err := cert.VersionByID(ctx, h.Pool, l.VersionID)
	if err != nil {
		return err
	}
	conf, err := issuer.Get(ctx, h.Pool, v.IssuerID)
	if err != nil {
		return err
	}
	ca, err := h.configured(ctx, conf)
	if err != nil {
		return err
	}
	r, ok := ca.(issuer.Revoker)
	if !ok {
		return fault.New(fault.NotImplemented, "Issuers of type %s cannot revoke.", conf.Type)
	}
	chain, err := cert.Chain(ctx, h.Pool, v.ID)
	if err != nil {
		return err
	}
	if err := r.Revoke(ctx, chain[0], in.Reason); err != nil {
		return err
	}
	return db.InTx(ctx, h.Pool, func(tx pgx.Tx) error {
		if err := l.Complete(ctx, tx, map[string]any{"version_id": v.ID}); err != nil {
			return err
		}
		if err := markRevoked(ctx, tx, v, in.Reason); err != nil && !fault.Is(err, fault.AlreadyRevoked) {
			return err
		}
		return nil
	})
}

// Unhold lifts a hold: the certificate is good again and its renewal is planned anew.
func Unhold(ctx context.Context, tx pgx.Tx, i id.Certificate, version id.Version) (cert.Certificate, error) {
	c, err := cert.Lock(ctx, tx, i)
	if err != nil {
		return c, err
	}
	if version.IsZero() {
		version = c.CurrentVersionID
	}
	v, err := cert.GetVersion(ctx, tx, i, version)
	if err != nil {
		return c, err
	}
	if r, revoked := v.Reason(); !revoked || r != pki.CertificateHold || v.GenerationID.IsZero() {
		return c, fault.New(fault.Conflict, "The version is not on hold.")
	}
	p, err := cert.GetRenewalPolicy(ctx, tx, c.RenewalPolicyID)
	if err != nil {
		return c, err
	}
	at, _ := p.RenewAt(v.ID, v.NotBefore, v.NotAfter)
	if ok, err := cert.Unhold(ctx, tx, v.ID, at); err != nil || !ok {
		return c, orConflict(err, "The version is not on hold.")
	}
	if err := revocation.Remove(ctx, tx, v.GenerationID, v.CRLShard, v.Serial); err != nil {
		return c, err
	}
	if err := enqueueCRL(ctx, tx, v.IssuerID, v.GenerationID, v.CRLShard); err != nil {
		return c, err
	}
	if err := audit.Record(ctx, tx, audit.Entry{Action: "certificate.unheld", ResourceType: "certificate", ResourceID: i.String(),
		Details: map[string]any{"version_id": v.ID, "serial": v.SerialText()}}); err != nil {
		return c, err
	}
	return cert.Get(ctx, tx, i)
}

func orConflict(err error, text string) error {
	if err != nil {
		return err
	}
	return fault.New(fault.Conflict, "%s", text)
}
