package job_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"certctl/shared/auth"
	"certctl/shared/db"
	"certctl/shared/dbtest"
	"certctl/shared/fault"
	"certctl/shared/id"
	"certctl/shared/job"
	"certctl/shared/page"
)

// record is what jobs refer to: a certificate with its references, an agent, targets.
type record struct {
	issuer  id.Issuer
	agent   id.Agent
	certs   []id.Certificate
	targets []id.Target
}

func exec(t testing.TB, q db.Querier, sql string, args ...any) {
	t.Helper()
	if _, err := q.Exec(t.Context(), sql, args...); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

func makeRecord(t testing.TB, q db.Querier, certs, targets int) record {
	t.Helper()
	r := record{issuer: id.New[id.Issuer](), agent: id.New[id.Agent]()}
	profile, policy := id.New[id.Profile](), id.New[id.RenewalPolicy]()
	exec(t, q, `INSERT INTO issuers (id, name, type) VALUES ($1, $2, 'local')`, r.issuer, r.issuer.String())
	exec(t, q, `INSERT INTO profiles (id, name, key_algorithms, max_ttl_seconds, ekus) VALUES ($1, $2, '{ecdsa-p256}', 3600, '{serverAuth}')`, profile, profile.String())
	exec(t, q, `INSERT INTO renewal_policies (id, name, renew_at_fraction, jitter) VALUES ($1, $2, 0.5, 0)`, policy, policy.String())
	exec(t, q, `INSERT INTO agents (id, name, credential_hash) VALUES ($1, $2, sha256('x'))`, r.agent, r.agent.String())
	for range certs {
		c := id.New[id.Certificate]()
		exec(t, q, `INSERT INTO certificates (id, name, sans, issuer_id, profile_id, renewal_policy_id, key_custody, created_by) VALUES ($1, 'x', '{x}', $2, $3, $4, 'server', 'alice')`, c, r.issuer, profile, policy)
		r.certs = append(r.certs, c)
	}
	for range targets {
		x := id.New[id.Target]()
		exec(t, q, `INSERT INTO targets (id, name, type, agent_id) VALUES ($1, $2, 'files', $3)`, x, x.String(), r.agent)
		r.targets = append(r.targets, x)
	}
	return r
}

// enqueue puts every job into one shard: strict priority holds inside a shard only.
func enqueue(t testing.TB, q db.Querier, n job.New) job.Job {
	t.Helper()
	j, err := job.Enqueue(as(t, "alice"), q, n)
	if err != nil {
		t.Fatal(err)
	}
	exec(t, q, `UPDATE jobs SET shard = 3 WHERE id = $1`, j.ID)
	return j
}

func as(t testing.TB, principal string) context.Context {
	return auth.WithActor(t.Context(), auth.Actor{Principal: principal, Role: auth.Operator})
}

// claim takes what is due for the worker.
func claim(t testing.TB, q db.Querier, limit int) []*job.Lease {
	t.Helper()
	l, err := job.ClaimPending(t.Context(), q, job.Claim{Limit: limit, Lease: time.Minute, Run: "run-1"})
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func claimOne(t testing.TB, q db.Querier) *job.Lease {
	t.Helper()
	l := claim(t, q, 1)
	if len(l) != 1 {
		t.Fatalf("claimed %d jobs, want 1", len(l))
	}
	return l[0]
}

func get(t testing.TB, q db.Querier, i id.Job) job.Job {
	t.Helper()
	j, err := job.Get(t.Context(), q, i)
	if err != nil {
		t.Fatal(err)
	}
	return j
}

// outcomes are the recorded ends of a job's claims, "" for one that runs.
func outcomes(t testing.TB, q db.Querier, i id.Job) []string {
	t.Helper()
	attempts, err := job.Attempts(t.Context(), q, i)
	if err != nil {
		t.Fatal(err)
	}
	out := []string{}
	for n, a := range attempts {
		if a.LeaseNo != int64(n+1) {
			t.Errorf("attempt %d has lease %d", n+1, a.LeaseNo)
		}
		if (a.EndedAt == nil) != (a.Outcome == nil) {
			t.Errorf("attempt %d: ended at %v with outcome %v", n+1, a.EndedAt, a.Outcome)
		}
		if a.Outcome == nil {
			out = append(out, "")
			continue
		}
		out = append(out, *a.Outcome)
	}
	return out
}

func wantOutcomes(t testing.TB, q db.Querier, i id.Job, want ...string) {
	t.Helper()
	if got := outcomes(t, q, i); !slices.Equal(got, want) {
		t.Errorf("claims ended as %q, want %q", got, want)
	}
}

// expire makes a lease's time pass, dueNow a wait's.
func expire(t testing.TB, q db.Querier, i id.Job) {
	t.Helper()
	exec(t, q, `UPDATE jobs SET leased_until = now() - interval '1 second' WHERE id = $1`, i)
}

func dueNow(t testing.TB, q db.Querier, i id.Job) {
	t.Helper()
	exec(t, q, `UPDATE jobs SET scheduled_at = now() WHERE id = $1`, i)
}

// move is one way to change a job's state through this package.
type move struct {
	name string
	to   job.State
	do   func(ctx context.Context, q db.Querier, j job.Job, l *job.Lease) error
}

var errSome = errors.New("some cause")

// moves are all of them. What needs a lease gets that of the job's latest claim, or a guess where there never was one.
var moves = []move{
	{"claim", job.Running, func(ctx context.Context, q db.Querier, j job.Job, _ *job.Lease) error {
		l, err := job.ClaimPending(ctx, q, job.Claim{Limit: 100, Lease: time.Minute, Run: "r"})
		if err == nil && !slices.ContainsFunc(l, func(l *job.Lease) bool { return l.ID == j.ID }) {
			err = errors.New("not claimed")
		}
		return err
	}},
	{"approve", "", func(ctx context.Context, q db.Querier, j job.Job, _ *job.Lease) error {
		_, err := job.Approve(auth.WithActor(ctx, auth.Actor{Principal: "bob"}), q, j.ID)
		return err
	}},
	{"reject", job.Cancelled, func(ctx context.Context, q db.Querier, j job.Job, _ *job.Lease) error {
		_, err := job.Reject(auth.WithActor(ctx, auth.Actor{Principal: "bob"}), q, j.ID, "no")
		return err
	}},
	{"cancel", job.Cancelled, func(ctx context.Context, q db.Querier, j job.Job, _ *job.Lease) error {
		_, err := job.Cancel(ctx, q, j.ID)
		return err
	}},
	{"accept a CSR", job.Pending, func(ctx context.Context, q db.Querier, j job.Job, _ *job.Lease) error {
		_, ok, err := job.AcceptCSR(ctx, q, j.AgentID, j.ID, []byte{1})
		if err == nil && !ok {
			err = errors.New("not accepted")
		}
		return err
	}},
	{"complete", job.Completed, func(ctx context.Context, q db.Querier, _ job.Job, l *job.Lease) error { return l.Complete(ctx, q, nil) }},
	{"fail", job.Failed, func(ctx context.Context, q db.Querier, _ job.Job, l *job.Lease) error { return l.Fail(ctx, q, errSome) }},
	{"retry", job.Pending, func(ctx context.Context, q db.Querier, _ job.Job, l *job.Lease) error {
		return l.Retry(ctx, q, errSome)
	}},
	{"postpone", job.Pending, func(ctx context.Context, q db.Querier, _ job.Job, l *job.Lease) error {
		return l.Postpone(ctx, q, time.Second, time.Hour, errSome)
	}},
	{"release", job.Pending, func(ctx context.Context, q db.Querier, _ job.Job, l *job.Lease) error { return l.Release(ctx, q) }},
	{"hand over", job.Pending, func(ctx context.Context, q db.Querier, _ job.Job, l *job.Lease) error {
		return l.HandOver(ctx, q, job.Agent, map[string]any{})
	}},
	{"reap", job.Pending, func(ctx context.Context, q db.Querier, j job.Job, _ *job.Lease) error {
		if _, err := q.Exec(ctx, `UPDATE jobs SET leased_until = now() - interval '1 s' WHERE id = $1 AND leased_until IS NOT NULL`, j.ID); err != nil {
			return err
		}
		return counted(job.Reap(ctx, q))
	}},
	{"expire", "", func(ctx context.Context, q db.Querier, j job.Job, _ *job.Lease) error {
		if _, err := q.Exec(ctx, `UPDATE jobs SET give_up_at = now() - interval '1 s', approve_by = now() - interval '1 s', csr_deadline = now() - interval '1 s' WHERE id = $1`, j.ID); err != nil {
			return err
		}
		ended, err := job.Expire(ctx, q)
		if err == nil && len(ended) == 0 {
			err = errors.New("nothing expired")
		}
		return err
	}},
}

func counted(r job.Reaped, err error) error {
	if err == nil && r.Requeued+r.Failed == 0 {
		return errors.New("nothing reaped")
	}
	return err
}

// allowed are the moves that each state permits and where they lead.
var allowed = map[job.State]map[string]job.State{
	job.Pending:          {"claim": job.Running, "cancel": job.Cancelled, "expire": job.Failed},
	job.AwaitingApproval: {"approve": job.AwaitingCSR, "reject": job.Cancelled, "cancel": job.Cancelled, "expire": job.Cancelled},
	job.AwaitingCSR:      {"accept a CSR": job.Pending, "cancel": job.Cancelled, "expire": job.Failed},
	job.Running: {"complete": job.Completed, "fail": job.Failed, "retry": job.Pending, "postpone": job.Pending, "release": job.Pending,
		"hand over": job.Pending, "reap": job.Pending},
	job.Completed: {}, job.Failed: {}, job.Cancelled: {},
}

// in makes a job that stands in a state, with the lease that it was last claimed under.
func in(t *testing.T, q db.Querier, r record, s job.State) (job.Job, *job.Lease) {
	t.Helper()
	n := job.New{Type: job.Issuance, CertificateID: r.certs[0], AgentID: r.agent, GiveUpAfter: time.Hour}
	switch s {
	case job.AwaitingApproval:
		n.Status, n.ApproveWithin = s, time.Hour
	case job.AwaitingCSR:
		n.Status, n.CSRWithin = s, time.Hour
	}
	j := enqueue(t, q, n)
	if s == job.AwaitingApproval || s == job.AwaitingCSR || s == job.Pending {
		return j, leaseOf(t, q, r)
	}
	if s == job.Cancelled {
		if _, err := job.Cancel(t.Context(), q, j.ID); err != nil {
			t.Fatal(err)
		}
		return get(t, q, j.ID), leaseOf(t, q, r)
	}
	l := claimOne(t, q)
	old := *l
	var err error
	switch s {
	case job.Completed:
		err = l.Complete(t.Context(), q, nil)
	case job.Failed:
		err = l.Fail(t.Context(), q, errSome)
	}
	if err != nil {
		t.Fatal(err)
	}
	return get(t, q, j.ID), &old
}

// leaseOf is a lease of another job that ended: no lease of this one exists.
func leaseOf(t *testing.T, q db.Querier, r record) *job.Lease {
	t.Helper()
	other := enqueue(t, q, job.New{Type: job.IssuerTest, IssuerID: r.issuer, Priority: 1})
	l := claimOne(t, q)
	if l.ID != other.ID {
		t.Fatal("the urgent job was not claimed first")
	}
	old := *l
	if err := l.Complete(t.Context(), q, nil); err != nil {
		t.Fatal(err)
	}
	return &old
}

func TestEveryMoveIsAllowedOrRefusedAsTheTableSays(t *testing.T) {
	t.Parallel()
	for _, s := range job.States {
		for _, m := range moves {
			t.Run(string(s)+"/"+m.name, func(t *testing.T) {
				t.Parallel()
				tx := dbtest.Tx(t)
				r := makeRecord(t, tx, 1, 0)
				j, l := in(t, tx, r, s)
				to, ok := allowed[s][m.name]
				err := m.do(t.Context(), tx, j, l)
				got := get(t, tx, j.ID)
				switch {
				case ok && (err != nil || got.Status != to):
					t.Errorf("ended as %s with %v, want %s", got.Status, err, to)
				case ok && !slices.Contains(job.Moves[s], to):
					t.Errorf("job.Moves has no %s → %s", s, to)
				case !ok && (err == nil || got.Status != s):
					t.Errorf("a job that is %s became %s (%v)", s, got.Status, err)
				}
				if (got.CompletedAt != nil) != got.Status.Final() || (got.LeasedUntil != nil) != (got.Status == job.Running) {
					t.Errorf("%s with completed_at %v and leased_until %v", got.Status, got.CompletedAt, got.LeasedUntil)
				}
			})
		}
	}
}

func TestApprovalLeadsToTheAgentWhereItHoldsTheKey(t *testing.T) {
	t.Parallel()
	tx := dbtest.Tx(t)
	r := makeRecord(t, tx, 2, 0)
	server := enqueue(t, tx, job.New{Type: job.Issuance, CertificateID: r.certs[0], Status: job.AwaitingApproval, ApproveWithin: time.Hour})
	agent := enqueue(t, tx, job.New{Type: job.Issuance, CertificateID: r.certs[1], Status: job.AwaitingApproval, ApproveWithin: time.Hour, AgentID: r.agent})
	for j, want := range map[id.Job]job.State{server.ID: job.Pending, agent.ID: job.AwaitingCSR} {
		got, err := job.Approve(as(t, "bob"), tx, j)
		if err != nil || got.Status != want || got.ApprovedBy == nil || *got.ApprovedBy != "bob" || got.ApprovedAt == nil {
			t.Errorf("%s by %v, %v; want %s", got.Status, got.ApprovedBy, err, want)
		}
		if (got.CSRDeadline != nil) != (want == job.AwaitingCSR) {
			t.Errorf("%s has the deadline %v", want, got.CSRDeadline)
		}
	}
}

func TestAnotherPersonMustDecide(t *testing.T) {
	t.Parallel()
	for _, decide := range []struct {
		name string
		do   func(context.Context, db.Querier, id.Job) (job.Job, error)
	}{
		{"approve", job.Approve},
		{"reject", func(ctx context.Context, q db.Querier, j id.Job) (job.Job, error) { return job.Reject(ctx, q, j, "") }},
	} {
		t.Run(decide.name, func(t *testing.T) {
			t.Parallel()
			tx := dbtest.Tx(t)
			r := makeRecord(t, tx, 1, 0)
			j := enqueue(t, tx, job.New{Type: job.Issuance, CertificateID: r.certs[0], Status: job.AwaitingApproval, ApproveWithin: time.Hour})
			helper, _, err := auth.Create(as(t, "alice"), tx, auth.NewKey{Name: "x", Principal: "helper", Role: auth.Operator})
			if err != nil {
				t.Fatal(err)
			}
			turned, _, err := auth.Rotate(as(t, "carol"), tx, helper.ID, time.Hour)
			if err != nil {
				t.Fatal(err)
			}
			other, _, err := auth.Create(as(t, "carol"), tx, auth.NewKey{Name: "y", Principal: "bob", Role: auth.Operator})
			if err != nil {
				t.Fatal(err)
			}
			for name, a := range map[string]auth.Actor{
				"the requester": {Principal: "alice"}, "a key of his": {Principal: "helper", KeyID: helper.ID}, "a key of his that somebody rotated": {Principal: "helper", KeyID: turned.ID},
			} {
				if _, err := decide.do(auth.WithActor(t.Context(), a), tx, j.ID); !fault.Is(err, fault.Denied) {
					t.Errorf("%s: %v", name, err)
				}
			}
			if s := get(t, tx, j.ID).Status; s != job.AwaitingApproval {
				t.Fatalf("after refusals the job is %s", s)
			}
			ctx := auth.WithActor(t.Context(), auth.Actor{Principal: "bob", KeyID: other.ID})
			if _, err := decide.do(ctx, tx, j.ID); err != nil {
				t.Errorf("another person: %v", err)
			}
			if _, err := decide.do(ctx, tx, j.ID); !fault.Is(err, fault.Conflict) {
				t.Errorf("decided twice: %v", err)
			}
			if _, err := decide.do(ctx, tx, id.New[id.Job]()); !fault.Is(err, fault.NotFound) {
				t.Errorf("an unknown job: %v", err)
			}
		})
	}
}

func TestRejectionKeepsItsReason(t *testing.T) {
	t.Parallel()
	tx := dbtest.Tx(t)
	r := makeRecord(t, tx, 1, 0)
	j := enqueue(t, tx, job.New{Type: job.Issuance, CertificateID: r.certs[0], Status: job.AwaitingApproval, ApproveWithin: time.Hour})
	got, err := job.Reject(as(t, "bob"), tx, j.ID, "wrong names")
	if err != nil || *got.CancelReason != "rejected" || *got.LastError != "wrong names" || *got.ApprovedBy != "bob" {
		t.Errorf("%+v, %v", got, err)
	}
}

func TestOneOpenIssuancePerCertificate(t *testing.T) {
	t.Parallel()
	for _, s := range []job.State{job.Pending, job.AwaitingApproval, job.AwaitingCSR, job.Running} {
		t.Run(string(s), func(t *testing.T) {
			t.Parallel()
			tx := dbtest.Tx(t)
			r := makeRecord(t, tx, 1, 0)
			j, l := in(t, tx, r, s)
			for _, typ := range []job.Type{job.Issuance, job.Renewal} {
				sp, err := tx.Begin(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				if _, err := job.Enqueue(t.Context(), sp, job.New{Type: typ, CertificateID: r.certs[0]}); db.Constraint(err) != "jobs_one_open_issuance" {
					t.Errorf("a second open %s: %v", typ, err)
				}
				_ = sp.Rollback(t.Context())
			}
			if s == job.Running {
				if err := l.Complete(t.Context(), tx, nil); err != nil {
					t.Fatal(err)
				}
			} else if _, err := job.Cancel(t.Context(), tx, j.ID); err != nil {
				t.Fatal(err)
			}
			enqueue(t, tx, job.New{Type: job.Renewal, CertificateID: r.certs[0]})
		})
	}
}

func TestTheEndOfAnIssuanceIsToldToItsCertificate(t *testing.T) {
	t.Parallel()
	tx := dbtest.Tx(t)
	r := makeRecord(t, tx, 1, 0)
	c := r.certs[0]
	wait := func(failures int) time.Duration {
		exec(t, tx, `UPDATE certificates SET failures = $2, next_try_at = NULL WHERE id = $1`, c, failures)
		enqueue(t, tx, job.New{Type: job.Issuance, CertificateID: c})
		exec(t, tx, `UPDATE certificates SET open_job_id = (SELECT id FROM jobs WHERE certificate_id = $1 AND status = 'Pending') WHERE id = $1`, c)
		if err := claimOne(t, tx).Fail(t.Context(), tx, errSome); err != nil {
			t.Fatal(err)
		}
		type row struct {
			Wait  time.Duration
			Count int
			Open  bool
		}
		got, err := db.One[row](t.Context(), tx, "certificate", `SELECT next_try_at - now() AS wait, failures AS count, open_job_id IS NOT NULL AS open FROM certificates WHERE id = $1`, c)
		if err != nil || got.Count != failures+1 || got.Open {
			t.Errorf("after failure %d: %+v, %v", failures+1, got, err)
		}
		return got.Wait
	}
	for failures, want := range map[int]time.Duration{0: 5 * time.Minute, 1: 10 * time.Minute, 4: 80 * time.Minute, 8: 1280 * time.Minute, 9: 24 * time.Hour, 40: 24 * time.Hour} {
		if got := wait(failures); got != want {
			t.Errorf("after %d failures the next try is in %v, want %v", failures, got, want)
		}
	}
}

func TestListNarrowsByEveryFilter(t *testing.T) {
	t.Parallel()
	tx := dbtest.Tx(t)
	r := makeRecord(t, tx, 2, 1)
	mine := enqueue(t, tx, job.New{Type: job.Deployment, CertificateID: r.certs[0], TargetID: r.targets[0], Runner: job.Agent, AgentID: r.agent})
	enqueue(t, tx, job.New{Type: job.Issuance, CertificateID: r.certs[1]})
	done := enqueue(t, tx, job.New{Type: job.IssuerTest})
	if _, err := job.Cancel(t.Context(), tx, done.ID); err != nil {
		t.Fatal(err)
	}
	for name, f := range map[string]struct {
		filter job.Filter
		want   id.Job
	}{
		"type":        {job.Filter{Type: job.Deployment}, mine.ID},
		"certificate": {job.Filter{CertificateID: r.certs[0]}, mine.ID},
		"agent":       {job.Filter{AgentID: r.agent}, mine.ID},
		"status":      {job.Filter{Status: job.Cancelled}, done.ID},
	} {
		got, err := job.List(t.Context(), tx, f.filter, page.Request{})
		if err != nil || len(got.Rows) != 1 || got.Rows[0].ID != f.want {
			t.Errorf("%s: %d rows, %v", name, len(got.Rows), err)
		}
	}
	counts, err := job.CountByStatus(t.Context(), tx)
	if err != nil || counts[job.Pending] != 2 || counts[job.Cancelled] != 1 || len(counts) != len(job.States) {
		t.Errorf("%v, %v", counts, err)
	}
}

func TestErrorsForTheRecordAreBounded(t *testing.T) {
	t.Parallel()
	tx := dbtest.Tx(t)
	j := enqueue(t, tx, job.New{Type: job.IssuerTest})
	if err := claimOne(t, tx).Fail(t.Context(), tx, errors.New(strings.Repeat("é", 3000))); err != nil {
		t.Fatal(err)
	}
	if got := get(t, tx, j.ID); len(*got.LastError) > 2100 {
		t.Errorf("%d octets", len(*got.LastError))
	}
}
