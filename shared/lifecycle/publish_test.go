package lifecycle_test

import (
	"bytes"
	"crypto/x509"
	"math/big"
	"slices"
	"sync"
	"testing"
	"time"

	"certctl/shared/db"
	"certctl/shared/job"
	"certctl/shared/lifecycle"
	"certctl/shared/pki"
	"certctl/shared/revocation"
	"certctl/shared/secret"
)

func TestTheFirstStartLeadsToACRLAndAResponder(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	h.work(t)
	i, g := h.local(t)
	l, p := h.crl(t)
	if p.Number != 1 || len(l.RevokedCertificateEntries) != 0 || l.NextUpdate.Sub(l.ThisUpdate) != lifecycle.CRLLifetime {
		t.Errorf("number %d, %v to %v", p.Number, l.ThisUpdate, l.NextUpdate)
	}
	if !bytes.Contains(p.DER, []byte(h.URLs.CRL(i.ID, g.Number, 0, 1))) {
		t.Error("the CRL does not say where it is from (IDP)")
	}
	a, err := revocation.AskSerial(t.Context(), h.pool, i.ID, []byte{1})
	must(t, err)
	r, err := x509.ParseCertificate(a.Authority.Responder.Certificate)
	must(t, err)
	ca, err := g.X509()
	must(t, err)
	if err := r.CheckSignatureFrom(ca); err != nil || !pki.HasOCSPNoCheck(r) || a.Status.Known {
		t.Errorf("%v, %+v", err, a.Status)
	}
	if w := h.work(t); w.Claimed != 0 {
		t.Errorf("there is more to do: %+v", w)
	}
}

func TestConcurrentPublishersTakeGrowingNumbersAndTheLargestIsCurrent(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	h.work(t)
	_, g := h.local(t)
	var mu sync.Mutex
	var numbers []int64
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 5 {
				l := h.publishJob(t)
				if err := h.PublishCRL(t.Context(), l); err != nil {
					t.Error(err)
					return
				}
				n, err := db.Scalar[int64](t.Context(), h.pool, `SELECT (result->>'number')::bigint FROM jobs WHERE id = $1`, l.ID)
				if err != nil {
					t.Error(err)
				}
				mu.Lock()
				numbers = append(numbers, n)
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	slices.Sort(numbers)
	for k, n := range numbers {
		if n != int64(k+2) {
			t.Fatalf("numbers %v", numbers)
		}
	}
	if _, p := h.crl(t); p.Number != 41 {
		t.Errorf("current is %d", p.Number)
	}
	if n := count(t, h.pool, `crls WHERE generation_id = $1`, g.ID); n > 12 {
		t.Errorf("%d CRLs are kept", n)
	}
}

// publishJob claims a CRL job: the one that waits, or a new one.
func (h *house) publishJob(t testing.TB) *job.Lease {
	i, g := h.local(t)
	for range 1000 {
		_, err := h.pool.Exec(t.Context(), `INSERT INTO jobs (id, type, runner, status, priority, issuer_id, generation_id, crl_shard, requested_by, requested_role)
			VALUES (uuid7(), 'CRL', 'worker', 'Pending', 1, $1, $2, 0, 'x', 'x') ON CONFLICT DO NOTHING`, i.ID, g.ID)
		must(t, err)
		l, err := job.ClaimPending(t.Context(), h.pool, job.Claim{Type: job.CRL, Limit: 1, Lease: time.Minute, Run: "test"})
		must(t, err)
		if len(l) == 1 {
			return l[0]
		}
	}
	t.Fatal("no CRL job can be claimed")
	return nil
}

func TestALateCRLWithASmallerNumberIsNotCurrent(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	h.work(t)
	_, g := h.local(t)
	first, err := revocation.Begin(t.Context(), h.pool, g.ID, 0)
	must(t, err)
	second, err := revocation.Begin(t.Context(), h.pool, g.ID, 0)
	must(t, err)
	s := revocation.Signed{DER: []byte("x"), SHA256: []byte("x"), NextUpdate: time.Now().Add(time.Hour), RefreshAt: time.Now()}
	_, err = second.Finish(t.Context(), h.pool, s)
	must(t, err)
	_, err = first.Finish(t.Context(), h.pool, s)
	must(t, err)
	n, err := db.Scalar[int64](t.Context(), h.pool, `SELECT current_number FROM crl_state WHERE generation_id = $1`, g.ID)
	if err != nil || n != second.Number || first.Number >= second.Number {
		t.Errorf("current %d, numbers %d and %d, %v", n, first.Number, second.Number, err)
	}
}

func TestARevocationDuringAPublicationIsPublishedNext(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	c := h.issued(t, lifecycle.Wanted{})
	v := h.version(t, c.CurrentVersionID)
	l := h.publishJob(t)
	revoked := false
	slow := &points{Beginner: h.pool, at: func(int) {
		// When the number and the snapshot are taken.
		if !revoked && count(t, h.pool, `crl_state WHERE next_number = 3`) == 1 {
			revoked = true
			_, err := h.revoke(t, c.ID, pki.Superseded)
			must(t, err)
			exec(t, h.pool, `UPDATE jobs SET scheduled_at = now() + interval '1 h' WHERE type = 'CRL' AND status = 'Pending'`)
			exec(t, h.pool, `DELETE FROM jobs WHERE type = 'CRL' AND status = 'Pending'`) // only the publisher can make the next one
		}
	}}
	must(t, houseOn(slow, h.box).PublishCRL(t.Context(), l))
	if _, ok := h.listed(t, v); ok || !revoked {
		t.Fatal("the revocation did not come after the snapshot")
	}
	if n := count(t, h.pool, `jobs WHERE type = 'CRL' AND status = 'Pending'`); n != 1 {
		t.Fatalf("%d publications wait", n)
	}
	h.work(t)
	if _, ok := h.listed(t, v); !ok {
		t.Error("the revocation was not published")
	}
	if n := count(t, h.pool, `crl_state WHERE dirty_gen > published_gen`); n != 0 {
		t.Error("still dirty")
	}
}

func TestAnEntryLeavesOnlyAfterACRLThatCameAfterItsExpiry(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	c := h.issued(t, lifecycle.Wanted{})
	v := h.version(t, c.CurrentVersionID)
	_, err := h.revoke(t, c.ID, pki.Superseded)
	must(t, err)
	h.work(t)
	publish := func() bool {
		must(t, h.PublishCRL(t.Context(), h.publishJob(t)))
		_, ok := h.listed(t, v)
		return ok
	}
	if !publish() {
		t.Error("gone before its expiry")
	}
	exec(t, h.pool, `UPDATE revocations SET expires_at = now() - interval '2 s'`)
	if !publish() {
		t.Error("gone without a CRL after its expiry")
	}
	if publish() {
		t.Error("still listed")
	}
	if s := h.status(t, v); s.RevokedAt == nil {
		t.Error("OCSP forgot the revocation")
	}
}

func TestTheSweepRefreshesCRLsAndRespondersInTime(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	h.work(t)
	if s := h.sweep(t); s.CRLs+s.Responders != 0 {
		t.Errorf("nothing is due: %+v", s)
	}
	exec(t, h.pool, `UPDATE crl_state SET refresh_at = now()`)
	exec(t, h.pool, `UPDATE ocsp_responders SET renew_at = now()`)
	for _, want := range []int64{1, 0} {
		if s := h.sweep(t); s.CRLs != want || s.Responders != want {
			t.Errorf("%+v, want %d of each", s, want)
		}
	}
	h.work(t)
	if _, p := h.crl(t); p.Number != 2 || count(t, h.pool, `ocsp_responders`) != 2 {
		t.Errorf("CRL %d, %d responders", p.Number, count(t, h.pool, `ocsp_responders`))
	}
	exec(t, h.pool, `UPDATE crl_state SET dirty_gen = dirty_gen + 1`)
	if s := h.sweep(t); s.CRLs != 1 {
		t.Errorf("a dirty mark that was left behind: %+v", s)
	}
}

// Killed before and after every statement: one responder with the key that was kept.
func TestAResponderJobKilledAnywhereIsFinishedOnce(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	g, key := h.caKey(t)
	made := &signatures{Signer: key, digests: map[string]bool{}}
	h.work(t)
	k := 1
	for ; ; k++ {
		exec(t, h.pool, `UPDATE ocsp_responders SET renew_at = now()`)
		h.sweep(t)
		before := count(t, h.pool, `ocsp_responders`)
		l := h.claim(t, job.Responder)
		died := killedAt(h.pool, k, func(b db.Beginner) { _ = h.counting(b, g, made).IssueResponder(t.Context(), l) })
		if died && !h.job(t, l.ID).Status.Final() {
			h.giveBack(t, l.ID)
			must(t, h.counting(h.pool, g, made).IssueResponder(t.Context(), h.claim(t, job.Responder)))
		}
		if n, signed := count(t, h.pool, `ocsp_responders`)-before, made.take(); n != 1 || signed != 1 {
			t.Errorf("moment %d: %d responders, %d certificates", k, n, signed)
		}
		h.checkResponder(t)
		if !died {
			break
		}
	}
	if k < 10 {
		t.Errorf("only %d moments", k)
	}
}

// checkResponder opens the key of the newest responder and holds it against its certificate.
func (h *house) checkResponder(t testing.TB) {
	t.Helper()
	i, _ := h.local(t)
	a, err := revocation.AskSerial(t.Context(), h.pool, i.ID, []byte{1})
	must(t, err)
	c, err := x509.ParseCertificate(a.Authority.Responder.Certificate)
	must(t, err)
	der, err := h.box.Open(t.Context(), secret.OCSP, secret.Binding{Table: "ocsp_responders", Column: "sealed_key", Row: a.Authority.Responder.ID.UUID()}, a.Authority.Responder.SealedKey)
	must(t, err)
	key, err := pki.ParseKey(der)
	must(t, err)
	if !pki.KeyMatches(c, key) {
		t.Error("the responder's key is not its certificate's")
	}
}

// Killed before and after every statement: numbers may be skipped, never reused, and the last CRL holds the entry.
func TestAPublicationKilledAnywhereIsRepeated(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	c := h.issued(t, lifecycle.Wanted{})
	v := h.version(t, c.CurrentVersionID)
	_, err := h.revoke(t, c.ID, pki.Superseded)
	must(t, err)
	last := big.NewInt(0)
	k := 1
	for ; ; k++ {
		l := h.publishJob(t)
		died := killedAt(h.pool, k, func(b db.Beginner) { _ = houseOn(b, h.box).PublishCRL(t.Context(), l) })
		if died && !h.job(t, l.ID).Status.Final() {
			h.giveBack(t, l.ID)
			must(t, h.PublishCRL(t.Context(), h.claim(t, job.CRL)))
		}
		crl, _ := h.crl(t)
		if _, ok := h.listed(t, v); !ok || crl.Number.Cmp(last) <= 0 {
			t.Errorf("moment %d: listed %v, number %v after %v", k, ok, crl.Number, last)
		}
		last = crl.Number
		if !died {
			break
		}
	}
	if k < 8 {
		t.Errorf("only %d moments", k)
	}
}
