package cli

import (
	"fmt"
	"net/url"
	"strings"
	"time"

	"certctl/shared/client"

	"github.com/spf13/cobra"
)

// facts are what an explanation follows from. A map without an entry means that it could not be read.
type facts struct {
	cert    client.Certificate
	open    *client.Job              // the open issuance
	last    *client.Job              // the newest issuance that ended
	deploy  map[string]client.Job    // newest deployment job by target
	targets map[string]client.Target // by id
	agents  map[string]client.Agent  // by id
}

// help is something that can be done, by whom, and how.
type help struct {
	Who     string `json:"who"`
	Command string `json:"command"`
}

// explanation answers why now, why not yet, what blocks it, and what helps.
type explanation struct {
	CertificateID string   `json:"certificate_id"`
	Name          string   `json:"name"`
	Status        string   `json:"status"`
	WhyNow        []string `json:"why_now"`
	WhyNotYet     []string `json:"why_not_yet"`
	BlockedBy     []string `json:"blocked_by"`
	Targets       []string `json:"targets"`
	Help          []help   `json:"help"`
}

func (a *App) certExplain() *cobra.Command {
	return &cobra.Command{Use: "explain REF", Short: "Explain why now, why not yet, and what blocks it", Args: between(1, 1), ValidArgsFunction: certs.complete(a, false),
		Long:    "Explains a certificate's state: why it is or is not being renewed, what its work waits for, how far each target is, and who can do what about it.",
		Example: "  certctl cert explain www.example.com\n  certctl cert explain www.example.com -o json",
		RunE: a.run(func(s *session, args []string) error {
			id, err := certs.idOf(s, args[0])
			if err != nil {
				return err
			}
			f, err := s.gather(id)
			if err != nil {
				return err
			}
			e := explain(f, s.printer)
			switch s.form {
			case "json", "yaml":
				return s.encode(e)
			case "name":
				_, err = fmt.Fprintln(s.out, id)
				return err
			}
			return s.showExplanation(e)
		})}
}

// gather reads what explain judges. Agents and targets only adorn: what cannot be read of them is left out.
func (s *session) gather(id string) (f facts, err error) {
	f = facts{deploy: map[string]client.Job{}, targets: map[string]client.Target{}, agents: map[string]client.Agent{}}
	if f.cert, err = s.c.Certificates.Get(s.ctx, id); err != nil {
		return f, err
	}
	page, err := s.c.Jobs.Page(s.ctx, url.Values{"certificate_id": {id}, "limit": {"200"}})
	if err != nil {
		return f, err
	}
	for _, j := range page.Data {
		f.sort(j)
	}
	if open := string(f.cert.OpenJobID); open != "" && f.open == nil {
		j, err := s.c.Jobs.Get(s.ctx, open)
		if err != nil {
			return f, err
		}
		f.open = &j
	}
	for _, t := range f.cert.TargetIDs {
		if got, err := s.c.Targets.Get(s.ctx, t); err == nil {
			f.targets[t] = got
			s.readAgent(f, got.AgentID)
		}
	}
	s.readAgent(f, f.cert.AgentID)
	return f, nil
}

func (s *session) readAgent(f facts, id client.Ref) {
	if _, known := f.agents[string(id)]; id == "" || known {
		return
	}
	if a, err := s.c.Agents.Get(s.ctx, string(id)); err == nil {
		f.agents[string(id)] = a
	}
}

// sort puts a job of the list, which is newest first, into its place.
func (f *facts) sort(j client.Job) {
	switch {
	case j.ID == string(f.cert.OpenJobID):
		f.open = &j
	case j.Type == "Deployment":
		if _, newer := f.deploy[string(j.TargetID)]; !newer {
			f.deploy[string(j.TargetID)] = j
		}
	case (j.Type == "Issuance" || j.Type == "Renewal") && j.Final() && f.last == nil:
		f.last = &j
	}
}

// explain judges the facts; it reads nothing.
func explain(f facts, p *printer) explanation {
	e := explanation{CertificateID: f.cert.ID, Name: f.cert.Name, Status: f.cert.Status, WhyNow: []string{}, WhyNotYet: []string{}, BlockedBy: []string{}, Targets: []string{}, Help: []help{}}
	switch {
	case f.cert.ArchivedAt != nil:
		e.WhyNotYet = append(e.WhyNotYet, "It was archived "+p.when(f.cert.ArchivedAt)+"; archived certificates are neither renewed nor deployed.")
	case f.open != nil:
		e.openJob(f, p)
	default:
		e.noJob(f, p)
	}
	if f.cert.ArchivedAt == nil {
		e.deployments(f, p)
	}
	return e
}

const (
	operators = "an operator or admin"
	admins    = "an admin"
)

func (e *explanation) help(who, format string, args ...any) {
	e.Help = append(e.Help, help{who, fmt.Sprintf(format, args...)})
}

func (e *explanation) blocked(format string, args ...any) {
	e.BlockedBy = append(e.BlockedBy, fmt.Sprintf(format, args...))
}

// openJob explains an issuance that is under way.
func (e *explanation) openJob(f facts, p *printer) {
	j := f.open
	why := fmt.Sprintf("%s job %s was made %s ago for %s", j.Type, j.ID, p.ago(j.CreatedAt), j.RequestedBy)
	if f.cert.RenewReason != nil {
		why += ": " + *f.cert.RenewReason
	}
	e.WhyNow = append(e.WhyNow, why+".")
	switch j.Status {
	case client.AwaitingApproval:
		e.blocked("The profile wants another person's approval, until %s.", p.moment(j.ApproveBy))
		e.help("an operator or admin other than "+j.RequestedBy+", with a key that "+j.RequestedBy+" did not create", "certctl job approve %s", j.ID)
		e.help("the same", "certctl job reject %s --reason TEXT", j.ID)
	case client.AwaitingCSR:
		e.blocked("The agent that holds the key has not sent its request yet; the job fails %s.", p.when(j.CSRDeadline))
		e.agentAway(f, f.cert.AgentID, p)
	case client.Pending:
		e.pendingJob(j, p)
	case client.Running:
		e.WhyNow = append(e.WhyNow, fmt.Sprintf("The %s works on it, try %d of %d, leased until %s.", j.Runner, j.Attempts+1, j.MaxAttempts, p.moment(j.LeasedUntil)))
	}
	if j.LastError != nil {
		e.blocked("Its last try ended with: %s", *j.LastError)
	}
	if j.Status != client.Running && !j.Final() {
		e.help(operators, "certctl job cancel %s", j.ID)
	}
	e.help("anybody", "certctl job wait %s", j.ID)
}

func (e *explanation) pendingJob(j *client.Job, p *printer) {
	if j.ScheduledAt.After(p.now()) {
		e.WhyNotYet = append(e.WhyNotYet, fmt.Sprintf("Its next try is %s (%d of %d are spent).", p.when(&j.ScheduledAt), j.Attempts, j.MaxAttempts))
		return
	}
	e.WhyNow = append(e.WhyNow, "It is due and waits for the worker.")
	if p.now().Sub(j.ScheduledAt) > time.Minute {
		e.blocked("The worker has not taken it for %s: does one run?", p.ago(j.ScheduledAt))
		e.help("who runs the server", "certctl work --once")
	}
}

func (e *explanation) agentAway(f facts, id client.Ref, p *printer) {
	a, ok := f.agents[string(id)]
	if !ok || a.Status == "online" {
		return
	}
	e.blocked("Agent %s (%s) is %s, last seen %s.", a.Name, a.Hostname, a.Status, p.when(a.LastSeenAt))
	if a.Status == "retired" {
		e.help(admins, "certctl agent token   # then enroll the host again, and create the certificate for its new agent")
		return
	}
	e.help("who runs "+a.Hostname, "systemctl status certctl-agent; certctl-agent doctor")
}

// noJob explains a certificate that nothing is being done for.
func (e *explanation) noJob(f facts, p *printer) {
	c := f.cert
	revoked := c.CurrentVersion != nil && c.CurrentVersion.RevokedAt != nil
	switch {
	case revoked:
		e.WhyNotYet = append(e.WhyNotYet, fmt.Sprintf("Its version was revoked %s (%s); a revoked certificate is not renewed by itself.", p.when(c.CurrentVersion.RevokedAt), text(c.CurrentVersion.RevocationReason)))
		if text(c.CurrentVersion.RevocationReason) == "certificateHold" {
			e.help(operators, "certctl cert unhold %s", c.ID)
		}
	case c.CurrentVersion == nil && c.Failures == 0:
		e.WhyNotYet = append(e.WhyNotYet, "It was created without being issued, and nobody has asked for it.")
	case !c.AutoRenew:
		e.WhyNotYet = append(e.WhyNotYet, "It is not renewed by itself: auto-renew is off.")
		e.help(operators, "certctl cert update %s --auto-renew", c.ID)
	default:
		e.plan(c, p)
	}
	if c.Failures > 0 {
		e.failed(f, p)
	}
	e.help(operators, "certctl cert renew %s --wait", c.ID)
}

// plan explains when the renewal comes.
func (e *explanation) plan(c client.Certificate, p *printer) {
	if c.RenewAt != nil && c.RenewAt.After(p.now()) {
		s := "Its renewal is planned for " + p.moment(c.RenewAt)
		if c.RenewReason != nil {
			s += ": " + *c.RenewReason
		}
		e.WhyNotYet = append(e.WhyNotYet, s+".")
		return
	}
	if c.RenewAt != nil {
		e.WhyNow = append(e.WhyNow, "Its time to renew came "+p.when(c.RenewAt)+".")
	}
	if c.NextTryAt != nil && c.NextTryAt.After(p.now()) {
		e.WhyNotYet = append(e.WhyNotYet, "After what failed before, it is tried again "+p.when(c.NextTryAt)+", "+c.NextTryAt.UTC().Format("2006-01-02 15:04 UTC")+".")
		return
	}
	if c.RenewAt != nil && p.now().Sub(*c.RenewAt) > 5*time.Minute && (c.NextTryAt == nil || p.now().Sub(*c.NextTryAt) > 5*time.Minute) {
		e.blocked("No sweep has taken it up yet: does the schedule run?")
		e.help("who runs the server", "certctl sweep --once")
	}
}

func (e *explanation) failed(f facts, p *printer) {
	n := "Issuing it failed once"
	if f.cert.Failures > 1 {
		n = fmt.Sprintf("Issuing it failed %d times in a row", f.cert.Failures)
	}
	j := f.last
	if j == nil || j.Status == client.Completed {
		e.blocked("%s.", n)
		return
	}
	why := text(j.LastError)
	if j.Status == client.Cancelled {
		why = "cancelled (" + text(j.CancelReason) + ")"
	}
	e.blocked("%s; %s ended %s: %s", n, j.ID, p.when(j.CompletedAt), why)
	e.help("anybody", "certctl job get %s", j.ID)
}

// deployments explains how far each target is, and what keeps it.
func (e *explanation) deployments(f facts, p *printer) {
	behind := false
	for _, d := range f.cert.Deployments {
		name := d.TargetID
		t, known := f.targets[d.TargetID]
		if known {
			name = t.Name
		}
		line := name + ": " + deploymentState(p, f.cert, d) + "."
		if known && t.Verify == nil {
			line += " It has no --verify address, so nobody looks whether it is served."
		}
		e.Targets = append(e.Targets, line)
		if !isBehind(f.cert, d, t) {
			continue
		}
		behind = true
		if j, ok := f.deploy[d.TargetID]; ok && !j.Final() {
			e.Targets = append(e.Targets, name+": "+jobLine(j)+".")
		} else if ok && j.Status == client.Failed {
			e.blocked("The last deployment to %s failed %s: %s", name, p.when(j.CompletedAt), text(j.LastError))
		}
		if d.LastError != nil && known {
			e.help("who runs "+name, "put right what it says, then deploy again")
		}
		e.agentAway(f, t.AgentID, p)
	}
	if behind {
		e.help(operators, "certctl cert deploy %s --wait", f.cert.ID)
	}
}

// isBehind reports whether a target does not have, or was not seen to serve, what it should.
func isBehind(c client.Certificate, d client.Deployment, t client.Target) bool {
	if c.CurrentVersion == nil {
		return false
	}
	want := client.Ref(c.CurrentVersion.ID)
	return d.InstalledVersionID != want || t.Verify != nil && d.ServedVersionID != want
}

// showExplanation prints the parts that have something to say.
func (p *printer) showExplanation(e explanation) error {
	var b strings.Builder
	fmt.Fprintf(&b, "%s (%s) is %s.\n", clean(e.Name), e.CertificateID, p.paint(e.Status))
	part := func(title string, lines []string) {
		if len(lines) == 0 {
			return
		}
		fmt.Fprintf(&b, "\n%s\n", title)
		for _, l := range lines {
			fmt.Fprintf(&b, "  %s\n", clean(l))
		}
	}
	part("Why now", e.WhyNow)
	part("Why not yet", e.WhyNotYet)
	part("What blocks it", e.BlockedBy)
	part("Where it is served", e.Targets)
	var helps []string
	seen := map[string]bool{}
	for _, h := range e.Help {
		if line := h.Command + "   (" + h.Who + ")"; !seen[line] {
			seen[line] = true
			helps = append(helps, line)
		}
	}
	part("What can be done", helps)
	_, err := p.out.Write([]byte(b.String()))
	return err
}
