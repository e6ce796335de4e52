package lifecycle_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"testing"
	"time"

	"certctl/shared/agent"
	"certctl/shared/cert"
	"certctl/shared/deployment"
	"certctl/shared/fault"
	"certctl/shared/id"
	"certctl/shared/job"
	"certctl/shared/lifecycle"
	"certctl/shared/pki"
	"certctl/shared/wire"

	jose "github.com/go-jose/go-jose/v4"
	"github.com/jackc/pgx/v5"
)

// host is an enrolled agent with its credential and encryption key.
type host struct {
	ID         id.Agent
	credential string
	key        *ecdsa.PrivateKey
}

func (h *house) enroll(t testing.TB, name string) host {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	jwk, err := json.Marshal(jose.JSONWebKey{Key: key.Public()})
	must(t, err)
	text := string(jwk)
	_, token, err := agent.NewToken(as(t, "alice"), h.pool, nil, time.Hour, nil)
	must(t, err)
	out, err := inTx(t, h.pool, func(ctx context.Context, tx pgx.Tx) (wire.Enrolled, error) {
		return lifecycle.Enroll(ctx, tx, wire.Enroll{Token: token, Name: name, PublicKey: &text})
	})
	must(t, err)
	return host{out.AgentID, out.Credential, key}
}

func (h *house) poll(t testing.TB, a host, run string) wire.Work {
	t.Helper()
	w, err := lifecycle.Work(t.Context(), h.pool, lifecycle.Poll{Credential: a.credential, Path: a.ID, Run: run, Idle: 300 * time.Second})
	must(t, err)
	return w
}

// postCSR makes a key and posts a request for the names.
func (h *house) postCSR(t testing.TB, a host, j id.Job, key crypto.Signer, names ...string) (wire.CSRAccepted, error) {
	t.Helper()
	n, err := pki.ParseNames("", names)
	must(t, err)
	csr, err := pki.NewCSR(key, n)
	must(t, err)
	return inTx(t, h.pool, func(ctx context.Context, tx pgx.Tx) (wire.CSRAccepted, error) {
		return lifecycle.AcceptCSR(ctx, tx, a.ID, wire.PostCSR{JobID: j, CSRPEM: string(pki.EncodeCSR(csr))})
	})
}

func (h *house) report(t testing.TB, a host, j id.Job, r wire.Report) (wire.Reported, error) {
	t.Helper()
	return inTx(t, h.pool, func(ctx context.Context, tx pgx.Tx) (wire.Reported, error) {
		return lifecycle.Report(ctx, tx, a.ID, j, r)
	})
}

func generate(t testing.TB) crypto.Signer {
	t.Helper()
	k, err := pki.Generate(pki.ECDSAP256)
	must(t, err)
	return k
}

// heldByAgent is a certificate under agent custody that is issued, with its deployment pending.
func (h *house) heldByAgent(t testing.TB, a host, verify *wire.Verify) (cert.Certificate, deployment.Target) {
	t.Helper()
	x := h.target(t, func(x *deployment.Target) { x.AgentID, x.Verify = a.ID, verify })
	c := h.request(t, lifecycle.Wanted{TargetIDs: []id.Target{x.ID}})
	_, err := h.postCSR(t, a, c.OpenJobID, generate(t), c.SANs...)
	must(t, err)
	h.work(t)
	return h.cert(t, c.ID), x
}

func TestAnAgentsKeyGoesFromCSRToServed(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	a := h.enroll(t, "web-1")
	x := h.target(t, func(x *deployment.Target) {
		x.AgentID, x.Verify = a.ID, &wire.Verify{Address: "127.0.0.1:443"}
	})
	c := h.request(t, lifecycle.Wanted{CommonName: "web.example.com", TargetIDs: []id.Target{x.ID}})
	w := h.poll(t, a, "run-1")
	if len(w.Jobs) != 1 || w.Jobs[0].Status != "AwaitingCSR" || w.Jobs[0].CSR.CommonName != "web.example.com" || w.Jobs[0].CSR.KeyAlgorithm != "ecdsa-p256" || w.NextPollSeconds > 5 {
		t.Fatalf("%+v", w)
	}
	key := generate(t)
	for range 2 { // the answer was lost: the same key again
		if out, err := h.postCSR(t, a, c.OpenJobID, key, "web.example.com"); err != nil || out.Status != "Pending" {
			t.Fatalf("%+v, %v", out, err)
		}
	}
	_, err := h.postCSR(t, a, c.OpenJobID, generate(t), "web.example.com")
	wantFault(t, err, fault.Conflict)
	if n := h.audited(t, "certificate.csr_accepted", c.ID.String()); n != 1 {
		t.Errorf("%d audit events of the request", n)
	}
	h.work(t)
	if out, err := h.postCSR(t, a, c.OpenJobID, key, "web.example.com"); err != nil || out.Status != "Completed" {
		t.Errorf("the same request after the issuance: %+v, %v", out, err)
	}
	v := h.version(t, h.cert(t, c.ID).CurrentVersionID)
	if spki := pki.SPKIHash(key.Public()); string(v.SPKISHA256) != string(spki[:]) {
		t.Error("the version is not of the agent's key")
	}
	if n := count(t, h.pool, `version_keys`); n != 0 {
		t.Error("the server holds a key")
	}
	w = h.poll(t, a, "run-1")
	if len(w.Jobs) != 1 || w.Jobs[0].Target.VersionID != v.ID || w.Jobs[0].Target.Key != "" || w.Jobs[0].Lease != 1 || w.Jobs[0].LeaseSeconds < 200 {
		t.Fatalf("%+v", w)
	}
	got, err := lifecycle.Pickup(t.Context(), h.pool, a.ID, c.ID, id.Version{})
	if err != nil || got.VersionID != v.ID || got.FingerprintSHA256 != hex.EncodeToString(v.Fingerprint) {
		t.Errorf("%+v, %v", got, err)
	}
	served := wire.Receipt{VersionID: v.ID, Changed: true, ServedFingerprint: hex.EncodeToString(v.Fingerprint)}
	for range 2 { // a repeated final status is fine
		if out, err := h.report(t, a, w.Jobs[0].ID, wire.Report{Lease: 1, Status: "Completed", Receipt: &served}); err != nil || out.Status != "Completed" {
			t.Fatalf("%+v, %v", out, err)
		}
	}
	d, err := deployment.Get(t.Context(), h.pool, c.ID, x.ID)
	if err != nil || d.ServedVersionID != v.ID || d.InstalledVersionID != v.ID || d.ServedAt == nil || d.TimeToServedMS == nil {
		t.Errorf("%+v, %v", d, err)
	}
	if n := h.audited(t, "deployment.completed", c.ID.String()); n != 1 {
		t.Errorf("%d audit events of the deployment", n)
	}
	if w = h.poll(t, a, "run-1"); len(w.Jobs) != 0 || w.NextPollSeconds < 270 || w.NextPollSeconds > 330 {
		t.Errorf("an idle poll: %+v", w)
	}
}

func TestACSRThatIsNotTheRecordsIsRefusedAndNothingIsSigned(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	a, other := h.enroll(t, "one"), h.enroll(t, "two")
	x := h.target(t, func(x *deployment.Target) { x.AgentID = a.ID })
	p := h.profile(t, func(*cert.Profile) {})
	c := h.request(t, lifecycle.Wanted{ProfileID: p.ID, TargetIDs: []id.Target{x.ID}})
	blocked := generate(t)
	spki := pki.SPKIHash(blocked.Public())
	exec(t, h.pool, `INSERT INTO blocked_keys (spki_sha256, created_by) VALUES ($1, 'x')`, spki[:])
	big, err := pki.Generate(pki.ECDSAP384)
	must(t, err)
	for name, try := range map[string]func() error{
		"another name": func() error { _, err := h.postCSR(t, a, c.OpenJobID, generate(t), "evil.example.com"); return err },
		"a name more": func() error {
			_, err := h.postCSR(t, a, c.OpenJobID, generate(t), "web.example.com", "x.org")
			return err
		},
		"another algorithm": func() error { _, err := h.postCSR(t, a, c.OpenJobID, big, "web.example.com"); return err },
		"a blocked key":     func() error { _, err := h.postCSR(t, a, c.OpenJobID, blocked, "web.example.com"); return err },
		"no request": func() error {
			_, err := inTx(t, h.pool, func(ctx context.Context, tx pgx.Tx) (wire.CSRAccepted, error) {
				return lifecycle.AcceptCSR(ctx, tx, a.ID, wire.PostCSR{JobID: c.OpenJobID, CSRPEM: "x"})
			})
			return err
		},
	} {
		t.Run(name, func(t *testing.T) { wantFault(t, try(), fault.Invalid) })
	}
	_, err = h.postCSR(t, other, c.OpenJobID, generate(t), "web.example.com")
	wantFault(t, err, fault.NotFound)
	h.work(t)
	if j := h.job(t, c.OpenJobID); j.Status != job.AwaitingCSR || count(t, h.pool, `versions`) != 0 {
		t.Errorf("the job is %s", j.Status)
	}
}

func TestAPollIsAnsweredToItsAgentOnly(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	a, other := h.enroll(t, "one"), h.enroll(t, "two")
	ask := func(credential string, path id.Agent) error {
		_, err := lifecycle.Work(t.Context(), h.pool, lifecycle.Poll{Credential: credential, Path: path, Idle: time.Minute})
		return err
	}
	wantFault(t, ask(a.credential, other.ID), fault.Denied)
	wantFault(t, ask("", a.ID), fault.Unauthenticated)
	wantFault(t, ask(a.credential[:len(a.credential)-43]+other.credential[len(other.credential)-43:], a.ID), fault.Unauthenticated)
	_, err := agent.Retire(t.Context(), h.pool, a.ID)
	must(t, err)
	wantFault(t, ask(a.credential, a.ID), fault.Unauthenticated)
}

func TestAPollBeatsTheHeartAtMostOnceAMinute(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	a := h.enroll(t, "one")
	h.poll(t, a, "")
	seen := func() time.Time {
		got, err := agent.Get(t.Context(), h.pool, a.ID)
		must(t, err)
		return *got.LastSeenAt
	}
	first := seen()
	h.poll(t, a, "")
	if !seen().Equal(first) {
		t.Error("two heartbeats in a minute")
	}
	exec(t, h.pool, `UPDATE agents SET last_seen_at = now() - interval '2 minutes', offline_since = now() WHERE id = $1`, a.ID)
	h.poll(t, a, "")
	got, err := agent.Get(t.Context(), h.pool, a.ID)
	if err != nil || time.Since(*got.LastSeenAt) > time.Minute || got.OfflineSince != nil || got.PollSeconds != 300 {
		t.Errorf("%+v, %v", got, err)
	}
}

func TestWorkIsRepeatedToTheSameRunUntilItsLeaseEnds(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	a := h.enroll(t, "one")
	h.heldByAgent(t, a, nil)
	first := h.poll(t, a, "run-a")
	if len(first.Jobs) != 1 {
		t.Fatalf("%+v", first)
	}
	if again := h.poll(t, a, "run-a"); len(again.Jobs) != 1 || again.Jobs[0].ID != first.Jobs[0].ID || again.Jobs[0].Lease != first.Jobs[0].Lease {
		t.Errorf("%+v", again)
	}
	for _, run := range []string{"run-b", ""} {
		if other := h.poll(t, a, run); len(other.Jobs) != 0 {
			t.Errorf("run %q got %+v", run, other.Jobs)
		}
	}
	exec(t, h.pool, `UPDATE jobs SET leased_until = now() - interval '1 s' WHERE id = $1`, first.Jobs[0].ID)
	if late := h.poll(t, a, "run-a"); len(late.Jobs) != 0 {
		t.Error("a job whose lease is over was handed out again")
	}
	_, err := lifecycle.Sweep(t.Context(), h.pool)
	must(t, err)
	next := h.poll(t, a, "run-b")
	if len(next.Jobs) != 1 || next.Jobs[0].Lease != 2 {
		t.Fatalf("%+v", next)
	}
	j := first.Jobs[0].ID
	for _, s := range []string{"Running", "Failed", "Completed"} {
		v := h.cert(t, first.Jobs[0].CertificateID).CurrentVersionID
		_, err := h.report(t, a, j, wire.Report{Lease: 1, Status: s, Receipt: &wire.Receipt{VersionID: v}})
		t.Run(s, func(t *testing.T) { wantFault(t, err, fault.StaleLease) })
	}
	if out, err := h.report(t, a, j, wire.Report{Lease: 2, Status: "Running"}); err != nil || out.LeaseSeconds != 300 {
		t.Errorf("%+v, %v", out, err)
	}
	for range 2 {
		if out, err := h.report(t, a, j, wire.Report{Lease: 2, Status: "Failed", Detail: "nginx -t failed"}); err != nil || out.Status != "Failed" {
			t.Errorf("%+v, %v", out, err)
		}
	}
	d, err := deployment.Of(t.Context(), h.pool, first.Jobs[0].CertificateID)
	if err != nil || d[0].LastError == nil || *d[0].LastError != "nginx -t failed" {
		t.Errorf("%+v, %v", d, err)
	}
}

func TestReportsThatCannotBeRightAreRefused(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	a, other := h.enroll(t, "one"), h.enroll(t, "two")
	c, _ := h.heldByAgent(t, a, &wire.Verify{Address: "127.0.0.1:443"})
	w := h.poll(t, a, "r")
	j, v := w.Jobs[0].ID, h.version(t, c.CurrentVersionID)
	fingerprint := hex.EncodeToString(v.Fingerprint)
	for name, x := range map[string]struct {
		agent  host
		job    id.Job
		report wire.Report
		kind   fault.Kind
	}{
		"another agent's job":      {other, j, wire.Report{Lease: 1, Status: "Running"}, fault.NotFound},
		"an unknown job":           {a, id.New[id.Job](), wire.Report{Lease: 1, Status: "Running"}, fault.NotFound},
		"the worker's job":         {a, v.JobID, wire.Report{Lease: 1, Status: "Completed"}, fault.NotFound},
		"another word":             {a, j, wire.Report{Lease: 1, Status: "Pending"}, fault.Invalid},
		"no receipt":               {a, j, wire.Report{Lease: 1, Status: "Completed"}, fault.Invalid},
		"no served fingerprint":    {a, j, wire.Report{Lease: 1, Status: "Completed", Receipt: &wire.Receipt{VersionID: v.ID}}, fault.Invalid},
		"another fingerprint":      {a, j, wire.Report{Lease: 1, Status: "Completed", Receipt: &wire.Receipt{VersionID: v.ID, ServedFingerprint: hex.EncodeToString(make([]byte, 32))}}, fault.Invalid},
		"a version of nobody":      {a, j, wire.Report{Lease: 1, Status: "Completed", Receipt: &wire.Receipt{VersionID: id.New[id.Version](), ServedFingerprint: fingerprint}}, fault.Invalid},
		"a lease that never was":   {a, j, wire.Report{Lease: 9, Status: "Running"}, fault.StaleLease},
		"a lease before the first": {a, j, wire.Report{Lease: 0, Status: "Failed"}, fault.StaleLease},
	} {
		_, err := h.report(t, x.agent, x.job, x.report)
		t.Run(name, func(t *testing.T) { wantFault(t, err, x.kind) })
	}
	if got := h.job(t, j); got.Status != job.Running {
		t.Errorf("the job is %s", got.Status)
	}
}

func TestAKeyHeldByTheServerReachesOnlyItsAgentAndForItsVersion(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	a := h.enroll(t, "one")
	custody := cert.ServerCustody
	p := h.profile(t, func(p *cert.Profile) { p.KeyCustody = &custody })
	x := h.target(t, func(x *deployment.Target) { x.AgentID = a.ID })
	c := h.issued(t, lifecycle.Wanted{ProfileID: p.ID, TargetIDs: []id.Target{x.ID}})
	w := h.poll(t, a, "r")
	if len(w.Jobs) != 1 || w.Jobs[0].Target.Key == "" || w.Jobs[0].Target.VersionID != c.CurrentVersionID {
		t.Fatalf("%+v", w)
	}
	jwe, err := jose.ParseEncryptedCompact(w.Jobs[0].Target.Key, []jose.KeyAlgorithm{jose.ECDH_ES}, []jose.ContentEncryption{jose.A256GCM})
	must(t, err)
	der, err := jwe.Decrypt(a.key)
	must(t, err)
	key, err := pki.ParseKey(der)
	must(t, err)
	if spki := pki.SPKIHash(key.Public()); string(spki[:]) != string(h.version(t, c.CurrentVersionID).SPKISHA256) {
		t.Error("another key was handed out")
	}
	// A newer version is desired while the older one's job runs: the old key is not for it.
	_, err = h.renew(t, c.ID)
	must(t, err)
	must(t, h.Issue(t.Context(), h.claim(t, job.Renewal)))
	if again := h.poll(t, a, "r"); len(again.Jobs) != 1 || again.Jobs[0].Target.Key != "" {
		t.Errorf("the key of the version before was handed out for the newer one: %+v", again.Jobs)
	}
	_, err = h.report(t, a, w.Jobs[0].ID, wire.Report{Lease: w.Jobs[0].Lease, Status: "Failed"})
	must(t, err)
	if j := h.job(t, w.Jobs[0].ID); string(j.Checkpoint) == "" || count(t, h.pool, `jobs WHERE id = $1 AND checkpoint ? 'key'`, j.ID) != 0 {
		t.Error("the key outlives its job")
	}
}

func TestARepeatedReportIsFineAfterTheWorkersProbeTookOver(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	a := h.enroll(t, "one")
	c, _ := h.heldByAgent(t, a, &wire.Verify{Address: "127.0.0.1:443", From: "worker"})
	w := h.poll(t, a, "r")
	for range 2 {
		out, err := h.report(t, a, w.Jobs[0].ID, wire.Report{Lease: w.Jobs[0].Lease, Status: "Completed", Receipt: &wire.Receipt{VersionID: c.CurrentVersionID}})
		if err != nil || out.Status != "Pending" {
			t.Errorf("%+v, %v", out, err)
		}
	}
	if j := h.job(t, w.Jobs[0].ID); j.Runner != job.Worker || j.Status != job.Pending {
		t.Errorf("%s for the %s", j.Status, j.Runner)
	}
	_, err := h.report(t, a, w.Jobs[0].ID, wire.Report{Lease: w.Jobs[0].Lease + 1, Status: "Completed", Receipt: &wire.Receipt{VersionID: c.CurrentVersionID}})
	wantFault(t, err, fault.NotFound)
}

func TestPickupIsForAgentsThatDeployTheCertificate(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	a, other := h.enroll(t, "one"), h.enroll(t, "two")
	c, _ := h.heldByAgent(t, a, nil)
	if _, err := lifecycle.Pickup(t.Context(), h.pool, other.ID, c.ID, c.CurrentVersionID); !fault.Is(err, fault.NotFound) {
		t.Errorf("another agent: %v", err)
	}
	foreign := h.issued(t, lifecycle.Wanted{CommonName: "x.example.com"})
	if _, err := lifecycle.Pickup(t.Context(), h.pool, a.ID, c.ID, foreign.CurrentVersionID); !fault.Is(err, fault.NotFound) {
		t.Errorf("another certificate's version: %v", err)
	}
	if got, err := lifecycle.Pickup(t.Context(), h.pool, a.ID, c.ID, c.CurrentVersionID); err != nil || got.ChainPEM == "" {
		t.Errorf("%+v, %v", got, err)
	}
}

func TestEnrollmentIsToldWithoutSecrets(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	a := h.enroll(t, "one")
	if n := count(t, h.pool, `audit_events WHERE action = 'agent.enrolled' AND resource_id = $1 AND principal = $2`, a.ID.String(), agent.Actor(a.ID).Principal); n != 1 {
		t.Errorf("%d audit events", n)
	}
	_, secret, _ := agent.SplitCredential(a.credential)
	if n := count(t, h.pool, `audit_events WHERE details::text LIKE '%' || $1 || '%'`, secret); n != 0 {
		t.Error("the trail holds a credential")
	}
}
