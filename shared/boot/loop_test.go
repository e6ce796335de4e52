package boot

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

func TestTheLoopRunsAtOnceThenOnScheduleAndWhenRung(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		bell := NewBell()
		var runs atomic.Int32
		go Loop(ctx, func(context.Context) (any, error) { runs.Add(1); return nil, nil }, time.Minute, bell, discard())
		synctest.Wait()
		if runs.Load() != 1 {
			t.Fatalf("%d runs at the start", runs.Load())
		}
		time.Sleep(50 * time.Second)
		synctest.Wait()
		if runs.Load() != 1 {
			t.Errorf("%d runs before the interval", runs.Load())
		}
		time.Sleep(17 * time.Second)
		synctest.Wait()
		if runs.Load() != 2 {
			t.Errorf("%d runs after the interval", runs.Load())
		}
		bell.Ring(ctx)
		synctest.Wait()
		if runs.Load() != 3 {
			t.Errorf("%d runs after a ring", runs.Load())
		}
		cancel()
		time.Sleep(time.Hour)
		if runs.Load() != 3 {
			t.Errorf("%d runs after the end", runs.Load())
		}
	})
}

func TestRingsDuringARunAreOneRunAfterIt(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		bell, active := NewBell(), 0 // active is touched by the loop alone
		var runs atomic.Int32
		go Loop(ctx, func(context.Context) (any, error) {
			runs.Add(1)
			if active++; active > 1 {
				t.Error("two runs at once")
			}
			time.Sleep(time.Second)
			active--
			return nil, nil
		}, time.Hour, bell, discard())
		for range 50 {
			time.Sleep(10 * time.Millisecond)
			bell.Ring(ctx)
		}
		time.Sleep(10 * time.Second)
		if runs.Load() != 2 {
			t.Errorf("%d runs for fifty rings during the first", runs.Load())
		}
	})
}

func TestErrorsAndPanicsSlowTheLoopAndNeverStopIt(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		bell := NewBell()
		var runs atomic.Int32
		var ok atomic.Bool
		go Loop(ctx, func(context.Context) (any, error) {
			n := runs.Add(1)
			switch {
			case ok.Load():
				return nil, nil
			case n%2 == 0:
				panic("boom")
			default:
				return nil, errors.New("no database")
			}
		}, 5*time.Second, bell, discard())
		for range 600 { // rings all the time must not turn failure into a hot loop
			bell.Ring(ctx)
			time.Sleep(time.Second)
		}
		if runs.Load() < 10 || runs.Load() > 20 {
			t.Errorf("%d runs in ten minutes of failure", runs.Load())
		}
		ok.Store(true)
		time.Sleep(2 * time.Minute)
		before := runs.Load()
		time.Sleep(time.Minute)
		if n := runs.Load() - before; n < 10 || n > 14 {
			t.Errorf("%d runs in a minute after recovery", n)
		}
	})
}

func TestAClosedRingLeavesTheSchedule(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		ring := make(chan struct{})
		var runs atomic.Int32
		close(ring)
		go Loop(ctx, func(context.Context) (any, error) { runs.Add(1); return nil, nil }, time.Minute, ring, discard())
		time.Sleep(time.Hour)
		if runs.Load() < 50 || runs.Load() > 70 {
			t.Errorf("%d runs in an hour", runs.Load())
		}
	})
}
