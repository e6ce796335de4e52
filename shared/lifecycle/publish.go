package lifecycle

import (
	"bytes"
	"context"
	"crypto"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"time"

	"certctl/shared/auth"
	"certctl/shared/crash"
	"certctl/shared/db"
	"certctl/shared/id"
	"certctl/shared/issuer"
	"certctl/shared/issuer/localca"
	"certctl/shared/job"
	"certctl/shared/pki"
	"certctl/shared/revocation"
	"certctl/shared/secret"

	"github.com/jackc/pgx/v5"
)

// How long published material is good, and when its successor is due. A CRL is renewed at a quarter of its life, so that two
// days of outage leave relying parties a valid one.
const (
	CRLLifetime       = 72 * time.Hour
	crlRefresh        = 18 * time.Hour
	responderLifetime = 14 * 24 * time.Hour
)

// enqueueCRL asks for a publication. One pending job per scope is enough: it reads what is dirty when it begins.
func enqueueCRL(ctx context.Context, q db.Querier, i id.Issuer, g id.Generation, shard int16) error {
	a := auth.ActorOf(ctx)
	_, err := db.Exec(ctx, q, `INSERT INTO jobs (id, type, runner, status, priority, issuer_id, generation_id, crl_shard, max_attempts, requested_by, requested_role, requested_key)
		VALUES (@id, 'CRL', 'worker', 'Pending', @priority, @issuer, @generation, @shard, 20, @by, @role, @key) ON CONFLICT DO NOTHING`,
		pgx.NamedArgs{"id": id.New[id.Job](), "priority": job.Urgent, "issuer": i, "generation": g, "shard": shard, "by": a.Principal, "role": a.Role, "key": a.KeyID})
	return err
}

// PublishCRL runs a CRL job: number and snapshot, signature outside any transaction, then the swap with the job's end.
func (h *House) PublishCRL(ctx context.Context, l *job.Lease) error {
	if err := h.publishCRL(ctx, l); err != nil {
		if errors.Is(err, job.ErrLeaseLost) {
			return err
		}
		return settle(ctx, h.Pool, l, err)
	}
	return nil
}

func (h *House) publishCRL(ctx context.Context, l *job.Lease) error {
	if l.CRLShard == nil {
		return fmt.Errorf("job %s names no shard", l.ID)
	}
	g, err := issuer.GetGeneration(ctx, h.Pool, l.GenerationID)
	if err != nil {
		return err
	}
	ca, err := g.X509()
	if err != nil {
		return err
	}
	signer, err := h.signer(ctx, g)
	if err != nil {
		return err
	}
	crash.At(crash.CRLBegin, crash.Before)
	p, err := revocation.Begin(ctx, h.Pool, g.ID, *l.CRLShard)
	if err != nil {
		return err
	}
	crash.At(crash.CRLBegin, crash.After)
	next := p.ThisUpdate.Add(CRLLifetime)
	var out bytes.Buffer
	out.Grow(int(p.Bytes) + 4<<10) // doubling would hold a large list three times
	crash.At(crash.CRLSign, crash.Before)
	err = pki.WriteCRL(&out, pki.CRLParams{Issuer: ca.RawSubject, AKI: ca.SubjectKeyId, Number: big.NewInt(p.Number), ThisUpdate: p.ThisUpdate, NextUpdate: next,
		IDP: &pki.IDP{URI: h.URLs.CRL(g.IssuerID, g.Number, *l.CRLShard, g.CRLShards)}}, p.Bytes, p.All(), signer)
	if err != nil {
		return err
	}
	crash.At(crash.CRLSign, crash.After)
	if err := pki.CheckCRL(out.Bytes(), ca); err != nil { // what does not read back is not published
		return err
	}
	sum := sha256.Sum256(out.Bytes())
	return commit(ctx, h.Pool, crash.CRLSwap, func(tx pgx.Tx) error {
		if err := l.Complete(ctx, tx, map[string]any{"number": p.Number, "entries": len(p.Entries)}); err != nil {
			return err
		}
		dirty, err := p.Finish(ctx, tx, revocation.Signed{DER: out.Bytes(), SHA256: sum[:], NextUpdate: next, RefreshAt: p.ThisUpdate.Add(crlRefresh)})
		if err != nil || !dirty {
			return err
		}
		return enqueueCRL(ctx, tx, g.IssuerID, g.ID, *l.CRLShard)
	})
}

// IssueResponder runs a Responder job: a fresh key and a delegated certificate for a generation's OCSP answers.
func (h *House) IssueResponder(ctx context.Context, l *job.Lease) error {
	if err := h.issueResponder(ctx, l); err != nil {
		if errors.Is(err, job.ErrLeaseLost) {
			return err
		}
		return settle(ctx, h.Pool, l, err)
	}
	return nil
}

func (h *House) issueResponder(ctx context.Context, l *job.Lease) error {
	if fresh, err := revocation.ResponderFresh(ctx, h.Pool, l.GenerationID); err != nil {
		return err
	} else if fresh {
		return l.Complete(ctx, h.Pool, nil) // a doubled job: the first one did it
	}
	g, err := issuer.GetGeneration(ctx, h.Pool, l.GenerationID)
	if err != nil {
		return err
	}
	ca, err := h.localCA(ctx, g)
	if err != nil {
		return err
	}
	steps, key, err := h.responderKey(ctx, l)
	if err != nil {
		return err
	}
	c, err := ca.ResponderCertificate(ctx, localca.ResponderRequest{PublicKey: key.Public(), TTL: responderLifetime, Checkpoint: steps.Driver, Save: func(ctx context.Context, checkpoint []byte) error {
		steps.Driver = checkpoint
		crash.At(crash.ResponderSave, crash.Before)
		if err := l.Save(ctx, h.Pool, steps); err != nil {
			return err
		}
		crash.At(crash.ResponderSave, crash.After)
		return nil
	}})
	if err != nil {
		return err
	}
	r := revocation.NewResponder{ID: steps.ResponderID, GenerationID: g.ID, Certificate: c.Raw, SealedKey: steps.SealedKey, NotBefore: c.NotBefore, NotAfter: c.NotAfter,
		RenewAt: c.NotBefore.Add(c.NotAfter.Sub(c.NotBefore) / 2)}
	return commit(ctx, h.Pool, crash.ResponderStore, func(tx pgx.Tx) error {
		if err := l.Complete(ctx, tx, map[string]any{"serial": pki.FormatSerial(c.SerialNumber), "not_after": c.NotAfter}); err != nil {
			return err
		}
		return revocation.AddResponder(ctx, tx, r)
	})
}

// responderSteps is the checkpoint of a Responder job.
type responderSteps struct {
	ResponderID id.Responder `json:"responder_id"`
	SealedKey   []byte       `json:"sealed_key"` // bound to ocsp_responders and this id
	Driver      []byte       `json:"driver,omitempty"`
}

// responderKey answers the key that an earlier run kept, or makes and keeps one.
func (h *House) responderKey(ctx context.Context, l *job.Lease) (steps responderSteps, key crypto.Signer, err error) {
	if err := json.Unmarshal(l.Checkpoint, &steps); err != nil {
		return steps, nil, fmt.Errorf("reading the checkpoint of job %s: %w", l.ID, err)
	}
	if len(steps.SealedKey) > 0 {
		key, err = h.openKey(ctx, secret.OCSP, "ocsp_responders", "sealed_key", steps.ResponderID.UUID(), steps.SealedKey)
		return steps, key, err
	}
	if key, err = pki.Generate(pki.ECDSAP256); err != nil {
		return steps, nil, err
	}
	steps.ResponderID = id.New[id.Responder]()
	if steps.SealedKey, err = h.sealKey(ctx, secret.OCSP, "ocsp_responders", "sealed_key", steps.ResponderID.UUID(), key); err != nil {
		return steps, nil, err
	}
	crash.At(crash.ResponderKeep, crash.Before)
	if err := l.Save(ctx, h.Pool, steps); err != nil {
		return steps, nil, err
	}
	crash.At(crash.ResponderKeep, crash.After)
	return steps, key, nil
}
