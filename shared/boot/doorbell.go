package boot

import "context"

// Doorbell tells another program that there may be work. It never blocks for long and never fails its caller: a ring may
// be lost, doubled or late, since the job table is the truth and a schedule rings as well. Ring after the commit.
type Doorbell interface{ Ring(ctx context.Context) }

// Bell is the doorbell inside one process: give it to Loop as its ring. Rings that come while one waits are one ring.
type Bell chan struct{}

// NewBell makes a Bell.
func NewBell() Bell { return make(Bell, 1) }

// Ring wakes the loop, at once or when its present run ends.
func (b Bell) Ring(context.Context) {
	select {
	case b <- struct{}{}:
	default:
	}
}

// NoBell rings nothing: the schedule alone wakes the worker.
type NoBell struct{}

// Ring does nothing.
func (NoBell) Ring(context.Context) {}
