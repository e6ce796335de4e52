// Package agentrun owns the agent's loop: it enrolls, asks for work, makes keys and certificate requests on the host,
// deploys through the engine in target, and reports (SPEC AGT-1 to AGT-4; the wire is SPEC §11, Agents).
//
// It knows no SQL and trusts the server with nothing but the work itself: keys stay here, and the host's own config decides
// which paths and commands a deployment may use.
//
// The surprising rule: everything that must outlive the process is on disk, synced, before it is told to anybody: a key
// before its request is posted, a job before it is begun, a report before it is sent. A killed agent therefore starts by
// undoing a half swap, then sends what it owes, then goes on with the job that it had in hand under the same lease.
package agentrun

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"net/http"
	"time"

	"certctl/shared/target"
	"certctl/shared/wire"
)

// Config is what a host says about its agent.
type Config struct {
	URL     string // of the server; plain http only to loopback
	Token   string // enrollment token, used once if Dir holds no credential
	Dir     string // the agent's own folder
	Name    string // shown to people; "" is the host name
	CAFile  string // PEM roots for the server's certificate; "" is the token's pin, the stored root, or the system's roots
	Version string // of the program

	Host    target.Host
	Drivers target.Registry
	Dial    target.DialContext // for probes; nil is a plain dialer

	Patience time.Duration                       // of probes; 0 is the engine's default
	Hook     func(point string, w target.Moment) // tests: around each of Points and of target.Points
	Log      *slog.Logger                        // nil is slog.Default
}

// The points, beside target.Points, where a crash can divide the agent's work.
const (
	PointStoreKey    = "store-key"
	PointPostCSR     = "post-csr"
	PointStoreWork   = "store-work"
	PointFetch       = "fetch-version"
	PointDeploy      = "deploy"
	PointStoreReport = "store-report"
	PointPostReport  = "post-report"
)

// Points lists them in order; the crash test goes through all of them.
var Points = []string{PointStoreKey, PointPostCSR, PointStoreWork, PointFetch, PointDeploy, PointStoreReport, PointPostReport}

// Bounds of the loop.
const (
	pollDefault = 5 * time.Minute
	pollLeast   = time.Second
	backOffMin  = time.Second
	backOffMax  = 5 * time.Minute
	farewell    = 10 * time.Second // for the last reports after a stop
)

// Agent is one running agent. Only one may use a folder at a time.
type Agent struct {
	cfg    Config
	log    *slog.Logger
	store  *store
	keys   *keys
	engine *target.Engine
	client *client
}

// Open takes the agent's folder (one process at a time) and prepares the connection. It sends nothing.
func Open(cfg Config) (*Agent, error) {
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	st, err := openStore(cfg.Dir)
	if err != nil {
		return nil, err
	}
	a, err := assemble(cfg, st)
	if err != nil {
		st.close()
		return nil, err
	}
	return a, nil
}

func assemble(cfg Config, st *store) (*Agent, error) {
	ks, err := openKeys(st)
	if err != nil {
		return nil, err
	}
	cl, err := newClient(cfg, st)
	if err != nil {
		return nil, err
	}
	return &Agent{cfg: cfg, log: cfg.Log, store: st, keys: ks, client: cl, engine: &target.Engine{
		Dir: st.dir, Drivers: cfg.Drivers, Host: cfg.Host, Dial: cfg.Dial, Patience: cfg.Patience, Hook: cfg.Hook,
	}}, nil
}

// Close gives the folder back.
func (a *Agent) Close() { a.store.close() }

// Run starts and works until ctx ends. A deployment whose files have begun to change is finished or rolled back first; one
// that has not is left for the next start. It returns an error only for what waiting cannot mend: a refused token.
func (a *Agent) Run(ctx context.Context) error {
	if err := a.start(ctx, true); err != nil {
		return ignoreStop(ctx, err)
	}
	failures := 0
	for {
		next, err := a.tick(ctx)
		if ctx.Err() != nil {
			return a.leave(ctx)
		}
		if err != nil {
			failures++
			next = backOff(failures, retryAfter(err))
			a.log.Warn("the server cannot be worked with; trying again", "after", next, "error", err)
		} else {
			failures = 0
			next = jitter(next)
		}
		if !sleep(ctx, next) {
			return a.leave(ctx)
		}
	}
}

// Once starts and asks for work a single time. Any error is returned, also one that waiting may mend.
func (a *Agent) Once(ctx context.Context) error {
	if err := a.start(ctx, false); err != nil {
		return err
	}
	_, err := a.tick(ctx)
	return err
}

func ignoreStop(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// leave sends what is owed before the process ends; what cannot be sent is on disk.
func (a *Agent) leave(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), farewell)
	defer cancel()
	if err := a.sendReports(ctx); err != nil {
		a.log.Warn("a report stays for the next start", "error", err)
	}
	return nil
}

// start undoes half swaps before anything else, then enrolls if there is no credential; patient: until it works.
func (a *Agent) start(ctx context.Context, patient bool) error {
	done, err := a.engine.Recover(ctx)
	for _, r := range done {
		a.log.Warn("an interrupted deployment was undone", "target", r.Target, "files_put_back", r.Restored, "warning", r.Warning)
	}
	if err != nil { // the journal stays; deployments to that target try again and report
		a.log.Error("an interrupted deployment could not be undone", "error", err)
	}
	return a.enroll(ctx, patient)
}

// tick sends owed reports, goes on with work of an earlier run, asks for work and does it. It answers when to come again.
func (a *Agent) tick(ctx context.Context) (time.Duration, error) {
	// Nothing may be owed when work is asked for: a job that is not reported yet would be handed out again.
	for _, settle := range []func(context.Context) error{a.sendReports, a.resume, a.sendReports} {
		if err := settle(ctx); err != nil {
			return 0, err
		}
	}
	var work wire.Work
	if err := a.client.agentCall(ctx, http.MethodGet, "/work", nil, &work); err != nil {
		return 0, fmt.Errorf("asking for work: %w", refused(err))
	}
	a.do(ctx, work.Jobs)
	next := time.Duration(work.NextPollSeconds) * time.Second
	if next <= 0 {
		next = pollDefault
	}
	return max(next, pollLeast), a.sendReports(ctx)
}

// refused adds the way out to an answer that does not take the credential.
func refused(err error) error {
	if hasStatus(err, http.StatusUnauthorized, http.StatusForbidden) {
		return fmt.Errorf("the credential is not accepted (was the agent retired? then enroll anew with an empty agent folder): %w", err)
	}
	return err
}

// do does jobs in order, requests first, since the server waits for them. What fails is logged and comes again by itself.
func (a *Agent) do(ctx context.Context, jobs []wire.Job) {
	var deployments []wire.Job
	for _, j := range jobs {
		switch {
		case j.CSR != nil && j.Status == "AwaitingCSR":
			if err := a.answerCSR(ctx, j); err != nil {
				a.log.Error("the certificate request was not taken", "job", j.ID, "certificate", j.CertificateID, "error", err)
			}
		case j.Target != nil && j.Status == "Running":
			deployments = append(deployments, j)
		default:
			a.log.Warn("the server sent work that this version does not know", "job", j.ID, "type", j.Type, "status", j.Status)
		}
	}
	a.deployAll(ctx, deployments)
}

func (a *Agent) point(name string, w target.Moment) {
	if a.cfg.Hook != nil {
		a.cfg.Hook(name, w)
	}
}

// backOff grows from one second to five minutes with jitter; the server's Retry-After is the least that is waited.
func backOff(failures int, least time.Duration) time.Duration {
	d := backOffMax
	if failures < 10 {
		d = min(backOffMin<<(failures-1), backOffMax)
	}
	return max(d/2+random(d/2), jitter(least))
}

// jitter spreads a wait by a tenth upwards, so that a fleet does not come at once and nobody comes early.
func jitter(d time.Duration) time.Duration { return d + random(d/10) }

func random(below time.Duration) time.Duration {
	if below <= 0 {
		return 0
	}
	n, err := rand.Int(rand.Reader, big.NewInt(int64(below)))
	if err != nil {
		return 0
	}
	return time.Duration(n.Int64())
}

func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

func retryAfter(err error) time.Duration {
	var s *StatusError
	if errors.As(err, &s) {
		return s.RetryAfter
	}
	return 0
}
