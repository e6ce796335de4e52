//go:build crashtest

package crash

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"text/tabwriter"
	"time"

	"certctl/shared/agentrun"
	steps "certctl/shared/crash"
	"certctl/shared/target"
)

// scene is an operation in which steps are met: prepare brings it so far that act meets them next. act gets the variables
// that arm the crash and answers whether a process died by it.
type scene struct {
	operation string
	steps     []steps.Step
	prepare   func(h *house)
	act       func(h *house, armed string) bool
	after     func(h *house) // with everything restarted, before the end is awaited; may be nil
	undone    bool           // the roll back is on its way: the agent's hook fails until after
}

func points(all ...string) (out []steps.Step) {
	for _, p := range all {
		out = append(out, steps.Step(p))
	}
	return out
}

var rollBack = []string{target.StepRestore, target.StepValidateAfterUndo, target.StepReloadAfterUndo}

// forward are the places of a deployment that succeeds.
func forward() (out []string) {
	for _, p := range target.Points {
		if !slices.Contains(rollBack, p) {
			out = append(out, p)
		}
	}
	return out
}

// scenes are where every step is met.
var scenes = []scene{
	{operation: "first start", steps: []steps.Step{steps.StartKeepKey, steps.StartCommit}, act: func(h *house, armed string) bool { return died(h, h.serve(armed)) }},
	{operation: "create (API)", steps: []steps.Step{steps.Answer}, act: viaAPI("POST", func(*house) string { return "/api/v1/certificates" }, object{"sans": []string{"a.example.com"}})},
	{operation: "renew (API)", steps: []steps.Step{steps.Answer}, prepare: oneIssued, act: viaAPI("POST", func(h *house) string { return h.certificate("/renew") }, object{})},
	{operation: "revoke (API)", steps: []steps.Step{steps.Revoke, steps.Answer}, prepare: oneIssued, act: viaAPI("POST", func(h *house) string { return h.certificate("/revoke") }, object{"reason": "superseded"})},
	{operation: "issuance", steps: []steps.Step{steps.Claim, steps.IssueKeep, steps.IssueSave, steps.IssueSign, steps.IssueStore}, prepare: oneWanted, act: worker},
	{operation: "issuance, agent's key", steps: []steps.Step{steps.Claim, steps.IssueKeep, steps.IssueSave, steps.IssueSign, steps.IssueStore}, prepare: func(h *house) { h.wantOnAgent(""); h.whileAPI(func() { h.agentOnce() }) }, act: worker},
	{operation: "CRL", steps: []steps.Step{steps.Claim, steps.CRLBegin, steps.CRLSign, steps.CRLSwap}, prepare: oneRevoked, act: worker},
	{operation: "responder", steps: []steps.Step{steps.Claim, steps.ResponderKeep, steps.ResponderSave, steps.IssueSign, steps.ResponderStore}, prepare: oldResponder, act: worker},
	{operation: "deployment, sealed key", steps: []steps.Step{steps.Claim, steps.DeploySeal}, prepare: func(h *house) { h.wantOnAgent("server"); h.workUntilIssued() }, act: worker},
	{operation: "deployment, probed", steps: []steps.Step{steps.Claim, steps.DeployProbe, steps.DeployComplete}, prepare: installed, act: worker},
	{operation: "expired lease (worker)", steps: []steps.Step{steps.Reap}, prepare: oneAbandoned, act: worker},
	{operation: "expired lease (sweep)", steps: []steps.Step{steps.Reap}, prepare: oneAbandoned, act: sweep},
	{operation: "late request (sweep)", steps: []steps.Step{steps.Expire}, prepare: oneLate, act: sweep, after: func(h *house) {
		h.once("sweep")
		h.whileAPI(func() { h.call("POST", h.certificate("/renew"), object{}) })
	}},
	{operation: "due certificates (sweep)", steps: []steps.Step{steps.SweepSlice}, prepare: threeDue, act: sweep},
	{operation: "enrollment", steps: []steps.Step{steps.Enroll, steps.Answer}, prepare: token, act: apiUnderAgent},
	{operation: "certificate request", steps: []steps.Step{steps.AcceptCSR, steps.Answer}, prepare: func(h *house) { h.wantOnAgent("") }, act: apiUnderAgent},
	{operation: "agent's report", steps: []steps.Step{steps.Report, steps.Answer}, prepare: deployable, act: apiUnderAgent},
	{operation: "agent: key and request", steps: points(agentrun.PointStoreKey, agentrun.PointPostCSR), prepare: func(h *house) { h.wantOnAgent("") }, act: agent},
	{operation: "agent: work", steps: points(without(agentrun.Points, agentrun.PointStoreKey, agentrun.PointPostCSR)...), prepare: deployable, act: agent, after: lostPoll},
	{operation: "agent: deployment", steps: points(forward()...), prepare: deployable, act: agent},
	{operation: "agent: roll back", steps: points(rollBack...), prepare: func(h *house) { deployable(h); touch(h, "bad") }, act: agent, undone: true},
	{operation: "worker's own target", steps: points(forward()...), prepare: ownTarget, act: serveDies},
}

func without(all []string, drop ...string) (out []string) {
	for _, s := range all {
		if !slices.Contains(drop, s) {
			out = append(out, s)
		}
	}
	return out
}

func died(h *house, p *process) bool {
	h.Helper()
	killed, _ := p.wait(h, 30*time.Second)
	return killed
}

func worker(h *house, armed string) bool { return h.once("work", armed) }
func sweep(h *house, armed string) bool  { return h.once("sweep", armed) }

func (h *house) whileAPI(f func()) { h.Helper(); p := h.api(); f(); p.stop(h) }

// certificate is the path of the house's newest certificate.
func (h *house) certificate(tail string) string {
	var id string
	if err := h.db.QueryRow(h.Context(), `SELECT type_id('crt', id) FROM certificates ORDER BY created_at DESC LIMIT 1`).Scan(&id); err != nil {
		h.Fatal(err)
	}
	return "/api/v1/certificates/" + id + tail
}

func oneWanted(h *house) {
	h.whileAPI(func() { h.call("POST", "/api/v1/certificates", object{"sans": []string{"a.example.com"}}) })
}
func oneIssued(h *house) { oneWanted(h); h.once("work") }
func oneRevoked(h *house) {
	oneIssued(h)
	h.whileAPI(func() { h.call("POST", h.certificate("/revoke"), object{"reason": "superseded"}) })
}
func oldResponder(h *house) {
	h.exec(`UPDATE ocsp_responders SET renew_at = now()`)
	h.once("sweep")
}

// oneAbandoned leaves a job in the hands of a run that died.
func oneAbandoned(h *house) {
	oneWanted(h)
	if !h.once("work", steps.Variable+"="+string(steps.IssueSave)+":after") {
		h.Fatal("the run did not die")
	}
	h.exec(`UPDATE jobs SET leased_until = now() - interval '1 second' WHERE status = 'Running'`)
}

func oneLate(h *house) {
	h.wantOnAgent("")
	h.exec(`UPDATE jobs SET csr_deadline = now() - interval '1 second' WHERE status = 'AwaitingCSR'`)
}

func threeDue(h *house) {
	h.whileAPI(func() {
		for i := range 3 {
			h.call("POST", "/api/v1/certificates", object{"sans": []string{fmt.Sprintf("d%d.example.com", i)}})
		}
	})
	h.once("work")
	h.exec(`UPDATE certificates SET renew_at = now()`)
}

func token(h *house) {
	h.whileAPI(func() {
		t := h.call("POST", "/api/v1/agents/tokens", object{"name": "host"})["token"].(string)
		if err := os.WriteFile(filepath.Join(h.dir, "token"), []byte(t), 0o600); err != nil {
			h.Fatal(err)
		}
	})
}

func touch(h *house, name string) {
	if err := os.WriteFile(filepath.Join(h.dir, name), nil, 0o600); err != nil {
		h.Fatal(err)
	}
}

// files is a target's config; its hook fails while the file bad is there.
func (h *house) files() object {
	www := filepath.Join(h.dir, "www")
	if err := os.MkdirAll(www, 0o700); err != nil {
		h.Fatal(err)
	}
	return object{"cert_path": filepath.Join(www, "cert.pem"), "key_path": filepath.Join(www, "key.pem"), "chain_path": filepath.Join(www, "chain.pem"), "fullchain": true, "hook": "test ! -e " + filepath.Join(h.dir, "bad")}
}

// served serves whatever pair lies in the target's folder, as a web server does.
func (h *house) served() string {
	www := filepath.Join(h.dir, "www")
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
		pair, err := tls.LoadX509KeyPair(filepath.Join(www, "cert.pem"), filepath.Join(www, "key.pem"))
		return &pair, err
	}})
	if err != nil {
		h.Fatal(err)
	}
	h.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err == nil {
				go func() { _ = c.(*tls.Conn).Handshake(); _ = c.Close() }()
			}
		}
	}()
	return l.Addr().String()
}

// wantOnAgent enrolls the agent and asks for a certificate on a target of its own, verified there, or from the worker when
// the key is in the server's custody.
func (h *house) wantOnAgent(custody string) {
	token(h)
	h.whileAPI(func() {
		if h.agentOnce() {
			h.Fatal("the agent died while enrolling")
		}
		a := h.call("GET", "/api/v1/agents", nil)["data"].([]any)[0].(map[string]any)["id"]
		verify := object{"address": h.served()}
		want := object{"sans": []string{"a.example.com"}}
		if custody != "" {
			verify["from"] = "worker"
			want["profile_id"] = h.call("POST", "/api/v1/profiles", object{"name": "custody", "key_algorithms": []string{"ecdsa-p256"}, "max_ttl": "47d", "ekus": []string{"serverAuth"}, "key_custody": custody})["id"]
		}
		want["target_ids"] = []any{h.call("POST", "/api/v1/targets", object{"name": "files", "type": "files", "agent_id": a, "config": h.files(), "verify": verify})["id"]}
		h.call("POST", "/api/v1/certificates", want)
	})
}

// workUntilIssued runs the worker until the deployment is pending and no further.
func (h *house) workUntilIssued() {
	if !h.once("work", steps.Variable+"="+string(steps.IssueStore)+":after") {
		h.Fatal("nothing was issued")
	}
}

// deployable has a deployment ready for the agent.
func deployable(h *house) {
	h.wantOnAgent("")
	h.whileAPI(func() { h.agentOnce() })
	h.once("work")
	if h.number(`SELECT count(*) FROM jobs WHERE type = 'Deployment' AND status = 'Pending' AND runner = 'agent'`) != 1 {
		h.Fatal("no deployment waits for the agent")
	}
}

// installed has a deployment of a sealed key ready for the worker's probe.
func installed(h *house) {
	h.wantOnAgent("server")
	h.once("work")
	h.whileAPI(func() { h.agentOnce() })
	if h.number(`SELECT count(*) FROM jobs WHERE type = 'Deployment' AND status = 'Pending' AND runner = 'worker' AND checkpoint ? 'probe'`) != 1 {
		h.Fatal("no deployment waits for the probe")
	}
}

func ownTarget(h *house) {
	h.whileAPI(func() {
		t := h.call("POST", "/api/v1/targets", object{"name": "own", "type": "files", "config": h.files(), "verify": object{"address": h.served()}})["id"]
		h.call("POST", "/api/v1/certificates", object{"sans": []string{"a.example.com"}, "target_ids": []any{t}})
	})
}

func serveDies(h *house, armed string) bool {
	killed := died(h, h.serve(armed))
	if !killed {
		return false
	}
	p := h.serve() // this target is the server's own, so the server ends it
	h.await(func() bool { return h.number(`SELECT count(*) FROM jobs WHERE status NOT IN `+ended) == 0 })
	p.stop(h)
	return true
}

func (h *house) await(ok func() bool) {
	h.Helper()
	for end := time.Now().Add(time.Minute); !ok(); time.Sleep(30 * time.Millisecond) {
		if time.Now().After(end) {
			h.Fatal("the end is not reached")
		}
	}
}

// viaAPI sends a request whose server dies, and again with the same Idempotency-Key to the next server: both answers, if
// there are two, are of one effect.
func viaAPI(method string, path func(*house) string, body object) func(*house, string) bool {
	return func(h *house, armed string) bool {
		where := path(h)
		p := h.api(armed)
		if status, _, raw, err := h.try(method, where, body, "Idempotency-Key", "one"); err == nil {
			h.Fatalf("the server answered: %d %s", status, raw)
		}
		killed := died(h, p)
		next := h.api()
		defer next.stop(h)
		_, first, _, _ := h.try(method, where, body, "Idempotency-Key", "one")
		again := h.call(method, where, body, "Idempotency-Key", "one")
		if first["id"] != again["id"] || first["id"] == nil {
			h.Errorf("the same key answered %v and %v", first["id"], again["id"])
		}
		return killed
	}
}

// apiUnderAgent lets the agent work while the server dies under it.
func apiUnderAgent(h *house, armed string) bool {
	p := h.api(armed)
	h.agentOnce()
	return died(h, p)
}

func agent(h *house, armed string) (killed bool) {
	h.whileAPI(func() { killed = h.agentOnce(armed) })
	return killed
}

// lostPoll is a poll whose answer never reached the disk: the agent's lease of five minutes must end first.
func lostPoll(h *house) {
	if work, _ := filepath.Glob(filepath.Join(h.dir, "agent", "work", "*.json")); len(work) > 0 {
		return
	}
	if reports, _ := filepath.Glob(filepath.Join(h.dir, "agent", "reports", "*.json")); len(reports) > 0 {
		return
	}
	_, err := h.db.Exec(h.Context(), `UPDATE jobs SET leased_until = now() - interval '1 second' WHERE status = 'Running' AND runner = 'agent'`)
	if err != nil {
		h.Fatal(err)
	}
}

// finish restarts everything until all work has ended.
func (h *house) finish(s scene) {
	p := h.api()
	defer func() { p.stop(h) }()
	withAgent := h.number(`SELECT count(*) FROM agents`) > 0 || exists(filepath.Join(h.dir, "token"))
	if s.after != nil {
		p.stop(h)
		s.after(h)
		p = h.api()
	}
	round := func() bool {
		if withAgent {
			h.agentOnce()
		}
		h.once("sweep")
		h.once("work")
		return h.number(`SELECT count(*) FROM jobs WHERE status NOT IN `+ended) == 0 && (!withAgent || h.number(`SELECT count(*) FROM agents`) == 1)
	}
	h.await(round)
	if s.undone {
		if n := h.number(`SELECT count(*) FROM jobs WHERE type = 'Deployment' AND status = 'Failed'`); n != 1 {
			h.Errorf("%d deployments failed, want 1", n)
		}
		if err := os.Remove(filepath.Join(h.dir, "bad")); err != nil {
			h.Fatal(err)
		}
		h.call("POST", h.certificate("/deploy"), object{})
		h.await(round)
	}
}

func exists(path string) bool { _, err := os.Stat(path); return err == nil }

type row struct {
	operation, step, moment                                string
	serials, signatures, versions, responders, deployments int
	verdict                                                string
}

// TestWalk kills a program before and after each recorded step, in every operation that meets it.
func TestWalk(t *testing.T) {
	only := os.Getenv("CRASH_ONLY") // operation or step, to look at one
	var mu sync.Mutex
	var rows []row
	walked := map[steps.Step]bool{}
	start := time.Now()
	t.Run("steps", func(t *testing.T) {
		for _, s := range scenes {
			for _, step := range s.steps {
				if only != "" && !strings.Contains(s.operation+" "+string(step), only) {
					continue
				}
				for _, m := range []steps.Moment{steps.Before, steps.After} {
					t.Run(fmt.Sprintf("%s/%s/%s", s.operation, step, m), func(t *testing.T) {
						t.Parallel()
						r := row{operation: s.operation, step: string(step), moment: string(m), verdict: "FAILED"}
						defer func() {
							mu.Lock()
							defer mu.Unlock()
							rows, walked[step] = append(rows, r), true
						}()
						walk(t, s, step, m, &r)
					})
				}
			}
		}
	})
	for _, e := range steps.Steps {
		if only == "" && !walked[e.Step] {
			t.Errorf("the step %s is in the registry and met in no operation", e.Step)
		}
	}
	for _, p := range append(slices.Clone(target.Points), agentrun.Points...) {
		if only == "" && !walked[steps.Step(p)] {
			t.Errorf("the agent's step %s is met in no operation", p)
		}
	}
	report(t, rows, len(walked), time.Since(start))
}

func walk(t *testing.T, s scene, step steps.Step, m steps.Moment, r *row) {
	var h *house
	if s.operation == "first start" {
		h = empty(t)
	} else {
		h = newHouse(t)
	}
	before := h.number(`SELECT count(*) FROM ocsp_responders`)
	if s.prepare != nil {
		s.prepare(h)
	}
	if !s.act(h, steps.Variable+"="+string(step)+":"+string(m)) {
		t.Errorf("no process died at %s %s: the step is not met", m, step)
		return
	}
	if s.operation == "first start" {
		h.serve().stop(h)
		h.readKey()
	}
	h.finish(s)
	for _, b := range h.judge() {
		t.Error(b)
	}
	r.serials = h.passed(steps.IssueSave, steps.After) + h.passed(steps.ResponderSave, steps.After)
	r.signatures = h.passed(steps.IssueSign, steps.After)
	r.versions, r.responders = h.number(`SELECT count(*) FROM versions`), h.number(`SELECT count(*) FROM ocsp_responders`)-before
	r.deployments = h.number(`SELECT count(*) FROM jobs WHERE type = 'Deployment' AND status = 'Completed'`)
	if r.serials != r.versions+r.responders {
		t.Errorf("%d serials were recorded for %d versions and %d responders", r.serials, r.versions, r.responders)
	}
	if !t.Failed() {
		r.verdict = "ok"
	}
}

func report(t *testing.T, rows []row, walked int, took time.Duration) {
	slices.SortStableFunc(rows, func(a, b row) int {
		of := func(r row) int {
			return slices.IndexFunc(scenes, func(s scene) bool { return s.operation == r.operation })
		}
		at := func(r row) int { return slices.Index(scenes[of(r)].steps, steps.Step(r.step)) }
		return 100*(of(a)-of(b)) + 2*(at(a)-at(b)) - strings.Compare(a.moment, b.moment)
	})
	var out strings.Builder
	w := tabwriter.NewWriter(&out, 0, 4, 2, ' ', 0)
	_, _ = fmt.Fprintln(w, "operation\tstep\tmoment\tserials\tsignatures\tcertificates\tresponders\tdeployments\tverdict")
	bad := 0
	for _, r := range rows {
		if r.verdict != "ok" {
			bad++
		}
		_, _ = fmt.Fprintf(w, "%s\t%s\t%s\t%d\t%d\t%d\t%d\t%d\t%s\n", r.operation, r.step, r.moment, r.serials, r.signatures, r.versions, r.responders, r.deployments, r.verdict)
	}
	_ = w.Flush()
	_, _ = fmt.Fprintf(&out, "\n%d steps walked, %d crashes, %d failed, in %s\n", walked, len(rows), bad, took.Round(time.Second))
	fmt.Print(out.String())
	if err := os.WriteFile("table.txt", []byte(out.String()), 0o600); err != nil {
		t.Error(err)
	}
}
