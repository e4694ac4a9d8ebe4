package lifecycle

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
)

// owner is the goroutine that owns a supervisor's target. It never waits for anything but its next message: starts and
// shutdowns run beside it, at most one of both at a time, and report on channels.
type owner[T Target] struct {
	*Supervisor[T]

	at      State
	cur     *incarnation[T] // from Ready until its Shutdown has returned
	waiters []*waiter[T]
	stops   []chan<- error

	starting    chan started[T] // non-nil while a start is in flight
	cancelStart context.CancelFunc
	stopped     chan error // non-nil while a Shutdown is in flight
	running     sync.WaitGroup

	idle, retry *time.Timer
	retrying    bool          // retry is armed
	backoff     time.Duration // of the retry that follows a crash, armed when the crashed target is released
	recovering  bool          // the target crashed while held: it is wanted even if nobody waits
	failures    int           // in a row
	pinned      bool          // it shall run until Stop, held or not
	closed      bool          // Close was called
}

type started[T Target] struct {
	target T
	err    error
}

func newOwner[T Target](s *Supervisor[T]) *owner[T] {
	o := &owner[T]{Supervisor: s, idle: time.NewTimer(time.Hour), retry: time.NewTimer(time.Hour)}
	o.idle.Stop()
	o.retry.Stop()
	return o
}

func (o *owner[T]) run() {
	closing := o.closing
	for o.at != Closed {
		var gone <-chan struct{}
		if o.at == Ready {
			gone = o.cur.target.Done()
		}
		select {
		case w := <-o.acquire:
			o.onAcquire(w)
		case w := <-o.abandon:
			o.onAbandon(w)
		case inc := <-o.release:
			o.onRelease(inc)
		case answer := <-o.stop:
			o.onStop(answer)
		case r := <-o.starting:
			o.onStarted(r)
		case err := <-o.stopped:
			o.onStopped(err)
		case <-gone:
			o.onGone(o.cur.target.Err())
		case <-o.idle.C:
			o.shutdown(Transition{To: Stopping})
		case <-o.retry.C:
			o.onRetry()
		case <-closing:
			closing = nil
			o.onClose()
		}
	}
	o.running.Wait()
	close(o.done)
}

// to makes the transition and tells about it.
func (o *owner[T]) to(t Transition) {
	t.From = o.at
	o.at = t.To
	if t.To == Ready {
		o.current.Store(o.cur)
	} else {
		o.current.Store(nil)
	}
	o.state.Store(int64(t.To))
	o.opts.OnState(t)
}

// Requests.

func (o *owner[T]) onAcquire(w *waiter[T]) {
	switch {
	case o.closed:
		w.grant <- grant[T]{err: fmt.Errorf("acquire: %w", errs.ErrClosed)}
	case o.at == Ready:
		o.idle.Stop()
		o.hold(w)
	default:
		o.waiters = append(o.waiters, w)
		if !o.busy() {
			o.failures = 0
			o.begin()
		}
	}
}

// busy tells that something is in flight, after which those who wait are thought of.
func (o *owner[T]) busy() bool { return o.starting != nil || o.stopped != nil || o.retrying }

func (o *owner[T]) hold(w *waiter[T]) {
	if w.pin {
		o.pinned = true
	} else {
		o.cur.holds++
	}
	w.grant <- grant[T]{inc: o.cur}
}

func (o *owner[T]) onAbandon(w *waiter[T]) {
	if i := slices.Index(o.waiters, w); i >= 0 {
		o.waiters = slices.Delete(o.waiters, i, i+1)
		return
	}
	if g := <-w.grant; g.err == nil && !w.pin { // it was granted before: never blocks
		o.onRelease(g.inc)
	}
}

func (o *owner[T]) onRelease(inc *incarnation[T]) {
	inc.holds--
	if inc == o.cur {
		o.watchIdle()
	}
}

// watchIdle lets the idle timeout begin where nobody holds the target.
func (o *owner[T]) watchIdle() {
	if o.at == Ready && o.cur.holds == 0 && !o.pinned && o.opts.IdleTimeout > 0 {
		o.idle.Reset(o.opts.IdleTimeout)
	}
}

func (o *owner[T]) onStop(answer chan<- error) {
	o.settle(fmt.Errorf("acquire: stopped while waiting: %w", errs.ErrUnavailable))
	o.pinned = false
	switch {
	case o.at == Stopped:
		answer <- nil
		return
	case o.endRun(): // onStopped answers
		o.stops = append(o.stops, answer)
	default:
		o.to(Transition{To: Stopped})
		answer <- nil
	}
}

func (o *owner[T]) onClose() {
	o.closed = true
	o.settle(fmt.Errorf("acquire: %w", errs.ErrClosed))
	if !o.endRun() {
		o.to(Transition{To: Closed})
	}
}

// settle ends all waits with err and forgets what was to be recovered.
func (o *owner[T]) settle(err error) {
	o.retry.Stop()
	o.retrying, o.recovering, o.backoff, o.failures = false, false, 0, 0
	for _, w := range o.waiters {
		w.grant <- grant[T]{err: err}
	}
	o.waiters = nil
}

// endRun begins to end what is in flight or runs, and returns whether there is anything.
func (o *owner[T]) endRun() bool {
	switch {
	case o.at == Starting:
		o.to(Transition{To: Stopping})
		o.cancelStart()
	case o.at == Ready:
		o.shutdown(Transition{To: Stopping})
	case o.at == Crashed && o.stopped != nil:
		o.to(Transition{To: Stopping})
	case o.at != Stopping:
		return false
	}
	return true
}

// Starts.

func (o *owner[T]) begin() {
	ctx, cancel := context.WithCancel(context.Background())
	ch := make(chan started[T], 1)
	o.cancelStart, o.starting = cancel, ch
	o.to(Transition{To: Starting})
	o.running.Go(func() {
		target, err := o.opts.Start(ctx)
		ch <- started[T]{target, err}
	})
}

func (o *owner[T]) onStarted(r started[T]) {
	o.cancelStart()
	o.starting, o.cancelStart = nil, nil
	switch {
	case r.err != nil && o.at == Stopping:
		o.onStopped(nil)
	case r.err != nil:
		o.onFailed(r.err)
	case o.at == Stopping:
		o.cur = &incarnation[T]{target: r.target}
		o.shutdown(Transition{To: Stopping})
	default:
		o.cur = &incarnation[T]{target: r.target, ready: time.Now()}
		o.recovering = false
		o.to(Transition{To: Ready})
		for _, w := range o.waiters {
			o.hold(w)
		}
		o.waiters = nil
		o.watchIdle()
	}
}

func (o *owner[T]) onFailed(err error) {
	o.failures++
	d, again := o.opts.Recovery.delay(o.failures, err)
	if again && o.wanted() {
		o.to(Transition{To: Failed, Err: err, RetryIn: d})
		o.armRetry(d)
		return
	}
	o.to(Transition{To: Failed, Err: err})
	if o.failures > 1 {
		err = fmt.Errorf("give up after %d attempts: %w", o.failures, err)
	}
	o.settle(err)
}

// wanted tells whether somebody needs the target.
func (o *owner[T]) wanted() bool { return o.recovering || len(o.waiters) > 0 }

func (o *owner[T]) armRetry(d time.Duration) {
	o.retry.Reset(d)
	o.retrying = true
}

func (o *owner[T]) onRetry() {
	o.retrying = false
	if o.wanted() {
		o.begin()
	}
}

// Ends.

// onGone handles a target that has ended by itself, with err.
func (o *owner[T]) onGone(err error) {
	if err == nil {
		o.shutdown(Transition{To: Stopping})
		return
	}
	if time.Since(o.cur.ready) >= o.opts.Recovery.ResetAfter {
		o.failures = 0
	}
	o.failures++
	d, again := o.opts.Recovery.delay(o.failures, err)
	if again && (o.cur.holds > 0 || o.pinned) {
		o.recovering, o.backoff = true, d
	}
	o.shutdown(Transition{To: Crashed, Err: err, RetryIn: o.backoff})
}

// shutdown makes the transition, where it is one, and begins the target's Shutdown.
func (o *owner[T]) shutdown(t Transition) {
	o.idle.Stop()
	if o.at != t.To {
		o.to(t)
	}
	target, ch := o.cur.target, make(chan error, 1)
	o.stopped = ch
	o.running.Go(func() {
		ctx, cancel := context.WithTimeout(context.Background(), o.opts.StopTimeout)
		defer cancel()
		ch <- target.Shutdown(ctx)
	})
}

// onStopped handles the end of a Shutdown, and of a start that was cancelled.
func (o *owner[T]) onStopped(err error) {
	o.stopped, o.cur = nil, nil
	if o.at == Crashed {
		o.afterCrash()
		return
	}
	if o.closed {
		o.closeErr = err
		o.to(Transition{To: Closed, Err: err})
	} else {
		o.failures = 0
		o.to(Transition{To: Stopped, Err: err})
	}
	for _, answer := range o.stops {
		answer <- err
	}
	o.stops = nil
	if o.at == Stopped && o.wanted() {
		o.begin()
	}
}

// afterCrash goes on when a crashed target is released.
func (o *owner[T]) afterCrash() {
	switch {
	case o.backoff > 0:
		o.armRetry(o.backoff)
		o.backoff = 0
	case o.wanted():
		o.failures = 0
		o.begin()
	}
}
