// Package lifecycle keeps one target, for example a virtual machine, running while it is needed. It knows nothing of what
// the target is.
//
// A Supervisor starts the target on the first Acquire and shares that start between all who ask. Each Acquire is a hold;
// when the last one is released and nobody asks for a while, the target is shut down. A target that ends by itself is
// noticed and, by a RecoveryPolicy, started anew. A hold belongs to one incarnation of the target: released late, after a
// crash, it does not count for the next one.
//
// One goroutine owns the target and all decisions. A caller's context bounds the caller's own wait and nothing else.
package lifecycle

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
)

// The defaults of Options.
const (
	DefaultIdleTimeout = 5 * time.Minute
	DefaultStopTimeout = 30 * time.Second
)

// Target is what is supervised.
type Target interface {
	// Done is closed when the target has ended, for whatever reason.
	Done() <-chan struct{}
	// Err tells, after Done, why: nil where the target ended in an orderly way.
	Err() error
	// Shutdown ends the target gracefully, by force when ctx ends first, and returns when everything of it is released. It
	// is called exactly once for every target, also where that has ended by itself.
	Shutdown(ctx context.Context) error
}

// Options configures a Supervisor. Only Start is required.
type Options[T Target] struct {
	// Start starts a target and returns it when it is ready. Where it returns an error, nothing is left. Its ctx ends
	// when the supervisor is stopped or closed; a target that is returned after that is shut down. One start runs at a
	// time, and none while a former target is being shut down.
	Start func(ctx context.Context) (T, error)
	// IdleTimeout is how long a target runs that nobody holds. 0 is DefaultIdleTimeout, negative is for ever.
	IdleTimeout time.Duration
	// StopTimeout bounds the graceful part of every Shutdown. 0 and less is DefaultStopTimeout.
	StopTimeout time.Duration
	// Recovery says what happens after a crash and after a start that fails. The zero value recovers nothing.
	Recovery RecoveryPolicy
	// OnState is called with every transition, in order, before anybody learns of it in another way. It must return
	// soon, and must not call a method of the supervisor other than State and Current. nil is none.
	OnState func(Transition)
}

// Supervisor runs one target. All methods may be called from many goroutines.
type Supervisor[T Target] struct {
	opts Options[T]

	acquire chan *waiter[T]
	abandon chan *waiter[T]      // gave up waiting
	release chan *incarnation[T] // one hold less
	stop    chan chan<- error

	closeOnce sync.Once
	closing   chan struct{} // closed by Close
	done      chan struct{} // closed when the owner has ended
	closeErr  error         // readable after done

	state   atomic.Int64
	current atomic.Pointer[incarnation[T]] // non-nil while Ready
}

// incarnation is one started target and its holds. Only the owner touches holds.
type incarnation[T Target] struct {
	target T
	ready  time.Time
	holds  int
}

// waiter is a caller of Acquire.
type waiter[T Target] struct {
	grant chan grant[T] // has room for one; gets one
	pin   bool          // wants no hold, but the target to run until Stop
}

type grant[T Target] struct {
	inc *incarnation[T]
	err error
}

// New returns a supervisor in state Stopped. It must be closed.
func New[T Target](opts Options[T]) *Supervisor[T] {
	if opts.IdleTimeout == 0 {
		opts.IdleTimeout = DefaultIdleTimeout
	}
	if opts.StopTimeout <= 0 {
		opts.StopTimeout = DefaultStopTimeout
	}
	if opts.OnState == nil {
		opts.OnState = func(Transition) {}
	}
	opts.Recovery = opts.Recovery.withDefaults()
	s := &Supervisor[T]{
		opts:    opts,
		acquire: make(chan *waiter[T]),
		abandon: make(chan *waiter[T]),
		release: make(chan *incarnation[T]),
		stop:    make(chan chan<- error),
		closing: make(chan struct{}),
		done:    make(chan struct{}),
	}
	go newOwner(s).run()
	return s
}

// Acquire returns the running target and holds it until release is called. It starts the target where none runs, and
// waits for one that is being started, stopped or recovered. release may be called more than once and at any time.
//
// The error is that of the start; that of ctx, which ends the wait and not the start; ErrUnavailable where Stop came
// between; and ErrClosed. With an error release is a function that does nothing.
func (s *Supervisor[T]) Acquire(ctx context.Context) (target T, release func(), err error) {
	if err := ctx.Err(); err != nil {
		return target, func() {}, fmt.Errorf("acquire: %w", err)
	}
	return s.wait(ctx, &waiter[T]{grant: make(chan grant[T], 1)})
}

// Pin is Acquire for a target that shall run, idle or not, until Stop or Close: it needs no hold, and a RecoveryPolicy
// starts it anew after a crash. A second call changes nothing.
// Where ctx ends just when the target has become ready, it may be pinned all the same.
func (s *Supervisor[T]) Pin(ctx context.Context) (T, error) {
	target, _, err := s.wait(ctx, &waiter[T]{grant: make(chan grant[T], 1), pin: true})
	return target, err
}

// wait hands a waiter to the owner and waits for its grant.
func (s *Supervisor[T]) wait(ctx context.Context, w *waiter[T]) (target T, release func(), err error) {
	none := func() {}
	select {
	case s.acquire <- w:
	case <-s.done:
		return target, none, fmt.Errorf("acquire: %w", errs.ErrClosed)
	case <-ctx.Done():
		return target, none, fmt.Errorf("acquire: %w", ctx.Err())
	}
	select {
	case g := <-w.grant:
		if g.err != nil {
			return target, none, g.err
		}
		if w.pin {
			return g.inc.target, none, nil
		}
		return g.inc.target, sync.OnceFunc(func() { s.giveBack(g.inc) }), nil
	case <-ctx.Done():
		select {
		case s.abandon <- w: // the owner takes back a hold that came meanwhile
		case <-s.done:
		}
		return target, none, fmt.Errorf("acquire: %w", ctx.Err())
	}
}

func (s *Supervisor[T]) giveBack(inc *incarnation[T]) {
	select {
	case s.release <- inc:
	case <-s.done:
	}
}

// Current returns the target where one is ready, without holding it.
func (s *Supervisor[T]) Current() (target T, ok bool) {
	if inc := s.current.Load(); inc != nil {
		return inc.target, true
	}
	return target, false
}

// State returns the state at this moment.
func (s *Supervisor[T]) State() State { return State(s.state.Load()) }

// Stop shuts the target down, held or not, and returns when it is gone: nil where nothing ran. A start in flight is
// cancelled and a recovery given up; those who wait for them get ErrUnavailable. The next Acquire starts anew.
//
// The error is that of the target's Shutdown, after which the target is gone all the same; that of ctx, which ends the
// wait and not the stop; or ErrClosed.
func (s *Supervisor[T]) Stop(ctx context.Context) error {
	answer := make(chan error, 1)
	select {
	case s.stop <- answer:
	case <-s.done:
		return fmt.Errorf("stop: %w", errs.ErrClosed)
	case <-ctx.Done():
		return fmt.Errorf("stop: %w", ctx.Err())
	}
	select {
	case err := <-answer:
		return err
	case <-ctx.Done():
		return fmt.Errorf("stop: %w", ctx.Err())
	}
}

// Close cancels a start in flight, shuts down what it produced or what runs, and returns when everything is gone. Those
// who wait get ErrClosed. The error is that of the last Shutdown. A second call waits too and returns the same.
func (s *Supervisor[T]) Close() error {
	s.closeOnce.Do(func() { close(s.closing) })
	<-s.done
	return s.closeErr
}
