package cli_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"certctl/shared/client"
	"certctl/shared/id"
)

// The keys that the stand-in accepts.
const (
	adminKey = "certctl_admin_key_of_the_tests"
	bobKey   = "certctl_bob_key_of_the_tests"
	viewKey  = "certctl_viewer_key_of_the_tests"
)

// house stands in for the server: a small memory with the moves of the real one. A job moves one state at each look.
type house struct {
	mu       sync.Mutex
	certs    []*client.Certificate
	versions []client.Version
	jobs     []*client.Job
	issuers  []*client.Issuer
	profiles []*client.Profile
	policies []*client.RenewalPolicy
	targets  []*client.Target
	agents   []*client.Agent
	keys     []*client.Key
	teams    []*client.Team
	owners   []*client.Owner
	requests []string // method and path of everything that came
	down     int      // how many requests are still answered with 503
}

// at gives the stand-in's things a fixed past, so that tables can be compared.
func at(ago time.Duration) time.Time { return time.Now().Add(-ago).UTC().Truncate(time.Second) }

func newHouse() *house {
	h := &house{}
	iss, prf, rpl := id.New[id.Issuer]().String(), id.New[id.Profile]().String(), id.New[id.RenewalPolicy]().String()
	h.issuers = []*client.Issuer{{ID: iss, Name: "local", Type: "local", Config: json.RawMessage(`{}`), CreatedAt: at(72 * time.Hour), UpdatedAt: at(72 * time.Hour)}}
	h.profiles = []*client.Profile{{ID: prf, Name: "default", KeyAlgorithms: []string{"ecdsa-p256"}, MaxTTL: "90d", EKUs: []string{"serverAuth"}, NamePatterns: []string{}, CreatedAt: at(time.Hour), UpdatedAt: at(time.Hour)}}
	h.policies = []*client.RenewalPolicy{{ID: rpl, Name: "default", RenewAtFraction: 0.67, Jitter: 0.05, AutoRenew: true, AlertFractions: []float64{}, CreatedAt: at(time.Hour), UpdatedAt: at(time.Hour)}}
	return h
}

// serve starts the stand-in behind the contract.
func (h *house) serve(t *testing.T) *httptest.Server {
	s := httptest.NewServer(newContract(t, adminKey, h))
	t.Cleanup(s.Close)
	return s
}

type reply struct {
	status int
	body   any
}

func problem(status int, kind, detail string, more ...any) reply {
	m := map[string]any{"type": "https://certctl.dev/problems/" + kind, "title": kind, "status": status, "detail": detail, "instance": "req-1"}
	for i := 0; i+1 < len(more); i += 2 {
		m[more[i].(string)] = more[i+1]
	}
	return reply{status, m}
}

func ok(v any) reply { return reply{200, v} }

func missing() reply { return problem(404, "not-found", "There is no such thing.") }

func (h *house) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.requests = append(h.requests, r.Method+" "+r.URL.Path)
	w.Header().Set("X-Request-Id", "req-1")
	if r.URL.Path == "/api/v1/audit/export" {
		_, _ = w.Write([]byte(`{"id":"evt_01h455vb4pex5vsknk084sn02q","canonical_base64":"e30=","leaf_hash":"00"}` + "\n"))
		return
	}
	rep := h.answer(r)
	if raw, is := rep.body.([]byte); is {
		w.WriteHeader(rep.status)
		_, _ = w.Write(raw)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	if rep.status >= 400 {
		w.Header().Set("Content-Type", "application/problem+json")
	}
	w.WriteHeader(rep.status)
	if rep.status != 204 {
		_ = json.NewEncoder(w).Encode(rep.body)
	}
}

func (h *house) answer(r *http.Request) reply {
	who, role := "", ""
	switch r.Header.Get("Authorization") {
	case "Bearer " + adminKey:
		who, role = "admin", "admin"
	case "Bearer " + bobKey:
		who, role = "bob", "operator"
	case "Bearer " + viewKey:
		who, role = "eve", "viewer"
	default:
		return problem(401, "unauthenticated", "This path needs a credential.")
	}
	if h.down > 0 {
		h.down--
		return problem(503, "unavailable", "The database is away.", "retryable", true)
	}
	if role == "viewer" && r.Method != http.MethodGet {
		return problem(403, "forbidden", "The role of this credential does not permit this.")
	}
	parts := strings.Split(strings.TrimPrefix(r.URL.Path, "/api/v1/"), "/")
	in := map[string]any{}
	_ = json.NewDecoder(r.Body).Decode(&in)
	c := call{h, r, in, who, role, parts}
	return c.dispatch()
}

// call is one request.
type call struct {
	*house
	r         *http.Request
	in        map[string]any
	who, role string
	parts     []string
}

func (c call) text(name string) string {
	s, _ := c.in[name].(string)
	return s
}

func (c call) verb() string {
	if len(c.parts) > 2 {
		return c.parts[2]
	}
	return ""
}

func (c call) dispatch() reply {
	switch c.parts[0] {
	case "auth":
		return ok(client.Me{Principal: c.who, Role: c.role, KeyID: "key_01h455vb4pex5vsknk084sn02q", Permissions: []string{"read"}})
	case "stats":
		return ok(c.summary())
	case "certificates":
		return c.certificate()
	case "jobs":
		return c.job()
	case "audit":
		if len(c.parts) > 1 {
			return ok(client.AuditEvent{ID: c.parts[1], Details: map[string]any{}})
		}
		return page([]*client.AuditEvent{{ID: "evt_01h455vb4pex5vsknk084sn02q", At: at(time.Minute), Actor: client.Actor{Principal: "admin", Role: "admin"}, Action: "certificate.created", ResourceType: "certificate", Details: map[string]any{}}})
	case "issuers":
		return c.issuer()
	}
	return c.plain()
}

func page[T any](rows []*T) reply {
	out := []T{}
	for _, r := range slices.Backward(rows) { // newest first
		out = append(out, *r)
	}
	return ok(map[string]any{"data": out})
}

func find[T any](rows []*T, id string, idOf func(*T) string) *T {
	for _, r := range rows {
		if idOf(r) == id {
			return r
		}
	}
	return nil
}

// over puts the body's fields over a thing.
func over[T any](v *T, in map[string]any) {
	b, _ := json.Marshal(in)
	_ = json.Unmarshal(b, v)
}

func crtID(c *client.Certificate) string { return c.ID }
func jobID(j *client.Job) string         { return j.ID }

func (c call) certificate() reply {
	if len(c.parts) == 1 {
		if c.r.Method == http.MethodPost {
			return c.create()
		}
		var rows []*client.Certificate
		for _, x := range c.certs {
			q := c.r.URL.Query()
			if (q.Get("name") == "" || q.Get("name") == x.Name) && (q.Get("status") == "" || q.Get("status") == x.Status) {
				rows = append(rows, x)
			}
		}
		return page(rows)
	}
	if c.parts[1] == "bulk-revoke" {
		n := len(c.certs)
		return ok(client.BulkTotals{Matched: n, Revoked: n, Results: []client.BulkOutcome{}})
	}
	x := find(c.certs, c.parts[1], crtID)
	if x == nil {
		return missing()
	}
	return c.oneCertificate(x)
}

func (c call) create() reply {
	x := &client.Certificate{ID: id.New[id.Certificate]().String(), SANs: []string{}, Tags: map[string]string{}, TargetIDs: []string{}, Deployments: []client.Deployment{}, Can: []string{"renew"},
		AutoRenew: true, KeyCustody: "server", CreatedBy: c.who, CreatedAt: at(0), UpdatedAt: at(0), Status: "pending",
		IssuerID: client.Ref(c.issuers[0].ID), ProfileID: client.Ref(c.profiles[0].ID), RenewalPolicyID: client.Ref(c.policies[0].ID)}
	over(x, c.in)
	if strings.Contains(x.SANs[0], " ") {
		return problem(400, "invalid-request", "The request has fields that are not valid.", "errors", []map[string]string{{"field": "sans[0]", "detail": "must be a DNS name"}})
	}
	if x.Name == "" {
		x.Name = x.SANs[0]
	}
	for _, t := range x.TargetIDs {
		x.Deployments = append(x.Deployments, client.Deployment{ID: id.New[id.Deployment]().String(), TargetID: t, UpdatedAt: at(0)})
	}
	c.certs = append(c.certs, x)
	if c.in["issue"] != false {
		c.issue(x, "Issuance", "requested")
	}
	return reply{201, x}
}

// enqueue makes a job.
func (h *house) enqueue(kind, who string, set func(*client.Job)) *client.Job {
	j := &client.Job{ID: id.New[id.Job]().String(), Type: kind, Status: client.Pending, Runner: "worker", MaxAttempts: 5, ScheduledAt: at(0), RequestedBy: who, Events: []client.JobEvent{{At: at(0), Event: "created", Actor: &who}}, CreatedAt: time.Now().UTC(), Can: []string{"cancel"}}
	set(j)
	h.jobs = append(h.jobs, j)
	return j
}

func (c call) issue(x *client.Certificate, kind, why string) *client.Job {
	j := c.enqueue(kind, c.who, func(j *client.Job) {
		j.CertificateID = client.Ref(x.ID)
		p := find(c.profiles, string(x.ProfileID), func(p *client.Profile) string { return p.ID })
		if p.RequiresApproval {
			j.Status, j.Can = client.AwaitingApproval, []string{"approve", "reject", "cancel"}
			until := at(-24 * time.Hour)
			j.ApproveBy = &until
		}
	})
	x.OpenJobID, x.RenewReason = client.Ref(j.ID), &why
	return j
}

func (c call) oneCertificate(x *client.Certificate) reply {
	switch c.verb() {
	case "":
		if c.r.Method == http.MethodPatch {
			if _, replaced := c.in["tags"]; replaced {
				x.Tags = map[string]string{}
			}
			over(x, c.in)
		}
		return ok(x)
	case "versions":
		var rows []*client.Version
		for i := range c.versions {
			if c.versions[i].CertificateID == x.ID {
				rows = append(rows, &c.versions[i])
			}
		}
		return page(rows)
	case "pem":
		return reply{200, []byte("-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n")}
	case "export":
		return reply{200, []byte(c.text("format") + " " + c.text("password"))}
	case "renew":
		if x.OpenJobID != "" {
			return problem(409, "open-job", "The certificate has an open job; wait for it or cancel it.", "open_job_id", x.OpenJobID)
		}
		return reply{202, c.issue(x, "Renewal", "asked for by "+c.who)}
	case "deploy":
		ids := []string{}
		for _, j := range c.deploy(x) {
			ids = append(ids, j.ID)
		}
		return reply{202, map[string]any{"job_ids": ids}}
	}
	return c.end(x)
}

// end answers the verbs that end something.
func (c call) end(x *client.Certificate) reply {
	now := at(0)
	switch c.verb() {
	case "archive":
		x.ArchivedAt, x.Status = &now, "archived"
		c.certs = slices.DeleteFunc(c.certs, func(y *client.Certificate) bool { return y == x })
		return ok(x)
	case "revoke":
		if x.CurrentVersion == nil || x.CurrentVersion.RevokedAt != nil {
			return problem(409, "already-revoked", "The version is revoked already.")
		}
		reason := c.text("reason")
		x.CurrentVersion.RevokedAt, x.CurrentVersion.RevocationReason, x.Status = &now, &reason, "revoked"
		return ok(client.Revoked{Certificate: *x, SharedKeyVersions: []client.Version{}})
	case "unhold":
		x.CurrentVersion.RevokedAt, x.CurrentVersion.RevocationReason, x.Status = nil, nil, "active"
		return ok(x)
	}
	return missing()
}

func (h *house) deploy(x *client.Certificate) []*client.Job {
	var out []*client.Job
	for i := range x.Deployments {
		d := &x.Deployments[i]
		d.DesiredVersionID = client.Ref(x.CurrentVersion.ID)
		out = append(out, h.enqueue("Deployment", "admin", func(j *client.Job) {
			j.CertificateID, j.TargetID, j.VersionID = client.Ref(x.ID), client.Ref(d.TargetID), d.DesiredVersionID
		}))
	}
	return out
}

func (c call) job() reply {
	if len(c.parts) == 1 {
		var rows []*client.Job
		for _, j := range c.jobs {
			q := c.r.URL.Query()
			if fits(q.Get("certificate_id"), string(j.CertificateID)) && fits(q.Get("type"), j.Type) && fits(q.Get("status"), j.Status) {
				rows = append(rows, j)
			}
		}
		return page(rows)
	}
	j := find(c.jobs, c.parts[1], jobID)
	if j == nil {
		return missing()
	}
	if c.verb() == "" {
		if c.r.URL.Query().Has("wait") {
			c.move(j)
		}
		return ok(j)
	}
	return c.decide(j)
}

func fits(want, have string) bool { return want == "" || want == have }

func (c call) decide(j *client.Job) reply {
	waits := j.Status == client.AwaitingApproval
	switch {
	case c.verb() != "cancel" && !waits, j.Status == client.Running, j.Final():
		return problem(409, "conflict", "A job that is "+j.Status+" cannot be changed so.")
	case c.verb() != "cancel" && j.RequestedBy == c.who:
		return problem(403, "forbidden", "The requester cannot decide.")
	case c.verb() == "approve":
		j.Status, j.ApprovedBy, j.Can = client.Pending, &c.who, []string{"cancel"}
		return ok(j)
	}
	reason := map[string]string{"cancel": "cancelled", "reject": "rejected"}[c.verb()]
	c.finish(j, client.Cancelled)
	j.CancelReason = &reason
	return ok(j)
}

// move takes a job one state further.
func (h *house) move(j *client.Job) {
	switch j.Status {
	case client.Pending:
		j.Status = client.Running
	case client.Running:
		h.finish(j, client.Completed)
	}
}

func (h *house) finish(j *client.Job, status string) {
	now := at(0)
	x := find(h.certs, string(j.CertificateID), crtID)
	if x != nil && strings.HasPrefix(x.Name, "fail.") && status == client.Completed {
		status = client.Failed
		why := "The CA refused the name."
		j.LastError = &why
		x.Failures++
		x.Status = "failed"
	}
	j.Status, j.CompletedAt, j.Can = status, &now, []string{}
	switch {
	case x == nil:
	case j.Type == "Deployment":
		h.serveOn(x, j)
	default:
		x.OpenJobID = ""
		if status == client.Completed {
			h.issued(x, j)
		}
	}
}

func (h *house) issued(x *client.Certificate, j *client.Job) {
	renew := at(-60 * 24 * time.Hour)
	v := client.Version{ID: id.New[id.Version]().String(), CertificateID: x.ID, Serial: fmt.Sprintf("%x", len(h.versions)+0xabc), NotBefore: at(time.Minute), NotAfter: at(-90*24*time.Hour - time.Hour), FingerprintSHA256: "00ff", SPKISHA256: "ff00",
		KeyAlgorithm: "ecdsa-p256", IssuerID: x.IssuerID, JobID: client.Ref(j.ID), CreatedAt: at(0)}
	h.versions = append(h.versions, v)
	why := `renews at 67 % of its lifetime (policy "default": 67 %, up to 5 % earlier)`
	x.CurrentVersion, x.Status, x.RenewAt, x.RenewReason, x.Failures = &v, "active", &renew, &why, 0
	h.deploy(x)
}

func (h *house) serveOn(x *client.Certificate, j *client.Job) {
	for i := range x.Deployments {
		d := &x.Deployments[i]
		if client.Ref(d.TargetID) == j.TargetID && j.Status == client.Completed {
			s := 1.5
			d.InstalledVersionID, d.ServedVersionID, d.TimeToServedSeconds = j.VersionID, j.VersionID, &s
		}
	}
}

func (c call) issuer() reply {
	if len(c.parts) == 1 && c.r.Method == http.MethodPost {
		i := &client.Issuer{ID: id.New[id.Issuer]().String(), Config: json.RawMessage(`{}`), CreatedAt: at(0), UpdatedAt: at(0)}
		over(i, c.in)
		c.issuers = append(c.issuers, i)
		return reply{201, i}
	}
	if len(c.parts) == 1 {
		return page(c.issuers)
	}
	i := find(c.issuers, c.parts[1], func(i *client.Issuer) string { return i.ID })
	if i == nil {
		return missing()
	}
	g := client.Generation{ID: "gen_01h455vb4pex5vsknk084sn02q", Number: 1, CertificatePEM: "x", Subject: "CN=" + i.Name, Serial: "1", KeyAlgorithm: "ecdsa-p256", KeySource: "sealed", NotBefore: at(time.Hour), NotAfter: at(-3650 * 24 * time.Hour), CRLURL: "http://x/crl", CreatedAt: at(time.Hour)}
	switch c.verb() {
	case "generations":
		return page([]*client.Generation{&g})
	case "test", "renew":
		return reply{202, c.enqueue(map[string]string{"test": "IssuerTest", "renew": "CARenewal"}[c.verb()], c.who, func(j *client.Job) { j.IssuerID = client.Ref(i.ID) })}
	case "rekey":
		return reply{201, g}
	case "request":
		if c.r.Method == http.MethodPost {
			return reply{201, g}
		}
		return reply{200, []byte("-----BEGIN CERTIFICATE REQUEST-----\n")}
	}
	if c.r.Method == http.MethodDelete {
		c.issuers = slices.DeleteFunc(c.issuers, func(x *client.Issuer) bool { return x == i })
		return reply{204, nil}
	}
	over(i, c.in)
	return ok(i)
}

// plain answers the nouns that are only kept.
func (c call) plain() reply {
	switch c.parts[0] {
	case "profiles":
		return kept(c, &c.profiles, func(v *client.Profile) *string { return &v.ID }, func(v *client.Profile) {
			v.ID, v.CreatedAt, v.UpdatedAt = id.New[id.Profile]().String(), at(0), at(0)
			v.EKUs, v.NamePatterns = []string{"serverAuth"}, []string{}
		})
	case "renewal-policies":
		return kept(c, &c.policies, func(v *client.RenewalPolicy) *string { return &v.ID }, func(v *client.RenewalPolicy) {
			v.ID, v.CreatedAt, v.UpdatedAt, v.AlertFractions = id.New[id.RenewalPolicy]().String(), at(0), at(0), []float64{}
			v.AutoRenew = true
		})
	case "targets":
		return kept(c, &c.targets, func(v *client.Target) *string { return &v.ID }, func(v *client.Target) {
			v.ID, v.CreatedAt, v.UpdatedAt = id.New[id.Target]().String(), at(0), at(0)
		})
	case "teams":
		return kept(c, &c.teams, func(v *client.Team) *string { return &v.ID }, func(v *client.Team) { v.ID, v.CreatedAt = id.New[id.Team]().String(), at(0) })
	case "owners":
		return kept(c, &c.owners, func(v *client.Owner) *string { return &v.ID }, func(v *client.Owner) { v.ID, v.CreatedAt = id.New[id.Owner]().String(), at(0) })
	case "agents":
		return c.agent()
	case "keys":
		return c.apiKey()
	}
	return missing()
}

func kept[T any](c call, rows *[]*T, idOf func(*T) *string, fresh func(*T)) reply {
	if len(c.parts) == 1 && c.r.Method == http.MethodGet {
		return page(*rows)
	}
	if len(c.parts) == 1 {
		for _, r := range *rows {
			b, _ := json.Marshal(r)
			var have struct{ Name string }
			if _ = json.Unmarshal(b, &have); have.Name == c.text("name") {
				return problem(409, "conflict", "One of this name exists.")
			}
		}
		v := new(T)
		fresh(v)
		over(v, c.in)
		completeVerify(v)
		*rows = append(*rows, v)
		return reply{201, v}
	}
	v := find(*rows, c.parts[1], func(v *T) string { return *idOf(v) })
	if v == nil {
		return missing()
	}
	if c.r.Method == http.MethodDelete {
		*rows = slices.DeleteFunc(*rows, func(x *T) bool { return x == v })
		return reply{204, nil}
	}
	over(v, c.in)
	completeVerify(v)
	return ok(v)
}

// completeVerify says who looks, as the real server does.
func completeVerify(v any) {
	if t, is := v.(*client.Target); is && t.Verify != nil && t.Verify.From == "" {
		t.Verify.From = "agent"
	}
}

func (c call) agent() reply {
	now := at(0)
	if len(c.parts) == 2 && c.parts[1] == "tokens" {
		return reply{201, client.EnrollmentToken{ID: "tok_01h455vb4pex5vsknk084sn02q", Token: "enroll-me", ExpiresAt: at(-time.Hour)}}
	}
	if c.verb() == "retire" {
		if a := find(c.agents, c.parts[1], func(a *client.Agent) string { return a.ID }); a != nil {
			a.Status, a.RetiredAt = "retired", &now
			return ok(a)
		}
	}
	return kept(c, &c.agents, func(v *client.Agent) *string { return &v.ID }, func(*client.Agent) {})
}

func (c call) apiKey() reply {
	now := at(0)
	k := find(c.keys, append(c.parts, "")[1], func(k *client.Key) string { return k.ID })
	switch {
	case c.r.Method == http.MethodGet || len(c.parts) > 1 && k == nil:
		return kept(c, &c.keys, func(v *client.Key) *string { return &v.ID }, func(*client.Key) {})
	case c.verb() == "disable":
		k.DisabledAt = &now
		return ok(k)
	}
	made := &client.Key{ID: id.New[id.Key]().String(), CreatedBy: c.who, CreatedAt: now}
	if k != nil {
		made.Name, made.Principal, made.Role = k.Name, k.Principal, k.Role
	}
	over(made, c.in)
	c.keys = append(c.keys, made)
	return reply{201, client.KeyWithSecret{Key: *made, Secret: "certctl_secret_of_" + made.Name}}
}

func (h *house) summary() client.Summary {
	var s client.Summary
	s.Certificates.ByStatus, s.Jobs.ByStatus = map[string]int64{}, map[string]int64{}
	for _, x := range h.certs {
		s.Certificates.Total++
		s.Certificates.ByStatus[x.Status]++
	}
	for _, j := range h.jobs {
		s.Jobs.ByStatus[j.Status]++
	}
	return s
}
