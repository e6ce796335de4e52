package lifecycle_test

import (
	"context"
	"crypto"
	"encoding/json"
	"errors"
	"fmt"
	"testing"
	"time"

	"certctl/shared/cert"
	"certctl/shared/db"
	"certctl/shared/fault"
	"certctl/shared/id"
	"certctl/shared/issuer"
	"certctl/shared/issuer/localca"
	"certctl/shared/issuer/localca/certlint"
	"certctl/shared/job"
	"certctl/shared/lifecycle"
	"certctl/shared/pki"
	"certctl/shared/secret"

	"github.com/jackc/pgx/v5"
)

// caKey opens the key of the local CA.
func (h *house) caKey(t testing.TB) (issuer.Generation, crypto.Signer) {
	t.Helper()
	_, g := h.local(t)
	sealed, err := issuer.SealedKey(t.Context(), h.pool, g.ID)
	must(t, err)
	der, err := h.box.Open(t.Context(), secret.CA, secret.Binding{Table: "ca_generations", Column: "sealed_key", Row: g.ID.UUID()}, sealed)
	must(t, err)
	key, err := pki.ParseKey(der)
	must(t, err)
	return g, key
}

// counting is a house over another way to the database whose CA key counts what it signs.
func (h *house) counting(b db.Beginner, g issuer.Generation, s *signatures) *lifecycle.House {
	out := houseOn(b, h.box)
	out.SetSigner(g.ID, s)
	return out
}

// giveBack makes the lease of a dead run expire.
func (h *house) giveBack(t testing.TB, j id.Job) {
	t.Helper()
	exec(t, h.pool, `UPDATE jobs SET leased_until = now() - interval '1 s' WHERE id = (SELECT id FROM jobs WHERE id = $1 AND status = 'Running' FOR UPDATE SKIP LOCKED)`, j)
	_, err := job.Reap(t.Context(), h.pool)
	must(t, err)
	exec(t, h.pool, `UPDATE jobs SET scheduled_at = now() WHERE id = (SELECT id FROM jobs WHERE id = $1 AND status = 'Pending' FOR UPDATE SKIP LOCKED)`, j)
}

// kept is the key that the job's steps record so far.
func (h *house) kept(t testing.TB, j id.Job) []byte {
	t.Helper()
	var steps struct {
		CSR []byte `json:"csr"`
	}
	must(t, json.Unmarshal(h.job(t, j).Checkpoint, &steps))
	if len(steps.CSR) == 0 {
		return nil
	}
	csr, err := pki.ParseCSR(steps.CSR)
	must(t, err)
	spki := pki.SPKIHash(csr.PublicKey)
	return spki[:]
}

// Killed before and after every statement of an issuance: the next run finishes it with the same key and one certificate.
func TestAnIssuanceKilledAnywhereIsFinishedOnce(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	g, key := h.caKey(t)
	made := &signatures{Signer: key, digests: map[string]bool{}}
	target := h.target(t, nil).ID
	k := 1
	for ; ; k++ {
		c := h.request(t, lifecycle.Wanted{CommonName: fmt.Sprintf("k%d.example.com", k), TargetIDs: []id.Target{target}})
		l := h.claim(t, job.Issuance)
		died := killedAt(h.pool, k, func(b db.Beginner) { _ = h.counting(b, g, made).Issue(t.Context(), l) })
		if !died {
			break
		}
		spki := h.kept(t, l.ID)
		if !h.job(t, l.ID).Status.Final() {
			h.giveBack(t, l.ID)
			must(t, h.counting(h.pool, g, made).Issue(t.Context(), h.claim(t, job.Issuance)))
		}
		h.checkIssuedOnce(t, fmt.Sprintf("moment %d", k), c.ID, made, spki)
	}
	if k < 30 {
		t.Errorf("only %d moments", k)
	}
}

func (h *house) checkIssuedOnce(t testing.TB, when string, c id.Certificate, made *signatures, spki []byte) {
	t.Helper()
	got := h.cert(t, c)
	if got.CurrentVersionID.IsZero() || !got.OpenJobID.IsZero() {
		t.Errorf("%s: not issued: %s", when, h.lastError(t, c))
		return
	}
	v := h.version(t, got.CurrentVersionID)
	if n := count(t, h.pool, `versions WHERE certificate_id = $1`, c); n != 1 {
		t.Errorf("%s: %d versions", when, n)
	}
	if n := made.take(); n != 1 {
		t.Errorf("%s: %d certificates were signed", when, n)
	}
	if spki != nil && string(spki) != string(v.SPKISHA256) {
		t.Errorf("%s: the key that was kept is not the certificate's", when)
	}
	if n := h.audited(t, "certificate.issued", c.String()); n != 1 {
		t.Errorf("%s: %d audit events", when, n)
	}
	if n := len(h.jobs(t, c, job.Deployment)); n != 1 {
		t.Errorf("%s: %d deployments", when, n)
	}
	h.checkChain(t, v, got.CommonName)
}

// A run that is frozen between any two statements while another run takes over: one of them wins, the other learns it.
func TestAnIssuanceOvertakenAnywhereEndsOnce(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	g, key := h.caKey(t)
	made := &signatures{Signer: key, digests: map[string]bool{}}
	target := h.target(t, nil).ID
	overtaken := 0
	for k := 1; ; k++ {
		c := h.request(t, lifecycle.Wanted{CommonName: fmt.Sprintf("z%d.example.com", k), TargetIDs: []id.Target{target}})
		l := h.claim(t, job.Issuance)
		reached, took := false, false
		slow := &points{Beginner: h.pool, at: func(n int) {
			if n != k {
				return
			}
			reached = true
			h.giveBack(t, l.ID)
			next, err := job.ClaimPending(t.Context(), h.pool, job.Claim{Type: job.Issuance, Limit: 1, Lease: time.Minute})
			must(t, err)
			if took = len(next) == 1; took {
				must(t, h.counting(h.pool, g, made).Issue(t.Context(), next[0]))
			}
		}}
		err := h.counting(slow, g, made).Issue(t.Context(), l)
		if took && !errors.Is(err, job.ErrLeaseLost) || !took && err != nil {
			t.Errorf("moment %d: overtaken %v, and it answered %v", k, took, err)
		}
		got := h.cert(t, c.ID)
		if n := count(t, h.pool, `versions WHERE certificate_id = $1`, c.ID); n != 1 || got.CurrentVersionID.IsZero() {
			t.Errorf("moment %d: %d versions", k, n)
		}
		if n := h.audited(t, "certificate.issued", c.ID.String()); n != 1 {
			t.Errorf("moment %d: %d audit events", k, n)
		}
		if took {
			overtaken++
		}
		if !reached {
			break
		}
	}
	if overtaken < 10 {
		t.Errorf("only %d runs were overtaken", overtaken)
	}
}

func TestARetryAfterARekeySignsWhatWasKept(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	i, old := h.local(t)
	c := h.request(t, lifecycle.Wanted{})
	l := h.claim(t, job.Issuance)
	died := func() (died bool) {
		defer func() { died = recover() == any(killed{}) }()
		_ = houseOn(&points{Beginner: h.pool, at: func(int) {
			if count(t, h.pool, `jobs WHERE id = $1 AND checkpoint ? 'driver'`, l.ID) == 1 {
				panic(killed{})
			}
		}}, h.box).Issue(t.Context(), l)
		return false
	}()
	if !died || h.job(t, l.ID).Status != job.Running {
		t.Fatal("the run was not killed when its TBS was kept")
	}
	must(t, db.InTx(t.Context(), h.pool, func(tx pgx.Tx) error { _, err := lifecycle.Rekey(t.Context(), tx, h.box, i.ID); return err }))
	h.giveBack(t, l.ID)
	must(t, h.Issue(t.Context(), h.claim(t, job.Issuance)))
	if v := h.version(t, h.cert(t, c.ID).CurrentVersionID); v.GenerationID != old.ID {
		t.Error("signed by another generation than the one that was kept")
	}
	next := h.issued(t, lifecycle.Wanted{CommonName: "next.example.com"})
	if v := h.version(t, next.CurrentVersionID); v.GenerationID == old.ID {
		t.Error("a new request is signed by the old generation")
	}
}

func TestWhatWillNotGoAwayFailsAndTheRestIsRetried(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	for name, c := range map[string]struct {
		answer error
		want   job.State
	}{
		"refused":        {fault.New(fault.Denied, "no"), job.Failed},
		"invalid":        {fault.BadField("sans", "no"), job.Failed},
		"away":           {fault.New(fault.Unavailable, "away"), job.Pending},
		"our mistake":    {errors.New("some error"), job.Pending},
		"retry after":    {fault.New(fault.Throttled, "slow down").After(time.Hour), job.Pending},
		"another answer": {nil, job.Failed},
	} {
		t.Run(name, func(t *testing.T) {
			ca := &foreign{answer: c.answer, wrong: true}
			w := h.foreignIssuer(t, ca)
			crt := h.request(t, lifecycle.Wanted{IssuerID: w})
			l := h.claim(t, job.Issuance)
			must(t, h.Issue(t.Context(), l))
			j := h.job(t, crt.OpenJobID)
			if j.Status != c.want || j.LastError == nil {
				t.Errorf("%s: %v", j.Status, j.LastError)
			}
			if name == "retry after" && time.Until(j.ScheduledAt) < 59*time.Minute {
				t.Errorf("tried again at %v", j.ScheduledAt)
			}
			if got := h.cert(t, crt.ID); c.want == job.Failed && (got.Failures != 1 || got.NextTryAt == nil || got.Status(time.Now()) != cert.Failed || h.audited(t, "certificate.issuance_failed", crt.ID.String()) != 1) {
				t.Errorf("%+v", got)
			}
			if !j.Status.Final() {
				_, err := job.Cancel(t.Context(), h.pool, j.ID)
				must(t, err)
			}
		})
	}
}

// foreign is a CA that is not ours: it needs polling, and may answer wrongly.
type foreign struct {
	answer  error
	wrong   bool // issues for other names
	polls   int  // how often it answers Pending
	asked   func(issuer.Request)
	submits int
	ca      *localca.CA
}

func (f *foreign) Submit(ctx context.Context, r issuer.Request) (issuer.Result, error) {
	f.submits++
	if f.asked != nil {
		f.asked(r)
	}
	if f.answer != nil {
		return nil, f.answer
	}
	if f.polls > 0 {
		return issuer.Pending{Handle: []byte("order-1"), After: time.Minute}, nil
	}
	return f.issue(ctx, r)
}

func (f *foreign) Poll(ctx context.Context, r issuer.Request, handle []byte) (issuer.Result, error) {
	if string(handle) != "order-1" {
		return nil, errors.New("an unknown order")
	}
	if f.polls--; f.polls > 0 {
		return issuer.Pending{Handle: handle, After: time.Minute}, nil
	}
	return f.issue(ctx, r)
}

func (f *foreign) issue(ctx context.Context, r issuer.Request) (issuer.Result, error) {
	if f.wrong {
		var err error
		if r.Names, err = pki.ParseNames("evil.example.org", nil); err != nil {
			return nil, err
		}
	}
	return f.ca.Submit(ctx, r)
}

// foreignIssuer configures an issuer of a type of its own, driven by f.
func (h *house) foreignIssuer(t testing.TB, f *foreign) id.Issuer {
	t.Helper()
	a := localca.Authority{TTL: 24 * time.Hour * 365}
	a.Subject.CommonName = "foreign CA"
	root, key, err := localca.NewRoot(a, time.Now())
	must(t, err)
	f.ca, err = localca.New(localca.Config{Generation: localca.Generation{Cert: root, Signer: key}, Lint: certlint.Check})
	must(t, err)
	i := id.New[id.Issuer]()
	_, err = issuer.Insert(t.Context(), h.pool, issuer.Configured{ID: i, Name: i.String(), Type: i.String(), Config: []byte(`{}`)}, nil)
	must(t, err)
	if h.Drivers == nil {
		h.Drivers = map[string]lifecycle.Driver{}
	}
	h.Drivers[i.String()] = func(context.Context, issuer.Configured, []byte) (issuer.Issuer, error) { return f, nil }
	return i
}

func TestASlowCAIsPolledAndSpendsNoAttempt(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	ca := &foreign{polls: 3}
	c := h.request(t, lifecycle.Wanted{IssuerID: h.foreignIssuer(t, ca)})
	for n := range 4 {
		must(t, h.Issue(t.Context(), h.claim(t, job.Issuance)))
		j := h.job(t, c.OpenJobID)
		if want := n == 3; (j.Status == job.Completed) != want || j.Attempts != 0 {
			t.Fatalf("after %d runs the job is %s with %d attempts", n+1, j.Status, j.Attempts)
		}
		exec(t, h.pool, `UPDATE jobs SET scheduled_at = now() WHERE id = $1 AND status = 'Pending'`, j.ID)
	}
	v := h.version(t, h.cert(t, c.ID).CurrentVersionID)
	if ca.submits != 1 || !v.GenerationID.IsZero() {
		t.Errorf("%d submissions, generation %s", ca.submits, v.GenerationID)
	}
}

func TestKeyAndRequestAreStoredBeforeACAIsAsked(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	ca := &foreign{}
	c := h.request(t, lifecycle.Wanted{IssuerID: h.foreignIssuer(t, ca)})
	ca.asked = func(r issuer.Request) {
		csr, err := pki.ParseCSR(r.CSR)
		must(t, err)
		if spki := pki.SPKIHash(csr.PublicKey); string(h.kept(t, c.OpenJobID)) != string(spki[:]) || count(t, h.pool, `jobs WHERE id = $1 AND checkpoint ? 'sealed_key'`, c.OpenJobID) != 1 {
			t.Error("the CA is asked about a key that no record holds")
		}
	}
	must(t, h.Issue(t.Context(), h.claim(t, job.Issuance)))
	if ca.submits != 1 {
		t.Errorf("%d submissions", ca.submits)
	}
}

func TestABlockedKeyIsNotCertified(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	a := h.enroll(t, "one")
	x := h.agentTarget(t, a)
	c := h.request(t, lifecycle.Wanted{TargetIDs: []id.Target{x}})
	key := generate(t)
	_, err := h.postCSR(t, a, c.OpenJobID, key, "web.example.com")
	must(t, err)
	spki := pki.SPKIHash(key.Public())
	exec(t, h.pool, `INSERT INTO blocked_keys (spki_sha256, created_by) VALUES ($1, 'x')`, spki[:])
	h.work(t)
	if j := h.job(t, c.OpenJobID); j.Status != job.Failed || count(t, h.pool, `versions`) != 0 {
		t.Errorf("%s", j.Status)
	}
}

func TestAProfileThatBecameNarrowerHolds(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	p := h.profile(t, func(*cert.Profile) {})
	c := h.request(t, lifecycle.Wanted{ProfileID: p.ID})
	p.NamePatterns = []string{"*.example.org"}
	_, err := cert.UpdateProfile(t.Context(), h.pool, p)
	must(t, err)
	h.work(t)
	if j := h.job(t, c.OpenJobID); j.Status != job.Failed || count(t, h.pool, `versions`) != 0 {
		t.Errorf("%s", j.Status)
	}
}

func TestAWorkerThatPanicsGivesTheJobBack(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	h.work(t)
	i := h.foreignIssuer(t, &foreign{})
	h.Drivers[i.String()] = func(context.Context, issuer.Configured, []byte) (issuer.Issuer, error) { panic("a driver's mistake") }
	c := h.request(t, lifecycle.Wanted{IssuerID: i})
	h.work(t)
	if j := h.job(t, c.OpenJobID); j.Status != job.Pending || j.Attempts != 1 {
		t.Errorf("%s after %d attempts", j.Status, j.Attempts)
	}
}
