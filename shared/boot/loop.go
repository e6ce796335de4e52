package boot

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"time"
)

// Loop runs fn at once, then every so often (by up to a tenth more or less) and when ring delivers, until ctx ends. Runs
// never overlap; rings that come during a run are one run after it. Errors and panics are logged and followed by a pause
// that grows from one second to a minute (or every, if that is longer) and that no ring shortens. Runs that went well are
// logged at debug level: what they did is logged where it was done.
func Loop(ctx context.Context, fn TickFunc, every time.Duration, ring <-chan struct{}, log *slog.Logger) {
	failures := 0
	for ctx.Err() == nil {
		drained(ring)
		if _, err := runTick(withRun(ctx), fn, log, slog.LevelDebug); err != nil {
			failures++
			sleep(ctx, jitter(backoff(failures, every)), nil)
			continue
		}
		failures = 0
		if !sleep(ctx, jitter(every), ring) {
			ring = nil
		}
	}
}

// drained takes the rings that the run which starts next will answer.
func drained(ring <-chan struct{}) {
	for {
		select {
		case _, open := <-ring:
			if !open {
				return
			}
		default:
			return
		}
	}
}

// sleep ends early with ctx or a ring; it reports false when ring was closed and will deliver nothing more.
func sleep(ctx context.Context, d time.Duration, ring <-chan struct{}) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	case _, open := <-ring:
		return open
	}
	return true
}

func backoff(failures int, every time.Duration) time.Duration {
	return min(time.Second<<min(failures-1, 20), max(every, time.Minute))
}

// jitter spreads d by a tenth to both sides, so that processes started together drift apart.
func jitter(d time.Duration) time.Duration {
	if d <= 0 {
		return 0
	}
	return d - d/10 + rand.N(d/5+1) // #nosec G404 -- spreads load, guards nothing
}
