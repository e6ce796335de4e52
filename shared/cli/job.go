package cli

import (
	"context"
	"fmt"
	"iter"
	"net/url"
	"strings"

	"certctl/shared/client"

	"github.com/spf13/cobra"
)

var jobView = view[client.Job]{
	id: func(j client.Job) string { return j.ID },
	columns: []column[client.Job]{
		{"ID", func(_ *printer, j client.Job) string { return j.ID }},
		{"TYPE", func(_ *printer, j client.Job) string { return j.Type }},
		{"STATUS", func(_ *printer, j client.Job) string { return j.Status }},
		{"AGE", func(p *printer, j client.Job) string { return p.ago(j.CreatedAt) }},
		{"BY", func(_ *printer, j client.Job) string { return j.RequestedBy }},
		{"DETAIL", func(_ *printer, j client.Job) string { return shorten(jobDetail(j), 60) }},
	},
}

func jobDetail(j client.Job) string {
	if j.Status == client.Cancelled {
		return text(j.CancelReason)
	}
	return text(j.LastError)
}

func shorten(s string, most int) string {
	r := []rune(s)
	if len(r) <= most {
		return s
	}
	return string(r[:most-1]) + "…"
}

var (
	jobStates = []string{client.Pending, client.AwaitingApproval, client.AwaitingCSR, client.Running, client.Completed, client.Failed, client.Cancelled}
	jobTypes  = []string{"Issuance", "Renewal", "Deployment", "Revocation", "BulkRevocation", "CRL", "Responder", "IssuerTest", "TargetTest", "Export", "CARenewal"}
)

func (a *App) jobCommand() *cobra.Command {
	list := listVerb(a, lister[client.Job]{noun: "jobs", view: jobView,
		filters: []filter{plainFilter("status", strings.Join(jobStates, ", ")), plainFilter("type", strings.Join(jobTypes, ", ")), ref(certs, "cert", "certificate_id"), ref(agents, "agent", "agent_id")},
		example: "  certctl job list --status AwaitingApproval\n  certctl job list --cert www.example.com --type Renewal\n  certctl job list --status Running --watch --timeout 1s",
		all:     func(s *session, q url.Values) iter.Seq2[client.Job, error] { return s.c.Jobs.All(s.ctx, q) }})
	_ = list.RegisterFlagCompletionFunc("status", cobra.FixedCompletions(jobStates, cobra.ShellCompDirectiveNoFileComp))
	_ = list.RegisterFlagCompletionFunc("type", cobra.FixedCompletions(jobTypes, cobra.ShellCompDirectiveNoFileComp))
	certs.completeFlag(a, list, "cert")
	agents.completeFlag(a, list, "agent")
	get := getVerb(a, jobs, jobView, "  certctl job get job_01kb4h4yqxe0rv8m0n3q5s6t7v", func(s *session, id string) (client.Job, error) { return s.c.Jobs.Get(s.ctx, id) }, jobDetails)
	return group("job", "Jobs: what is open, what ran, what waits for a decision", []string{"jobs"}, list, get, a.jobWait(), a.jobCancel(),
		a.jobApprove(), a.jobReject())
}

func jobDetails(s *session, j client.Job) []detail {
	d := []detail{
		{"runner", j.Runner + orNothing(" ", string(j.AgentID))}, {"certificate", orDash(string(j.CertificateID))}, {"version", orDash(string(j.VersionID))},
		{"target", orDash(string(j.TargetID))}, {"issuer", orDash(string(j.IssuerID))}, {"tries", fmt.Sprintf("%d of %d", j.Attempts, j.MaxAttempts)},
		{"scheduled", s.moment(&j.ScheduledAt)}, {"completed", s.moment(j.CompletedAt)}, {"approved by", text(j.ApprovedBy)}, {"last error", text(j.LastError)},
	}
	if len(j.Result) > 0 && string(j.Result) != "null" {
		d = append(d, detail{"result", shorten(string(j.Result), 200)})
	}
	for _, e := range j.Events {
		line := e.At.UTC().Format("2006-01-02 15:04:05 UTC") + " " + e.Event
		if e.Actor != nil {
			line += " by " + *e.Actor
		}
		if e.Detail != nil {
			line += ": " + *e.Detail
		}
		d = append(d, detail{"event", line})
	}
	return append(d, detail{"can", orDash(strings.Join(j.Can, ", "))})
}

func orNothing(before, s string) string {
	if s == "" {
		return ""
	}
	return before + s
}

func (a *App) jobWait() *cobra.Command {
	return &cobra.Command{Use: "wait ID…", Short: "Wait until jobs end", Args: between(1, -1), ValidArgsFunction: jobs.complete(a, true),
		Long:    "Waits until each job has ended and shows it, with progress on stderr. It ends with 0 when all completed, 9 when one failed or was cancelled, 5 or 8 when --timeout was over first.",
		Example: "  certctl job wait job_01kb4h4yqxe0rv8m0n3q5s6t7v --timeout 5m",
		RunE: a.run(func(s *session, args []string) error {
			return s.each(args, func(ref string) error {
				id, err := jobs.idOf(s, ref)
				if err != nil {
					return err
				}
				j, err := s.wait(id, true)
				if err != nil {
					return err
				}
				if err := one(s.printer, jobView, j); err != nil {
					return err
				}
				return outcome(j)
			})
		})}
}

// jobVerb is a verb that changes jobs and shows them.
func (a *App) jobVerb(use, short, example string, act func(s *session, id string) (client.Job, error)) *cobra.Command {
	c := &cobra.Command{Use: use + " ID…", Short: short, Example: example, Args: between(1, -1), ValidArgsFunction: jobs.complete(a, true)}
	c.RunE = a.run(func(s *session, args []string) error {
		return s.each(args, func(ref string) error {
			id, err := jobs.idOf(s, ref)
			if err != nil {
				return err
			}
			j, err := act(s, id)
			if err != nil {
				return err
			}
			return s.showJob(j)
		})
	})
	return c
}

func (a *App) jobCancel() *cobra.Command {
	return a.jobVerb("cancel", "Cancel jobs that do not run yet", "  certctl job cancel job_01kb4h4yqxe0rv8m0n3q5s6t7v", func(s *session, id string) (client.Job, error) {
		return s.c.Jobs.Cancel(s.ctx, id)
	})
}

func (a *App) jobApprove() *cobra.Command {
	c := a.jobVerb("approve", "Approve jobs of another person", "  certctl job approve job_01kb4h4yqxe0rv8m0n3q5s6t7v --wait", func(s *session, id string) (client.Job, error) {
		return s.c.Jobs.Approve(s.ctx, id)
	})
	waitFlag(c, "the job ends")
	return c
}

func (a *App) jobReject() *cobra.Command {
	var reason string
	c := a.jobVerb("reject", "Reject jobs of another person", "  certctl job reject job_01kb4h4yqxe0rv8m0n3q5s6t7v --reason \"not in the change window\"", func(s *session, id string) (client.Job, error) {
		return s.c.Jobs.Reject(s.ctx, id, reason)
	})
	c.Flags().StringVar(&reason, "reason", "", "why; the requester sees it")
	return c
}

var summaryColumns = []string{"active", "expiring", "renewing", "pending", "failed", "expired", "revoked", "archived"}

func (a *App) statsCommand() *cobra.Command {
	c := &cobra.Command{Use: "stats", Short: "Count certificates, jobs and agents", Args: between(0, 0), Example: "  certctl stats\n  certctl stats -o json"}
	w := watchFlags(c.Flags())
	c.RunE = a.run(func(s *session, _ []string) error {
		return watch(s, w, func() (client.Summary, error) { return s.c.Summary(s.ctx) }, s.showSummary)
	})
	return c
}

func (p *printer) showSummary(v client.Summary) error {
	switch p.form {
	case "json", "yaml":
		return p.encode(v)
	}
	d := []detail{{"certificates", fmt.Sprint(v.Certificates.Total)}}
	for _, st := range summaryColumns {
		d = append(d, detail{"  " + st, fmt.Sprint(v.Certificates.ByStatus[st])})
	}
	d = append(d, detail{"jobs", ""})
	for _, st := range jobStates {
		d = append(d, detail{"  " + st, fmt.Sprint(v.Jobs.ByStatus[st])})
	}
	d = append(d, detail{"agents online", fmt.Sprintf("%d of %d", v.Agents.Online, v.Agents.Total)}, detail{"time to served", timeToServed(v)})
	return p.details(d)
}

func timeToServed(v client.Summary) string {
	t := v.TimeToServed
	if t.Count == 0 || t.P50Seconds == nil || t.P95Seconds == nil {
		return "-"
	}
	return fmt.Sprintf("p50 %.1f s, p95 %.1f s (%d deployments)", *t.P50Seconds, *t.P95Seconds, t.Count)
}

// whoami and open stand alone.

func (a *App) whoamiCommand() *cobra.Command {
	return &cobra.Command{Use: "whoami", Short: "Show who the server takes you for", Args: between(0, 0), Example: "  certctl whoami",
		RunE: a.run(func(s *session, _ []string) error {
			me, err := s.c.Me(s.ctx)
			if err != nil {
				return err
			}
			switch s.form {
			case "json", "yaml":
				return s.encode(struct {
					client.Me
					URL  string `json:"url"`
					From string `json:"from"`
				}{me, s.conn.url, s.conn.from})
			case "name":
				_, err := fmt.Fprintln(s.out, me.Principal)
				return err
			}
			return s.details([]detail{{"principal", me.Principal}, {"role", me.Role}, {"key", orDash(string(me.KeyID))}, {"may", strings.Join(me.Permissions, ", ")},
				{"server", s.conn.url}, {"chosen by", s.conn.from}})
		})}
}

func (a *App) openCommand() *cobra.Command {
	c := &cobra.Command{Use: "open", Short: "Open the dashboard in a browser", Args: between(0, 0), Example: "  certctl open --print"}
	print := c.Flags().Bool("print", false, "only print the address")
	c.RunE = a.offline(func(s *session, _ []string) error {
		conn, err := a.connection()
		if err != nil {
			return err
		}
		if !*print && isTerminal(s.cmd.OutOrStdout()) && browse(context.WithoutCancel(s.ctx), conn.url) == nil {
			s.note("Opening %s", conn.url)
			return nil
		}
		_, err = fmt.Fprintln(s.out, conn.url)
		return err
	})
	return c
}
