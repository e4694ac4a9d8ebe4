package lifecycle

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
	"github.com/stretchr/testify/require"
)

// user is a caller that does random things for a while.
type user struct {
	r    *rig
	rnd  *rand.Rand
	stop func() bool // tells whether Stop may have been called
}

func (u *user) run(ctx context.Context) {
	for ctx.Err() == nil {
		time.Sleep(time.Duration(u.rnd.IntN(90)) * time.Second)
		switch n := u.rnd.IntN(20); {
		case n == 0:
			if err := u.r.sup.Stop(ctx); err != nil && ctx.Err() == nil {
				require.ErrorIs(u.r.t, err, context.DeadlineExceeded, "only a deaf target has an error")
			}
		case n == 1:
			if f, ok := u.r.sup.Current(); ok {
				f.end(errBoom)
			}
		case n == 2:
			if f, ok := u.r.sup.Current(); ok {
				f.end(nil)
			}
		case n == 3:
			_, _ = u.r.sup.Pin(ctx)
		default:
			u.use(ctx)
		}
	}
}

// use holds the target for a while: it must stay, unless it ends by itself or is stopped.
func (u *user) use(ctx context.Context) {
	patience, cancel := context.WithTimeout(ctx, time.Duration(1+u.rnd.IntN(20))*time.Second)
	defer cancel()
	f, release, err := u.r.sup.Acquire(patience)
	if err != nil {
		known := errors.Is(err, errBoom) || errors.Is(err, errs.ErrClosed) || errors.Is(err, errs.ErrUnavailable) ||
			errors.Is(err, context.DeadlineExceeded)
		require.True(u.r.t, known, "%v", err)
		return
	}
	time.Sleep(time.Duration(u.rnd.IntN(400)) * time.Second)
	if f.counts() > 0 && f.Err() == nil && !u.stop() {
		u.r.t.Errorf("target %d was shut down while held", f.n)
	}
	release()
	if u.rnd.IntN(4) == 0 {
		release()
	}
}

// life runs users against one supervisor for an hour of virtual time and then closes it at a random moment.
func life(t *testing.T, seed uint64) {
	rnd := rand.New(rand.NewPCG(seed, 1))
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(r *rig, o *Options[*fake]) {
			o.IdleTimeout = time.Duration(rnd.IntN(100)-10) * time.Second
			o.StopTimeout = 3 * time.Second
			o.Recovery = RecoveryPolicy{MaxRetries: rnd.IntN(4) - 1, Backoff: time.Second, ResetAfter: 30 * time.Second}
			r.startTime = time.Duration(rnd.IntN(10)) * time.Second
			r.obeys = rnd.IntN(2) == 0
			for range rnd.IntN(30) {
				var err error
				if rnd.IntN(3) == 0 {
					err = errBoom
				}
				r.startErrs = append(r.startErrs, err)
			}
			fate := rand.New(rand.NewPCG(seed, 2))
			r.make = func(f *fake) {
				f.stopTime = time.Duration(fate.IntN(3)) * time.Second
				f.deaf = fate.IntN(8) == 0
				if fate.IntN(3) == 0 {
					time.AfterFunc(time.Duration(fate.IntN(200))*time.Second, func() { f.end(errBoom) })
				}
			}
		})
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour+time.Duration(rnd.IntN(100))*time.Second)
		defer cancel()
		stopped := rnd.IntN(2) == 0
		var wg sync.WaitGroup
		for i := range 1 + rnd.IntN(6) {
			u := &user{r: r, rnd: rand.New(rand.NewPCG(seed, uint64(10+i))), stop: func() bool { return stopped || ctx.Err() != nil }}
			if !stopped { // without Stop and orderly ends a held target stays: the strict claim
				wg.Go(func() {
					for ctx.Err() == nil {
						u.use(ctx)
					}
				})
				continue
			}
			wg.Go(func() { u.run(ctx) })
		}
		if rnd.IntN(2) == 0 { // Close while all are busy
			<-ctx.Done()
			r.gone()
		}
		wg.Wait()
		if r.sup.State() != Closed && r.sup.opts.IdleTimeout > 0 {
			if stopped { // somebody may have pinned it
				_ = r.sup.Stop(t.Context()) // the error of a deaf target
			}
			// Nobody holds: after the longest recovery and the idle timeout nothing runs.
			time.Sleep(time.Hour)
			synctest.Wait()
			require.Contains(t, []State{Stopped, Crashed, Failed}, r.sup.State())
		}
		r.gone()
	})
}

func TestRandomLives(t *testing.T) {
	for seed := range uint64(300) {
		life(t, seed)
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
}

func FuzzLife(f *testing.F) {
	f.Add(uint64(1))
	f.Fuzz(life)
}

// Real time, real parallelism: what the race detector wants.
func TestHammer(t *testing.T) {
	r := newRig(t, func(r *rig, o *Options[*fake]) {
		o.IdleTimeout = 50 * time.Microsecond
		o.Recovery = RecoveryPolicy{MaxRetries: 2, Backoff: 10 * time.Microsecond}
		r.make = func(f *fake) {
			if f.n%3 == 0 {
				time.AfterFunc(100*time.Microsecond, func() { f.end(errBoom) })
			}
		}
	})
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for j := range 300 {
				ctx, cancel := context.WithTimeout(t.Context(), time.Duration(j%5)*50*time.Microsecond)
				_, release, _ := r.sup.Acquire(ctx)
				if i == 0 && j%10 == 0 {
					_ = r.sup.Stop(ctx)
				}
				r.sup.State()
				if f, ok := r.sup.Current(); ok {
					_ = f.Err()
				}
				cancel()
				release()
			}
		})
	}
	wg.Wait()
	r.gone()
}
