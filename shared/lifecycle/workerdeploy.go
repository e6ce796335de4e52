package lifecycle

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"certctl/shared/agent"
	"certctl/shared/cert"
	"certctl/shared/crash"
	"certctl/shared/fault"
	"certctl/shared/id"
	"certctl/shared/job"
	"certctl/shared/pki"
	"certctl/shared/secret"
	"certctl/shared/target"
	"certctl/shared/wire"

	jose "github.com/go-jose/go-jose/v4"
	"github.com/jackc/pgx/v5"
)

// DeployFromWorker runs a deployment's part at the worker: it seals a server-held key to the agent and hands the job over,
// probes what an agent installed, or deploys to a target that has no agent.
func (h *House) DeployFromWorker(ctx context.Context, l *job.Lease) error {
	err := h.deployFromWorker(ctx, l)
	switch {
	case err == nil, errors.Is(err, job.ErrLeaseLost):
		return err
	case ctx.Err() != nil: // told to stop, or out of time: whatever the driver or the probe made of that says nothing about the target
		return settle(ctx, h.Pool, l, ctx.Err())
	case final(err):
		return failDeployment(detached(ctx), h.Pool, l, err)
	}
	return settle(ctx, h.Pool, l, err)
}

func (h *House) deployFromWorker(ctx context.Context, l *job.Lease) error {
	var cp deployCheckpoint
	if err := json.Unmarshal(l.Checkpoint, &cp); err != nil {
		return fmt.Errorf("reading the checkpoint of job %s: %w", l.ID, err)
	}
	w, err := h.wantedNow(ctx, l.Job)
	if err != nil {
		return err
	}
	switch {
	case cp.Probe:
		return h.probeInstalled(ctx, l, w)
	case !w.target.AgentID.IsZero():
		return h.sealToAgent(ctx, l, w)
	}
	return h.deployHere(ctx, l, w)
}

// sealToAgent encrypts the version's key to the agent's public key: only that agent, for that version, can open it.
func (h *House) sealToAgent(ctx context.Context, l *job.Lease, w wantedNow) error {
	a, err := agent.Get(ctx, h.Pool, w.target.AgentID)
	if err != nil {
		return err
	}
	if a.PublicKey == nil || a.RetiredAt != nil {
		return fault.New(fault.Conflict, "The agent of this target has no public key or is retired, so a key held by the server cannot reach it. Enroll the agent again.")
	}
	der, err := h.openLeafKey(ctx, w.version)
	if err != nil {
		return err
	}
	defer clear(der)
	jwe, err := sealTo(*a.PublicKey, der)
	if err != nil {
		return err
	}
	crash.At(crash.DeploySeal, crash.Before)
	if err := l.HandOver(ctx, h.Pool, job.Agent, deployCheckpoint{Key: jwe, KeyVersion: w.version.ID}); err != nil {
		return err
	}
	crash.At(crash.DeploySeal, crash.After)
	return nil
}

// openLeafKey answers the PKCS#8 of a server-held key.
func (h *House) openLeafKey(ctx context.Context, v cert.Version) ([]byte, error) {
	sealed, err := cert.SealedKey(ctx, h.Pool, v.ID)
	if err != nil {
		return nil, err
	}
	return h.Box.Open(ctx, secret.Leaf, secret.Binding{Table: "version_keys", Column: "sealed", Row: v.ID.UUID()}, sealed)
}

// sealTo encrypts to a JWK of an EC public key: JWE compact, ECDH-ES and A256GCM (RFC 7518, 4.6 and 5.3).
func sealTo(jwk string, plain []byte) (string, error) {
	var key jose.JSONWebKey
	if err := key.UnmarshalJSON([]byte(jwk)); err != nil || !key.IsPublic() {
		return "", fault.New(fault.Invalid, "The public key is not a public JWK.")
	}
	enc, err := jose.NewEncrypter(jose.A256GCM, jose.Recipient{Algorithm: jose.ECDH_ES, Key: key.Key}, nil)
	if err != nil {
		return "", fault.Wrap(err, fault.Invalid, "The public key cannot be encrypted to.")
	}
	jwe, err := enc.Encrypt(plain)
	if err != nil {
		return "", err
	}
	return jwe.CompactSerialize()
}

// How long a worker without drivers leaves a deployment to others, and when that is given up.
const (
	leaveToOthers    = 15 * time.Second
	giveUpDeployment = 24 * time.Hour
)

// deployHere deploys to a target that this host reaches by itself.
func (h *House) deployHere(ctx context.Context, l *job.Lease, w wantedNow) error {
	if h.Targets == nil { // one that has drivers may run beside this one; where none does, the reason stands on the job
		return l.Postpone(ctx, h.Pool, leaveToOthers, giveUpDeployment, errors.New("this worker deploys to no targets of its own: run certctl serve, or give the target an agent_id"))
	}
	der, err := h.openLeafKey(ctx, w.version)
	if err != nil {
		return err
	}
	defer clear(der)
	key, err := pki.ParseKey(der)
	if err != nil {
		return err
	}
	chain, err := cert.Chain(ctx, h.Pool, w.version.ID)
	if err != nil {
		return err
	}
	t := wire.Target{ID: w.target.ID, Type: w.target.Type, Config: w.target.Config, VersionID: w.version.ID}
	if w.target.Verify != nil {
		v := *w.target.Verify
		v.From = "" // this host is the worker and the deployer
		t.Verify = &v
	}
	receipt, err := h.Targets.Deploy(ctx, t, &target.Bundle{Chain: chain, Key: key})
	if err != nil {
		return fault.Wrap(err, fault.Conflict, "%s", err.Error())
	}
	return commit(detached(ctx), h.Pool, crash.DeployComplete, func(tx pgx.Tx) error {
		return completeDeployment(ctx, tx, l, receipt, receipt.ServedFingerprint == fingerprint(chain[0]))
	})
}

// probeInstalled proves from here that what an agent installed is served.
func (h *House) probeInstalled(ctx context.Context, l *job.Lease, w wantedNow) error {
	var cp struct {
		Receipt wire.Receipt `json:"receipt"`
	}
	if err := json.Unmarshal(l.Checkpoint, &cp); err != nil {
		return err
	}
	if w.target.Verify == nil || h.Dial == nil {
		return fault.New(fault.NotImplemented, "This worker cannot probe the target.")
	}
	if cp.Receipt.VersionID != w.version.ID { // a newer version came meanwhile: its own job deploys it
		return fault.New(fault.Conflict, "A newer version is desired; its own deployment follows.")
	}
	chain, err := cert.Chain(ctx, h.Pool, w.version.ID)
	if err != nil {
		return err
	}
	crash.At(crash.DeployProbe, crash.Before)
	served, err := target.Probe(ctx, h.Dial, w.target.Verify.Address, target.Want{Chain: chain, ServerName: w.target.Verify.ServerName})
	if err != nil {
		return fault.Wrap(err, fault.Conflict, "The agent installed the certificate, but from the worker it is not seen served: %s.", err.Error())
	}
	crash.At(crash.DeployProbe, crash.After)
	r := cp.Receipt
	r.ServedFingerprint, r.ServedSerial, r.ProbedAddress = served.Fingerprint, served.Serial, w.target.Verify.Address
	return commit(detached(ctx), h.Pool, crash.DeployComplete, func(tx pgx.Tx) error { return completeDeployment(ctx, tx, l, r, true) })
}

// KeyPair opens a server-held version for use in this process, e.g. by its own TLS listener.
func (h *House) KeyPair(ctx context.Context, v id.Version) (*tls.Certificate, error) {
	chain, err := cert.Chain(ctx, h.Pool, v)
	if err != nil {
		return nil, err
	}
	ver, err := cert.VersionByID(ctx, h.Pool, v)
	if err != nil {
		return nil, err
	}
	der, err := h.openLeafKey(ctx, ver)
	if err != nil {
		return nil, err
	}
	defer clear(der)
	key, err := pki.ParseKey(der)
	if err != nil {
		return nil, err
	}
	pair := &tls.Certificate{PrivateKey: key, Leaf: chain[0]}
	for _, c := range chain {
		pair.Certificate = append(pair.Certificate, c.Raw)
	}
	return pair, nil
}
