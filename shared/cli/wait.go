package cli

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"time"

	"certctl/shared/client"

	"github.com/spf13/cobra"
)

// progress tells on stderr how a job goes: a line that turns on a terminal, a line for each move elsewhere.
type progress struct {
	p       *printer
	start   time.Time
	turn    int
	last    string
	spinner bool
}

func newProgress(p *printer) *progress {
	return &progress{p: p, start: p.now(), spinner: p.terminal}
}

func (g *progress) seen(j client.Job) {
	line := jobLine(j)
	if !g.spinner {
		if line != g.last {
			g.p.note("%s", line)
		}
		g.last = line
		return
	}
	const frames = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
	g.turn = (g.turn + 1) % 10
	fmt.Fprintf(g.p.err, "\r\x1b[K%s %s  %s", string([]rune(frames)[g.turn]), line, span(g.p.now().Sub(g.start)))
}

// done takes the turning line away.
func (g *progress) done() {
	if g.spinner {
		fmt.Fprint(g.p.err, "\r\x1b[K")
	}
}

// jobLine is a job's state in one line, with what it waits for.
func jobLine(j client.Job) string {
	s := j.ID + "  " + j.Type + "  " + j.Status
	switch {
	case j.Status == client.AwaitingApproval:
		s += "  (another person must approve it)"
	case j.Status == client.AwaitingCSR:
		s += "  (the agent makes the key and asks)"
	case j.Status == client.Cancelled && j.CancelReason != nil:
		s += "  (" + *j.CancelReason + ")"
	case j.Attempts > 0 && !j.Final():
		s += fmt.Sprintf("  (try %d of %d)", j.Attempts+1, j.MaxAttempts)
	}
	if j.LastError != nil && *j.LastError != "" && j.Status != client.Completed {
		s += ": " + *j.LastError
	}
	return clean(s)
}

// wait waits for a job with progress. Unless patient, it ends when the job waits for another person: that may take days.
func (s *session) wait(id string, patient bool) (client.Job, error) {
	g := newProgress(s.printer)
	defer g.done()
	j, err := s.c.WaitJob(s.ctx, id, func(j client.Job) bool {
		g.seen(j)
		return patient || j.Status != client.AwaitingApproval
	})
	if errors.Is(err, context.DeadlineExceeded) && j.Status == client.AwaitingApproval {
		return j, pending(j)
	}
	return j, err
}

func pending(j client.Job) error {
	return fail(codePending, "certctl job approve "+j.ID+" with a key of somebody else than "+j.RequestedBy+", then certctl job wait "+j.ID, "job %s waits for another person's approval", j.ID)
}

// outcome is the error of a job that did not end well.
func outcome(j client.Job) error {
	switch j.Status {
	case client.Completed:
		return nil
	case client.AwaitingApproval:
		return pending(j)
	}
	why := text(j.LastError)
	if j.Status == client.Cancelled {
		why = text(j.CancelReason)
	}
	return fail(codeJobFailed, "certctl job get "+j.ID, "%s %s: %s: %s", j.Type, j.ID, j.Status, why)
}

// waitAll waits for a job and answers how it ended.
func (s *session) waitAll(ids ...string) error {
	for _, id := range ids {
		j, err := s.wait(id, false)
		if err != nil {
			return err
		}
		if superseded(j) {
			continue
		}
		if err := outcome(j); err != nil {
			return err
		}
	}
	return nil
}

// superseded reports whether a newer deployment took a job's place, which is no failure.
func superseded(j client.Job) bool {
	return j.Status == client.Cancelled && j.CancelReason != nil && *j.CancelReason == "superseded"
}

// waitServed waits for an issuance and then for the deployments that follow from it: a certificate is done when its targets
// are.
func (s *session) waitServed(certID, jobID string) (client.Certificate, error) {
	if jobID != "" {
		if err := s.waitAll(jobID); err != nil {
			return client.Certificate{}, err
		}
	}
	waited := map[string]bool{}
	for {
		c, err := s.c.Certificates.Get(s.ctx, certID)
		if err != nil || c.CurrentVersion == nil || len(c.TargetIDs) == 0 {
			return c, err
		}
		next, err := s.nextDeployment(c, waited)
		if err != nil || next == "" {
			return c, err
		}
		waited[next] = true
		if err := s.waitAll(next); err != nil {
			return c, err
		}
	}
}

// nextDeployment is a deployment of the current version that was not waited for, "" when there is none. Of those that ended
// only the newest on each target tells how it went there.
func (s *session) nextDeployment(c client.Certificate, waited map[string]bool) (string, error) {
	newest := map[client.Ref]bool{}
	for j, err := range s.c.Jobs.All(s.ctx, url.Values{"certificate_id": {c.ID}, "type": {"Deployment"}}) {
		if err != nil {
			return "", err
		}
		if j.CreatedAt.Before(c.CurrentVersion.CreatedAt.Add(-time.Second)) {
			break // newest first: the rest belongs to older versions
		}
		if newest[j.TargetID] {
			continue
		}
		newest[j.TargetID] = true
		if !waited[j.ID] {
			return j.ID, nil
		}
	}
	return "", nil
}

func waitFlag(c *cobra.Command, until string) {
	c.Flags().Bool("wait", false, "wait until "+until)
}

func waits(s *session) bool {
	w, _ := s.cmd.Flags().GetBool("wait")
	return w
}

// showJob prints a job that was made, or waits for it and prints it then.
func (s *session) showJob(j client.Job) error {
	if waits(s) {
		var err error
		if j, err = s.wait(j.ID, false); err != nil {
			return err
		}
	}
	if err := one(s.printer, jobView, j); err != nil {
		return err
	}
	if waits(s) {
		return outcome(j)
	}
	if j.Status == client.AwaitingApproval {
		s.note("It waits for another person's approval: certctl job approve %s", j.ID)
	}
	return nil
}
