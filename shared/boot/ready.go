package boot

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"time"

	"certctl/shared/fault"

	"golang.org/x/sync/singleflight"
)

// Check is one thing that must be in order before requests are sent here, such as "database" or "schema". The detail of a
// fault that it returns is shown; any other error stays in the log.
type Check struct {
	Name string
	Run  func(ctx context.Context) error
}

// run is Run, with a panic as an error.
func (c Check) run(ctx context.Context) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v", p)
		}
	}()
	return c.Run(ctx)
}

// readyWithin bounds the checks, so that an answer is there within two seconds.
const readyWithin = 1800 * time.Millisecond

// Health answers that the process is alive. It asks nobody: a database that is away is no reason to kill this process.
func Health() http.Handler {
	return reading(func(w http.ResponseWriter, r *http.Request) {
		writeJSON(w, http.StatusOK, "application/json", map[string]string{"status": "ok"})
	})
}

// Ready answers 200 when all checks pass, else 503 with a problem document; both say in "checks" how each check went.
// Checks run at the same time, and requests that come meanwhile share their result, so that a flood of them costs the
// database one query.
func Ready(log *slog.Logger, checks ...Check) http.Handler {
	var group singleflight.Group
	return reading(func(w http.ResponseWriter, r *http.Request) {
		v, _, _ := group.Do("", func() (any, error) { return runChecks(context.WithoutCancel(r.Context()), log, checks), nil })
		results := v.(map[string]string)
		for _, result := range results {
			if result != checkOK {
				refuseWith(w, r, fault.New(fault.Unavailable, "This server is not ready; checks says why.").After(5*time.Second), results)
				return
			}
		}
		writeJSON(w, http.StatusOK, "application/json", map[string]any{"status": "ready", "checks": results})
	})
}

const checkOK = "ok"

// runChecks waits for each check, but not for longer than readyWithin, even for one that ignores its context.
func runChecks(ctx context.Context, log *slog.Logger, checks []Check) map[string]string {
	ctx, cancel := context.WithTimeout(ctx, readyWithin)
	defer cancel()
	errs := make([]chan error, len(checks))
	for i, c := range checks {
		errs[i] = make(chan error, 1)
		go func() { errs[i] <- c.run(ctx) }()
	}
	results := map[string]string{}
	for i, c := range checks {
		err := answerOf(ctx, errs[i])
		results[c.Name] = verdict(err)
		if err != nil {
			log.WarnContext(ctx, "not ready", "check", c.Name, "err", err)
		}
	}
	return results
}

// answerOf prefers an answer that is there to the end of the time.
func answerOf(ctx context.Context, answer <-chan error) error {
	select {
	case err := <-answer:
		return err
	case <-ctx.Done():
	}
	select {
	case err := <-answer:
		return err
	default:
		return ctx.Err()
	}
}

func verdict(err error) string {
	switch f := fault.As(err); {
	case err == nil:
		return checkOK
	case f != nil:
		return f.Detail
	case errors.Is(err, context.DeadlineExceeded):
		return "no answer in time"
	default:
		return "failed"
	}
}

// reading lets GET and HEAD pass.
func reading(h http.HandlerFunc) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			w.Header().Set("Allow", "GET, HEAD")
			refuse(w, r, fault.New(fault.BadMethod, "This path is read only."))
			return
		}
		h(w, r)
	})
}
