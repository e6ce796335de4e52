package deployment_test

import (
	"testing"

	"certctl/shared/db"
	"certctl/shared/dbtest"
	"certctl/shared/deployment"
	"certctl/shared/fault"
	"certctl/shared/id"
	"certctl/shared/page"
	"certctl/shared/wire"
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

func target(t testing.TB, q db.Querier) deployment.Target {
	t.Helper()
	x := id.New[id.Target]()
	got, err := deployment.InsertTarget(t.Context(), q, deployment.Target{ID: x, Name: x.String(), Type: "files", Config: []byte(`{"a": 1}`), Verify: &wire.Verify{Address: "a:1"}}, []byte("sealed"))
	must(t, err)
	return got
}

// certificate makes a certificate with n versions.
func certificate(t testing.TB, q db.Querier, n int) (id.Certificate, []id.Version) {
	t.Helper()
	i, p, r, c := id.New[id.Issuer](), id.New[id.Profile](), id.New[id.RenewalPolicy](), id.New[id.Certificate]()
	exec(t, q, `INSERT INTO issuers (id, name, type) VALUES ($1, $2, 'local')`, i, i.String())
	exec(t, q, `INSERT INTO profiles (id, name, key_algorithms, max_ttl_seconds, ekus) VALUES ($1, $2, '{ecdsa-p256}', 3600, '{serverAuth}')`, p, p.String())
	exec(t, q, `INSERT INTO renewal_policies (id, name, renew_at_fraction, jitter) VALUES ($1, $2, 0.5, 0)`, r, r.String())
	exec(t, q, `INSERT INTO certificates (id, name, sans, issuer_id, profile_id, renewal_policy_id, key_custody, created_by) VALUES ($1, 'x', '{x}', $2, $3, $4, 'server', 'x')`, c, i, p, r)
	var out []id.Version
	for k := range n {
		j, v := id.New[id.Job](), id.New[id.Version]()
		exec(t, q, `INSERT INTO jobs (id, type, runner, status, certificate_id, requested_by, requested_role, completed_at) VALUES ($1, 'Issuance', 'worker', 'Completed', $2, 'x', 'x', now())`, j, c)
		exec(t, q, `INSERT INTO versions (id, certificate_id, issuer_id, job_id, serial, not_before, not_after, fingerprint, spki_sha256, key_algorithm, created_at)
			VALUES ($1, $2, $3, $4, $5, now(), now(), sha256($6::text::bytea), sha256('k'), 'x', now() - interval '10 s')`, v, c, i, j, []byte{byte(k + 1)}, v.String())
		out = append(out, v)
	}
	return c, out
}

func TestTargetsAreAttachedInOrderDetachedAndRevived(t *testing.T) {
	t.Parallel()
	tx := dbtest.Tx(t)
	c, _ := certificate(t, tx, 0)
	one, two := target(t, tx).ID, target(t, tx).ID
	of := func() (out []id.Target) {
		got, err := deployment.Of(t.Context(), tx, c)
		must(t, err)
		for _, d := range got {
			out = append(out, d.TargetID)
		}
		return out
	}
	must(t, deployment.Attach(t.Context(), tx, c, []id.Target{two, one, two}))
	if got := of(); len(got) != 2 || got[0] != two || got[1] != one {
		t.Errorf("%v", got)
	}
	must(t, deployment.Detach(t.Context(), tx, c, []id.Target{one}))
	if got := of(); len(got) != 1 || got[0] != one {
		t.Errorf("%v", got)
	}
	if _, err := deployment.Get(t.Context(), tx, c, two); !fault.Is(err, fault.NotFound) {
		t.Error(err)
	}
	must(t, deployment.Attach(t.Context(), tx, c, []id.Target{two}))
	if got := of(); len(got) != 2 {
		t.Errorf("%v", got)
	}
}

func TestWhatIsServedIsRecordedOnceSeen(t *testing.T) {
	t.Parallel()
	tx := dbtest.Tx(t)
	c, v := certificate(t, tx, 2)
	x := target(t, tx).ID
	must(t, deployment.Attach(t.Context(), tx, c, []id.Target{x}))
	must(t, deployment.Desire(t.Context(), tx, c, v[0]))
	state := func() deployment.Deployment {
		d, err := deployment.Get(t.Context(), tx, c, x)
		must(t, err)
		return d
	}
	must(t, deployment.Report(t.Context(), tx, c, x, wire.Receipt{VersionID: v[0]}, false))
	if d := state(); d.DesiredVersionID != v[0] || d.InstalledVersionID != v[0] || !d.ServedVersionID.IsZero() || d.TimeToServedMS != nil {
		t.Errorf("installed and not seen: %+v", d)
	}
	must(t, deployment.Report(t.Context(), tx, c, x, wire.Receipt{VersionID: v[0]}, true))
	first := state()
	if first.ServedVersionID != v[0] || first.TimeToServedMS == nil || *first.TimeToServedMS < 10_000 {
		t.Errorf("%+v", first)
	}
	exec(t, tx, `UPDATE versions SET created_at = now() - interval '1 h'`)
	must(t, deployment.Report(t.Context(), tx, c, x, wire.Receipt{VersionID: v[0]}, true))
	if d := state(); *d.TimeToServedMS != *first.TimeToServedMS {
		t.Error("a second look at the same version changed the time to served")
	}
	must(t, deployment.ReportFailure(t.Context(), tx, c, x, "reload failed", nil))
	if d := state(); *d.LastError != "reload failed" || d.ServedVersionID != v[0] || d.Receipt == nil {
		t.Errorf("after a failure: %+v", d)
	}
	must(t, deployment.Report(t.Context(), tx, c, x, wire.Receipt{VersionID: v[1]}, true))
	if d := state(); d.ServedVersionID != v[1] || d.LastError != nil || *d.TimeToServedMS < 3_600_000 {
		t.Errorf("%+v", d)
	}
	if sum, err := deployment.TimeToServed(t.Context(), tx); err != nil || sum.Count != 1 || *sum.P50 < 3600 {
		t.Errorf("%+v, %v", sum, err)
	}
}

func TestTargetsAreCheckedListedAndArchived(t *testing.T) {
	t.Parallel()
	tx := dbtest.Tx(t)
	x := target(t, tx)
	missing := id.New[id.Target]()
	_, err := deployment.Targets(t.Context(), tx, []id.Target{x.ID, missing})
	if f := fault.As(err); f == nil || len(f.Fields) != 1 || f.Fields[0].Field != "target_ids[1]" {
		t.Error(err)
	}
	x.Name, x.Verify = x.Name+"-new", nil
	if got, err := deployment.UpdateTarget(t.Context(), tx, x, nil); err != nil || got.Name != x.Name || got.Verify != nil {
		t.Errorf("%+v, %v", got, err)
	}
	if sealed, err := db.Scalar[[]byte](t.Context(), tx, `SELECT sealed_config FROM targets WHERE id = $1`, x.ID); err != nil || string(sealed) != "sealed" {
		t.Errorf("an update without secrets lost them: %q, %v", sealed, err)
	}
	must(t, deployment.RecordTest(t.Context(), tx, x.ID, true, "it answered"))
	if l, err := deployment.ListTargets(t.Context(), tx, id.Agent{}, page.Request{}); err != nil || len(l.Rows) != 1 || l.Rows[0].LastTest == nil {
		t.Errorf("%+v, %v", l.Rows, err)
	}
	c, _ := certificate(t, tx, 0)
	must(t, deployment.Attach(t.Context(), tx, c, []id.Target{x.ID}))
	if err := deployment.ArchiveTarget(t.Context(), tx, x.ID); !fault.Is(err, fault.Conflict) {
		t.Errorf("in use: %v", err)
	}
	must(t, deployment.Detach(t.Context(), tx, c, nil))
	must(t, deployment.ArchiveTarget(t.Context(), tx, x.ID))
	for name, i := range map[string]id.Target{"archived": x.ID, "unknown": missing} {
		if err := deployment.ArchiveTarget(t.Context(), tx, i); !fault.Is(err, fault.NotFound) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := deployment.Targets(t.Context(), tx, []id.Target{x.ID}); !fault.Is(err, fault.Invalid) {
		t.Errorf("an archived target was given: %v", err)
	}
	agent := id.New[id.Agent]()
	if _, err := deployment.InsertTarget(t.Context(), tx, deployment.Target{ID: missing, Name: missing.String(), Type: "files", AgentID: agent, Config: []byte(`{}`)}, nil); !fault.Is(err, fault.Invalid) {
		t.Errorf("an unknown agent: %v", err)
	}
}
