package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"math"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
	"github.com/stretchr/testify/require"
)

func TestDelay(t *testing.T) {
	p := RecoveryPolicy{MaxRetries: -1, Backoff: time.Second, MaxBackoff: 10 * time.Second}.withDefaults()
	for i, want := range []time.Duration{1, 2, 4, 8, 10, 10} {
		d, ok := p.delay(i+1, errBoom)
		require.True(t, ok)
		require.Equal(t, want*time.Second, d, "failure %d", i+1)
	}
	d, ok := p.delay(math.MaxInt, errBoom)
	require.True(t, ok)
	require.Equal(t, 10*time.Second, d)

	p = RecoveryPolicy{MaxRetries: -1, MaxBackoff: math.MaxInt64}.withDefaults()
	for i := range 200 {
		d, _ := p.delay(i+1, errBoom)
		require.Positive(t, d, "no overflow")
	}
	p = RecoveryPolicy{MaxRetries: -1, Backoff: time.Hour}.withDefaults()
	d, _ = p.delay(1, errBoom)
	require.Equal(t, DefaultMaxBackoff, d)

	_, ok = RecoveryPolicy{}.withDefaults().delay(1, errBoom)
	require.False(t, ok, "the zero policy recovers nothing")
	p = RecoveryPolicy{MaxRetries: 2}.withDefaults()
	_, ok = p.delay(2, errBoom)
	require.True(t, ok)
	_, ok = p.delay(3, errBoom)
	require.False(t, ok)
}

func TestFailedStartIsRetried(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(r *rig, o *Options[*fake]) {
			r.startErrs = []error{errBoom, errBoom, errBoom}
			o.Recovery = RecoveryPolicy{MaxRetries: 3, Backoff: time.Second}
		})
		began := time.Now()
		r.acquire()
		require.Equal(t, (1+2+4)*time.Second, time.Since(began))
		require.Equal(t, []State{Starting, Failed, Starting, Failed, Starting, Failed, Starting, Ready}, r.path())
		require.Equal(t, 4*time.Second, r.steps[5].RetryIn)
		r.gone()
	})
}

func TestRetriesEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(r *rig, o *Options[*fake]) {
			r.startErrs = []error{errBoom, errBoom, errBoom, errBoom}
			o.Recovery = RecoveryPolicy{MaxRetries: 2, Backoff: time.Second}
		})
		_, _, err := r.sup.Acquire(t.Context())
		require.ErrorIs(t, err, errBoom)
		require.ErrorContains(t, err, "3 attempts")
		require.Equal(t, 3, r.starts)
		require.Zero(t, r.last().RetryIn)
		time.Sleep(time.Hour)
		require.Equal(t, 3, r.starts)
		r.acquire() // a new budget: one more failure is retried
		require.Equal(t, 5, r.starts)
		r.gone()
	})
}

func TestErrorThatIsNotRetryable(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hopeless := errors.New("no hypervisor")
		r := newRig(t, func(r *rig, o *Options[*fake]) {
			r.startErrs = []error{errBoom, hopeless}
			o.Recovery = RecoveryPolicy{MaxRetries: 9, Retryable: func(err error) bool { return !errors.Is(err, hopeless) }}
		})
		_, _, err := r.sup.Acquire(t.Context())
		require.ErrorIs(t, err, hopeless)
		require.Equal(t, 2, r.starts)
		r.gone()
	})
}

// Nobody waits any more: a start that fails is not tried again.
func TestRetryNeedsSomebodyWhoWants(t *testing.T) {
	for _, giveUpAt := range []time.Duration{500 * time.Millisecond, 1500 * time.Millisecond} {
		synctest.Test(t, func(t *testing.T) {
			r := newRig(t, func(r *rig, o *Options[*fake]) {
				r.startTime = time.Second
				r.startErrs = []error{errBoom}
				o.Recovery = RecoveryPolicy{MaxRetries: 9, Backoff: time.Second}
			})
			ctx, cancel := context.WithTimeout(t.Context(), giveUpAt)
			defer cancel()
			_, _, err := r.sup.Acquire(ctx)
			require.ErrorIs(t, err, context.DeadlineExceeded)
			time.Sleep(time.Hour)
			synctest.Wait()
			require.Equal(t, []State{Starting, Failed}, r.path())
			r.acquire()
			r.gone()
		})
	}
}

// A target that crashes while held is started anew, without anybody asking, and stops when idle.
func TestCrashIsRecovered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(r *rig, o *Options[*fake]) {
			o.IdleTimeout = time.Minute
			o.Recovery = RecoveryPolicy{MaxRetries: 2, Backoff: time.Second}
			r.make = func(f *fake) { f.stopTime = 3 * time.Second }
		})
		f, _ := r.acquire()
		f.end(errBoom)
		synctest.Wait()
		require.Equal(t, Transition{From: Ready, To: Crashed, Err: errBoom, RetryIn: time.Second}, r.last())
		time.Sleep(4 * time.Second)
		synctest.Wait()
		require.Equal(t, []State{Starting, Ready, Crashed, Starting, Ready}, r.path())
		time.Sleep(time.Minute + 3*time.Second)
		synctest.Wait()
		require.Equal(t, Stopped, r.sup.State())
		r.gone()
	})
}

func TestCrashThatNobodyHeldIsNotRecovered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(_ *rig, o *Options[*fake]) { o.Recovery.MaxRetries = 2 })
		f, release := r.acquire()
		release()
		f.end(errBoom)
		time.Sleep(time.Hour)
		synctest.Wait()
		require.Equal(t, []State{Starting, Ready, Crashed}, r.path())
		r.acquire()
		r.gone()
	})
}

// crashes lets every target crash after up, with somebody holding it, and returns the starts that were made.
func crashes(t *testing.T, p RecoveryPolicy, up time.Duration, total time.Duration) (starts int, last Transition) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(r *rig, o *Options[*fake]) {
			o.Recovery = p
			r.make = func(f *fake) { time.AfterFunc(up, func() { f.end(errBoom) }) }
		})
		var wg sync.WaitGroup
		ctx, cancel := context.WithTimeout(t.Context(), total)
		defer cancel()
		wg.Go(func() {
			for r.sup.State() != Crashed || r.last().RetryIn > 0 {
				if f, _, err := r.sup.Acquire(ctx); err == nil {
					<-f.Done()
					synctest.Wait()
				} else {
					return
				}
			}
		})
		wg.Wait()
		starts, last = r.starts, r.last()
		r.gone()
	})
	return starts, last
}

func TestCrashLoopEnds(t *testing.T) {
	p := RecoveryPolicy{MaxRetries: 4, Backoff: time.Second, ResetAfter: 10 * time.Second}
	starts, last := crashes(t, p, 9*time.Second, 1000*time.Hour)
	require.Equal(t, 5, starts)
	require.Equal(t, Transition{From: Ready, To: Crashed, Err: errBoom}, last)
}

func TestCountBeginsAnewAfterSuccess(t *testing.T) {
	p := RecoveryPolicy{MaxRetries: 1, Backoff: time.Second, ResetAfter: 10 * time.Second}
	starts, _ := crashes(t, p, 10*time.Second, time.Hour)
	require.InDelta(t, time.Hour/(11*time.Second), starts, 2)
}

// A failed start during a recovery counts together with the crash.
func TestRecoveryWhoseStartsFail(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(_ *rig, o *Options[*fake]) {
			o.Recovery = RecoveryPolicy{MaxRetries: 3, Backoff: time.Second}
		})
		f, _ := r.acquire()
		r.startErrs = []error{errBoom, errBoom, errBoom}
		f.end(errBoom)
		time.Sleep(time.Hour)
		synctest.Wait()
		require.Equal(t, []State{Starting, Ready, Crashed, Starting, Failed, Starting, Failed, Starting, Failed}, r.path())
		require.Zero(t, r.last().RetryIn)
		r.gone()
	})
}

func TestAcquireDuringBackoffWaitsForIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(_ *rig, o *Options[*fake]) {
			o.Recovery = RecoveryPolicy{MaxRetries: 3, Backoff: 10 * time.Second}
		})
		f, _ := r.acquire()
		f.end(errBoom)
		time.Sleep(4 * time.Second)
		began := time.Now()
		r.acquire()
		require.Equal(t, 6*time.Second, time.Since(began))
		r.gone()
	})
}

func TestStopGivesUpRecovery(t *testing.T) {
	for _, after := range []time.Duration{500 * time.Millisecond, 5 * time.Second} { // while released, while waiting
		t.Run(fmt.Sprint(after), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, func(r *rig, o *Options[*fake]) {
					o.Recovery = RecoveryPolicy{MaxRetries: 3, Backoff: 10 * time.Second}
					r.make = func(f *fake) { f.stopTime = time.Second }
				})
				f, _ := r.acquire()
				f.end(errBoom)
				var wg sync.WaitGroup
				wg.Go(func() {
					synctest.Wait()
					_, _, err := r.sup.Acquire(t.Context())
					require.ErrorIs(t, err, errs.ErrUnavailable)
				})
				time.Sleep(after)
				require.NoError(t, r.sup.Stop(t.Context()))
				wg.Wait()
				time.Sleep(time.Hour)
				synctest.Wait()
				require.Equal(t, Stopped, r.sup.State())
				require.Equal(t, 1, r.starts)
				r.gone()
			})
		})
	}
}

func TestTableOfTransitions(t *testing.T) {
	for s := Stopped; s <= Closed; s++ {
		require.Contains(t, next, s)
		require.NotEqual(t, "unknown", s.String())
		require.False(t, s.CanFollow(s))
		require.Equal(t, s != Closed && s != Starting && s != Ready, s.CanFollow(Closed), s)
	}
	require.Equal(t, "unknown", State(-1).String())
	require.Equal(t, "unknown", (Closed + 1).String())
	require.False(t, State(99).CanFollow(Stopped))
}
