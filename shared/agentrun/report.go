package agentrun

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"time"

	"certctl/shared/id"
	"certctl/shared/target"
	"certctl/shared/wire"
)

// owed is a report on disk.
type owed struct {
	JobID  id.Job      `json:"job_id"`
	Report wire.Report `json:"report"`
}

func validText(s string) string { return strings.ToValidUTF8(s, "?") }

// storeReport makes a result durable, then lets go of the job.
func (a *Agent) storeReport(j wire.Job, r wire.Report) error {
	r.Detail = validText(r.Detail)
	name := j.ID.String() + ".json"
	a.point(PointStoreReport, target.Before)
	if err := a.store.putJSON(owed{JobID: j.ID, Report: r}, reportsDir, name); err != nil {
		return fmt.Errorf("storing the report of job %s: %w", j.ID, err)
	}
	a.point(PointStoreReport, target.After)
	return a.store.drop(workDir, name)
}

// sendReports sends what is owed. A report that the server refuses for good (409: the lease is stale) is dropped. The first
// error that waiting may mend ends the round.
func (a *Agent) sendReports(ctx context.Context) error {
	names, err := a.store.list(reportsDir)
	if err != nil {
		return fmt.Errorf("listing owed reports: %w", err)
	}
	for _, name := range names {
		var o owed
		if _, err := a.store.getJSON(&o, reportsDir, name); err != nil {
			a.log.Error("an owed report cannot be read and is dropped", "file", name, "error", err)
		} else if err := a.sendReport(ctx, o); err != nil {
			return err
		}
		if err := a.store.drop(workDir, name); err != nil { // a crash may have left the job beside its report
			return err
		}
		if err := a.store.drop(reportsDir, name); err != nil {
			return err
		}
	}
	return nil
}

func (a *Agent) sendReport(ctx context.Context, o owed) error {
	a.point(PointPostReport, target.Before)
	var answer wire.Reported
	err := a.client.agentCall(ctx, http.MethodPost, "/jobs/"+o.JobID.String()+"/status", o.Report, &answer)
	if err != nil && !permanent(err) {
		return fmt.Errorf("reporting job %s: %w", o.JobID, err)
	}
	a.point(PointPostReport, target.After)
	if err != nil {
		a.log.Warn("the server does not take a report any more; it is dropped", "job", o.JobID, "error", err)
	}
	return nil
}

// extend reports Running, which extends the lease, and answers its length.
func (a *Agent) extend(ctx context.Context, j wire.Job) (time.Duration, error) {
	var answer wire.Reported
	err := a.client.agentCall(ctx, http.MethodPost, "/jobs/"+j.ID.String()+"/status", wire.Report{Lease: j.Lease, Status: "Running"}, &answer)
	return time.Duration(answer.LeaseSeconds) * time.Second, err
}

// errLeaseLost is the cause of a context whose job was claimed again by another run.
var errLeaseLost = errors.New("the lease is lost")

// leases keeps the leases of jobs in hand alive: each is extended when a third of it has passed.
type leases struct {
	held map[id.Job]*held
	stop context.CancelFunc
	all  sync.WaitGroup
}

type held struct {
	ctx    context.Context
	cancel context.CancelCauseFunc
	ended  chan struct{}
	once   sync.Once
}

func (a *Agent) keepLeases(ctx context.Context, jobs []wire.Job) *leases {
	keeping, stop := context.WithCancel(context.WithoutCancel(ctx)) // a stop finishes what has begun, under its lease
	l := &leases{held: map[id.Job]*held{}, stop: stop}
	for _, j := range jobs {
		h := &held{ended: make(chan struct{})}
		h.ctx, h.cancel = context.WithCancelCause(ctx)
		l.held[j.ID] = h
		l.all.Go(func() { a.keepLease(keeping, j, h) })
	}
	return l
}

func (a *Agent) keepLease(ctx context.Context, j wire.Job, h *held) {
	length := time.Duration(j.LeaseSeconds) * time.Second
	if length <= 0 {
		return
	}
	for {
		select {
		case <-h.ended:
			return
		case <-ctx.Done():
			return
		case <-time.After(length / 3):
		}
		extended, err := a.extend(ctx, j)
		switch {
		case err == nil && extended > 0:
			length = extended
		case permanent(err):
			h.cancel(errLeaseLost)
			return
		}
	}
}

func (l *leases) context(j wire.Job) context.Context { return l.held[j.ID].ctx }

// done stops extending the lease of one job.
func (l *leases) done(j wire.Job) { l.held[j.ID].end() }

func (h *held) end() { h.once.Do(func() { close(h.ended) }) }

// release stops extending all leases.
func (l *leases) release() {
	l.stop()
	for _, h := range l.held {
		h.end()
		h.cancel(nil)
	}
	l.all.Wait()
}
