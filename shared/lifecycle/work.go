package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"certctl/shared/auth"
	"certctl/shared/crash"
	"certctl/shared/fault"
	"certctl/shared/id"
	"certctl/shared/job"
)

// The bounds of a lease, and the usual one. A run is ended after three quarters of its lease, so that only a dead run's lease
// expires. A short lease finds dead runs sooner and gives each job less time.
const (
	Lease    = 2 * time.Minute
	MinLease = 2 * time.Second
	MaxLease = 15 * time.Minute
)

// CheckLease refuses a lease that is out of bounds.
func CheckLease(d time.Duration) error {
	if d < MinLease || d > MaxLease {
		return fault.New(fault.Invalid, "CERTCTL_WORKER_LEASE is out of range: set %s to %s.", MinLease, MaxLease)
	}
	return nil
}

// Worked is what a worker tick did.
type Worked struct {
	Requeued int64 `json:"requeued"` // expired leases given back
	Claimed  int64 `json:"claimed"`
	Done     int64 `json:"done"`     // ended in any way but an error of our own
	Errors   int64 `json:"errors"`   // runs whose end could not be recorded; their leases expire
	Released int64 `json:"released"` // claimed and not started: the time was over
	Left     bool  `json:"left"`     // more may be due
}

// Worker runs jobs.
type Worker struct {
	House       *House
	Concurrency int           // jobs that run at once; 0: 4
	Run         string        // names this process in job_attempts; empty: made up
	Lease       time.Duration // of each job; 0: Lease

	runs map[job.Type]func(context.Context, *job.Lease) error
	once sync.Once
}

func (w *Worker) init() {
	h := w.House
	if w.Concurrency == 0 {
		w.Concurrency = 4
	}
	if w.Lease == 0 {
		w.Lease = Lease
	}
	if w.Run == "" {
		w.Run = "worker-" + id.New[id.Job]().Suffix()
	}
	w.runs = map[job.Type]func(context.Context, *job.Lease) error{
		job.Issuance: h.Issue, job.Renewal: h.Issue, job.Deployment: h.DeployFromWorker, job.Revocation: h.RevokeAtCA, job.BulkRevocation: h.RevokeMany,
		job.CRL: h.PublishCRL, job.Responder: h.IssueResponder, job.IssuerTest: h.TestIssuer, job.TargetTest: h.TestTarget, job.Export: h.Export, job.CARenewal: h.RenewCA,
	}
}

// Tick reaps, then claims and runs until nothing is due or the time is nearly over. No more is claimed than runs at once.
func (w *Worker) Tick(ctx context.Context) (Worked, error) {
	w.once.Do(w.init)
	ctx = auth.WithActor(ctx, auth.SystemActor("worker"))
	var out Worked
	reaped, err := reap(ctx, w.House.Pool)
	if err != nil {
		return out, err
	}
	out.Requeued = reaped.Requeued
	slots := make(chan struct{}, w.Concurrency)
	var running sync.WaitGroup
	defer running.Wait()
	for {
		free := w.await(ctx, slots)
		if nearEnd(ctx) {
			w.free(slots, free)
			out.Left = true
			break
		}
		crash.At(crash.Claim, crash.Before)
		leases, err := job.ClaimPending(ctx, w.House.Pool, job.Claim{Limit: free, Lease: w.Lease, Run: w.Run})
		if err != nil {
			w.free(slots, free)
			running.Wait()
			return out, err
		}
		if len(leases) > 0 {
			crash.At(crash.Claim, crash.After)
		}
		w.free(slots, free-len(leases))
		out.Claimed += int64(len(leases))
		for _, l := range leases {
			running.Go(func() { defer w.free(slots, 1); w.run(ctx, l, &out) })
		}
		if len(leases) == 0 && len(slots) == 0 {
			break
		}
		if len(leases) == 0 { // wait for what runs: it may enqueue more
			w.drain(slots)
		}
	}
	running.Wait()
	return out, nil
}

// await takes as many slots as are free, at least one.
func (w *Worker) await(ctx context.Context, slots chan struct{}) int {
	select {
	case slots <- struct{}{}:
	case <-ctx.Done():
		return 0
	}
	n := 1
	for {
		select {
		case slots <- struct{}{}:
			n++
		default:
			return n
		}
	}
}

func (w *Worker) free(slots chan struct{}, n int) {
	for range n {
		<-slots
	}
}

// drain waits until one of the running jobs has ended.
func (w *Worker) drain(slots chan struct{}) {
	for n := len(slots); n > 0 && len(slots) >= n; {
		time.Sleep(2 * time.Millisecond)
	}
}

// run runs one job within its time. A panic is an error of ours: the lease expires and the job is tried again.
func (w *Worker) run(ctx context.Context, l *job.Lease, out *Worked) {
	log := w.House.Log.With("job", l.ID.String(), "type", string(l.Type), "lease", l.LeaseNo)
	if nearEnd(ctx) {
		if err := l.Release(context.WithoutCancel(ctx), w.House.Pool); err != nil {
			log.WarnContext(ctx, "releasing a job", "err", err)
		}
		atomic.AddInt64(&out.Released, 1)
		return
	}
	ctx, cancel := context.WithTimeout(ctx, w.Lease*3/4)
	defer cancel()
	start := time.Now()
	err := w.dispatch(actingFor(ctx, l), l)
	log = log.With("status", string(l.Status), "ms", time.Since(start).Milliseconds())
	switch {
	case err == nil:
		atomic.AddInt64(&out.Done, 1)
		log.InfoContext(ctx, "job ended")
	case errors.Is(err, job.ErrLeaseLost):
		atomic.AddInt64(&out.Errors, 1)
		log.WarnContext(ctx, "the lease was lost; another run has the job")
	default:
		atomic.AddInt64(&out.Errors, 1)
		log.ErrorContext(ctx, "the job's end could not be recorded", "err", err)
	}
}

func (w *Worker) dispatch(ctx context.Context, l *job.Lease) (err error) {
	defer func() {
		if p := recover(); p != nil {
			w.House.Log.ErrorContext(ctx, "panic in a job", "job", l.ID.String(), "value", fmt.Sprint(p), "stack", string(debug.Stack()))
			err = l.Retry(context.WithoutCancel(ctx), w.House.Pool, errors.New("the run panicked; the log holds the stack"))
		}
	}()
	run, ok := w.runs[l.Type]
	if !ok {
		return l.Fail(ctx, w.House.Pool, fmt.Errorf("this worker does not know jobs of type %s", l.Type))
	}
	return run(ctx, l)
}

// actingFor puts the job's requester on the context: what the job does is done in his name (SPEC AUTH-3).
func actingFor(ctx context.Context, l *job.Lease) context.Context {
	ctx = auth.WithRequestID(ctx, l.ID.String())
	return auth.WithActor(ctx, auth.Actor{Principal: l.RequestedBy, Role: auth.Role(l.RequestedRole), KeyID: l.RequestedKey})
}
