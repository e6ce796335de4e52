package lifecycle

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"certctl/shared/agent"
	"certctl/shared/audit"
	"certctl/shared/auth"
	"certctl/shared/cert"
	"certctl/shared/crash"
	"certctl/shared/db"
	"certctl/shared/deployment"
	"certctl/shared/fault"
	"certctl/shared/id"
	"certctl/shared/job"
	"certctl/shared/pki"
	"certctl/shared/wire"

	"github.com/jackc/pgx/v5"
)

// AgentLease is how long an agent may be silent about a job that it runs; each report Running extends it.
const AgentLease = 5 * time.Minute

// agentBatch is how many deployments an agent gets at once; it runs them one after the other.
const agentBatch = 10

// Poll is one poll of an agent.
type Poll struct {
	Credential string        // the bearer
	Path       id.Agent      // the agent named in the path
	Run        string        // names the run of the agent's process, "" when it has none
	Idle       time.Duration // the promised interval while nothing is open
}

// busyPoll is the wait while work of this agent is open somewhere.
const busyPoll = 2 * time.Second

// greetSQL authenticates, stamps the heartbeat (at most once a minute) and says whether anything is open. For an idle agent
// that is all: two index reads, and a plan that is small to set up. Arguments are numbered, since rewriting names costs more
// than to run this. $1 agent, $2 hash, $3 idle.
const greetSQL = `WITH a AS (SELECT id, credential_hash, previous_credential_hash, last_seen_at, offline_since, poll_seconds FROM agents
		WHERE id = $1 AND retired_at IS NULL AND (credential_hash = $2 OR previous_credential_hash = $2)),
	beat AS (UPDATE agents SET last_seen_at = now(), offline_since = NULL, poll_seconds = $3,
			previous_credential_hash = CASE WHEN agents.credential_hash = $2 THEN NULL ELSE agents.previous_credential_hash END
		FROM a WHERE agents.id = a.id AND (a.last_seen_at IS NULL OR a.last_seen_at < now() - interval '1 minute' OR a.offline_since IS NOT NULL
			OR a.poll_seconds <> $3 OR (a.previous_credential_hash IS NOT NULL AND a.credential_hash = $2)))
	SELECT credential_hash, previous_credential_hash, EXISTS (SELECT 1 FROM jobs j WHERE j.agent_id = $1 AND j.status IN ('Pending','AwaitingCSR','Running')) FROM a`

// aboutSQL reads what an agent must know of the jobs that it was given. $1 the jobs.
const aboutSQL = `SELECT j.id, coalesce(extract(epoch FROM j.leased_until - now())::int, 0) AS lease_seconds, c.common_name, c.sans, p.key_algorithms[1] AS key_algorithm,
		t.id AS target_id, t.type AS target_type, t.config, t.verify, d.desired_version_id
	FROM jobs j JOIN certificates c ON c.id = j.certificate_id JOIN profiles p ON p.id = c.profile_id
		LEFT JOIN targets t ON t.id = j.target_id LEFT JOIN deployments d ON d.certificate_id = j.certificate_id AND d.target_id = j.target_id
	WHERE j.id = ANY($1::uuid[])`

type about struct {
	ID               id.Job
	LeaseSeconds     int
	CommonName       string
	SANs             []string
	KeyAlgorithm     string
	TargetID         id.Target
	TargetType       *string
	Config           json.RawMessage
	Verify           *wire.Verify
	DesiredVersionID id.Version
}

// Work answers an agent's poll.
func Work(ctx context.Context, q db.Querier, p Poll) (wire.Work, error) {
	named, secret, ok := agent.SplitCredential(p.Credential)
	if !ok {
		return wire.Work{}, agent.Refused()
	}
	if named != p.Path {
		return wire.Work{}, foreignAgent()
	}
	digest := auth.Digest(secret)
	var current, previous []byte
	var busy bool
	err := q.QueryRow(ctx, greetSQL, named, digest, int(p.Idle/time.Second)).Scan(&current, &previous, &busy)
	if err != nil && !errors.Is(err, pgx.ErrNoRows) {
		return wire.Work{}, fmt.Errorf("answering a poll: %w", db.Fault(err))
	}
	if err != nil || subtle.ConstantTimeCompare(current, digest)|subtle.ConstantTimeCompare(previous, digest) != 1 {
		return wire.Work{}, agent.Refused()
	}
	out := wire.Work{Jobs: []wire.Job{}, NextPollSeconds: nextPoll(busy, p.Idle)}
	if !busy {
		return out, nil
	}
	jobs, err := job.ClaimPendingByAgent(ctx, q, named, job.Claim{Limit: agentBatch, Lease: AgentLease, Run: p.Run})
	if err != nil || len(jobs) == 0 {
		return out, err
	}
	known, err := aboutJobs(ctx, q, jobs)
	if err != nil {
		return wire.Work{}, fmt.Errorf("answering a poll: %w", err)
	}
	for _, j := range jobs {
		out.Jobs = append(out.Jobs, known[j.ID].wire(j))
	}
	return out, nil
}

func aboutJobs(ctx context.Context, q db.Querier, jobs []job.Job) (map[id.Job]about, error) {
	ids := make([]string, len(jobs))
	for i, j := range jobs {
		ids[i] = j.ID.UUID()
	}
	rows, err := db.Many[about](ctx, q, aboutSQL, ids)
	known := make(map[id.Job]about, len(rows))
	for _, r := range rows {
		known[r.ID] = r
	}
	return known, err
}

// nextPoll spreads idle agents over ± 10 % of the interval.
func nextPoll(busy bool, idle time.Duration) int {
	if busy {
		return int(min(busyPoll, idle) / time.Second)
	}
	spread := 0.9 + 0.2*rand.Float64() // #nosec G404 -- spreading load needs no secret
	return max(1, int(spread*idle.Seconds()))
}

func (a about) wire(j job.Job) wire.Job {
	out := wire.Job{ID: j.ID, Type: string(j.Type), Status: string(j.Status), CertificateID: j.CertificateID}
	if j.Status == job.AwaitingCSR {
		out.CSR = &wire.CSR{CommonName: a.CommonName, SANs: a.SANs, KeyAlgorithm: a.KeyAlgorithm}
		return out
	}
	out.Lease, out.LeaseSeconds = j.LeaseNo, a.LeaseSeconds
	out.Target = &wire.Target{ID: a.TargetID, Type: *a.TargetType, Config: a.Config, Verify: a.Verify, VersionID: a.DesiredVersionID}
	var cp deployCheckpoint
	if json.Unmarshal(j.Checkpoint, &cp) == nil && cp.KeyVersion == a.DesiredVersionID {
		out.Target.Key = cp.Key
	}
	return out
}

func foreignAgent() error {
	return fault.New(fault.Denied, "The credential belongs to another agent than the one in the path.")
}

// Enroll makes an agent from a single-use token.
func Enroll(ctx context.Context, tx pgx.Tx, e wire.Enroll) (wire.Enrolled, error) {
	crash.At(crash.Enroll, crash.Before)
	a, credential, err := agent.Enroll(ctx, tx, e)
	if err != nil {
		return wire.Enrolled{}, err
	}
	crash.At(crash.Enroll, crash.After)
	return wire.Enrolled{AgentID: a.ID, Credential: credential}, audit.RecordAs(ctx, tx, agent.Actor(a.ID), audit.Entry{Action: "agent.enrolled", ResourceType: "agent", ResourceID: a.ID.String(),
		Details: map[string]any{"name": a.Name, "hostname": a.Hostname, "version": a.Version}})
}

// AcceptCSR admits an agent's certificate request and hands the job to the worker. The first request wins; the same key again
// gets the same answer.
func AcceptCSR(ctx context.Context, tx pgx.Tx, a id.Agent, in wire.PostCSR) (wire.CSRAccepted, error) {
	j, err := job.OfAgent(ctx, tx, a, in.JobID)
	if err != nil {
		return wire.CSRAccepted{}, err
	}
	if j.Type != job.Issuance && j.Type != job.Renewal {
		return wire.CSRAccepted{}, fault.New(fault.Conflict, "The job takes no certificate request.")
	}
	csr, err := admit(ctx, tx, j, in.CSRPEM)
	if err != nil {
		return wire.CSRAccepted{}, err
	}
	crash.At(crash.AcceptCSR, crash.Before)
	got, accepted, err := job.AcceptCSR(ctx, tx, a, j.ID, csr.Raw)
	if err != nil {
		return wire.CSRAccepted{}, err
	}
	crash.At(crash.AcceptCSR, crash.After)
	if !accepted {
		return repeatedCSR(got, csr)
	}
	spki := pki.SPKIHash(csr.PublicKey)
	return wire.CSRAccepted{JobID: got.ID, Status: string(got.Status)}, audit.Record(ctx, tx, audit.Entry{Action: "certificate.csr_accepted", ResourceType: "certificate",
		ResourceID: got.CertificateID.String(), Details: map[string]any{"job_id": got.ID, "spki_sha256": hex.EncodeToString(spki[:])}})
}

func admit(ctx context.Context, q db.Querier, j job.Job, text string) (*x509.CertificateRequest, error) {
	c, err := cert.Get(ctx, q, j.CertificateID)
	if err != nil {
		return nil, err
	}
	p, err := cert.GetProfile(ctx, q, c.ProfileID)
	if err != nil {
		return nil, err
	}
	names, err := c.Names()
	if err != nil {
		return nil, err
	}
	csr, err := pki.ParseCSR([]byte(text))
	if err != nil {
		return nil, err
	}
	if err := pki.AdmitCSR(csr, names, p.Algorithms()); err != nil {
		return nil, err
	}
	spki := pki.SPKIHash(csr.PublicKey)
	if blocked, err := cert.KeyBlocked(ctx, q, spki[:]); err != nil {
		return nil, err
	} else if blocked {
		return nil, fault.BadField("csr_pem", "uses a key that was reported compromised; make a new one")
	}
	return csr, nil
}

// repeatedCSR answers a request for a job that waits for none any more.
func repeatedCSR(j job.Job, csr *x509.CertificateRequest) (wire.CSRAccepted, error) {
	if len(j.CSR) > 0 {
		if first, err := x509.ParseCertificateRequest(j.CSR); err == nil && bytes.Equal(first.RawSubjectPublicKeyInfo, csr.RawSubjectPublicKeyInfo) {
			return wire.CSRAccepted{JobID: j.ID, Status: string(j.Status)}, nil
		}
		return wire.CSRAccepted{}, fault.New(fault.Conflict, "Another key was accepted for this job first; use that one.").With("job_status", j.Status)
	}
	return wire.CSRAccepted{}, fault.New(fault.Conflict, "The job is %s and takes no certificate request.", j.Status).With("job_status", j.Status)
}

// Pickup answers a version to an agent that deploys it or holds its key.
func Pickup(ctx context.Context, q db.Querier, a id.Agent, c id.Certificate, v id.Version) (wire.Pickup, error) {
	var current id.Version
	err := q.QueryRow(ctx, `SELECT current_version_id FROM certificates c WHERE id = @c AND (agent_id = @a OR EXISTS (SELECT 1 FROM deployments d JOIN targets t ON t.id = d.target_id
		WHERE d.certificate_id = c.id AND t.agent_id = @a AND d.removed_at IS NULL))`, pgx.NamedArgs{"c": c, "a": a}).Scan(&current)
	missing := fault.New(fault.NotFound, "There is no such certificate of this agent, or no version of it yet.")
	if errors.Is(err, pgx.ErrNoRows) {
		return wire.Pickup{}, missing
	}
	if err != nil {
		return wire.Pickup{}, db.Fault(err)
	}
	if v.IsZero() {
		v = current
	}
	if v.IsZero() {
		return wire.Pickup{}, missing
	}
	ver, err := cert.GetVersion(ctx, q, c, v)
	if err != nil {
		return wire.Pickup{}, err
	}
	chain, err := cert.Chain(ctx, q, v)
	if err != nil {
		return wire.Pickup{}, err
	}
	return wire.Pickup{VersionID: ver.ID, Serial: ver.SerialText(), FingerprintSHA256: hex.EncodeToString(ver.Fingerprint), SPKISHA256: hex.EncodeToString(ver.SPKISHA256),
		ChainPEM: string(pki.EncodeBundle(chain...))}, nil
}

// Report takes an agent's word on a job that it runs.
func Report(ctx context.Context, tx pgx.Tx, a id.Agent, i id.Job, r wire.Report) (wire.Reported, error) {
	l, err := job.AgentLease(ctx, tx, a, i, r.Lease)
	if fault.Is(err, fault.NotFound) {
		return repeatedReport(ctx, tx, a, i, r)
	}
	if err != nil {
		return wire.Reported{}, err
	}
	crash.At(crash.Report, crash.Before)
	switch r.Status {
	case string(job.Running):
		err = l.Extend(ctx, tx, AgentLease)
		return wire.Reported{JobID: i, Status: r.Status, LeaseSeconds: int(AgentLease / time.Second)}, stale(ctx, tx, l, r, err)
	case string(job.Completed):
		err = completeFromAgent(ctx, tx, l, r)
	case string(job.Failed):
		err = failFromAgent(ctx, tx, l, r)
	default:
		return wire.Reported{}, fault.BadField("status", "must be one of Running, Completed, Failed")
	}
	crash.At(crash.Report, crash.After)
	if errors.Is(err, job.ErrLeaseLost) {
		return wire.Reported{JobID: i, Status: r.Status}, stale(ctx, tx, l, r, err)
	}
	return wire.Reported{JobID: i, Status: string(l.Status)}, err
}

// stale turns a lost lease into a conflict, unless the job ended under this very lease as the report says: then the first
// answer was lost and the report is repeated.
func stale(ctx context.Context, q db.Querier, l *job.Lease, r wire.Report, err error) error {
	if !errors.Is(err, job.ErrLeaseLost) {
		return err
	}
	got, err := job.Get(ctx, q, l.ID)
	if err != nil {
		return err
	}
	if got.LeaseNo == r.Lease && string(got.Status) == r.Status {
		return nil
	}
	return fault.New(fault.StaleLease, "The job is not held under this lease any more; drop it and poll again.").With("job_status", got.Status)
}

// repeatedReport answers a report on a job that is not the agent's to run: NotFound, unless its lease ended by giving the
// job on to the worker's probe. Then the first answer was lost, and a repeated Completed is fine.
func repeatedReport(ctx context.Context, q db.Querier, a id.Agent, i id.Job, r wire.Report) (wire.Reported, error) {
	j, err := job.OfAgent(ctx, q, a, i)
	if err != nil {
		return wire.Reported{}, err
	}
	attempts, err := job.Attempts(ctx, q, i)
	if err != nil {
		return wire.Reported{}, err
	}
	for _, t := range attempts {
		if t.LeaseNo == r.Lease && r.Status == string(job.Completed) && t.Outcome != nil && *t.Outcome == "released" {
			return wire.Reported{JobID: i, Status: string(j.Status)}, nil
		}
	}
	return wire.Reported{}, fault.New(fault.NotFound, "There is no such job of this agent.")
}

func completeFromAgent(ctx context.Context, tx pgx.Tx, l *job.Lease, r wire.Report) error {
	if l.Type != job.Deployment {
		return fault.New(fault.Conflict, "The job takes no report of this kind.")
	}
	t, err := deployment.GetTarget(ctx, tx, l.TargetID)
	if err != nil {
		return err
	}
	if r.Receipt == nil {
		return fault.BadField("receipt", "is needed with Completed")
	}
	v, err := cert.GetVersion(ctx, tx, l.CertificateID, r.Receipt.VersionID)
	if fault.Is(err, fault.NotFound) {
		return fault.BadField("receipt.version_id", "is not a version of this certificate")
	}
	if err != nil {
		return err
	}
	served := r.Receipt.ServedFingerprint == hex.EncodeToString(v.Fingerprint)
	fromWorker := t.Verify != nil && t.Verify.From == "worker"
	if t.Verify != nil && !fromWorker && !served {
		return fault.BadField("receipt.served_fingerprint_sha256", "must be the fingerprint of the version: the target asks for a verified deployment")
	}
	if fromWorker {
		return l.HandOver(ctx, tx, job.Worker, deployCheckpoint{Probe: true, KeyVersion: v.ID, Receipt: r.Receipt})
	}
	return completeDeployment(ctx, tx, l, *r.Receipt, served)
}

// completeDeployment ends a deployment well: job, state and audit event.
func completeDeployment(ctx context.Context, tx pgx.Tx, l *job.Lease, r wire.Receipt, served bool) error {
	if err := l.Complete(ctx, tx, map[string]any{"version_id": r.VersionID, "served_fingerprint_sha256": orNull(r.ServedFingerprint), "changed": r.Changed}); err != nil {
		return err
	}
	if err := deployment.Report(ctx, tx, l.CertificateID, l.TargetID, r, served); err != nil {
		return err
	}
	return audit.Record(ctx, tx, audit.Entry{Action: "deployment.completed", ResourceType: "certificate", ResourceID: l.CertificateID.String(),
		Details: map[string]any{"job_id": l.ID, "target_id": l.TargetID, "version_id": r.VersionID, "served": served}})
}

func orNull(s string) any {
	if s == "" {
		return nil
	}
	return s
}

func failFromAgent(ctx context.Context, tx pgx.Tx, l *job.Lease, r wire.Report) error {
	why := r.Detail
	if why == "" {
		why = "the agent gave no reason"
	}
	if err := l.Fail(ctx, tx, errors.New(why)); err != nil {
		return err
	}
	if err := deployment.ReportFailure(ctx, tx, l.CertificateID, l.TargetID, why, r.Receipt); err != nil {
		return err
	}
	return audit.Record(ctx, tx, audit.Entry{Action: "deployment.failed", ResourceType: "certificate", ResourceID: l.CertificateID.String(),
		Details: map[string]any{"job_id": l.ID, "target_id": l.TargetID, "error": why}})
}

// fingerprint is the SHA-256 of a certificate.
func fingerprint(c *x509.Certificate) string {
	sum := sha256.Sum256(c.Raw)
	return hex.EncodeToString(sum[:])
}
