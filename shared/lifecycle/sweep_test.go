package lifecycle_test

import (
	"context"
	"sync"
	"testing"
	"time"

	"certctl/shared/cert"
	"certctl/shared/id"
	"certctl/shared/job"
	"certctl/shared/lifecycle"
	"certctl/shared/pki"

	"github.com/jackc/pgx/v5"
)

func (h *house) sweep(t testing.TB) lifecycle.Swept {
	t.Helper()
	s, err := lifecycle.Sweep(t.Context(), h.pool)
	must(t, err)
	return s
}

func (h *house) due(t testing.TB, c id.Certificate) {
	t.Helper()
	exec(t, h.pool, `UPDATE certificates SET renew_at = now() - interval '1 s' WHERE id = $1`, c)
}

func TestTheSweepRenewsWhatIsDueAndNothingElse(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	off := false
	make := func(name string, w lifecycle.Wanted) cert.Certificate {
		w.CommonName = name + ".example.com"
		return h.issued(t, w)
	}
	due, early, manual, open, archived, revoked, expired, later :=
		make("due", lifecycle.Wanted{}), make("early", lifecycle.Wanted{}), make("manual", lifecycle.Wanted{AutoRenew: &off}), make("open", lifecycle.Wanted{}),
		make("archived", lifecycle.Wanted{}), make("revoked", lifecycle.Wanted{}), make("expired", lifecycle.Wanted{}), make("later", lifecycle.Wanted{})
	for _, c := range []cert.Certificate{due, manual, open, archived, revoked, expired, later} {
		h.due(t, c.ID)
	}
	_, err := h.renew(t, open.ID)
	must(t, err)
	_, err = inTx(t, h.pool, func(ctx context.Context, tx pgx.Tx) (cert.Certificate, error) {
		return lifecycle.Archive(ctx, tx, archived.ID)
	})
	must(t, err)
	_, err = h.revoke(t, revoked.ID, pki.Superseded)
	must(t, err)
	exec(t, h.pool, `UPDATE certificates SET not_after = now() - interval '1 d' WHERE id = $1`, expired.ID)
	exec(t, h.pool, `UPDATE certificates SET next_try_at = now() + interval '1 h' WHERE id = $1`, later.ID)

	if s := h.sweep(t); s.Renewals != 2 {
		t.Errorf("%+v, want 2 renewals", s)
	}
	if s := h.sweep(t); s.Renewals != 0 {
		t.Errorf("the second sweep: %+v", s)
	}
	for name, c := range map[string]struct {
		cert cert.Certificate
		want int
	}{"due": {due, 1}, "early": {early, 0}, "manual": {manual, 0}, "open": {open, 1}, "archived": {archived, 0}, "revoked": {revoked, 0}, "expired": {expired, 1}, "later": {later, 0}} {
		if n := len(h.jobs(t, c.cert.ID, job.Renewal)); n != c.want {
			t.Errorf("%s: %d renewals, want %d", name, n, c.want)
		}
	}
	j := h.jobs(t, due.ID, job.Renewal)[0]
	got := h.cert(t, due.ID)
	if j.RequestedBy != "system:sweep" || j.Status != job.Pending || j.Priority != job.Background || got.OpenJobID != j.ID || got.RenewReason == nil || (*got.RenewReason)[:5] != "due: " {
		t.Errorf("%+v %v", j, got.RenewReason)
	}
	if n := count(t, h.pool, `audit_events WHERE action = 'certificate.renewal_requested' AND resource_id = $1 AND principal = 'system:sweep' AND details->>'job_id' = $2`, due.ID.String(), j.ID.String()); n != 1 {
		t.Errorf("%d audit events name the certificate and the job", n)
	}
	h.work(t)
	if now := h.cert(t, due.ID); now.CurrentVersionID == due.CurrentVersionID {
		t.Error("not renewed")
	}
}

// many makes n due certificates without versions of their own: rows, as an import would.
func (h *house) many(t testing.TB, n int) {
	t.Helper()
	exec(t, h.pool, `INSERT INTO certificates (id, name, sans, issuer_id, profile_id, renewal_policy_id, key_custody, renew_at, created_by)
		SELECT uuid7(), 'c' || n, ARRAY['c' || n || '.example.com'], (SELECT id FROM issuers), (SELECT id FROM profiles), (SELECT id FROM renewal_policies), 'server', now() - interval '1 h', 'x' FROM generate_series(1, $1) n`, n)
}

func TestConcurrentSweepsMakeOneJobEach(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	const n = 2000
	h.many(t, n)
	var wg sync.WaitGroup
	swept := make([]lifecycle.Swept, 4)
	for i := range swept {
		wg.Go(func() {
			s, err := lifecycle.Sweep(t.Context(), h.pool)
			if err != nil {
				t.Errorf("sweep %d: %v", i, err)
			}
			swept[i] = s
		})
	}
	wg.Wait()
	var total int64
	for _, s := range swept {
		total += s.Renewals
	}
	if total += h.sweep(t).Renewals; total != n {
		t.Errorf("%d renewals, want %d: %+v", total, n, swept)
	}
	if got := count(t, h.pool, `jobs WHERE type = 'Issuance'`); got != n {
		t.Errorf("%d jobs", got)
	}
	if got := count(t, h.pool, `certificates c JOIN jobs j ON j.id = c.open_job_id AND j.certificate_id = c.id`); got != n {
		t.Errorf("%d certificates know their job", got)
	}
	if got := count(t, h.pool, `audit_events WHERE action = 'certificate.renewal_requested'`); got != n {
		t.Errorf("%d audit events", got)
	}
}

// nearlyOver is a context that ends soon and lets what has begun come to its end, however slow the machine is.
type nearlyOver struct{ context.Context }

func (nearlyOver) Deadline() (time.Time, bool) { return time.Now().Add(time.Second), true }

func TestASweepEndsWithItsTimeAndSaysWhatIsLeft(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	h.many(t, 2500)
	s, err := lifecycle.Sweep(nearlyOver{t.Context()}, h.pool)
	if err != nil || !s.Left || s.Renewals != 1000 {
		t.Errorf("%+v, %v", s, err)
	}
	if s := h.sweep(t); s.Left || s.Renewals != 1500 {
		t.Errorf("the next sweep: %+v", s)
	}
}

func TestAFailingCAIsAskedEverMoreSeldom(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	ca := &foreign{wrong: true}
	c := h.request(t, lifecycle.Wanted{IssuerID: h.foreignIssuer(t, ca)})
	for n, want := range []time.Duration{5 * time.Minute, 10 * time.Minute, 20 * time.Minute} {
		h.work(t)
		got := h.cert(t, c.ID)
		if wait := time.Until(*got.NextTryAt); got.Failures != n+1 || wait > want || wait < want-time.Minute {
			t.Fatalf("after failure %d the next try is in %v, want %v", got.Failures, wait, want)
		}
		if s := h.sweep(t); s.Renewals != 0 {
			t.Error("tried again before its time")
		}
		exec(t, h.pool, `UPDATE certificates SET next_try_at = now() WHERE id = $1`, c.ID)
		if s := h.sweep(t); s.Renewals != 1 {
			t.Errorf("not tried again: %+v", s)
		}
	}
	ca.wrong = false
	h.work(t)
	if got := h.cert(t, c.ID); got.Failures != 0 || got.NextTryAt != nil || got.CurrentVersionID.IsZero() {
		t.Errorf("%+v", got)
	}
}

func TestTheSweepEndsWhatWaitedTooLongAndRecordsIt(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	a := h.enroll(t, "one")
	p := h.profile(t, func(p *cert.Profile) { p.RequiresApproval = true })
	unapproved := h.request(t, lifecycle.Wanted{ProfileID: p.ID})
	noCSR := h.request(t, lifecycle.Wanted{TargetIDs: []id.Target{h.agentTarget(t, a)}})
	exec(t, h.pool, `UPDATE jobs SET approve_by = now() - interval '1 s' WHERE status = 'AwaitingApproval'`)
	exec(t, h.pool, `UPDATE jobs SET csr_deadline = now() - interval '1 s' WHERE status = 'AwaitingCSR'`)
	if s := h.sweep(t); s.Expired != 2 || s.Renewals != 0 {
		t.Errorf("%+v", s)
	}
	got := h.cert(t, unapproved.ID)
	if !got.OpenJobID.IsZero() || got.Failures != 0 || time.Until(*got.NextTryAt) < 23*time.Hour || h.audited(t, "job.approval_expired", unapproved.OpenJobID.String()) != 1 {
		t.Errorf("%+v", got)
	}
	if _, err := job.Approve(as(t, "bob"), h.pool, unapproved.OpenJobID); err == nil {
		t.Error("an approval came after its time and was taken")
	}
	if got := h.cert(t, noCSR.ID); !got.OpenJobID.IsZero() || got.Failures != 1 || got.NextTryAt == nil || h.audited(t, "certificate.issuance_failed", noCSR.ID.String()) != 1 {
		t.Errorf("%+v", got)
	}
}

func TestTheSweepReapsAndRecordsWhatEndedByIt(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	a := h.enroll(t, "one")
	c, x := h.heldByAgent(t, a, nil)
	w := h.poll(t, a, "r")
	exec(t, h.pool, `UPDATE jobs SET leased_until = now() - interval '1 s', attempts = 4 WHERE id = $1`, w.Jobs[0].ID)
	if s := h.sweep(t); s.Failed != 1 || s.Requeued != 0 {
		t.Errorf("%+v", s)
	}
	if n := h.audited(t, "deployment.failed", c.ID.String()); n != 1 {
		t.Errorf("%d audit events", n)
	}
	if n := count(t, h.pool, `deployments WHERE target_id = $1 AND last_error IS NOT NULL`, x.ID); n != 1 {
		t.Error("the deployment does not say why")
	}
}

// The agent died while it deployed, and a newer version came: neither a sweep nor a tick may stumble over that.
func TestADeadDeploymentBesideANewerOneIsSuperseded(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	a := h.enroll(t, "one")
	c, _ := h.heldByAgent(t, a, nil)
	old := h.poll(t, a, "r").Jobs[0]
	j, err := h.renew(t, c.ID)
	must(t, err)
	_, err = h.postCSR(t, a, j.ID, generate(t), c.SANs...)
	must(t, err)
	h.work(t)
	exec(t, h.pool, `UPDATE jobs SET leased_until = now() - interval '1 s' WHERE id = $1`, old.ID)
	h.sweep(t)
	if got := h.job(t, old.ID); got.Status != job.Cancelled || *got.CancelReason != "superseded" {
		t.Errorf("%s", got.Status)
	}
	next := h.poll(t, a, "r").Jobs
	if len(next) != 1 || next[0].Target.VersionID != h.cert(t, c.ID).CurrentVersionID {
		t.Errorf("%+v", next)
	}
	if n := h.audited(t, "job.superseded", old.ID.String()); n != 1 {
		t.Errorf("%d audit events", n)
	}
}

func TestTheSweepMarksAgentsThatMissedThreePolls(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	away, here := h.enroll(t, "away"), h.enroll(t, "here")
	h.poll(t, away, "")
	h.poll(t, here, "")
	exec(t, h.pool, `UPDATE agents SET last_seen_at = now() - interval '17 minutes' WHERE id = $1`, away.ID)
	exec(t, h.pool, `UPDATE agents SET last_seen_at = now() - interval '14 minutes' WHERE id = $1`, here.ID)
	if s := h.sweep(t); s.Offline != 1 {
		t.Errorf("%+v", s)
	}
	if s := h.sweep(t); s.Offline != 0 {
		t.Errorf("told twice: %+v", s)
	}
	if n := count(t, h.pool, `agents WHERE offline_since IS NOT NULL AND id = $1`, away.ID); n != 1 {
		t.Error("the wrong agent is offline")
	}
}

func TestASweepAfterALongRestFindsTheMonthsEventsInTheDefaultPartition(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	month, err := h.partition(t, "now()")
	must(t, err)
	exec(t, h.pool, `ALTER TABLE audit_events DETACH PARTITION `+month)
	exec(t, h.pool, `ALTER TABLE `+month+` RENAME TO elsewhere`)
	h.request(t, lifecycle.Wanted{})
	if n := count(t, h.pool, `audit_events_default`); n == 0 {
		t.Fatal("no event went to the default partition")
	}
	h.sweep(t)
	if next, err := h.partition(t, "now() + interval '3 months'"); err != nil || next == "" {
		t.Errorf("%q, %v", next, err)
	}
}

// partition is the name of the audit partition of a moment.
func (h *house) partition(t testing.TB, at string) (name string, err error) {
	t.Helper()
	err = h.pool.QueryRow(t.Context(), `SELECT coalesce(to_regclass('audit_events_' || to_char((`+at+`) AT TIME ZONE 'UTC', 'YYYYMM'))::text, '')`).Scan(&name)
	return name, err
}
