package boot

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

func TestTheLoopRunsAtOnceThenOnScheduleAndWhenRung(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		bell, runs := NewBell(), 0
		go Loop(ctx, func(context.Context) (any, error) { runs++; return nil, nil }, time.Minute, bell, discard())
		synctest.Wait()
		if runs != 1 {
			t.Fatalf("%d runs at the start", runs)
		}
		time.Sleep(50 * time.Second)
		synctest.Wait()
		if runs != 1 {
			t.Errorf("%d runs before the interval", runs)
		}
		time.Sleep(17 * time.Second)
		synctest.Wait()
		if runs != 2 {
			t.Errorf("%d runs after the interval", runs)
		}
		bell.Ring(ctx)
		synctest.Wait()
		if runs != 3 {
			t.Errorf("%d runs after a ring", runs)
		}
		cancel()
		time.Sleep(time.Hour)
		if runs != 3 {
			t.Errorf("%d runs after the end", runs)
		}
	})
}

func TestRingsDuringARunAreOneRunAfterIt(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		bell, runs, active := NewBell(), 0, 0
		go Loop(ctx, func(context.Context) (any, error) {
			runs++
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
		if runs != 2 {
			t.Errorf("%d runs for fifty rings during the first", runs)
		}
	})
}

func TestErrorsAndPanicsSlowTheLoopAndNeverStopIt(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		bell, runs, ok := NewBell(), 0, false
		go Loop(ctx, func(context.Context) (any, error) {
			runs++
			switch {
			case ok:
				return nil, nil
			case runs%2 == 0:
				panic("boom")
			default:
				return nil, errors.New("no database")
			}
		}, 5*time.Second, bell, discard())
		for range 600 { // rings all the time must not turn failure into a hot loop
			bell.Ring(ctx)
			time.Sleep(time.Second)
		}
		if runs < 10 || runs > 20 {
			t.Errorf("%d runs in ten minutes of failure", runs)
		}
		ok = true
		time.Sleep(2 * time.Minute)
		before := runs
		time.Sleep(time.Minute)
		if n := runs - before; n < 10 || n > 14 {
			t.Errorf("%d runs in a minute after recovery", n)
		}
	})
}

func TestAClosedRingLeavesTheSchedule(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		ring, runs := make(chan struct{}), 0
		close(ring)
		go Loop(ctx, func(context.Context) (any, error) { runs++; return nil, nil }, time.Minute, ring, discard())
		time.Sleep(time.Hour)
		if runs < 50 || runs > 70 {
			t.Errorf("%d runs in an hour", runs)
		}
	})
}
