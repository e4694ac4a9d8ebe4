package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
	"github.com/stretchr/testify/require"
)

func TestStartIsSharedAndIdleTargetStops(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(r *rig, _ *Options[*fake]) { r.startTime = time.Second })
		var wg sync.WaitGroup
		wg.Go(func() {
			quick, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
			defer cancel()
			_, release, err := r.sup.Acquire(quick)
			require.ErrorIs(t, err, context.DeadlineExceeded)
			release()
		})
		for range 10 {
			wg.Go(func() {
				_, release := r.acquire()
				release()
				release() // harmless
			})
		}
		wg.Wait()
		synctest.Wait()
		require.Equal(t, 1, r.starts)
		time.Sleep(DefaultIdleTimeout - time.Nanosecond)
		synctest.Wait()
		require.Equal(t, Ready, r.sup.State())
		time.Sleep(time.Nanosecond)
		synctest.Wait()
		require.Equal(t, []State{Starting, Ready, Stopping, Stopped}, r.path())
		require.Equal(t, 1, r.targets()[0].counts())
		r.gone()
	})
}

func TestPinnedTargetRunsUntilStop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(r *rig, o *Options[*fake]) {
			r.startTime, o.IdleTimeout, o.Recovery = time.Second, time.Minute, RecoveryPolicy{MaxRetries: 2, Backoff: time.Second}
		})
		quick, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		_, err := r.sup.Pin(quick)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		time.Sleep(time.Hour)
		require.Equal(t, Stopped, r.sup.State(), "who gave up has not pinned it")
		for range 2 {
			_, err = r.sup.Pin(t.Context())
			require.NoError(t, err)
		}
		time.Sleep(time.Hour)
		require.Equal(t, Ready, r.sup.State())
		f, _ := r.sup.Current()
		f.end(errBoom)
		time.Sleep(time.Hour)
		require.Equal(t, Ready, r.sup.State(), "wanted after the crash, and after the recovery")
		require.NoError(t, r.sup.Stop(t.Context()))
		_, release := r.acquire()
		release()
		time.Sleep(time.Hour)
		require.Equal(t, Stopped, r.sup.State(), "Stop has ended it")
		r.gone()
	})
}

// Nobody is left when the start succeeds: the idle timeout begins all the same.
func TestStartThatNobodyWaitsForStopsWhenIdle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(r *rig, o *Options[*fake]) { r.startTime = time.Second; o.IdleTimeout = time.Minute })
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		_, _, err := r.sup.Acquire(ctx)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		time.Sleep(time.Second)
		synctest.Wait()
		require.Equal(t, Ready, r.sup.State())
		time.Sleep(time.Minute)
		synctest.Wait()
		require.Equal(t, Stopped, r.sup.State())
		r.gone()
	})
}

// A caller whose context ends at the very moment of the grant neither keeps nor loses a hold.
func TestHoldThatComesTooLateIsGivenBack(t *testing.T) {
	for range 50 {
		synctest.Test(t, func(t *testing.T) {
			r := newRig(t, func(r *rig, o *Options[*fake]) { r.startTime = time.Second; o.IdleTimeout = time.Minute })
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			_, release, err := r.sup.Acquire(ctx)
			synctest.Wait()
			if err == nil {
				time.Sleep(time.Hour)
				synctest.Wait()
				require.Equal(t, Ready, r.sup.State(), "the hold counts")
				release()
			}
			time.Sleep(time.Minute)
			synctest.Wait()
			require.Equal(t, Stopped, r.sup.State(), "no hold is left")
			r.gone()
		})
	}
}

func TestIdleTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(_ *rig, o *Options[*fake]) { o.IdleTimeout = time.Minute })
		_, release := r.acquire()
		time.Sleep(time.Hour) // held
		release()
		time.Sleep(time.Minute - 1)
		first, again := r.acquire() // just in time
		time.Sleep(time.Hour)
		_, second := r.acquire()
		again()
		time.Sleep(time.Hour) // the second still holds
		require.Equal(t, Ready, r.sup.State())
		second()
		time.Sleep(time.Minute)
		synctest.Wait()
		require.Equal(t, Stopped, r.sup.State())
		next, release := r.acquire()
		require.NotSame(t, first, next)
		release()
		r.gone()
	})
}

func TestNegativeIdleTimeoutNeverStops(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(_ *rig, o *Options[*fake]) { o.IdleTimeout = -1 })
		_, release := r.acquire()
		release()
		time.Sleep(1000 * time.Hour)
		synctest.Wait()
		require.Equal(t, Ready, r.sup.State())
		r.gone()
	})
}

// The idle timeout and an Acquire fall on the same moment: the caller gets a live target, this one or the next.
func TestAcquireRacesIdleTimeout(t *testing.T) {
	for range 50 {
		synctest.Test(t, func(t *testing.T) {
			r := newRig(t, func(r *rig, o *Options[*fake]) {
				o.IdleTimeout = time.Minute
				r.make = func(f *fake) { f.stopTime = time.Second }
			})
			_, release := r.acquire()
			release()
			time.Sleep(time.Minute)
			f, release := r.acquire()
			require.Zero(t, f.counts())
			time.Sleep(time.Hour)
			require.Zero(t, f.counts())
			release()
			r.gone()
		})
	}
}

func TestErrorOfStartReachesAllWhoWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(r *rig, _ *Options[*fake]) { r.startTime = time.Second; r.startErrs = []error{errBoom} })
		var wg sync.WaitGroup
		for range 5 {
			wg.Go(func() {
				_, release, err := r.sup.Acquire(t.Context())
				require.Equal(t, errBoom, err)
				release()
			})
		}
		wg.Wait()
		require.Equal(t, 1, r.starts)
		require.Equal(t, Failed, r.sup.State())
		require.Equal(t, Transition{From: Starting, To: Failed, Err: errBoom}, r.last())
		r.acquire() // a new start
		require.Equal(t, 2, r.starts)
		r.gone()
	})
}

// A holder of a crashed target lets go late; its successor stays held.
func TestLateReleaseAfterCrash(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(_ *rig, o *Options[*fake]) { o.IdleTimeout = time.Minute })
		old, releaseOld := r.acquire()
		old.end(errBoom)
		synctest.Wait()
		_, releaseNew := r.acquire()
		releaseOld()
		time.Sleep(time.Hour)
		synctest.Wait()
		require.Equal(t, Ready, r.sup.State())
		releaseNew()
		time.Sleep(time.Minute)
		synctest.Wait()
		require.Equal(t, Stopped, r.sup.State())
		r.gone()
	})
}

// The next start waits until what is left of the crashed target has been released.
func TestCrashedTargetIsReleasedBeforeTheNextStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(r *rig, _ *Options[*fake]) { r.make = func(f *fake) { f.stopTime = 3 * time.Second } })
		f, _ := r.acquire()
		f.end(errBoom)
		synctest.Wait()
		require.Equal(t, Crashed, r.sup.State())
		require.Equal(t, Transition{From: Ready, To: Crashed, Err: errBoom}, r.last())
		_, ok := r.sup.Current()
		require.False(t, ok)
		began := time.Now()
		r.acquire()
		require.Equal(t, 3*time.Second, time.Since(began))
		r.gone()
	})
}

// A target that powers itself off has not crashed.
func TestOrderlyEndIsNoCrash(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(_ *rig, o *Options[*fake]) { o.Recovery.MaxRetries = 5 })
		f, _ := r.acquire()
		f.end(nil)
		time.Sleep(time.Hour)
		synctest.Wait()
		require.Equal(t, []State{Starting, Ready, Stopping, Stopped}, r.path())
		r.gone()
	})
}

func TestCurrent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil)
		_, ok := r.sup.Current()
		require.False(t, ok)
		require.Zero(t, r.starts)
		f, release := r.acquire()
		got, ok := r.sup.Current()
		require.True(t, ok)
		require.Same(t, f, got)
		release()
		r.gone()
	})
}

func TestStop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(r *rig, _ *Options[*fake]) {
			r.make = func(f *fake) { f.stopTime, f.stopErr = 2*time.Second, errBoom }
		})
		require.NoError(t, r.sup.Stop(t.Context()), "nothing runs")
		_, release := r.acquire()
		began := time.Now()
		require.Equal(t, errBoom, r.sup.Stop(t.Context()), "held or not")
		require.Equal(t, 2*time.Second, time.Since(began))
		require.Equal(t, Stopped, r.sup.State())
		release()
		require.NoError(t, r.sup.Stop(t.Context()), "stopped already")

		r.acquire()
		short, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		require.ErrorIs(t, r.sup.Stop(short), context.DeadlineExceeded)
		require.Equal(t, Stopping, r.sup.State(), "the stop goes on")
		require.Equal(t, errBoom, r.sup.Stop(t.Context()), "joins the stop in flight")
		r.gone()
		require.ErrorIs(t, r.sup.Stop(t.Context()), errs.ErrClosed)
	})
}

// Whoever asks during a stop gets the next target, unless another stop comes.
func TestAcquireDuringStop(t *testing.T) {
	for _, twice := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			r := newRig(t, func(r *rig, _ *Options[*fake]) { r.make = func(f *fake) { f.stopTime = time.Second } })
			r.acquire()
			var wg sync.WaitGroup
			wg.Go(func() { require.NoError(t, r.sup.Stop(t.Context())) })
			synctest.Wait()
			wg.Go(func() {
				f, _, err := r.sup.Acquire(t.Context())
				if twice {
					require.ErrorIs(t, err, errs.ErrUnavailable)
					return
				}
				require.NoError(t, err)
				require.Equal(t, 2, f.n)
			})
			synctest.Wait()
			if twice {
				require.NoError(t, r.sup.Stop(t.Context()))
			}
			wg.Wait()
			r.gone()
		})
	}
}

func TestShutdownIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(r *rig, o *Options[*fake]) {
			o.StopTimeout = 7 * time.Second
			r.make = func(f *fake) { f.deaf = true }
		})
		r.acquire()
		began := time.Now()
		err := r.sup.Close()
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.Equal(t, 7*time.Second, time.Since(began))
		require.Equal(t, err, r.sup.Close(), "the second call says the same")
		require.Equal(t, err, r.last().Err)
		r.gone()
	})
}

func TestClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil)
		r.gone()
		_, release, err := r.sup.Acquire(t.Context())
		require.ErrorIs(t, err, errs.ErrClosed)
		release()
		require.Equal(t, []State{Closed}, r.path())
	})
}

func TestEndedContextAcquiresNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		_, _, err := r.sup.Acquire(ctx)
		require.ErrorIs(t, err, context.Canceled)
		require.Zero(t, r.starts)
		r.gone()
	})
}

// The life of a target that takes 2 s to start, crashes after another 2 s, takes 1 s to be released, is started anew
// after 2 s, stopped at 12 s, is 1 s at that, and is started again.
func lifeOf(t *testing.T, obeys bool) *rig {
	return newRig(t, func(r *rig, o *Options[*fake]) {
		r.startTime, r.obeys = 2*time.Second, obeys
		r.make = func(f *fake) {
			f.stopTime = time.Second
			if f.n == 1 {
				time.AfterFunc(2*time.Second, func() { f.end(errBoom) })
			}
		}
		o.Recovery = RecoveryPolicy{MaxRetries: 3, Backoff: 2 * time.Second}
	})
}

// Close, or Stop, lands at every point of that life: what was started is gone once, and those who wait learn of it.
func TestEndAtEveryStep(t *testing.T) {
	for _, obeys := range []bool{false, true} {
		for _, how := range []string{"close", "stop", "stop, close"} {
			for d := time.Duration(0); d <= 18*time.Second; d += 500 * time.Millisecond {
				t.Run(fmt.Sprintf("%s at %s, starts obey: %t", how, d, obeys), func(t *testing.T) {
					synctest.Test(t, func(t *testing.T) {
						r := lifeOf(t, obeys)
						var wg sync.WaitGroup
						var closing atomic.Bool
						for i := range 16 {
							wg.Go(func() {
								time.Sleep(time.Duration(i) * time.Second)
								_, _, err := r.sup.Acquire(t.Context())
								if err != nil && !(closing.Load() && errors.Is(err, errs.ErrClosed)) {
									require.ErrorIs(t, err, errs.ErrUnavailable)
								}
							})
						}
						wg.Go(func() {
							time.Sleep(12 * time.Second)
							_ = r.sup.Stop(t.Context())
						})
						time.Sleep(d)
						if how != "close" {
							require.NoError(t, r.sup.Stop(t.Context()))
						}
						closing.Store(how != "stop")
						if how != "stop" {
							wg.Go(r.gone)
							wg.Go(r.gone)
						}
						wg.Wait()
						closing.Store(true)
						r.gone()
					})
				})
			}
		}
	}
}
