package lifecycle_test

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"certctl/shared/cert"
	"certctl/shared/deployment"
	"certctl/shared/fault"
	"certctl/shared/id"
	"certctl/shared/job"
	"certctl/shared/lifecycle"
	"certctl/shared/pki"
	"certctl/shared/secret"

	"github.com/jackc/pgx/v5"
)

func TestARequestedCertificateIsIssuedStoredAndDeployed(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	target := h.target(t, nil)
	before := time.Now()
	c := h.request(t, lifecycle.Wanted{CommonName: "Web.Example.com", SANs: []string{"10.0.0.1", "web.example.com"}, TargetIDs: []id.Target{target.ID}})
	if c.Name != "web.example.com" || c.KeyCustody != cert.ServerCustody || c.OpenJobID.IsZero() || c.Status(time.Now()) != cert.Pending || c.CreatedBy != "alice" {
		t.Errorf("%+v", c)
	}
	if j := h.job(t, c.OpenJobID); j.Type != job.Issuance || j.Status != job.Pending || j.RequestedBy != "alice" || j.Runner != job.Worker {
		t.Errorf("%+v", j)
	}
	l := h.claim(t, job.Issuance)
	must(t, h.Issue(t.Context(), l))
	got := h.cert(t, c.ID)
	v := h.version(t, got.CurrentVersionID)
	_, g := h.local(t)
	if v.GenerationID != g.ID || v.JobID != c.OpenJobID || !got.OpenJobID.IsZero() || got.Status(time.Now()) != cert.Active || !got.RenewAt.After(before) || got.Failures != 0 {
		t.Errorf("%+v\n%+v", got, v)
	}
	h.checkChain(t, v, "web.example.com")
	if j := h.job(t, c.OpenJobID); j.Status != job.Completed || !strings.Contains(string(j.Result), v.SerialText()) || strings.Contains(string(j.Checkpoint), "sealed_key") {
		t.Errorf("%s: result %s", j.Status, j.Result)
	}
	if n := h.audited(t, "certificate.issued", c.ID.String()); n != 1 {
		t.Errorf("%d audit events of the issuance", n)
	}
	d, err := deployment.Of(t.Context(), h.pool, c.ID)
	if err != nil || len(d) != 1 || d[0].DesiredVersionID != v.ID || len(h.jobs(t, c.ID, job.Deployment)) != 1 {
		t.Errorf("%+v, %v", d, err)
	}
}

// checkChain holds a stored version against the CA, and its sealed key against the leaf.
func (h *house) checkChain(t testing.TB, v cert.Version, name string) {
	t.Helper()
	chain, err := cert.Chain(t.Context(), h.pool, v.ID)
	must(t, err)
	_, g := h.local(t)
	ca, err := g.X509()
	must(t, err)
	if err := chain[0].CheckSignatureFrom(ca); err != nil {
		t.Error(err)
	}
	if err := chain[0].VerifyHostname(name); err != nil {
		t.Error(err)
	}
	sealed, err := cert.SealedKey(t.Context(), h.pool, v.ID)
	must(t, err)
	der, err := h.box.Open(t.Context(), secret.Leaf, secret.Binding{Table: "version_keys", Column: "sealed", Row: v.ID.UUID()}, sealed)
	must(t, err)
	key, err := pki.ParseKey(der)
	must(t, err)
	if !pki.KeyMatches(chain[0], key) {
		t.Error("the stored key is not the certificate's")
	}
}

func TestCustodyIsDecidedByProfileAndTargets(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	one, two := h.enroll(t, "one").ID, h.enroll(t, "two").ID
	on := func(a id.Agent) id.Target {
		return h.target(t, func(x *deployment.Target) { x.AgentID = a }).ID
	}
	wants := func(c cert.Custody) id.Profile { return h.profile(t, func(p *cert.Profile) { p.KeyCustody = &c }).ID }
	agentProfile, serverProfile := wants(cert.AgentCustody), wants(cert.ServerCustody)
	none := id.Profile{}
	for name, c := range map[string]struct {
		profile id.Profile
		targets []id.Target
		custody cert.Custody
		agent   id.Agent
	}{
		"no target":                       {none, nil, cert.ServerCustody, id.Agent{}},
		"a target without an agent":       {none, []id.Target{on(id.Agent{})}, cert.ServerCustody, id.Agent{}},
		"an agent's target":               {none, []id.Target{on(one)}, cert.AgentCustody, one},
		"two targets of one agent":        {none, []id.Target{on(one), on(one)}, cert.AgentCustody, one},
		"two agents":                      {none, []id.Target{on(one), on(two)}, "", id.Agent{}},
		"an agent and none":               {none, []id.Target{on(one), on(id.Agent{})}, "", id.Agent{}},
		"agent custody without a target":  {agentProfile, nil, "", id.Agent{}},
		"agent custody with an agent":     {agentProfile, []id.Target{on(two)}, cert.AgentCustody, two},
		"server custody with many agents": {serverProfile, []id.Target{on(one), on(two), on(id.Agent{})}, cert.ServerCustody, id.Agent{}},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := h.tryRequest(t, lifecycle.Wanted{ProfileID: c.profile, TargetIDs: c.targets})
			if c.custody == "" {
				wantFault(t, err, fault.Invalid, "target_ids")
				return
			}
			if err != nil || got.KeyCustody != c.custody || got.AgentID != c.agent {
				t.Errorf("%s by %s, %v", got.KeyCustody, got.AgentID, err)
			}
			want := job.Pending
			if c.custody == cert.AgentCustody {
				want = job.AwaitingCSR
			}
			if j := h.job(t, got.OpenJobID); j.Status != want {
				t.Errorf("the job is %s", j.Status)
			}
		})
	}
}

func TestTargetsChangeOnlyWithinTheCustody(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	one, two := h.enroll(t, "one").ID, h.enroll(t, "two").ID
	on := func(a id.Agent) id.Target {
		return h.target(t, func(x *deployment.Target) { x.AgentID = a }).ID
	}
	first := on(one)
	c := h.request(t, lifecycle.Wanted{TargetIDs: []id.Target{first}})
	change := func(targets ...id.Target) error {
		_, err := inTx(t, h.pool, func(ctx context.Context, tx pgx.Tx) (cert.Certificate, error) {
			return lifecycle.Change(ctx, tx, c.ID, lifecycle.Update{TargetIDs: &targets})
		})
		return err
	}
	wantFault(t, change(first, on(two)), fault.Invalid, "target_ids[1]")
	wantFault(t, change(id.New[id.Target]()), fault.Invalid, "target_ids[0]")
	second := on(one)
	must(t, change(second))
	d, err := deployment.Of(t.Context(), h.pool, c.ID)
	if err != nil || len(d) != 1 || d[0].TargetID != second {
		t.Errorf("%+v, %v", d, err)
	}
}

func TestTargetsKeepTheirOrderAndCountOnce(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	var want []id.Target
	for range 12 {
		want = append(want, h.target(t, nil).ID)
	}
	slices.Reverse(want)
	c := h.request(t, lifecycle.Wanted{TargetIDs: append(slices.Clone(want), want[0], want[5])})
	d, err := deployment.Of(t.Context(), h.pool, c.ID)
	must(t, err)
	var got []id.Target
	for _, x := range d {
		got = append(got, x.TargetID)
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %v\nwant %v", got, want)
	}
}

func TestRequestRefusesWhatTheRecordCannotHold(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	narrow := h.profile(t, func(p *cert.Profile) { p.NamePatterns = []string{"*.example.com"} }).ID
	long := strings.Repeat("x", 101)
	for name, c := range map[string]struct {
		wanted lifecycle.Wanted
		field  string
	}{
		"issuer":      {lifecycle.Wanted{IssuerID: id.New[id.Issuer]()}, "issuer_id"},
		"profile":     {lifecycle.Wanted{ProfileID: id.New[id.Profile]()}, "profile_id"},
		"policy":      {lifecycle.Wanted{RenewalPolicyID: id.New[id.RenewalPolicy]()}, "renewal_policy_id"},
		"owner":       {lifecycle.Wanted{OwnerID: id.New[id.Owner]()}, "owner_id"},
		"team":        {lifecycle.Wanted{TeamID: id.New[id.Team]()}, "team_id"},
		"target":      {lifecycle.Wanted{TargetIDs: []id.Target{id.New[id.Target]()}}, "target_ids[0]"},
		"names":       {lifecycle.Wanted{SANs: []string{"ok.example.com", "bücher.example"}}, "sans[1]"},
		"permission":  {lifecycle.Wanted{ProfileID: narrow, SANs: []string{"a.example.com", "evil.org"}}, "sans[1]"},
		"environment": {lifecycle.Wanted{Environment: &long}, "environment"},
		"tags":        {lifecycle.Wanted{Tags: map[string]string{"": "x"}}, "tags"},
	} {
		_, err := h.tryRequest(t, c.wanted)
		t.Run(name, func(t *testing.T) { wantFault(t, err, fault.Invalid, c.field) })
	}
	if n := count(t, h.pool, `certificates`); n != 0 {
		t.Errorf("%d certificates were stored", n)
	}
}

func TestApprovalHoldsTheJobAndRefusalWaitsADay(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	p := h.profile(t, func(p *cert.Profile) { p.RequiresApproval = true })
	c := h.request(t, lifecycle.Wanted{ProfileID: p.ID})
	if j := h.job(t, c.OpenJobID); j.Status != job.AwaitingApproval || j.ApproveBy == nil {
		t.Errorf("%s", j.Status)
	}
	h.work(t)
	if !h.cert(t, c.ID).CurrentVersionID.IsZero() {
		t.Fatal("issued without approval")
	}
	if _, err := job.Approve(as(t, "alice"), h.pool, c.OpenJobID); !fault.Is(err, fault.Denied) {
		t.Error(err)
	}
	_, err := job.Approve(as(t, "bob"), h.pool, c.OpenJobID)
	must(t, err)
	h.work(t)
	if h.cert(t, c.ID).CurrentVersionID.IsZero() {
		t.Error("approved and not issued")
	}
	refused := h.request(t, lifecycle.Wanted{ProfileID: p.ID})
	_, err = job.Reject(as(t, "bob"), h.pool, refused.OpenJobID, "no")
	must(t, err)
	if got := h.cert(t, refused.ID); !got.OpenJobID.IsZero() || got.NextTryAt == nil || time.Until(*got.NextTryAt) < 23*time.Hour || got.Failures != 0 {
		t.Errorf("%+v", got)
	}
}

func (h *house) renew(t testing.TB, c id.Certificate) (job.Job, error) {
	t.Helper()
	return inTx(t, h.pool, func(ctx context.Context, tx pgx.Tx) (job.Job, error) { return lifecycle.Renew(ctx, tx, c) })
}

func TestRenewMakesAJobUnlessOneIsOpen(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	c := h.request(t, lifecycle.Wanted{})
	_, err := h.renew(t, c.ID)
	wantFault(t, err, fault.OpenJob)
	if f := fault.As(err); f == nil || f.Extra["open_job_id"] != c.OpenJobID {
		t.Errorf("%v", f)
	}
	h.work(t)
	first := h.cert(t, c.ID).CurrentVersionID
	j, err := h.renew(t, c.ID)
	if err != nil || j.Type != job.Renewal || h.cert(t, c.ID).Status(time.Now()) != cert.Renewing {
		t.Fatalf("%s, %v", j.Type, err)
	}
	h.work(t)
	if got := h.cert(t, c.ID); got.CurrentVersionID == first || got.CurrentVersionID.IsZero() {
		t.Error("no new version")
	}
	if _, err := h.renew(t, id.New[id.Certificate]()); !fault.Is(err, fault.NotFound) {
		t.Error(err)
	}
	_, err = inTx(t, h.pool, func(ctx context.Context, tx pgx.Tx) (cert.Certificate, error) {
		return lifecycle.Archive(ctx, tx, c.ID)
	})
	must(t, err)
	_, err = h.renew(t, c.ID)
	wantFault(t, err, fault.Conflict)
	if n := h.audited(t, "certificate.renewal_requested", c.ID.String()); n != 1 {
		t.Errorf("%d audit events of renewals", n)
	}
}

func TestACancelledFirstIssuanceMayBeAskedForAgain(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	c := h.request(t, lifecycle.Wanted{})
	_, err := job.Cancel(t.Context(), h.pool, c.OpenJobID)
	must(t, err)
	if got := h.cert(t, c.ID); !got.OpenJobID.IsZero() || got.NextTryAt != nil {
		t.Errorf("%+v", got)
	}
	j, err := h.renew(t, c.ID)
	if err != nil || j.Type != job.Issuance {
		t.Errorf("%s, %v", j.Type, err)
	}
}

func TestANewVersionSupersedesPendingDeployments(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	target := h.target(t, nil)
	c := h.request(t, lifecycle.Wanted{TargetIDs: []id.Target{target.ID}})
	must(t, h.Issue(t.Context(), h.claim(t, job.Issuance)))
	_, err := h.renew(t, c.ID)
	must(t, err)
	must(t, h.Issue(t.Context(), h.claim(t, job.Renewal)))
	jobs := h.jobs(t, c.ID, job.Deployment)
	if len(jobs) != 2 || jobs[0].Status != job.Cancelled || *jobs[0].CancelReason != "superseded" || jobs[1].Status != job.Pending {
		t.Fatalf("%+v", jobs)
	}
	if d, _ := deployment.Of(t.Context(), h.pool, c.ID); d[0].DesiredVersionID != h.cert(t, c.ID).CurrentVersionID {
		t.Error("the desired version is not the newest")
	}
}
