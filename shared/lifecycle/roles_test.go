package lifecycle_test

import (
	"context"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"testing"
	"time"

	"certctl/shared/agent"
	"certctl/shared/auth"
	"certctl/shared/cert"
	"certctl/shared/db"
	"certctl/shared/deployment"
	"certctl/shared/id"
	"certctl/shared/issuer"
	"certctl/shared/job"
	"certctl/shared/lifecycle"
	"certctl/shared/org"
	"certctl/shared/page"
	"certctl/shared/pki"
	"certctl/shared/responder"
	"certctl/shared/revocation"
	"certctl/shared/secret"
	"certctl/shared/wire"

	"github.com/jackc/pgx/v5"
)

// as is the house seen with the rights of one function's role, with the secrets that the function is given (functions/*).
func (h *house) as(t testing.TB, role string, opens, seals []secret.Purpose) *house {
	t.Helper()
	u, err := url.Parse(h.url)
	must(t, err)
	q := u.Query()
	q.Set("role", role) // a runtime parameter of the session
	u.RawQuery = q.Encode()
	out := &house{url: u.String(), pool: open(t, u.String()), box: h.box.Limit(opens, seals)}
	if got, err := db.Scalar[string](t.Context(), out.pool, `SELECT current_user::text`); err != nil || got != role {
		t.Fatalf("acting as %s, %v", got, err)
	}
	out.House = houseOn(out.pool, out.box)
	return out
}

func (h *house) asAPI(t testing.TB) *house {
	return h.as(t, "certctl_api", nil, []secret.Purpose{secret.CA, secret.Config})
}

func (h *house) asWorker(t testing.TB) *house {
	return h.as(t, "certctl_worker", []secret.Purpose{secret.CA, secret.OCSP, secret.Leaf, secret.Config}, []secret.Purpose{secret.CA, secret.OCSP, secret.Leaf})
}

func (h *house) asAgentpoll(t testing.TB) *house { return h.as(t, "certctl_agentpoll", nil, nil) }

// The five functions, each with the rights of its own role, run the whole life of a certificate.
func TestEachFunctionNeedsNoMoreThanItsRole(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	api, worker, poll := h.asAPI(t), h.asWorker(t), h.asAgentpoll(t)
	sweep := h.as(t, "certctl_sweep", nil, nil)
	out := h.as(t, "certctl_responder", []secret.Purpose{secret.OCSP}, nil)
	must(t, lifecycle.CheckMasterKey(t.Context(), api.pool, api.box))
	must(t, lifecycle.CheckMasterKey(t.Context(), worker.pool, worker.box))

	worker.work(t) // first CRL and responder
	_, token, err := agent.NewToken(as(t, "alice"), api.pool, nil, time.Hour, nil)
	must(t, err)
	a := poll.enrollWith(t, token, "one")
	x := api.target(t, func(x *deployment.Target) { x.AgentID = a.ID })
	held := api.request(t, lifecycle.Wanted{CommonName: "held.example.com", TargetIDs: []id.Target{x.ID}})
	kept := api.request(t, lifecycle.Wanted{CommonName: "kept.example.com", TargetIDs: []id.Target{api.target(t, nil).ID}})
	if w := poll.poll(t, a, "r"); len(w.Jobs) != 1 {
		t.Fatalf("%+v", w)
	}
	_, err = poll.postCSR(t, a, held.OpenJobID, generate(t), "held.example.com")
	must(t, err)
	worker.work(t)
	w := poll.poll(t, a, "r")
	if len(w.Jobs) != 1 || w.Jobs[0].Type != "Deployment" {
		t.Fatalf("%+v; %s", w, h.lastError(t, held.ID))
	}
	_, err = poll.report(t, a, w.Jobs[0].ID, wire.Report{Lease: 1, Status: "Running"})
	must(t, err)
	_, err = lifecycle.Pickup(t.Context(), poll.pool, a.ID, held.ID, w.Jobs[0].Target.VersionID)
	must(t, err)
	_, err = poll.report(t, a, w.Jobs[0].ID, wire.Report{Lease: 1, Status: "Completed", Receipt: &wire.Receipt{VersionID: w.Jobs[0].Target.VersionID}})
	must(t, err)

	h.due(t, kept.ID)
	if s := sweep.sweep(t); s.Renewals != 1 {
		t.Errorf("%+v", s)
	}
	worker.work(t)
	c := api.cert(t, kept.ID)
	if n := count(t, h.pool, `versions WHERE certificate_id = $1`, c.ID); n != 2 {
		t.Errorf("%d versions: %s", n, h.lastError(t, c.ID))
	}
	_, err = api.revoke(t, c.ID, pki.KeyCompromise)
	must(t, err)
	worker.work(t)
	out.servesWhatIsPublished(t, h, h.version(t, c.CurrentVersionID))
}

func (h *house) enrollWith(t testing.TB, token, name string) host {
	t.Helper()
	out, err := inTx(t, h.pool, func(ctx context.Context, tx pgx.Tx) (wire.Enrolled, error) {
		return lifecycle.Enroll(ctx, tx, wire.Enroll{Token: token, Name: name})
	})
	must(t, err)
	return host{ID: out.AgentID, credential: out.Credential}
}

// servesWhatIsPublished asks the responder for everything that it has of a revoked version.
func (h *house) servesWhatIsPublished(t testing.TB, all *house, v cert.Version) {
	t.Helper()
	i, _ := all.local(t)
	handler := &responder.Handler{DB: h.pool, Box: h.box, Log: slog.New(slog.DiscardHandler)}
	for _, path := range []string{"crl/" + i.ID.String(), "crl/" + i.ID.String() + "/1", "ca/" + i.ID.String(), "ocsp/" + i.ID.String() + "/" + v.SerialText()} {
		w := httptest.NewRecorder()
		handler.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/.well-known/pki/"+path, nil))
		if w.Code != http.StatusOK || w.Body.Len() < 100 {
			t.Errorf("%s: %d with %d octets", path, w.Code, w.Body.Len())
		}
	}
	if s := h.statusAs(t, i.ID, v); s.RevokedAt == nil {
		t.Errorf("%+v", s)
	}
}

func (h *house) statusAs(t testing.TB, i id.Issuer, v cert.Version) revocation.Status {
	t.Helper()
	a, err := revocation.AskSerial(t.Context(), h.pool, i, v.Serial)
	must(t, err)
	return a.Status
}

// Every operation of the API's edge that writes, and every list, with the rights of the API's role.
func TestTheAPIsRoleSufficesForItsOperations(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	api, worker := h.asAPI(t), h.asWorker(t)
	worker.work(t)
	c := api.request(t, lifecycle.Wanted{TargetIDs: []id.Target{api.target(t, nil).ID}})
	worker.work(t)
	i, _ := h.local(t)
	inTx := func(name string, fn func(ctx context.Context, tx pgx.Tx) error) {
		t.Helper()
		if err := db.InTx(t.Context(), api.pool, func(tx pgx.Tx) error { return fn(as(t, "alice"), tx) }); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	var key auth.Key
	var waiting, job2 job.Job
	approval := api.profile(t, func(p *cert.Profile) { p.RequiresApproval = true })
	inTx("create a key", func(ctx context.Context, tx pgx.Tx) (err error) {
		key, _, err = auth.Create(ctx, tx, auth.NewKey{Name: "k", Principal: "bob", Role: auth.Viewer})
		return err
	})
	inTx("rotate a key", func(ctx context.Context, tx pgx.Tx) error {
		_, _, err := auth.Rotate(ctx, tx, key.ID, time.Hour)
		return err
	})
	inTx("disable a key", func(ctx context.Context, tx pgx.Tx) error { _, err := auth.Disable(ctx, tx, key.ID); return err })
	inTx("change", func(ctx context.Context, tx pgx.Tx) error {
		name := "renamed"
		_, err := lifecycle.Change(ctx, tx, c.ID, lifecycle.Update{Change: cert.Change{Name: &name, RenewalPolicyID: &c.RenewalPolicyID}, TargetIDs: &[]id.Target{}})
		return err
	})
	inTx("renew", func(ctx context.Context, tx pgx.Tx) (err error) {
		job2, err = lifecycle.Renew(ctx, tx, c.ID)
		return err
	})
	inTx("cancel", func(ctx context.Context, tx pgx.Tx) error { _, err := job.Cancel(ctx, tx, job2.ID); return err })
	inTx("request with approval", func(ctx context.Context, tx pgx.Tx) error {
		got, err := lifecycle.Request(ctx, tx, lifecycle.Wanted{CommonName: "a.example.com", ProfileID: approval.ID, Issue: true})
		waiting.ID = got.OpenJobID
		return err
	})
	inTx("approve", func(_ context.Context, tx pgx.Tx) error {
		_, err := job.Approve(auth.WithActor(t.Context(), auth.Actor{Principal: "carol"}), tx, waiting.ID)
		return err
	})
	inTx("ask for an export", func(ctx context.Context, tx pgx.Tx) error {
		_, err := lifecycle.RequestExport(ctx, tx, c.ID, `{}`)
		return err
	})
	inTx("hold", func(ctx context.Context, tx pgx.Tx) error {
		_, err := lifecycle.Revoke(ctx, tx, c.ID, id.Version{}, pki.CertificateHold)
		return err
	})
	inTx("unhold", func(ctx context.Context, tx pgx.Tx) error {
		_, err := lifecycle.Unhold(ctx, tx, c.ID, id.Version{})
		return err
	})
	inTx("revoke many", func(ctx context.Context, tx pgx.Tx) error {
		_, err := lifecycle.RevokeAll(ctx, tx, lifecycle.Bulk{Reason: pki.KeyCompromise, CertificateIDs: []id.Certificate{c.ID}})
		return err
	})
	inTx("ask for many revocations", func(ctx context.Context, tx pgx.Tx) error {
		_, err := lifecycle.EnqueueBulk(ctx, tx, lifecycle.Bulk{})
		return err
	})
	inTx("archive", func(ctx context.Context, tx pgx.Tx) error { _, err := lifecycle.Archive(ctx, tx, c.ID); return err })
	inTx("re-key a CA", func(ctx context.Context, tx pgx.Tx) error {
		_, err := lifecycle.Rekey(ctx, tx, api.box, i.ID)
		return err
	})
	inTx("renew a CA", func(ctx context.Context, tx pgx.Tx) error {
		_, err := lifecycle.RequestCARenewal(ctx, tx, i.ID)
		return err
	})
	inTx("teams and owners", func(ctx context.Context, tx pgx.Tx) error {
		team, err := org.InsertTeam(ctx, tx, "team")
		if err != nil {
			return err
		}
		_, err = org.InsertOwner(ctx, tx, org.Owner{Name: "owner", TeamID: team.ID})
		return err
	})
	api.readsEverythingItLists(t, i.ID)
	api.importsAndFulfils(t)
	worker.work(t) // what was asked for above, the CA's renewal among it, with the worker's role
	if n := count(t, h.pool, `jobs WHERE type = 'CARenewal' AND status = 'Completed'`); n != 1 {
		t.Error("the worker's role could not renew the CA")
	}
}

func (h *house) readsEverythingItLists(t *testing.T, i id.Issuer) {
	t.Helper()
	p := page.Request{Total: true}
	for name, list := range map[string]func() error{
		"certificates": func() error {
			_, err := cert.List(t.Context(), h.pool, cert.Filter{Status: cert.Active}, p)
			return err
		},
		"jobs":        func() error { _, err := job.List(t.Context(), h.pool, job.Filter{}, p); return err },
		"keys":        func() error { _, err := auth.ListKeys(t.Context(), h.pool, "", p); return err },
		"agents":      func() error { _, err := agent.List(t.Context(), h.pool, false, p); return err },
		"issuers":     func() error { _, err := issuer.List(t.Context(), h.pool, p); return err },
		"generations": func() error { _, err := issuer.Generations(t.Context(), h.pool, i); return err },
		"CRLs":        func() error { _, err := revocation.States(t.Context(), h.pool, i); return err },
		"targets":     func() error { _, err := deployment.ListTargets(t.Context(), h.pool, id.Agent{}, p); return err },
		"profiles":    func() error { _, err := cert.ListProfiles(t.Context(), h.pool, p); return err },
		"policies":    func() error { _, err := cert.ListRenewalPolicies(t.Context(), h.pool, p); return err },
		"teams":       func() error { _, err := org.ListTeams(t.Context(), h.pool, p); return err },
		"owners":      func() error { _, err := org.ListOwners(t.Context(), h.pool, p); return err },
		"times":       func() error { _, err := deployment.TimeToServed(t.Context(), h.pool); return err },
	} {
		if err := list(); err != nil {
			t.Errorf("listing %s: %v", name, err)
		}
	}
}

// importsAndFulfils makes a sub-CA whose key this role never reads.
func (h *house) importsAndFulfils(t *testing.T) {
	t.Helper()
	i, err := h.createIssuer(t, lifecycle.LocalConfig{CommonName: "sub", Request: true})
	must(t, err)
	der, err := lifecycle.OpenRequest(t.Context(), h.pool, i.ID)
	must(t, err)
	root, key := enterprise(t)
	_, err = inTx(t, h.pool, func(ctx context.Context, tx pgx.Tx) (issuer.Generation, error) {
		return lifecycle.FulfilRequest(ctx, tx, i.ID, string(pki.EncodeBundle(signSubCA(t, der, root, key), root)))
	})
	if err != nil {
		t.Errorf("fulfilling a request: %v", err)
	}
}

// Seal a server-held key to an agent, hand out, probe: the rest of what the worker's role must be able to do.
func TestTheWorkersRoleSufficesForDeploymentsAndBulks(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	worker := h.asWorker(t)
	custody := cert.ServerCustody
	p := h.profile(t, func(p *cert.Profile) { p.KeyCustody = &custody })
	a := h.enroll(t, "one")
	c := h.request(t, lifecycle.Wanted{ProfileID: p.ID, TargetIDs: []id.Target{h.agentTarget(t, a), h.target(t, nil).ID}})
	worker.work(t)
	if w := h.poll(t, a, "r"); len(w.Jobs) != 1 || w.Jobs[0].Target.Key == "" {
		t.Errorf("%+v; %s", w, h.lastError(t, c.ID))
	}
	j, err := inTx(t, h.pool, func(ctx context.Context, tx pgx.Tx) (job.Job, error) {
		return lifecycle.EnqueueBulk(ctx, tx, lifecycle.Bulk{Reason: pki.KeyCompromise, CertificateIDs: []id.Certificate{c.ID}})
	})
	must(t, err)
	worker.work(t)
	if got := h.job(t, j.ID); got.Status != job.Completed || h.cert(t, c.ID).RevokedAt == nil {
		t.Errorf("%s %s", got.Status, got.Result)
	}
}
