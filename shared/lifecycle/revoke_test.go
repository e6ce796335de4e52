package lifecycle_test

import (
	"context"
	"crypto"
	"crypto/x509"
	"net/http"
	"net/http/httptest"
	"slices"
	"testing"
	"time"

	"certctl/shared/cert"
	"certctl/shared/fault"
	"certctl/shared/id"
	"certctl/shared/issuer"
	"certctl/shared/job"
	"certctl/shared/lifecycle"
	"certctl/shared/pki"
	"certctl/shared/revocation"
	"certctl/shared/span"

	"github.com/jackc/pgx/v5"
)

func (h *house) revoke(t testing.TB, c id.Certificate, reason pki.Reason) (lifecycle.Revoked, error) {
	t.Helper()
	return inTx(t, h.pool, func(ctx context.Context, tx pgx.Tx) (lifecycle.Revoked, error) {
		return lifecycle.Revoke(ctx, tx, c, id.Version{}, reason)
	})
}

// crl is the current CRL of the local CA, verified.
func (h *house) crl(t testing.TB) (*x509.RevocationList, revocation.Published) {
	t.Helper()
	i, g := h.local(t)
	p, err := revocation.Current(t.Context(), h.pool, i.ID, 0, 0)
	must(t, err)
	l, err := x509.ParseRevocationList(p.DER)
	must(t, err)
	ca, err := g.X509()
	must(t, err)
	must(t, l.CheckSignatureFrom(ca))
	if l.Number.Int64() != p.Number {
		t.Errorf("CRL %v is stored as %d", l.Number, p.Number)
	}
	return l, p
}

func (h *house) listed(t testing.TB, v cert.Version) (pki.Reason, bool) {
	t.Helper()
	l, _ := h.crl(t)
	for _, e := range l.RevokedCertificateEntries {
		if string(e.SerialNumber.Bytes()) == string(v.Serial) {
			return pki.Reason(e.ReasonCode), true
		}
	}
	return 0, false
}

// status is what the record says to an OCSP question.
func (h *house) status(t testing.TB, v cert.Version) revocation.Status {
	t.Helper()
	i, g := h.local(t)
	ca, err := g.X509()
	must(t, err)
	hashes := pki.HashIssuer(ca)
	a, err := revocation.Ask(t.Context(), h.pool, i.ID, revocation.Question{Hash: crypto.SHA256, KeyHash: hashes.KeySHA256[:], Serial: v.Serial})
	must(t, err)
	b, err := revocation.AskSerial(t.Context(), h.pool, i.ID, v.Serial)
	must(t, err)
	if a.Authority == nil || b.Authority == nil || a.Status.Known != b.Status.Known || a.Authority.GenerationID != g.ID {
		t.Fatalf("%+v %+v", a, b)
	}
	return a.Status
}

func TestEveryReasonReachesTheCRLAndTheResponder(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	for _, reason := range pki.Reasons() {
		c := h.issued(t, lifecycle.Wanted{})
		out, err := h.revoke(t, c.ID, reason)
		if err != nil || out.Job != nil || out.Certificate.RevokedAt == nil || out.Certificate.Status(time.Now()) != cert.Revoked {
			t.Fatalf("%s: %+v, %v", reason, out, err)
		}
		v := h.version(t, c.CurrentVersionID)
		if s := h.status(t, v); !s.Known || s.RevokedAt == nil || s.Reason != reason || s.ChangedAt == nil {
			t.Errorf("%s: %+v", reason, s)
		}
		h.work(t)
		if got, ok := h.listed(t, v); !ok || got != reason {
			t.Errorf("%s: listed %v as %s", reason, ok, got)
		}
		if n := h.audited(t, "certificate.revoked", c.ID.String()); n != 1 {
			t.Errorf("%s: %d audit events", reason, n)
		}
		_, err = h.revoke(t, c.ID, pki.Superseded)
		if want := reason == pki.CertificateHold; (err == nil) != want {
			t.Errorf("%s, then superseded: %v", reason, err)
		} else if !want {
			wantFault(t, err, fault.AlreadyRevoked)
		}
	}
}

func TestAnUnheldCertificateIsGoodAgain(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	c := h.issued(t, lifecycle.Wanted{})
	v := h.version(t, c.CurrentVersionID)
	unhold := func() error {
		_, err := inTx(t, h.pool, func(ctx context.Context, tx pgx.Tx) (cert.Certificate, error) {
			return lifecycle.Unhold(ctx, tx, c.ID, id.Version{})
		})
		return err
	}
	wantFault(t, unhold(), fault.Conflict)
	_, err := h.revoke(t, c.ID, pki.CertificateHold)
	must(t, err)
	h.work(t)
	if _, ok := h.listed(t, v); !ok {
		t.Error("a hold is not listed")
	}
	must(t, unhold())
	h.work(t)
	if _, ok := h.listed(t, v); ok {
		t.Error("a lifted hold is listed")
	}
	got := h.cert(t, c.ID)
	if s := h.status(t, v); s.RevokedAt != nil || s.ChangedAt == nil || got.RevokedAt != nil || got.RenewAt == nil || !got.RenewAt.Equal(*c.RenewAt) {
		t.Errorf("%+v %+v", s, got)
	}
	wantFault(t, unhold(), fault.Conflict)
	_, err = h.revoke(t, c.ID, pki.KeyCompromise)
	must(t, err)
	wantFault(t, unhold(), fault.Conflict)
}

func TestACompromisedKeyIsBlockedAndItsOtherVersionsAreNamed(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	a := h.enroll(t, "one")
	x := h.agentTarget(t, a)
	key := generate(t)
	var certs []cert.Certificate
	for range 2 {
		c := h.request(t, lifecycle.Wanted{TargetIDs: []id.Target{x}})
		_, err := h.postCSR(t, a, c.OpenJobID, key, "web.example.com")
		must(t, err)
		h.work(t)
		certs = append(certs, h.cert(t, c.ID))
	}
	out, err := h.revoke(t, certs[0].ID, pki.KeyCompromise)
	if err != nil || len(out.SharedKey) != 1 || out.SharedKey[0].ID != certs[1].CurrentVersionID {
		t.Errorf("%+v, %v", out.SharedKey, err)
	}
	j, err := h.renew(t, certs[1].ID)
	must(t, err)
	_, err = h.postCSR(t, a, j.ID, key, "web.example.com")
	wantFault(t, err, fault.Invalid)
}

func TestARevokedCertificateIsRenewedByHandOnly(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	c := h.issued(t, lifecycle.Wanted{})
	_, err := h.revoke(t, c.ID, pki.Superseded)
	must(t, err)
	if s := h.sweep(t); s.Renewals != 0 {
		t.Errorf("%+v", s)
	}
	_, err = h.renew(t, c.ID)
	must(t, err)
	h.work(t)
	if got := h.cert(t, c.ID); got.RevokedAt != nil || got.RenewAt == nil || got.Status(time.Now()) != cert.Active {
		t.Errorf("%+v", got)
	}
	_, err = inTx(t, h.pool, func(ctx context.Context, tx pgx.Tx) (lifecycle.Revoked, error) {
		return lifecycle.Revoke(ctx, tx, c.ID, c.CurrentVersionID, pki.KeyCompromise)
	})
	wantFault(t, err, fault.AlreadyRevoked)
}

func TestAnEarlierVersionThatIsStillValidCanBeRevoked(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	c := h.issued(t, lifecycle.Wanted{})
	_, err := h.renew(t, c.ID)
	must(t, err)
	h.work(t)
	by := func(v id.Version) error {
		_, err := inTx(t, h.pool, func(ctx context.Context, tx pgx.Tx) (lifecycle.Revoked, error) {
			return lifecycle.Revoke(ctx, tx, c.ID, v, pki.Superseded)
		})
		return err
	}
	must(t, by(c.CurrentVersionID))
	if got := h.cert(t, c.ID); got.RevokedAt != nil || got.Status(time.Now()) != cert.Active {
		t.Errorf("%+v", got)
	}
	wantFault(t, by(id.New[id.Version]()), fault.Invalid, "version_id")
	exec(t, h.pool, `UPDATE versions SET not_after = now() WHERE certificate_id = $1`, c.ID)
	wantFault(t, by(h.cert(t, c.ID).CurrentVersionID), fault.Conflict)
	fresh := h.request(t, lifecycle.Wanted{})
	_, err = h.revoke(t, fresh.ID, pki.Superseded)
	wantFault(t, err, fault.Conflict)
}

func TestAShortLivedCertificateHasNoRevocation(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	for _, ttl := range []time.Duration{30 * time.Minute, time.Hour - time.Second} {
		p := h.profile(t, func(p *cert.Profile) { p.MaxTTL = span.Of(ttl) })
		c := h.issued(t, lifecycle.Wanted{ProfileID: p.ID})
		v := h.version(t, c.CurrentVersionID)
		chain, err := cert.Chain(t.Context(), h.pool, v.ID)
		must(t, err)
		if l := chain[0]; len(l.CRLDistributionPoints)+len(l.OCSPServer) > 0 || !pki.HasNoRevAvail(l) || !v.RevocationExempt {
			t.Errorf("%v: CDP %v, OCSP %v, noRevAvail %v, exempt %v", ttl, l.CRLDistributionPoints, l.OCSPServer, pki.HasNoRevAvail(l), v.RevocationExempt)
		}
		_, err = h.revoke(t, c.ID, pki.KeyCompromise)
		must(t, err)
		h.work(t)
		if _, ok := h.listed(t, v); ok {
			t.Errorf("%v: listed", ttl)
		}
		if s := h.status(t, v); !s.Exempt {
			t.Errorf("%v: OCSP may say %+v", ttl, s)
		}
		h.answersOCSP(t, v, false)
	}
	long := h.version(t, h.issued(t, lifecycle.Wanted{}).CurrentVersionID)
	h.answersOCSP(t, long, true)
}

// answersOCSP asks the responder's handler and expects a signed answer or none.
func (h *house) answersOCSP(t testing.TB, v cert.Version, signed bool) {
	t.Helper()
	i, _ := h.local(t)
	w := httptest.NewRecorder()
	h.responder().ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/.well-known/pki/ocsp/"+i.ID.String()+"/"+v.SerialText(), nil))
	if got := w.Body.Len() > 100; w.Code != http.StatusOK || got != signed {
		t.Errorf("%d with %d octets, want a signed answer: %v", w.Code, w.Body.Len(), signed)
	}
	if !signed && !slices.Equal(w.Body.Bytes(), pki.OCSPError(pki.OCSPUnauthorized)) {
		t.Errorf("answered %x, want unauthorized", w.Body.Bytes())
	}
}

func TestBulkRevocationCountsEveryOutcome(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	good, revoked, expired := h.issued(t, lifecycle.Wanted{}), h.issued(t, lifecycle.Wanted{}), h.issued(t, lifecycle.Wanted{})
	never := h.request(t, lifecycle.Wanted{})
	_, err := h.revoke(t, revoked.ID, pki.Superseded)
	must(t, err)
	exec(t, h.pool, `UPDATE versions SET not_after = now() WHERE certificate_id = $1`, expired.ID)
	b := lifecycle.Bulk{Reason: pki.CessationOfOperation, CertificateIDs: []id.Certificate{good.ID, revoked.ID, expired.ID, never.ID, id.New[id.Certificate]()}}
	want := lifecycle.Totals{Matched: 5, Revoked: 1, Skipped: 2, Failed: 2}
	run := func(dry bool) lifecycle.Totals {
		b.DryRun = dry
		got, err := inTx(t, h.pool, func(ctx context.Context, tx pgx.Tx) (lifecycle.Totals, error) { return lifecycle.RevokeAll(ctx, tx, b) })
		must(t, err)
		return got
	}
	dry := run(true)
	if h.cert(t, good.ID).RevokedAt != nil {
		t.Fatal("a dry run revoked")
	}
	for name, got := range map[string]lifecycle.Totals{"dry": dry, "real": run(false)} {
		if got.Matched != want.Matched || got.Revoked != want.Revoked || got.Skipped != want.Skipped || got.Failed != want.Failed || len(got.Results) != 5 {
			t.Errorf("%s: %+v", name, got)
		}
		for i, o := range got.Results {
			if o.Outcome != "revoked" && o.Outcome != "would-revoke" && o.Detail == "" {
				t.Errorf("%s: result %d does not say why", name, i)
			}
		}
	}
	if h.cert(t, good.ID).RevokedAt == nil || count(t, h.pool, `audit_events WHERE action = 'certificate.bulk_revoked'`) != 1 {
		t.Error("not revoked, or not recorded once")
	}
}

func TestALargeBulkIsAJobWithTheSameTotals(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	var ids []id.Certificate
	for range 3 {
		ids = append(ids, h.issued(t, lifecycle.Wanted{}).ID)
	}
	for range 250 {
		ids = append(ids, id.New[id.Certificate]())
	}
	j, err := inTx(t, h.pool, func(ctx context.Context, tx pgx.Tx) (job.Job, error) {
		return lifecycle.EnqueueBulk(ctx, tx, lifecycle.Bulk{Reason: pki.Superseded, CertificateIDs: ids})
	})
	must(t, err)
	h.work(t)
	got := h.job(t, j.ID)
	if n := count(t, h.pool, `jobs WHERE id = $1 AND result @> '{"matched": 253, "revoked": 3, "skipped": 0, "failed": 250}' AND jsonb_array_length(result->'results') = 250`, j.ID); n != 1 || got.Status != job.Completed {
		t.Errorf("%s: %.200s", got.Status, got.Result)
	}
	if n := count(t, h.pool, `audit_events WHERE action = 'certificate.revoked' AND principal = 'alice'`); n != 3 {
		t.Errorf("%d revocations are recorded in the name of who asked", n)
	}
	all, err := inTx(t, h.pool, func(ctx context.Context, tx pgx.Tx) (job.Job, error) {
		return lifecycle.EnqueueBulk(ctx, tx, lifecycle.Bulk{Reason: pki.Superseded, CertificateIDs: []id.Certificate{h.cert(t, ids[0]).ID}})
	})
	must(t, err)
	exec(t, h.pool, `UPDATE versions SET revoked_at = NULL, revocation_reason = NULL WHERE certificate_id = $1`, ids[0])
	h.work(t)
	if n := count(t, h.pool, `jobs WHERE id = $1 AND result->'results' = '[]'`, all.ID); n != 1 {
		t.Errorf("without failures: %s", h.job(t, all.ID).Result)
	}
}

// revoker is a CA that must be asked to revoke.
type revoker struct {
	foreign
	asked []pki.Reason
	away  error
}

func (r *revoker) Revoke(_ context.Context, _ *x509.Certificate, reason pki.Reason) error {
	r.asked = append(r.asked, reason)
	return r.away
}

func TestAnotherCAIsAskedByAJob(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	ca := &revoker{}
	i := h.foreignIssuer(t, &ca.foreign)
	h.Drivers[i.String()] = func(context.Context, issuer.Configured, []byte) (issuer.Issuer, error) { return ca, nil }
	c := h.issued(t, lifecycle.Wanted{IssuerID: i})
	out, err := h.revoke(t, c.ID, pki.Superseded)
	if err != nil || out.Job == nil || out.Certificate.RevokedAt != nil {
		t.Fatalf("%+v, %v", out, err)
	}
	_, err = h.revoke(t, c.ID, pki.Superseded)
	wantFault(t, err, fault.Conflict)
	ca.away = fault.New(fault.Unavailable, "away")
	h.work(t)
	if j := h.job(t, out.Job.ID); j.Status != job.Pending || h.cert(t, c.ID).RevokedAt != nil {
		t.Errorf("%s", j.Status)
	}
	ca.away = nil
	exec(t, h.pool, `UPDATE jobs SET scheduled_at = now() WHERE id = $1`, out.Job.ID)
	h.work(t)
	if j := h.job(t, out.Job.ID); j.Status != job.Completed || h.cert(t, c.ID).RevokedAt == nil || len(ca.asked) != 2 || ca.asked[1] != pki.Superseded {
		t.Errorf("%s, asked %v", j.Status, ca.asked)
	}
}
