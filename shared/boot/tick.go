package boot

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"runtime/debug"
	"slices"
	"syscall"
	"time"

	"certctl/shared/auth"
	"certctl/shared/secret"
)

// TickFunc does a bounded piece of work and reports on it (claimed, done, left) in a value that marshals to JSON. It
// watches ctx's deadline (Remaining). It may be called too often, too late, or twice at once in two processes.
type TickFunc func(ctx context.Context) (report any, err error)

// TickOptions say how a tick is triggered.
type TickOptions struct {
	Kind    string        // the event kind that this function answers to: "sweep", "work"
	Log     *slog.Logger  // slog.Default() if nil
	Token   secret.Text   // bearer token of HTTP triggers (CERTCTL_TICK_TOKEN); required behind $PORT
	Once    bool          // run once and return, as the argument --once does
	Reserve time.Duration // taken from the invocation's deadline, to give back what was not started; 2 s if 0
	Timeout time.Duration // deadline outside of Lambda; 5 min if 0
	Checks  []Check       // of /ready behind $PORT
	Serve   ServeOptions  // where to listen behind $PORT
	Stdout  io.Writer     // where a single run prints its report; os.Stdout if nil
}

// Tick runs fn when it is asked to. On Lambda: once per EventBridge Scheduler or rule event, SQS batch, or invocation
// with {} or {"kind": o.Kind}, and never returns; any other event is an error. With o.Once or the argument --once: once,
// with the report as JSON on standard output. Otherwise on $PORT: once per authenticated POST, as TickHandler says.
func Tick(ctx context.Context, fn TickFunc, o TickOptions) error {
	o = o.filled()
	switch {
	case onLambda():
		runLambda(ctx, lambdaTick(fn, o))
		return nil
	case o.Once || slices.Contains(os.Args[1:], "--once"):
		return once(ctx, fn, o)
	case o.Token.IsZero():
		return errors.New("CERTCTL_TICK_TOKEN is not set: set it, or CERTCTL_TICK_TOKEN_FILE, to a random token (openssl rand -hex 32), or run with --once")
	}
	stopping, stop := signal.NotifyContext(ctx, syscall.SIGTERM, os.Interrupt)
	defer stop()
	o.Serve.Log = o.Log
	return Serve(ctx, TickHandler(stopping, fn, o), o.Serve)
}

func (o TickOptions) filled() TickOptions {
	if o.Log == nil {
		o.Log = slog.Default()
	}
	if o.Reserve == 0 {
		o.Reserve = 2 * time.Second
	}
	if o.Timeout == 0 {
		o.Timeout = 5 * time.Minute
	}
	if o.Stdout == nil {
		o.Stdout = os.Stdout
	}
	return o
}

func once(ctx context.Context, fn TickFunc, o TickOptions) error {
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGTERM, os.Interrupt)
	defer stop()
	ctx, cancel := context.WithTimeout(withRun(ctx), o.Timeout)
	defer cancel()
	report, err := protected(ctx, fn, o.Log)
	if report != nil {
		if werr := json.NewEncoder(o.Stdout).Encode(report); err == nil && werr != nil {
			err = fmt.Errorf("printing the report: %w", werr)
		}
	}
	return err
}

func lambdaTick(fn TickFunc, o TickOptions) invocation {
	return func(ctx context.Context, event json.RawMessage) (any, error) {
		shape, err := shapeOf(event, o.Kind)
		if err != nil {
			o.Log.ErrorContext(ctx, "event refused", "err", err, "bytes", len(event))
			return nil, err
		}
		ctx, cancel := withReserve(withRun(ctx), o.Reserve)
		defer cancel()
		report, err := runTick(ctx, fn, o.Log, slog.LevelInfo)
		switch {
		case err != nil:
			return nil, err
		case shape == shapeSQS:
			return sqsDone, nil
		case report == nil:
			return struct{}{}, nil
		}
		return report, nil
	}
}

// runTick runs fn once and logs how it went; well is the level of a good run.
func runTick(ctx context.Context, fn TickFunc, log *slog.Logger, well slog.Level) (any, error) {
	start := time.Now()
	report, err := protected(ctx, fn, log)
	took := slog.Duration("took", time.Since(start))
	switch {
	case err == nil:
		log.Log(ctx, well, "tick", "report", report, took)
	case ctx.Err() != nil && errors.Is(err, ctx.Err()):
		log.WarnContext(ctx, "tick interrupted", "err", err, "report", report, took)
	default:
		log.ErrorContext(ctx, "tick failed", "err", err, "report", report, took)
	}
	return report, err
}

// protected runs fn with a panic as an error, so that a loop goes on and a Lambda instance stays warm.
func protected(ctx context.Context, fn TickFunc, log *slog.Logger) (report any, err error) {
	defer func() {
		if p := recover(); p != nil {
			log.ErrorContext(ctx, "panic in a tick", "value", fmt.Sprint(p), "stack", string(debug.Stack()))
			report, err = nil, errors.New("the tick panicked; the log holds the stack")
		}
	}()
	return fn(ctx)
}

// withRun gives a run or a request an id of its own where the platform gave none.
func withRun(ctx context.Context) context.Context {
	if auth.RequestIDOf(ctx) != "" {
		return ctx
	}
	return auth.WithRequestID(ctx, rand.Text())
}
