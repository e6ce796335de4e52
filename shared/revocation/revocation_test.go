package revocation_test

import (
	"crypto"
	"errors"
	"testing"
	"time"

	"certctl/shared/db"
	"certctl/shared/dbtest"
	"certctl/shared/fault"
	"certctl/shared/id"
	"certctl/shared/pki"
	"certctl/shared/revocation"
)

func exec(t testing.TB, q db.Querier, sql string, args ...any) {
	t.Helper()
	if _, err := q.Exec(t.Context(), sql, args...); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// ca is an issuer with two generations and a version of the first.
type ca struct {
	issuer     id.Issuer
	old, fresh id.Generation
	version    id.Version
	serial     []byte
}

func makeCA(t testing.TB, q db.Querier) ca {
	t.Helper()
	c := ca{id.New[id.Issuer](), id.New[id.Generation](), id.New[id.Generation](), id.New[id.Version](), []byte{0x7f, 0, 1}}
	exec(t, q, `INSERT INTO issuers (id, name, type) VALUES ($1, $2, 'local')`, c.issuer, c.issuer.String())
	for n, g := range []id.Generation{c.old, c.fresh} {
		exec(t, q, `INSERT INTO ca_generations (id, issuer_id, number, certificate, key_uri, name_sha1, key_sha1, name_sha256, key_sha256, not_before, not_after)
			VALUES ($1, $2, $3, 'x', 'file:x', 'n', $4, 'n', $5, now(), now() + interval '1 d')`, g, c.issuer, n+1, []byte{1, byte(n)}, []byte{2, byte(n)})
		exec(t, q, `INSERT INTO crl_state (generation_id, shard) VALUES ($1, 0)`, g)
	}
	p, r, crt, j := id.New[id.Profile](), id.New[id.RenewalPolicy](), id.New[id.Certificate](), id.New[id.Job]()
	exec(t, q, `INSERT INTO profiles (id, name, key_algorithms, max_ttl_seconds, ekus) VALUES ($1, $2, '{x}', 3600, '{x}')`, p, p.String())
	exec(t, q, `INSERT INTO renewal_policies (id, name, renew_at_fraction, jitter) VALUES ($1, $2, 0.5, 0)`, r, r.String())
	exec(t, q, `INSERT INTO certificates (id, name, sans, issuer_id, profile_id, renewal_policy_id, key_custody, created_by) VALUES ($1, 'x', '{x}', $2, $3, $4, 'server', 'x')`, crt, c.issuer, p, r)
	exec(t, q, `INSERT INTO jobs (id, type, runner, status, certificate_id, requested_by, requested_role, completed_at) VALUES ($1, 'Issuance', 'worker', 'Completed', $2, 'x', 'x', now())`, j, crt)
	exec(t, q, `INSERT INTO versions (id, certificate_id, issuer_id, generation_id, job_id, serial, not_before, not_after, fingerprint, spki_sha256, key_algorithm)
		VALUES ($1, $2, $3, $4, $5, $6, now(), now() + interval '1 d', sha256($7::text::bytea), sha256('k'), 'x')`, c.version, crt, c.issuer, c.old, j, c.serial, c.version.String())
	return c
}

func (c ca) entry(reason pki.Reason) revocation.Entry {
	return revocation.Entry{GenerationID: c.old, Serial: c.serial, Reason: reason, RevokedAt: time.Now(), ExpiresAt: time.Now().Add(time.Hour), VersionID: c.version}
}

func (c ca) dirty(t testing.TB, q db.Querier, g id.Generation) int64 {
	t.Helper()
	n, err := db.Scalar[int64](t.Context(), q, `SELECT dirty_gen FROM crl_state WHERE generation_id = $1`, g)
	must(t, err)
	return n
}

func TestRevokingMarksTheShardOfItsGenerationOnly(t *testing.T) {
	t.Parallel()
	tx := dbtest.Tx(t)
	c := makeCA(t, tx)
	must(t, revocation.Add(t.Context(), tx, c.entry(pki.CertificateHold)))
	must(t, revocation.Add(t.Context(), tx, c.entry(pki.KeyCompromise))) // the hold became final
	if old, fresh := c.dirty(t, tx, c.old), c.dirty(t, tx, c.fresh); old != 3 || fresh != 1 {
		t.Errorf("dirty %d and %d", old, fresh)
	}
	if reason, err := db.Scalar[int](t.Context(), tx, `SELECT reason FROM revocations WHERE generation_id = $1`, c.old); err != nil || reason != int(pki.KeyCompromise) {
		t.Errorf("%d, %v", reason, err)
	}
	p, err := revocation.Begin(t.Context(), tx, c.old, 0)
	if err != nil || len(p.Entries) != 1 || p.Number != 1 || p.DirtyGen != 3 || p.Bytes != int64(len(p.Entries[0])) {
		t.Errorf("%+v, %v", p, err)
	}
	must(t, revocation.Remove(t.Context(), tx, c.old, 0, c.serial))
	if p, err := revocation.Begin(t.Context(), tx, c.old, 0); err != nil || len(p.Entries) != 0 || p.Number != 2 || p.DirtyGen != 4 {
		t.Errorf("%+v, %v", p, err)
	}
}

func TestOnlyALargerNumberBecomesCurrent(t *testing.T) {
	t.Parallel()
	tx := dbtest.Tx(t)
	c := makeCA(t, tx)
	if _, err := revocation.Current(t.Context(), tx, c.issuer, 1, 0); !errors.Is(err, revocation.ErrNotYet) {
		t.Error(err)
	}
	begin := func() revocation.Publication {
		p, err := revocation.Begin(t.Context(), tx, c.old, 0)
		must(t, err)
		return p
	}
	finish := func(p revocation.Publication, der string) bool {
		dirty, err := p.Finish(t.Context(), tx, revocation.Signed{DER: []byte(der), SHA256: []byte("s"), NextUpdate: time.Now().Add(time.Hour), RefreshAt: time.Now().Add(time.Hour)})
		must(t, err)
		return dirty
	}
	first, second := begin(), begin()
	must(t, revocation.Add(t.Context(), tx, c.entry(pki.Superseded)))
	if !finish(second, "second") {
		t.Error("what was revoked meanwhile is not asked for")
	}
	if finish(first, "first") {
		t.Error("a CRL that is not current asks for another")
	}
	got, err := revocation.Current(t.Context(), tx, c.issuer, 1, 0)
	if err != nil || string(got.DER) != "second" || got.Number != 2 {
		t.Errorf("%s, %d, %v", got.DER, got.Number, err)
	}
	for range 5 {
		if finish(begin(), "next") {
			t.Error("nothing is dirty")
		}
	}
	if n, err := db.Scalar[int](t.Context(), tx, `SELECT count(*)::int FROM crls WHERE generation_id = $1`, c.old); err != nil || n != 4 {
		t.Errorf("%d CRLs are kept, %v", n, err)
	}
	for name, q := range map[string]struct {
		issuer id.Issuer
		number int
		shard  int16
	}{"unknown issuer": {id.New[id.Issuer](), 0, 0}, "unknown generation": {c.issuer, 3, 0}, "unknown shard": {c.issuer, 1, 1}} {
		if _, err := revocation.Current(t.Context(), tx, q.issuer, q.number, q.shard); !fault.Is(err, fault.NotFound) {
			t.Errorf("%s: %v", name, err)
		}
	}
	states, err := revocation.States(t.Context(), tx, c.issuer)
	if err != nil || len(states) != 2 || !states[0].Dirty || states[1].Dirty || states[1].CurrentNumber != 7 {
		t.Errorf("%+v, %v", states, err)
	}
}

func TestTheRecordAnswersForTheGenerationThatIsAskedAbout(t *testing.T) {
	t.Parallel()
	tx := dbtest.Tx(t)
	c := makeCA(t, tx)
	ask := func(i id.Issuer, h crypto.Hash, key, serial []byte) revocation.Answer {
		a, err := revocation.Ask(t.Context(), tx, i, revocation.Question{Hash: h, KeyHash: key, Serial: serial})
		must(t, err)
		return a
	}
	for name, a := range map[string]revocation.Answer{"SHA-1": ask(c.issuer, crypto.SHA1, []byte{1, 0}, c.serial), "SHA-256": ask(c.issuer, crypto.SHA256, []byte{2, 0}, c.serial)} {
		if a.Authority == nil || a.Authority.GenerationID != c.old || !a.Status.Known || a.Status.RevokedAt != nil {
			t.Errorf("%s: %+v", name, a)
		}
	}
	for name, a := range map[string]revocation.Answer{
		"another generation": ask(c.issuer, crypto.SHA256, []byte{2, 1}, c.serial), "another serial": ask(c.issuer, crypto.SHA256, []byte{2, 0}, []byte{9}), "no serial": ask(c.issuer, crypto.SHA256, []byte{2, 0}, nil),
	} {
		if a.Authority == nil || a.Status.Known {
			t.Errorf("%s: %+v", name, a)
		}
	}
	for name, a := range map[string]revocation.Answer{
		"another key": ask(c.issuer, crypto.SHA256, []byte{9}, c.serial), "the wrong hash": ask(c.issuer, crypto.SHA1, []byte{2, 0}, c.serial), "another issuer": ask(id.New[id.Issuer](), crypto.SHA256, []byte{2, 0}, c.serial),
	} {
		if a.Authority != nil {
			t.Errorf("%s: %+v", name, a)
		}
	}
	if a, err := revocation.AskSerial(t.Context(), tx, c.issuer, c.serial); err != nil || a.Authority.GenerationID != c.old || !a.Status.Known {
		t.Errorf("%+v, %v", a, err)
	}
	if a, err := revocation.AskSerial(t.Context(), tx, c.issuer, []byte{9}); err != nil || a.Authority.GenerationID != c.fresh || a.Status.Known {
		t.Errorf("%+v, %v", a, err)
	}
	if _, _, err := revocation.CACertificate(t.Context(), tx, c.issuer, 3); !fault.Is(err, fault.NotFound) {
		t.Error(err)
	}
}

func TestTheNewestResponderThatIsValidSigns(t *testing.T) {
	t.Parallel()
	tx := dbtest.Tx(t)
	c := makeCA(t, tx)
	add := func(from, to, renew time.Duration) id.Responder {
		now := time.Now()
		r := revocation.NewResponder{ID: id.New[id.Responder](), GenerationID: c.old, Certificate: []byte("x"), SealedKey: []byte("x"), NotBefore: now.Add(from), NotAfter: now.Add(to), RenewAt: now.Add(renew)}
		must(t, revocation.AddResponder(t.Context(), tx, r))
		return r.ID
	}
	signs := func() id.Responder {
		a, err := revocation.AskSerial(t.Context(), tx, c.issuer, c.serial)
		must(t, err)
		return a.Authority.Responder.ID
	}
	fresh := func() bool {
		ok, err := revocation.ResponderFresh(t.Context(), tx, c.old)
		must(t, err)
		return ok
	}
	if !signs().IsZero() || fresh() {
		t.Error("a responder out of nothing")
	}
	add(-3*time.Hour, -time.Hour, -2*time.Hour)
	if !signs().IsZero() || fresh() {
		t.Error("an expired responder signs")
	}
	old := add(-2*time.Hour, time.Hour, -time.Minute)
	if signs() != old || fresh() {
		t.Error("the responder that is to be renewed does not sign, or counts as fresh")
	}
	next := add(-time.Hour, time.Hour, time.Minute)
	add(time.Minute, time.Hour, time.Hour)
	if signs() != next || !fresh() {
		t.Error("not the newest valid one signs")
	}
}
