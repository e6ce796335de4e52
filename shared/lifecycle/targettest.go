package lifecycle

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"time"

	"certctl/shared/agent"
	"certctl/shared/audit"
	"certctl/shared/db"
	"certctl/shared/deployment"
	"certctl/shared/fault"
	"certctl/shared/id"
	"certctl/shared/job"
	"certctl/shared/pki"

	"github.com/jackc/pgx/v5"
)

// RequestTargetTest asks the worker to look at a target without changing it.
func RequestTargetTest(ctx context.Context, tx pgx.Tx, t id.Target) (job.Job, error) {
	got, err := deployment.GetTarget(ctx, tx, t)
	if err != nil {
		return job.Job{}, err
	}
	if got.ArchivedAt != nil {
		return job.Job{}, fault.New(fault.Conflict, "The target is archived.")
	}
	j, err := job.Enqueue(ctx, tx, job.New{Type: job.TargetTest, TargetID: t, Priority: job.Interactive, MaxAttempts: 1})
	if err != nil {
		return j, err
	}
	return j, audit.Record(ctx, tx, audit.Entry{Action: "target.test_requested", ResourceType: "target", ResourceID: t.String(), Details: map[string]any{"job_id": j.ID}})
}

// TestTarget runs a TargetTest job: is its agent there, and does what is named for verification answer with TLS.
func (h *House) TestTarget(ctx context.Context, l *job.Lease) error {
	t, err := deployment.GetTarget(ctx, h.Pool, l.TargetID)
	if err != nil {
		return settle(ctx, h.Pool, l, err)
	}
	detail, err := h.testTarget(ctx, t)
	if err != nil && fault.As(err) == nil {
		return settle(ctx, h.Pool, l, err)
	}
	if err != nil {
		detail = shown(err)
	}
	return db.InTx(detached(ctx), h.Pool, func(tx pgx.Tx) error {
		if err != nil {
			if e := l.Fail(ctx, tx, errors.New(detail)); e != nil {
				return e
			}
		} else if e := l.Complete(ctx, tx, map[string]any{"detail": detail}); e != nil {
			return e
		}
		return deployment.RecordTest(ctx, tx, t.ID, err == nil, detail)
	})
}

func (h *House) testTarget(ctx context.Context, t deployment.Target) (string, error) {
	detail := "the worker deploys to it"
	if !t.AgentID.IsZero() {
		a, err := agent.Get(ctx, h.Pool, t.AgentID)
		if err != nil {
			return "", err
		}
		if s := a.State(time.Now()); s != agent.Online {
			return "", fault.New(fault.Conflict, "Its agent is %s, so nothing would be deployed.", s)
		}
		detail = "its agent is online"
	}
	if t.Verify == nil || h.Dial == nil || !t.AgentID.IsZero() && t.Verify.From != "worker" {
		return detail, nil // what only the agent can reach, only the agent can try
	}
	served, err := h.whatIsServed(ctx, t.Verify.Address, t.Verify.ServerName)
	return detail + "; " + served, err
}

// whatIsServed completes a handshake and names the certificate that it saw, whichever that is.
func (h *House) whatIsServed(ctx context.Context, address, name string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	raw, err := h.Dial(ctx, "tcp", address)
	if err != nil {
		return "", fault.Wrap(err, fault.Conflict, "The address for verification cannot be reached from the worker.")
	}
	defer func() { _ = raw.Close() }()
	// #nosec G402 -- any certificate will do: the question is whether the address answers with TLS
	c := tls.Client(raw, &tls.Config{ServerName: name, InsecureSkipVerify: true, MinVersion: tls.VersionTLS12})
	if err := c.HandshakeContext(ctx); err != nil {
		return "", fault.Wrap(err, fault.Conflict, "The address for verification does not complete a TLS handshake.")
	}
	return fmt.Sprintf("serial %s is served", pki.FormatSerial(c.ConnectionState().PeerCertificates[0].SerialNumber)), nil
}
