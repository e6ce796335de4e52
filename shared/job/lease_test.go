package job_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"certctl/shared/db"
	"certctl/shared/dbtest"
	"certctl/shared/fault"
	"certctl/shared/id"
	"certctl/shared/job"
)

func TestConcurrentClaimsAreDisjoint(t *testing.T) {
	t.Parallel()
	pool := dbtest.Pool(t)
	r := makeRecord(t, pool, 1, 40)
	const jobs = 400
	exec(t, pool, `INSERT INTO jobs (id, type, runner, status, requested_by, requested_role) SELECT uuid7(), 'IssuerTest', 'worker', 'Pending', 'x', 'x' FROM generate_series(1, $1)`, jobs)
	for _, x := range r.targets {
		enqueue(t, pool, job.New{Type: job.Deployment, CertificateID: r.certs[0], TargetID: x, Runner: job.Agent, AgentID: r.agent})
	}
	t.Run("worker", func(t *testing.T) {
		seen := claimants(t, 8, func(ctx context.Context, n int) ([]id.Job, error) {
			l, err := job.ClaimPending(ctx, pool, job.Claim{Limit: 7, Lease: time.Minute, Run: fmt.Sprint("w", n)})
			return idsOf(l), err
		})
		if len(seen) != jobs {
			t.Errorf("%d of %d jobs were claimed", len(seen), jobs)
		}
	})
	t.Run("agent", func(t *testing.T) {
		seen := claimants(t, 8, func(ctx context.Context, n int) ([]id.Job, error) {
			// A run per claim: what one run holds is handed out to it again.
			got, err := job.ClaimPendingByAgent(ctx, pool, r.agent, job.Claim{Limit: 3, Lease: time.Minute, Run: id.New[id.Job]().String()})
			var ids []id.Job
			for _, j := range got {
				ids = append(ids, j.ID)
			}
			return ids, err
		})
		if len(seen) != len(r.targets) {
			t.Errorf("%d of %d deployments were claimed", len(seen), len(r.targets))
		}
	})
	n, err := db.Scalar[int](t.Context(), pool, `SELECT count(*) FROM jobs j JOIN job_attempts a ON a.job_id = j.id AND a.lease_no = 1 AND a.claimant = j.lease_run WHERE j.status = 'Running' AND j.lease_no = 1`)
	if err != nil || n != jobs+len(r.targets) {
		t.Errorf("%d claims are recorded with their claimant, %v", n, err)
	}
}

func idsOf(l []*job.Lease) (out []id.Job) {
	for _, l := range l {
		out = append(out, l.ID)
	}
	return out
}

// claimants runs n claimants until each finds nothing, and fails when two get the same job.
func claimants(t *testing.T, n int, claim func(context.Context, int) ([]id.Job, error)) map[id.Job]int {
	t.Helper()
	var mu sync.Mutex
	seen := map[id.Job]int{}
	var wg sync.WaitGroup
	for k := range n {
		wg.Go(func() {
			for empty := 0; empty < 3; {
				got, err := claim(t.Context(), k)
				if err != nil {
					t.Errorf("claimant %d: %v", k, err)
					return
				}
				if len(got) == 0 {
					empty++
				}
				mu.Lock()
				for _, j := range got {
					if first, twice := seen[j]; twice {
						t.Errorf("%s was claimed by %d and %d", j, first, k)
					}
					seen[j] = k
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	return seen
}

func TestClaimTakesNoMoreThanTheLimitAndOnlyWhatIsDue(t *testing.T) {
	t.Parallel()
	tx := dbtest.Tx(t)
	r := makeRecord(t, tx, 1, 1)
	for range 20 {
		enqueue(t, tx, job.New{Type: job.IssuerTest})
	}
	late := enqueue(t, tx, job.New{Type: job.TargetTest, After: time.Hour})
	enqueue(t, tx, job.New{Type: job.Deployment, CertificateID: r.certs[0], TargetID: r.targets[0], Runner: job.Agent, AgentID: r.agent})
	if n := len(claim(t, tx, 7)); n != 7 {
		t.Errorf("claimed %d, want 7", n)
	}
	if n := len(claim(t, tx, 100)); n != 13 {
		t.Errorf("claimed %d, want the 13 that are due and the worker's", n)
	}
	exec(t, tx, `UPDATE jobs SET scheduled_at = now() WHERE id = $1`, late.ID)
	if l, err := job.ClaimPending(t.Context(), tx, job.Claim{Type: job.CRL, Limit: 9, Lease: time.Minute}); err != nil || len(l) != 0 {
		t.Errorf("a claim for CRL jobs took %v, %v", idsOf(l), err)
	}
	if l := claimOne(t, tx); l.ID != late.ID {
		t.Error("what became due was not claimed")
	}
}

func TestTheLowerPriorityNumberComesFirst(t *testing.T) {
	t.Parallel()
	tx := dbtest.Tx(t)
	background := enqueue(t, tx, job.New{Type: job.IssuerTest})
	interactive := enqueue(t, tx, job.New{Type: job.IssuerTest, Priority: job.Interactive})
	urgent := enqueue(t, tx, job.New{Type: job.IssuerTest, Priority: job.Urgent})
	for _, want := range []id.Job{urgent.ID, interactive.ID, background.ID} {
		if l := claimOne(t, tx); l.ID != want {
			t.Errorf("priority %d came too early", l.Priority)
		}
	}
}

// A run that outlived its lease: whatever it tries after the job went on, nothing changes.
func TestAZombieChangesNothing(t *testing.T) {
	t.Parallel()
	ways := map[string]func(*job.Lease, context.Context, db.Querier) error{
		"Complete": func(l *job.Lease, ctx context.Context, q db.Querier) error { return l.Complete(ctx, q, nil) },
		"Fail":     func(l *job.Lease, ctx context.Context, q db.Querier) error { return l.Fail(ctx, q, errSome) },
		"Retry":    func(l *job.Lease, ctx context.Context, q db.Querier) error { return l.Retry(ctx, q, errSome) },
		"Postpone": func(l *job.Lease, ctx context.Context, q db.Querier) error {
			return l.Postpone(ctx, q, 0, time.Hour, nil)
		},
		"Release":  func(l *job.Lease, ctx context.Context, q db.Querier) error { return l.Release(ctx, q) },
		"HandOver": func(l *job.Lease, ctx context.Context, q db.Querier) error { return l.HandOver(ctx, q, job.Agent, 1) },
		"Save":     func(l *job.Lease, ctx context.Context, q db.Querier) error { return l.Save(ctx, q, 1) },
		"Extend":   func(l *job.Lease, ctx context.Context, q db.Querier) error { return l.Extend(ctx, q, time.Hour) },
	}
	after := map[string]func(*testing.T, db.Querier, *job.Lease){
		"a postponement":  func(t *testing.T, q db.Querier, l *job.Lease) { must(t, l.Postpone(t.Context(), q, 0, time.Hour, nil)) },
		"a release":       func(t *testing.T, q db.Querier, l *job.Lease) { must(t, l.Release(t.Context(), q)) },
		"a retry":         func(t *testing.T, q db.Querier, l *job.Lease) { must(t, l.Retry(t.Context(), q, errSome)) },
		"an expiry":       func(t *testing.T, q db.Querier, l *job.Lease) { expire(t, q, l.ID); reap(t, q) },
		"its own end":     func(t *testing.T, q db.Querier, l *job.Lease) { must(t, l.Complete(t.Context(), q, nil)) },
		"its own failure": func(t *testing.T, q db.Querier, l *job.Lease) { must(t, l.Fail(t.Context(), q, errSome)) },
	}
	for name, way := range ways {
		for event, happens := range after {
			t.Run(name+" after "+event, func(t *testing.T) {
				t.Parallel()
				tx := dbtest.Tx(t)
				enqueue(t, tx, job.New{Type: job.IssuerTest})
				l := claimOne(t, tx)
				zombie := *l
				happens(t, tx, l)
				if !get(t, tx, l.ID).Status.Final() {
					dueNow(t, tx, l.ID)
					if next := claimOne(t, tx); next.LeaseNo != zombie.LeaseNo+1 {
						t.Fatalf("lease %d follows %d", next.LeaseNo, zombie.LeaseNo)
					}
				}
				before := get(t, tx, l.ID)
				if err := way(&zombie, t.Context(), tx); !errors.Is(err, job.ErrLeaseLost) {
					t.Errorf("answered %v", err)
				}
				got := get(t, tx, l.ID)
				if fmt.Sprintf("%+v", got.Status) != fmt.Sprintf("%+v", before.Status) || got.LeaseNo != before.LeaseNo || got.Attempts != before.Attempts || string(got.Checkpoint) != string(before.Checkpoint) {
					t.Errorf("the job became %+v", got)
				}
			})
		}
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func reap(t testing.TB, q db.Querier) job.Reaped {
	t.Helper()
	r, err := job.Reap(t.Context(), q)
	must(t, err)
	return r
}

func TestALeaseThatWasNotClaimedCannotBeUsed(t *testing.T) {
	t.Parallel()
	defer func() {
		if recover() == nil {
			t.Error("a zero lease was used")
		}
	}()
	_ = (&job.Lease{}).Complete(t.Context(), dbtest.Tx(t), nil)
}

func TestRetrySpendsAnAttemptWaitsLongerAndFailsAtTheLast(t *testing.T) {
	t.Parallel()
	tx := dbtest.Tx(t)
	j := enqueue(t, tx, job.New{Type: job.IssuerTest, MaxAttempts: 4})
	last := time.Duration(0)
	for n := 1; n <= 4; n++ {
		l := claimOne(t, tx)
		must(t, l.Retry(t.Context(), tx, fmt.Errorf("cause %d", n)))
		got := get(t, tx, j.ID)
		if got.Attempts != n || got.LeaseNo != int64(n) || *got.LastError != fmt.Sprintf("cause %d", n) || l.Status != got.Status {
			t.Fatalf("after retry %d: attempts %d, lease %d, %v", n, got.Attempts, got.LeaseNo, *got.LastError)
		}
		if n == 4 {
			if got.Status != job.Failed || got.CompletedAt == nil {
				t.Errorf("after the last attempt the job is %s", got.Status)
			}
			break
		}
		wait, err := db.Scalar[time.Duration](t.Context(), tx, `SELECT scheduled_at - now() FROM jobs WHERE id = $1`, j.ID)
		if err != nil || got.Status != job.Pending || wait <= last {
			t.Errorf("retry %d: %s in %v after %v, %v", n, got.Status, wait, last, err)
		}
		last = wait
		if l := claim(t, tx, 9); len(l) > 0 {
			t.Error("a job was claimed before its time")
		}
		dueNow(t, tx, j.ID)
	}
	wantOutcomes(t, tx, j.ID, "retried", "retried", "retried", "failed")
}

func TestBackoffGrowsToAnHour(t *testing.T) {
	t.Parallel()
	for n, want := range map[int]time.Duration{1: 5 * time.Second, 2: 15 * time.Second, 3: 45 * time.Second, 7: time.Hour, 8: time.Hour, 1000: time.Hour} {
		for range 50 {
			if d := job.Backoff(n); d < want*79/100 || d > want*121/100 {
				t.Errorf("before attempt %d: %v, want about %v", n+1, d, want)
			}
		}
	}
}

func TestPostponeSpendsNothingAndKeepsTheFirstDeadline(t *testing.T) {
	t.Parallel()
	tx := dbtest.Tx(t)
	j := enqueue(t, tx, job.New{Type: job.IssuerTest, MaxAttempts: 2})
	must(t, claimOne(t, tx).Postpone(t.Context(), tx, time.Minute, time.Hour, errors.New("pending")))
	first := get(t, tx, j.ID)
	for range 5 {
		dueNow(t, tx, j.ID)
		must(t, claimOne(t, tx).Postpone(t.Context(), tx, time.Minute, 99*time.Hour, errors.New("pending")))
	}
	got := get(t, tx, j.ID)
	if got.Status != job.Pending || got.Attempts != 0 || got.LeaseNo != 6 || !got.GiveUpAt.Equal(*first.GiveUpAt) || got.StartedAt == nil {
		t.Errorf("%s, attempts %d, lease %d, give up at %v, first %v", got.Status, got.Attempts, got.LeaseNo, got.GiveUpAt, first.GiveUpAt)
	}
	exec(t, tx, `UPDATE jobs SET give_up_at = now() - interval '1 second' WHERE id = $1`, j.ID)
	ended, err := job.Expire(t.Context(), tx)
	if err != nil || len(ended) != 1 || ended[0].ID != j.ID || ended[0].Status != job.Failed {
		t.Fatalf("%+v, %v", ended, err)
	}
	if got := get(t, tx, j.ID); got.Status != job.Failed || *got.LastError != "gave up: pending" {
		t.Errorf("%s: %v", got.Status, *got.LastError)
	}
	wantOutcomes(t, tx, j.ID, "postponed", "postponed", "postponed", "postponed", "postponed", "postponed")
}

func TestReleaseSpendsNothingAndMayBeClaimedAtOnce(t *testing.T) {
	t.Parallel()
	tx := dbtest.Tx(t)
	j := enqueue(t, tx, job.New{Type: job.IssuerTest})
	must(t, claimOne(t, tx).Release(t.Context(), tx))
	l := claimOne(t, tx)
	if l.ID != j.ID || l.Attempts != 0 || l.LeaseNo != 2 {
		t.Errorf("attempts %d, lease %d", l.Attempts, l.LeaseNo)
	}
	must(t, l.Complete(t.Context(), tx, map[string]int{"n": 1}))
	got := get(t, tx, j.ID)
	if string(got.Result) != `{"n": 1}` || got.LastError != nil {
		t.Errorf("result %s, error %v", got.Result, got.LastError)
	}
	wantOutcomes(t, tx, j.ID, "released", "completed")
}

func TestReapGivesExpiredLeasesBackOrFailsThem(t *testing.T) {
	t.Parallel()
	tx := dbtest.Tx(t)
	dead := enqueue(t, tx, job.New{Type: job.IssuerTest, MaxAttempts: 2})
	alive := enqueue(t, tx, job.New{Type: job.IssuerTest})
	claim(t, tx, 9)
	expire(t, tx, dead.ID)
	if r := reap(t, tx); r.Requeued != 1 || r.Failed != 0 {
		t.Errorf("%+v", r)
	}
	got := get(t, tx, dead.ID)
	if got.Status != job.Pending || got.Attempts != 1 || got.LeaseNo != 1 {
		t.Errorf("%s, attempts %d, lease %d", got.Status, got.Attempts, got.LeaseNo)
	}
	if l := claimOne(t, tx); l.ID != dead.ID || l.LeaseNo != 2 {
		t.Errorf("claimed %s under lease %d", l.ID, l.LeaseNo)
	}
	expire(t, tx, dead.ID)
	if r := reap(t, tx); r.Requeued != 0 || r.Failed != 1 || len(r.Ended) != 1 || r.Ended[0].ID != dead.ID {
		t.Errorf("%+v", r)
	}
	if got := get(t, tx, dead.ID); got.Status != job.Failed || got.Attempts != 2 {
		t.Errorf("%s, attempts %d", got.Status, got.Attempts)
	}
	if got := get(t, tx, alive.ID); got.Status != job.Running {
		t.Errorf("a job whose lease runs is %s", got.Status)
	}
	wantOutcomes(t, tx, dead.ID, "expired", "expired")
	wantOutcomes(t, tx, alive.ID, "")
}

func TestAnExtendedLeaseIsNotReaped(t *testing.T) {
	t.Parallel()
	tx := dbtest.Tx(t)
	enqueue(t, tx, job.New{Type: job.IssuerTest})
	l := claimOne(t, tx)
	expire(t, tx, l.ID)
	must(t, l.Extend(t.Context(), tx, time.Minute))
	if r := reap(t, tx); r.Requeued+r.Failed != 0 {
		t.Errorf("%+v", r)
	}
}

// A newer job of the same scope waits already: the older one must not return beside it, or one row stops every reap.
func TestAJobThatIsSupersededWhileItRunsDoesNotReturn(t *testing.T) {
	t.Parallel()
	scopes := map[string]func(record) job.New{
		"deployment": func(r record) job.New {
			return job.New{Type: job.Deployment, CertificateID: r.certs[0], TargetID: r.targets[0]}
		},
		"CRL": func(r record) job.New {
			shard := int16(0)
			return job.New{Type: job.CRL, IssuerID: r.issuer, CRLShard: &shard}
		},
	}
	ways := map[string]func(*testing.T, db.Querier, *job.Lease) error{
		"reap": func(t *testing.T, q db.Querier, l *job.Lease) error {
			expire(t, q, l.ID)
			_, err := job.Reap(t.Context(), q)
			return err
		},
		"retry":   func(t *testing.T, q db.Querier, l *job.Lease) error { return l.Retry(t.Context(), q, errSome) },
		"release": func(t *testing.T, q db.Querier, l *job.Lease) error { return l.Release(t.Context(), q) },
		"postpone": func(t *testing.T, q db.Querier, l *job.Lease) error {
			return l.Postpone(t.Context(), q, 0, time.Hour, nil)
		},
	}
	for scope, of := range scopes {
		for name, way := range ways {
			t.Run(scope+"/"+name, func(t *testing.T) {
				t.Parallel()
				tx := dbtest.Tx(t)
				r := makeRecord(t, tx, 1, 1)
				n := of(r)
				if n.Type == job.CRL {
					n.GenerationID = generation(t, tx, r.issuer)
				}
				old := enqueue(t, tx, n)
				l := claimOne(t, tx)
				newer := enqueue(t, tx, n)
				if err := way(t, tx, l); err != nil {
					t.Fatal(err)
				}
				got := get(t, tx, old.ID)
				if got.Status != job.Cancelled || got.CancelReason == nil || *got.CancelReason != "superseded" || got.CompletedAt == nil {
					t.Errorf("the older job is %s", got.Status)
				}
				if l := claimOne(t, tx); l.ID != newer.ID {
					t.Error("the newer job was not claimed")
				}
			})
		}
	}
}

func generation(t testing.TB, q db.Querier, i id.Issuer) id.Generation {
	t.Helper()
	g := id.New[id.Generation]()
	exec(t, q, `INSERT INTO ca_generations (id, issuer_id, number, certificate, key_uri, name_sha1, key_sha1, name_sha256, key_sha256, not_before, not_after)
		VALUES ($1, $2, 1, 'x', 'file:x', 'x', 'x', 'x', 'x', now(), now())`, g, i)
	return g
}

func TestOneRunningDeploymentPerTarget(t *testing.T) {
	t.Parallel()
	t.Run("the worker's claim", func(t *testing.T) {
		t.Parallel()
		pool := dbtest.Pool(t)
		r := makeRecord(t, pool, 3, 2)
		for _, c := range r.certs {
			enqueue(t, pool, job.New{Type: job.Deployment, CertificateID: c, TargetID: r.targets[0]})
		}
		enqueue(t, pool, job.New{Type: job.Deployment, CertificateID: r.certs[0], TargetID: r.targets[1]})
		var held []*job.Lease
		for range 6 {
			held = append(held, claim(t, pool, 10)...)
		}
		if len(held) != 2 || held[0].TargetID == held[1].TargetID {
			t.Fatalf("%d deployments run, want one per target", len(held))
		}
		for _, l := range held {
			must(t, l.Complete(t.Context(), pool, nil))
		}
		if n := len(claim(t, pool, 10)); n != 1 {
			t.Errorf("%d deployments were claimed when the target was free, want 1", n)
		}
	})
	t.Run("the agent's claim", func(t *testing.T) {
		t.Parallel()
		tx := dbtest.Tx(t)
		r := makeRecord(t, tx, 3, 1)
		for _, c := range r.certs {
			enqueue(t, tx, job.New{Type: job.Deployment, CertificateID: c, TargetID: r.targets[0], Runner: job.Agent, AgentID: r.agent})
		}
		if got := byAgent(t, tx, r.agent, "a"); len(got) != 1 {
			t.Fatalf("%d deployments of one target were claimed at once", len(got))
		}
		if got := byAgent(t, tx, r.agent, "b"); len(got) != 0 {
			t.Errorf("another run got %d more", len(got))
		}
	})
}

func byAgent(t testing.TB, q db.Querier, a id.Agent, run string) []job.Job {
	t.Helper()
	got, err := job.ClaimPendingByAgent(t.Context(), q, a, job.Claim{Limit: 10, Lease: time.Minute, Run: run})
	must(t, err)
	return got
}

// Two polls without a run's name may be two processes: what one of them holds is not the other's.
func TestARunWithoutANameGetsNothingAgain(t *testing.T) {
	t.Parallel()
	tx := dbtest.Tx(t)
	r := makeRecord(t, tx, 1, 1)
	enqueue(t, tx, job.New{Type: job.Deployment, CertificateID: r.certs[0], TargetID: r.targets[0], Runner: job.Agent, AgentID: r.agent})
	if got := byAgent(t, tx, r.agent, ""); len(got) != 1 {
		t.Fatalf("%d jobs at the first poll", len(got))
	}
	if got := byAgent(t, tx, r.agent, ""); len(got) != 0 {
		t.Errorf("%d jobs were handed out again", len(got))
	}
}

func TestAnAgentGetsItsOwnWorkAgainInTheSameRunOnly(t *testing.T) {
	t.Parallel()
	tx := dbtest.Tx(t)
	r := makeRecord(t, tx, 2, 1)
	deployment := enqueue(t, tx, job.New{Type: job.Deployment, CertificateID: r.certs[0], TargetID: r.targets[0], Runner: job.Agent, AgentID: r.agent})
	request := enqueue(t, tx, job.New{Type: job.Issuance, CertificateID: r.certs[1], Status: job.AwaitingCSR, CSRWithin: time.Hour, AgentID: r.agent})
	for range 2 {
		got := byAgent(t, tx, r.agent, "run-a")
		if len(got) != 2 {
			t.Fatalf("%d jobs, want the deployment and the request", len(got))
		}
		for _, j := range got {
			if j.ID == deployment.ID && (j.Status != job.Running || j.LeaseNo != 1) || j.ID == request.ID && (j.Status != job.AwaitingCSR || j.LeaseNo != 0) {
				t.Errorf("%s is %s under lease %d", j.Type, j.Status, j.LeaseNo)
			}
		}
	}
	if got := byAgent(t, tx, r.agent, "run-b"); len(got) != 1 || got[0].ID != request.ID {
		t.Errorf("another run got %d jobs", len(got))
	}
	if got := byAgent(t, tx, id.New[id.Agent](), "run-a"); len(got) != 0 {
		t.Errorf("another agent got %d jobs", len(got))
	}
	expire(t, tx, deployment.ID)
	if got := byAgent(t, tx, r.agent, "run-a"); len(got) != 1 {
		t.Error("a job whose lease is over was handed out again")
	}
	reap(t, tx)
	got := byAgent(t, tx, r.agent, "run-b")
	if len(got) != 2 {
		t.Fatalf("%d jobs after the reap", len(got))
	}
	if l := claim(t, tx, 10); len(l) != 0 {
		t.Error("the worker took an agent's job")
	}
	wantOutcomes(t, tx, deployment.ID, "expired", "")
}

func TestTheFirstCSRWins(t *testing.T) {
	t.Parallel()
	tx := dbtest.Tx(t)
	r := makeRecord(t, tx, 1, 0)
	j := enqueue(t, tx, job.New{Type: job.Issuance, CertificateID: r.certs[0], Status: job.AwaitingCSR, CSRWithin: time.Hour, AgentID: r.agent})
	if _, _, err := job.AcceptCSR(t.Context(), tx, id.New[id.Agent](), j.ID, []byte{9}); !fault.Is(err, fault.NotFound) {
		t.Errorf("another agent's: %v", err)
	}
	if got, ok, err := job.AcceptCSR(t.Context(), tx, r.agent, j.ID, []byte{1}); err != nil || !ok || got.Status != job.Pending || got.Priority > job.Interactive {
		t.Fatalf("%s, %v, %v", got.Status, ok, err)
	}
	if got, ok, err := job.AcceptCSR(t.Context(), tx, r.agent, j.ID, []byte{2}); err != nil || ok || got.CSR[0] != 1 {
		t.Errorf("the second request: %v, %v, %v", got.CSR, ok, err)
	}
	if l := claimOne(t, tx); l.ID != j.ID {
		t.Error("the worker did not get the job")
	}
}

func TestExpireEndsWhatWaitedTooLong(t *testing.T) {
	t.Parallel()
	tx := dbtest.Tx(t)
	r := makeRecord(t, tx, 4, 0)
	noCSR := enqueue(t, tx, job.New{Type: job.Issuance, CertificateID: r.certs[0], Status: job.AwaitingCSR, CSRWithin: -time.Second, AgentID: r.agent})
	noApproval := enqueue(t, tx, job.New{Type: job.Issuance, CertificateID: r.certs[1], Status: job.AwaitingApproval, ApproveWithin: -time.Second})
	waits := enqueue(t, tx, job.New{Type: job.Issuance, CertificateID: r.certs[2], Status: job.AwaitingCSR, CSRWithin: time.Hour, AgentID: r.agent})
	hopeful := enqueue(t, tx, job.New{Type: job.Issuance, CertificateID: r.certs[3], Status: job.AwaitingApproval, ApproveWithin: time.Hour})
	if ended, err := job.Expire(t.Context(), tx); err != nil || len(ended) != 2 {
		t.Fatalf("%v, %v", ended, err)
	}
	if got := get(t, tx, noCSR.ID); got.Status != job.Failed || *got.LastError == "" {
		t.Errorf("without a CSR: %s", got.Status)
	}
	if got := get(t, tx, noApproval.ID); got.Status != job.Cancelled || *got.CancelReason != "approval_expired" {
		t.Errorf("without approval: %s", got.Status)
	}
	for _, j := range []job.Job{waits, hopeful} {
		if got := get(t, tx, j.ID); got.Status != j.Status {
			t.Errorf("%s became %s too early", j.Status, got.Status)
		}
	}
	if _, ok, _ := job.AcceptCSR(t.Context(), tx, r.agent, noCSR.ID, []byte{1}); ok {
		t.Error("a request was accepted after its deadline")
	}
}

func TestKeysLeaveTheCheckpointWhenTheJobEnds(t *testing.T) {
	t.Parallel()
	ends := map[string]func(*testing.T, db.Querier, *job.Lease){
		"completed": func(t *testing.T, q db.Querier, l *job.Lease) { must(t, l.Complete(t.Context(), q, nil)) },
		"failed":    func(t *testing.T, q db.Querier, l *job.Lease) { must(t, l.Fail(t.Context(), q, errSome)) },
		"reaped":    func(t *testing.T, q db.Querier, l *job.Lease) { expire(t, q, l.ID); reap(t, q) },
		"cancelled": func(t *testing.T, q db.Querier, l *job.Lease) {
			must(t, l.Release(t.Context(), q))
			_, err := job.Cancel(t.Context(), q, l.ID)
			must(t, err)
		},
	}
	for name, end := range ends {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			tx := dbtest.Tx(t)
			j := enqueue(t, tx, job.New{Type: job.IssuerTest, MaxAttempts: 1})
			l := claimOne(t, tx)
			must(t, l.Save(t.Context(), tx, map[string]string{"sealed_key": "AAAA", "key": "e30.", "version_id": "ver_1"}))
			end(t, tx, l)
			if got := get(t, tx, j.ID); !got.Status.Final() || string(got.Checkpoint) != `{"version_id": "ver_1"}` {
				t.Errorf("%s keeps %s", got.Status, got.Checkpoint)
			}
		})
	}
}

func TestNextIsWhenTheWorkerHasSomethingToDo(t *testing.T) {
	t.Parallel()
	tx := dbtest.Tx(t)
	if _, ok, err := job.Next(t.Context(), tx); ok || err != nil {
		t.Errorf("an empty queue: %v, %v", ok, err)
	}
	enqueue(t, tx, job.New{Type: job.IssuerTest, After: time.Hour})
	soon := enqueue(t, tx, job.New{Type: job.IssuerTest, After: time.Minute})
	if at, ok, err := job.Next(t.Context(), tx); !ok || err != nil || !at.Equal(soon.ScheduledAt) {
		t.Errorf("%v, %v, %v; want %v", at, ok, err, soon.ScheduledAt)
	}
}
