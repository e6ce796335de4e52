// Package boot owns the way from an environment to a running program: configuration, logger, pool, and the two shapes
// that everything that runs has, an http.Handler (Serve) and a tick (Tick, Loop).
//
// The same handler and the same tick run on AWS Lambda, behind $PORT on any container platform, once from a command line,
// and in the one process of `certctl serve`. It knows no noun and no route. The surprising rule: on Lambda, Serve and Tick
// never return, and nothing may rely on work that goes on after a handler has answered.
package boot

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"os/signal"
	"syscall"
	"time"
)

// onLambda reports whether a Lambda runtime, or an emulator of one, started this process.
func onLambda() bool { return os.Getenv("AWS_LAMBDA_RUNTIME_API") != "" }

// Main runs a program and exits: 0, or 1 after the error was printed. The context ends at SIGTERM or SIGINT; a second
// signal ends the process at once.
func Main(run func(ctx context.Context) error) {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	context.AfterFunc(ctx, stop)
	err := run(ctx)
	stop()
	if err != nil && !errors.Is(err, context.Canceled) {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// Remaining is the time until ctx's deadline; without a deadline it is longer than anything that is measured. A tick
// starts nothing that may need more, and gives back what it has not started.
func Remaining(ctx context.Context) time.Duration {
	d, ok := ctx.Deadline()
	if !ok {
		return math.MaxInt64
	}
	return time.Until(d)
}

// withReserve takes the reserve, but never more than a quarter of what is left, from ctx's deadline.
func withReserve(ctx context.Context, reserve time.Duration) (context.Context, context.CancelFunc) {
	d, ok := ctx.Deadline()
	if !ok {
		return context.WithCancel(ctx)
	}
	return context.WithDeadline(ctx, d.Add(-min(reserve, time.Until(d)/4)))
}
