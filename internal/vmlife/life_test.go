package vmlife

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
	"github.com/arcboxlabs/arcbox-go/internal/mux"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func newLife() *Life { return New("m", slog.New(slog.DiscardHandler)) }

// TestEnd: what comes first decides how a machine ended.
func TestEnd(t *testing.T) {
	ask := (*Life).Ask
	condemn := func(why string) func(*Life) { return func(l *Life) { l.Condemn(why) } }
	for name, c := range map[string]struct {
		before []func(*Life)
		cause  string // of End; "" is that of Condemn
		want   string // "" is a good end
	}{
		"by itself":               {},
		"for a cause":             {nil, "it burnt", "it burnt"},
		"asked":                   {[]func(*Life){ask}, "it burnt", ""},
		"condemned":               {[]func(*Life){condemn("bad")}, "", "bad"},
		"condemned twice":         {[]func(*Life){condemn("bad"), condemn("worse")}, "", "bad"},
		"asked, then condemned":   {[]func(*Life){ask, condemn("bad")}, "", ""},
		"condemned, then asked":   {[]func(*Life){condemn("bad"), ask}, "", "bad"},
		"condemned, with a cause": {[]func(*Life){condemn("bad")}, "the kernel panicked", "the kernel panicked"},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLife()
			io.WriteString(&l.Console, "last \x1b[31mwords\n")
			for _, f := range c.before {
				f(l)
			}
			require.NoError(t, l.Err(), "it has not ended yet")
			cause := c.cause
			if cause == "" {
				cause = l.Condemned()
			}
			l.End(cause)
			require.Error(t, l.Context().Err())
			<-l.Done()
			if c.want == "" {
				require.NoError(t, l.Err())
				require.ErrorIs(t, l.Ended(), errs.ErrClosed)
			} else {
				require.EqualError(t, l.Err(), "machine m: "+errs.ErrUnavailable.Error()+": "+c.want+
					"; last lines of the console:\n\tlast words")
				require.Equal(t, l.Err(), l.Ended())
			}
			require.Equal(t, "last words", l.ConsoleTail())
			_, err := l.Dial(t.Context(), 1)
			require.ErrorContains(t, err, l.Ended().Error())
			require.NoError(t, l.Close(func() {}))
			require.NoError(t, l.Shutdown(t.Context(), func() {}, func() {}))
		})
	}
}

// owner ends a life as a driver does, when it is told to.
func owner(l *Life) (kill func()) {
	var once sync.Once
	return func() { once.Do(func() { go l.End("killed") }) }
}

func TestCloseWaits(t *testing.T) {
	l := newLife()
	kill := owner(l)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			l.Close(kill)
			select {
			case <-l.Done():
			default:
				t.Error("Close returned before the end")
			}
		})
	}
	wg.Wait()
	require.NoError(t, l.Err())
}

func TestShutdown(t *testing.T) {
	t.Run("heard", func(t *testing.T) {
		l := newLife()
		require.NoError(t, l.Shutdown(t.Context(), owner(l), func() { t.Error("killed") }))
		require.NoError(t, l.Err())
	})
	t.Run("not heard", func(t *testing.T) {
		l := newLife()
		why := errors.New("out of patience")
		ctx, cancel := context.WithCancelCause(t.Context())
		require.ErrorIs(t, l.Shutdown(ctx, func() { cancel(why) }, owner(l)), why)
		<-l.Done()
		require.NoError(t, l.Err())
	})
}

// guest serves the other end of a link: port 1 is an echo.
func guest(t *testing.T) net.Conn {
	ours, theirs := net.Pipe()
	var l mux.Listener
	l.Handle(1, func(c net.Conn) { io.Copy(c, c) })
	served := make(chan struct{})
	go func() {
		defer close(served)
		l.Serve(t.Context(), once{theirs})
	}()
	t.Cleanup(func() {
		theirs.Close()
		<-served
	})
	return ours
}

// once is a link whose host does not come back.
type once struct{ net.Conn }

func (once) WaitPeer(context.Context) error { return io.ErrClosedPipe }

func TestLink(t *testing.T) {
	l := newLife()
	conn := guest(t)
	dialed := make(chan error, 1)
	go func() { // waits for the link
		c, err := l.Dial(t.Context(), 1)
		if err == nil {
			c.Close()
		}
		dialed <- err
	}()
	linked := make(chan error, 1)
	go func() { linked <- l.Link(conn) }()
	<-l.Ready()
	require.NoError(t, <-dialed)

	c, err := l.Dial(t.Context(), 1)
	require.NoError(t, err)
	_, err = c.Write([]byte("x"))
	require.NoError(t, err)
	_, err = io.ReadFull(c, make([]byte, 1))
	require.NoError(t, err)

	l.BeginEnd()
	conn.Close()
	require.NoError(t, <-linked, "the machine's end is not the link's fault")
	_, err = c.Read(make([]byte, 1))
	require.ErrorIs(t, err, errs.ErrUnavailable)
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("out of patience")
	cancel(why)
	_, err = l.Dial(ctx, 1)
	require.Error(t, err, "it does not wait for the end longer than its context")
	l.End("")
	_, err = l.Dial(t.Context(), 1)
	require.ErrorIs(t, err, errs.ErrClosed)
}

// TestBrokenLink: a link that breaks alone is the guest's fault, one that the machine's end follows is not.
func TestBrokenLink(t *testing.T) {
	for name, c := range map[string]struct {
		after time.Duration // the machine ends
		fault bool
	}{
		"at once": {0, false},
		"soon":    {linkGrace - time.Millisecond, false},
		"late":    {linkGrace + time.Millisecond, true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := newLife()
				ours, theirs := net.Pipe()
				theirs.Close()
				t.Cleanup(func() { l.End("") })
				if c.after == 0 {
					l.BeginEnd()
				} else {
					end := time.AfterFunc(c.after, l.BeginEnd)
					defer end.Stop()
				}
				err := l.Link(ours)
				require.Equal(t, c.fault, err != nil, "%v", err)
			})
		})
	}
}

func TestDialGivesUp(t *testing.T) {
	l := newLife()
	why := errors.New("out of patience")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(why)
	_, err := l.Dial(ctx, 1)
	require.ErrorIs(t, err, why)
	l.End("it burnt")
	_, err = l.Dial(t.Context(), 1)
	require.ErrorContains(t, err, "it burnt")
}

// TestGroup hammers a group that closes: what it let in is waited for.
func TestGroup(t *testing.T) {
	for range 100 {
		var g Group
		var in, ran sync.Map
		var wg sync.WaitGroup
		for i := range 8 {
			wg.Go(func() {
				if g.Go(func() { ran.Store(i, true) }) {
					in.Store(i, true)
				}
			})
		}
		g.Close()
		g.Close()
		g.Wait()
		wg.Wait()
		in.Range(func(i, _ any) bool {
			_, ok := ran.Load(i)
			require.True(t, ok)
			return true
		})
		require.False(t, g.Go(func() { t.Error("late") }))
	}
}
