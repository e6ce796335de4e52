package agentrun_test

import (
	"bytes"
	"crypto"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"sync"
	"testing"

	jose "github.com/go-jose/go-jose/v4"

	"certctl/shared/id"
	"certctl/shared/pki"
	"certctl/shared/target"
	"certctl/shared/target/targettest"
	"certctl/shared/wire"
)

// server stands in for the agent edge. It checks its caller strictly, keeps what it was told, and can lose answers after it
// has done the work, or refuse before.
type server struct {
	*httptest.Server
	t  *testing.T
	ca *targettest.CA

	mu        sync.Mutex
	token     string // unused enrollment token
	publicKey string
	agent     id.Agent
	bearer    string
	jobs      map[id.Job]*fakeJob
	order     []id.Job
	versions  map[id.Version]wire.Pickup
	runs      map[string]bool
	calls     map[string]int // by name: enroll, work, csr, version, status, rotate
	lose      map[string]int // answers to lose after the work is done
	refuse    map[string]int // answers with 503
	problems  []string
	nextPoll  int
}

type fakeJob struct {
	wire.Job
	run     string
	spki    string
	ended   []wire.Report // final reports that were taken
	running int
}

func newServer(t *testing.T) *server {
	t.Helper()
	s := &server{
		t: t, ca: targettest.NewCA(t), token: "cet1_" + strings.Repeat("a", 43), bearer: "secret-of-the-agent", nextPoll: 1,
		jobs: map[id.Job]*fakeJob{}, versions: map[id.Version]wire.Pickup{},
		runs: map[string]bool{}, calls: map[string]int{}, lose: map[string]int{}, refuse: map[string]int{},
	}
	s.Server = httptest.NewServer(http.HandlerFunc(s.serve))
	t.Cleanup(s.Close)
	t.Cleanup(func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		for _, p := range s.problems {
			t.Error("the server saw: " + p)
		}
	})
	return s
}

func (s *server) complain(format string, args ...any) {
	s.problems = append(s.problems, fmt.Sprintf(format, args...))
}

type answer struct {
	status int
	body   any
}

func problem(status int, detail string) answer {
	return answer{status, map[string]any{"type": "about:blank", "title": http.StatusText(status), "status": status, "detail": detail, "instance": "req"}}
}

var paths = regexp.MustCompile(`^/api/v1/agents/([^/]+)/(work|csr|certificates|jobs|credential)(?:/([^/]+))?(/status)?$`)

func (s *server) serve(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil {
		s.complain("reading a body: %v", err)
	}
	name, a := s.route(r, body)
	s.calls[name]++
	if s.lose[name] > 0 {
		s.lose[name]--
		panic(http.ErrAbortHandler)
	}
	kind := "application/json"
	if a.status >= 400 {
		kind = "application/problem+json"
		if a.status == 503 {
			w.Header().Set("Retry-After", "1")
		}
	}
	w.Header().Set("Content-Type", kind)
	w.WriteHeader(a.status)
	_ = json.NewEncoder(w).Encode(a.body)
}

func (s *server) route(r *http.Request, body []byte) (string, answer) {
	s.headers(r, body)
	if r.URL.Path == "/api/v1/agents/enroll" {
		return "enroll", s.unlessRefused("enroll", func() answer { return s.enroll(r, body) })
	}
	m := paths.FindStringSubmatch(r.URL.Path)
	if m == nil {
		s.complain("an unknown path %s", r.URL.Path)
		return "unknown", problem(404, "no such path")
	}
	name := map[string]string{"work": "work", "csr": "csr", "certificates": "version", "jobs": "status", "credential": "rotate"}[m[2]]
	return name, s.unlessRefused(name, func() answer {
		if r.Header.Get("Authorization") != "Bearer "+s.bearer {
			return problem(401, "unknown credential")
		}
		if m[1] != s.agent.String() {
			return problem(403, "another agent")
		}
		switch name {
		case "work":
			return s.work(r)
		case "csr":
			return s.csr(body)
		case "version":
			return s.version(r, m[3])
		case "status":
			return s.status(m[3], body)
		}
		s.bearer += "x"
		return answer{200, wire.Rotated{AgentID: s.agent, Credential: s.bearer}}
	})
}

func (s *server) unlessRefused(name string, do func() answer) answer {
	if s.refuse[name] > 0 {
		s.refuse[name]--
		return problem(503, "the database is away")
	}
	return do()
}

func (s *server) headers(r *http.Request, body []byte) {
	run := r.Header.Get(wire.RunHeader)
	if run == "" {
		s.complain("%s %s has no %s", r.Method, r.URL.Path, wire.RunHeader)
	}
	s.runs[run] = true
	if !strings.HasPrefix(r.UserAgent(), "certctl-agent/") {
		s.complain("the user agent is %q", r.UserAgent())
	}
	if len(body) > 0 && r.Header.Get("Content-Type") != "application/json" {
		s.complain("a body of type %q", r.Header.Get("Content-Type"))
	}
	if bytes.Contains(body, []byte("PRIVATE KEY")) || bytes.Contains(body, []byte(`"d":`)) || bytes.Contains(body, []byte(`\"d\"`)) {
		s.complain("%s %s carries a private key", r.Method, r.URL.Path)
	}
}

func (s *server) decode(body []byte, into any) {
	d := json.NewDecoder(bytes.NewReader(body))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil || d.More() {
		s.complain("a body that is not exact: %v", err)
	}
}

func (s *server) enroll(r *http.Request, body []byte) answer {
	var e wire.Enroll
	s.decode(body, &e)
	if r.Header.Get("Authorization") != "" {
		s.complain("enrollment carries a credential")
	}
	if e.Name == "" || e.Hostname == "" || e.OS != "linux" || e.Arch == "" || e.Version != "test" || e.PublicKey == nil {
		s.complain("enrollment is incomplete: %+v", e)
		return problem(400, "incomplete")
	}
	switch {
	case e.Token == s.token && s.publicKey == "":
		s.publicKey, s.agent = *e.PublicKey, id.New[id.Agent]()
	case e.Token != s.token || *e.PublicKey != s.publicKey:
		return problem(401, "used")
	}
	return answer{201, wire.Enrolled{AgentID: s.agent, Credential: s.bearer}}
}

// work hands out a job without a lease to the asking run, and again to that run only until it is reported.
func (s *server) work(r *http.Request) answer {
	run, work := r.Header.Get(wire.RunHeader), wire.Work{Jobs: []wire.Job{}, NextPollSeconds: s.nextPoll}
	for _, i := range s.order {
		j := s.jobs[i]
		switch {
		case len(j.ended) > 0:
		case j.Status == "AwaitingCSR":
			work.Jobs = append(work.Jobs, j.Job)
		case j.Target != nil && (j.run == "" || j.run == run):
			if j.run == "" {
				j.run, j.Status = run, "Running"
				j.Lease++
			}
			work.Jobs = append(work.Jobs, j.Job)
		}
	}
	return answer{200, work}
}

func (s *server) csr(body []byte) answer {
	var p wire.PostCSR
	s.decode(body, &p)
	j := s.jobs[p.JobID]
	if j == nil || j.CSR == nil {
		return problem(404, "no such job")
	}
	csr, err := pki.ParseCSR([]byte(p.CSRPEM))
	if err == nil {
		var names pki.Names
		if names, err = pki.ParseNames(j.CSR.CommonName, j.CSR.SANs); err == nil {
			err = pki.AdmitCSR(csr, names, []pki.KeyAlgorithm{pki.KeyAlgorithm(j.CSR.KeyAlgorithm)})
		}
	}
	if err != nil {
		s.complain("the CSR is not what was asked for: %v", err)
		return problem(400, "bad csr")
	}
	spki := spkiOf(csr.PublicKey)
	if j.spki != "" && j.spki != spki {
		s.complain("a second CSR of the job has another key")
		return problem(409, "another key")
	}
	if j.spki == "" {
		j.spki, j.Status = spki, "Pending"
		s.issue(j, csr.PublicKey)
	}
	return answer{202, wire.CSRAccepted{JobID: p.JobID, Status: j.Status}}
}

// issue is what the worker would do: a version for the CSR's key.
func (s *server) issue(j *fakeJob, public crypto.PublicKey) {
	j.ended = []wire.Report{{Status: "Completed"}}
	s.keepVersion(&target.Bundle{Chain: s.ca.Certify(s.t, public, j.CSR.SANs...)})
}

func (s *server) keepVersion(b *target.Bundle) id.Version {
	v := wire.Pickup{
		VersionID: id.New[id.Version](), Serial: b.Chain[0].SerialNumber.Text(16), FingerprintSHA256: target.Fingerprint(b.Chain[0]),
		SPKISHA256: spkiOf(b.Chain[0].PublicKey), ChainPEM: string(b.FullChainPEM()),
	}
	s.versions[v.VersionID] = v
	return v.VersionID
}

func spkiOf(public crypto.PublicKey) string {
	h := pki.SPKIHash(public)
	return hex.EncodeToString(h[:])
}

func (s *server) version(r *http.Request, certificate string) answer {
	i, err := id.Parse[id.Version](r.URL.Query().Get("version_id"))
	if err != nil {
		s.complain("version_id %q", r.URL.Query().Get("version_id"))
	}
	v, ok := s.versions[i]
	if _, err := id.Parse[id.Certificate](certificate); err != nil || !ok {
		return problem(404, "no such version")
	}
	return answer{200, v}
}

func (s *server) status(job string, body []byte) answer {
	var p wire.Report
	s.decode(body, &p)
	i, err := id.Parse[id.Job](job)
	j := s.jobs[i]
	if err != nil || j == nil {
		return problem(404, "no such job")
	}
	if p.Lease != j.Lease {
		return problem(409, "stale lease")
	}
	switch p.Status {
	case "Running":
		if len(j.ended) > 0 {
			return problem(409, "ended")
		}
		j.running++
	case "Completed", "Failed":
		if len(p.Detail) > 4000 || p.Status == "Failed" && p.Detail == "" {
			s.complain("a detail of %d bytes", len(p.Detail))
		}
		if p.Status == "Completed" {
			s.judge(j, p.Receipt)
		}
		if len(j.ended) == 0 {
			j.ended = append(j.ended, p)
		} else if j.ended[0].Status != p.Status {
			s.complain("a second report says %s, the first said %s", p.Status, j.ended[0].Status)
		}
	default:
		s.complain("status %q", p.Status)
	}
	return answer{200, wire.Reported{JobID: i, Status: p.Status, LeaseSeconds: j.LeaseSeconds}}
}

func (s *server) judge(j *fakeJob, r *wire.Receipt) {
	if r == nil || r.VersionID != j.Target.VersionID || r.RolledBack || len(r.Steps) == 0 {
		s.complain("receipt %+v", r)
		return
	}
	if j.Target.Verify != nil && r.ServedFingerprint != s.versions[j.Target.VersionID].FingerprintSHA256 {
		s.complain("Completed without proof that the version is served")
	}
}

// awaitCSR adds an issuance that waits for the agent's request.
func (s *server) awaitCSR(certificate id.Certificate, names ...string) *fakeJob {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.add(&fakeJob{Job: wire.Job{
		ID: id.New[id.Job](), Type: "Renewal", Status: "AwaitingCSR", CertificateID: certificate,
		CSR: &wire.CSR{CommonName: names[0], SANs: names, KeyAlgorithm: "ecdsa-p256"},
	}})
}

// deployment adds a deployment of a version.
func (s *server) deployment(certificate id.Certificate, version id.Version, t wire.Target) *fakeJob {
	s.mu.Lock()
	defer s.mu.Unlock()
	t.VersionID = version
	if t.ID.IsZero() {
		t.ID = id.New[id.Target]()
	}
	return s.add(&fakeJob{Job: wire.Job{ID: id.New[id.Job](), Type: "Deployment", Status: "Pending", LeaseSeconds: 60, CertificateID: certificate, Target: &t}})
}

func (s *server) add(j *fakeJob) *fakeJob {
	s.jobs[j.ID] = j
	s.order = append(s.order, j.ID)
	return j
}

// latest is the version made last.
func (s *server) latest() (last wire.Pickup) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, v := range s.versions {
		if v.VersionID.String() > last.VersionID.String() {
			last = v
		}
	}
	return last
}

func (s *server) look(do func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	do()
}

// end answers how a job ended: the status and detail of its report, "" if it has not.
func (s *server) end(j *fakeJob) (status, detail string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(j.ended) == 0 {
		return "", ""
	}
	return j.ended[0].Status, j.ended[0].Detail
}

// seal encrypts a key to the agent's public key, as the server does for keys in its custody.
func (s *server) seal(t *testing.T, key crypto.Signer, alg jose.KeyAlgorithm, enc jose.ContentEncryption) string {
	t.Helper()
	var public jose.JSONWebKey
	s.look(func() {
		if err := public.UnmarshalJSON([]byte(s.publicKey)); err != nil || !public.IsPublic() {
			t.Fatalf("the agent's public key: %v", err)
		}
	})
	der, err := pki.MarshalKey(key)
	if err != nil {
		t.Fatal(err)
	}
	e, err := jose.NewEncrypter(enc, jose.Recipient{Algorithm: alg, Key: public.Key}, nil)
	if err != nil {
		t.Fatal(err)
	}
	jwe, err := e.Encrypt(der)
	if err != nil {
		t.Fatal(err)
	}
	text, err := jwe.CompactSerialize()
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func b64(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }
