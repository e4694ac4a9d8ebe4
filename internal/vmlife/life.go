// Package vmlife is what the machines of all drivers have in common: how streams to the guest are opened, how a machine
// is asked to end, and what it says of its end.
//
// A Life is made with the machine and ends with it, in two steps. Its context ends when the machine begins to end: then
// whatever waits for the guest lets go. End is called when everything of the machine is released. What a machine says of
// its end is decided by what comes first: a request of its user, after which every end is a good one, or a reason for
// which the driver condemns it.
package vmlife

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/arcboxlabs/arcbox-go/internal/console"
	"github.com/arcboxlabs/arcbox-go/internal/errs"
	"github.com/arcboxlabs/arcbox-go/internal/mux"
)

// linkGrace is how long is waited for the end of a machine whose link has ended: that of the link may be seen first.
const linkGrace = 2 * time.Second

// Life is the life of one machine. Its methods may be called from many goroutines.
type Life struct {
	Name    string       // of the machine
	Log     *slog.Logger // never nil
	Console console.Log  // gets the guest's console output; its fields are set before the first line

	ctx   context.Context
	begin context.CancelFunc
	ready chan struct{} // closed when session is set
	done  chan struct{} // closed by End; err is set then
	err   error

	session *mux.Session

	mu     sync.Mutex
	asked  bool   // the user wanted the end
	reason string // for which the driver ends the machine; "" where it does not
}

// New returns the life of a machine with that name.
func New(name string, log *slog.Logger) *Life {
	l := &Life{Name: name, Log: log, ready: make(chan struct{}), done: make(chan struct{})}
	l.ctx, l.begin = context.WithCancel(context.Background())
	return l
}

// Context ends when the machine begins to end.
func (l *Life) Context() context.Context { return l.ctx }

// BeginEnd ends the context. A second call does nothing.
func (l *Life) BeginEnd() { l.begin() }

// Ask notes that the user wants the machine's end. It ends nothing by itself, and has no effect on a condemned machine.
func (l *Life) Ask() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.asked = l.asked || l.reason == ""
}

// Condemn begins the machine's end for a reason. The first reason counts, and none where the user has asked for the end.
func (l *Life) Condemn(reason string) {
	l.mu.Lock()
	if !l.asked && l.reason == "" {
		l.reason = reason
	}
	l.mu.Unlock()
	l.begin()
}

// Condemned returns the reason of the first Condemn, "" where there is none.
func (l *Life) Condemned() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.reason
}

// Link speaks with the guest's agent over conn, which it owns, and lets Dial work. It returns when the machine begins to
// end, with nil, or when the guest breaks the link, which leaves a machine that is of no use: then it says why.
func (l *Life) Link(conn net.Conn) error {
	s, err := mux.Connect(l.ctx, conn)
	if err == nil {
		l.session = s
		close(l.ready)
		<-s.Done()
		err = s.Err()
		s.Close()
	}
	switch {
	case l.ctx.Err() != nil:
		return nil
	case errors.Is(err, mux.ErrProtocol):
		return err
	}
	t := time.NewTimer(linkGrace)
	defer t.Stop()
	select {
	case <-l.ctx.Done():
		return nil
	case <-t.C:
		return err
	}
}

// Ready is closed when the guest's agent has answered for the first time.
func (l *Life) Ready() <-chan struct{} { return l.ready }

// Dial opens a stream to a port of the guest, and waits for the agent's first answer until ctx or the machine ends. It
// does not wait for the guest to accept, so that a port on which nobody listens shows in the stream's first read.
func (l *Life) Dial(ctx context.Context, port uint32) (net.Conn, error) {
	select {
	case <-l.ready:
	default:
		select {
		case <-l.ready:
		case <-l.ctx.Done():
			return nil, fmt.Errorf("dial guest port %d: %w", port, l.Ended())
		case <-ctx.Done():
			return nil, fmt.Errorf("dial guest port %d: wait for the guest's agent: %w", port, context.Cause(ctx))
		}
	}
	c, err := l.session.Dial(ctx, port)
	if err == nil || ctx.Err() != nil {
		return c, err
	}
	// The session has ended, and with it the machine.
	select {
	case <-l.done:
		return nil, fmt.Errorf("dial guest port %d: %w", port, l.Ended())
	case <-ctx.Done():
		return nil, fmt.Errorf("dial guest port %d: %w", port, context.Cause(ctx))
	}
}

// End ends the life, once, when everything of the machine is released. Without a cause, or where the user has asked for
// it, the end is a good one; else Err has the cause and the last words of the guest.
func (l *Life) End(cause string) {
	l.begin()
	l.mu.Lock()
	asked := l.asked
	l.mu.Unlock()
	if cause != "" && !asked {
		if lines := l.Console.LastWords(); len(lines) > 0 {
			cause += "; last lines of the console:\n\t" + strings.Join(lines, "\n\t")
		}
		l.err = fmt.Errorf("machine %s: %w: %s", l.Name, errs.ErrUnavailable, cause)
		l.Log.Warn("machine ended", "error", l.err)
	} else {
		l.Log.Info("machine ended")
	}
	close(l.done)
}

// Ended waits for End and returns the error of calls to a machine that has ended: its Err, or one that wraps ErrClosed.
func (l *Life) Ended() error {
	<-l.done
	if l.err != nil {
		return l.err
	}
	return fmt.Errorf("machine %s has ended: %w", l.Name, errs.ErrClosed)
}

// Done is closed by End.
func (l *Life) Done() <-chan struct{} { return l.done }

// Err tells why the machine ended: nil before End and after a good end.
func (l *Life) Err() error {
	select {
	case <-l.done:
		return l.err
	default:
		return nil
	}
}

// Close asks for the end, brings it about with kill, which does not wait, and waits for it. It returns nil.
func (l *Life) Close(kill func()) error {
	l.Ask()
	kill()
	<-l.done
	return nil
}

// Shutdown asks the guest to end with powerOff, whose own errors mean nothing: a guest that is not there any more to hear
// it needs no question. It waits for the end, and brings it about with kill when ctx ends first: then its error is that
// of ctx.
func (l *Life) Shutdown(ctx context.Context, powerOff, kill func()) error {
	l.Ask()
	powerOff()
	select {
	case <-l.done:
		return nil
	case <-ctx.Done():
		l.Close(kill)
		return fmt.Errorf("shut down machine %s: killed: %w", l.Name, context.Cause(ctx))
	}
}

// ConsoleTail returns the last lines of the guest's console, at most console.MaxLines.
func (l *Life) ConsoleTail() string { return strings.Join(l.Console.Tail(console.MaxLines), "\n") }
