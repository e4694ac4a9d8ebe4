package agent_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/arcboxlabs/arcbox-go/agent"
	"github.com/arcboxlabs/arcbox-go/agent/agenttest"
	"github.com/arcboxlabs/arcbox-go/agent/api"
	"github.com/arcboxlabs/arcbox-go/internal/errs"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// commands are the programs of the tests' containers.
func commands() map[string]agenttest.Command {
	return map[string]agenttest.Command{
		"true": func(context.Context, *agenttest.Process) int { return 0 },
		"cat": func(_ context.Context, p *agenttest.Process) int {
			if _, err := io.Copy(p.Stdout, p.Stdin); err != nil {
				return 1
			}
			return 0
		},
		"hello": func(_ context.Context, p *agenttest.Process) int {
			fmt.Fprint(p.Stdout, "out")
			fmt.Fprint(p.Stderr, "err")
			return 3
		},
		"flood": func(ctx context.Context, p *agenttest.Process) int {
			for ctx.Err() == nil {
				if _, err := p.Stdout.Write(make([]byte, 1000)); err != nil {
					break
				}
			}
			return 1
		},
		"sleep": func(ctx context.Context, p *agenttest.Process) int {
			fmt.Fprint(p.Stdout, "ready")
			for {
				select {
				case n := <-p.Signals:
					if n == 15 {
						return 128 + n
					}
				case s := <-p.Sizes:
					fmt.Fprintf(p.Stdout, "%dx%d", s.Rows, s.Cols)
				case <-ctx.Done():
					return 0
				}
			}
		},
	}
}

func newClient(t *testing.T, missing ...string) (*agent.Client, *agenttest.Agent) {
	a := agenttest.New(commands(), missing...)
	t.Cleanup(a.Close)
	return agent.New(a.Dial), a
}

func request(id string, args ...string) api.CreateRequest {
	return api.CreateRequest{ID: id, Layers: []api.Layer{{Serial: "base"}}, Process: api.Process{Args: args}}
}

// run creates a container, attaches to it and starts it.
func run(t *testing.T, c *agent.Client, req api.CreateRequest, stdout, stderr io.Writer) *agent.Process {
	t.Helper()
	require.NoError(t, c.Create(t.Context(), req))
	p, err := c.Attach(t.Context(), api.AttachRequest{ID: req.ID, Stdin: true}, stdout, stderr)
	require.NoError(t, err)
	t.Cleanup(func() { p.Close() })
	_, err = c.Start(t.Context(), api.StartRequest{ID: req.ID})
	require.NoError(t, err)
	return p
}

func TestContainerLife(t *testing.T) {
	c, _ := newClient(t)
	ctx := t.Context()
	events, err := c.Events(ctx)
	require.NoError(t, err)
	var stdout, stderr bytes.Buffer
	require.NoError(t, c.Create(ctx, request("a", "hello")))
	require.ErrorIs(t, c.Create(ctx, request("a", "hello")), errs.ErrExists)
	require.ErrorIs(t, c.Kill(ctx, api.KillRequest{ID: "a", Signal: "TERM"}), errs.ErrConflict)
	p, err := c.Attach(ctx, api.AttachRequest{ID: "a"}, &stdout, &stderr)
	require.NoError(t, err)
	defer p.Close()
	rep, err := c.Start(ctx, api.StartRequest{ID: "a"})
	require.NoError(t, err)
	require.Positive(t, rep.PID)
	_, err = c.Start(ctx, api.StartRequest{ID: "a"})
	require.ErrorIs(t, err, errs.ErrConflict)
	exit, err := p.Wait(ctx)
	require.NoError(t, err)
	require.Equal(t, api.Exit{Code: 3}, exit)
	require.Equal(t, "out", stdout.String())
	require.Equal(t, "err", stderr.String())
	ev := <-events
	require.Equal(t, api.EventExit, ev.Kind)
	require.Equal(t, "a", ev.ID)
	require.Equal(t, 3, ev.Exit.Code)
	w, err := c.Wait(ctx, api.WaitRequest{ID: "a"})
	require.NoError(t, err)
	require.Equal(t, 3, w.Exit.Code)
	require.WithinDuration(t, time.Now(), w.At, time.Minute)
	late, err := c.Attach(ctx, api.AttachRequest{ID: "a"}, nil, nil)
	require.NoError(t, err)
	exit, err = late.Wait(ctx)
	require.NoError(t, err)
	require.Equal(t, 3, exit.Code)
	require.NoError(t, c.Remove(ctx, api.RemoveRequest{ID: "a"}))
	require.ErrorIs(t, c.Remove(ctx, api.RemoveRequest{ID: "a"}), errs.ErrNotFound)
	_, err = c.Wait(ctx, api.WaitRequest{ID: "a"})
	require.ErrorIs(t, err, errs.ErrNotFound)
	require.NoError(t, c.Create(ctx, request("a", "true")), "the id is free again")
}

func TestCommandThatDoesNotExist(t *testing.T) {
	c, _ := newClient(t)
	require.NoError(t, c.Create(t.Context(), request("a", "nope")))
	p, err := c.Attach(t.Context(), api.AttachRequest{ID: "a"}, nil, nil)
	require.NoError(t, err)
	_, err = c.Start(t.Context(), api.StartRequest{ID: "a"})
	require.ErrorIs(t, err, errs.ErrNoCommand)
	exit, err := p.Wait(t.Context())
	require.NoError(t, err)
	require.Equal(t, 127, exit.Code)
}

func TestStdin(t *testing.T) {
	c, _ := newClient(t)
	req := request("a", "cat")
	req.Process.Stdin = true
	var out bytes.Buffer
	p := run(t, c, req, &out, nil)
	text := strings.Repeat("0123456789abcdef", 20<<10)
	_, err := io.WriteString(p.Stdin(), text)
	require.NoError(t, err)
	require.NoError(t, p.Stdin().Close())
	require.NoError(t, p.Stdin().Close())
	_, err = p.Stdin().Write([]byte("x"))
	require.ErrorIs(t, err, errs.ErrClosed)
	exit, err := p.Wait(t.Context())
	require.NoError(t, err)
	require.Equal(t, 0, exit.Code)
	require.Equal(t, text, out.String())
}

// started is a writer that tells when the process has written its first bytes.
type started struct {
	once sync.Once
	ch   chan struct{}
	mu   sync.Mutex
	all  bytes.Buffer
	more chan string
}

func newStarted() *started { return &started{ch: make(chan struct{}), more: make(chan string, 100)} }

func (s *started) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.all.Write(p)
	s.more <- string(p)
	s.once.Do(func() { close(s.ch) })
	return len(p), nil
}

func TestSignalsAndSizes(t *testing.T) {
	c, _ := newClient(t)
	req := request("a", "sleep")
	req.Process.TTY = true
	out := newStarted()
	p := run(t, c, req, out, nil)
	require.Equal(t, "ready", <-out.more)
	require.NoError(t, p.Resize(api.Size{Rows: 24, Cols: 80}))
	require.Equal(t, "24x80", <-out.more)
	require.ErrorIs(t, c.Kill(t.Context(), api.KillRequest{ID: "a", Signal: "NOPE"}), errs.ErrInvalid)
	require.ErrorIs(t, c.Remove(t.Context(), api.RemoveRequest{ID: "a"}), errs.ErrConflict)
	require.NoError(t, p.Signal("NOPE"))
	require.NoError(t, p.Signal("TERM"))
	exit, err := p.Wait(t.Context())
	require.NoError(t, err)
	require.Equal(t, 143, exit.Code)
	require.NoError(t, p.Stdin().Close(), "a process that has ended has no input")
	require.ErrorIs(t, c.Kill(t.Context(), api.KillRequest{ID: "a", Signal: "9"}), errs.ErrConflict)
}

func TestForcedRemoveKills(t *testing.T) {
	c, _ := newClient(t)
	out := newStarted()
	p := run(t, c, request("a", "sleep"), out, nil)
	<-out.ch
	require.NoError(t, c.Remove(t.Context(), api.RemoveRequest{ID: "a", Force: true}))
	exit, err := p.Wait(t.Context())
	require.NoError(t, err)
	require.Equal(t, api.Exit{Code: 137, Signal: "KILL"}, exit)
}

func TestDetachLeavesTheProcess(t *testing.T) {
	c, _ := newClient(t)
	out := newStarted()
	p := run(t, c, request("a", "sleep"), out, nil)
	<-out.ch
	require.NoError(t, p.Close())
	require.NoError(t, p.Close())
	_, err := p.Wait(t.Context())
	require.ErrorIs(t, err, errs.ErrClosed)
	require.Error(t, p.Resize(api.Size{}))
	require.NoError(t, c.Kill(t.Context(), api.KillRequest{ID: "a", Signal: "SIGTERM"}))
	w, err := c.Wait(t.Context(), api.WaitRequest{ID: "a"})
	require.NoError(t, err)
	require.Equal(t, 143, w.Exit.Code)
}

func TestSlowReaderHoldsUpItsOwnProcessOnly(t *testing.T) {
	c, _ := newClient(t)
	release, blocked := make(chan struct{}), make(chan struct{})
	var once sync.Once
	p := run(t, c, request("slow", "flood"), writerFunc(func(b []byte) (int, error) {
		once.Do(func() { close(blocked) })
		<-release
		return len(b), nil
	}), nil)
	<-blocked
	var out bytes.Buffer
	exit, err := run(t, c, request("other", "hello"), &out, nil).Wait(t.Context())
	require.NoError(t, err)
	require.Equal(t, 3, exit.Code)
	// Its exit does not wait for the reader either, but for those who have what it wrote.
	require.NoError(t, c.Kill(t.Context(), api.KillRequest{ID: "slow", Signal: "KILL"}))
	w, err := c.Wait(t.Context(), api.WaitRequest{ID: "slow"})
	require.NoError(t, err)
	require.Equal(t, 137, w.Exit.Code)
	select {
	case <-p.Done():
		t.Fatal("the attached stream ended before its output was read")
	default:
	}
	close(release)
	exit, err = p.Wait(t.Context())
	require.NoError(t, err)
	require.Equal(t, 137, exit.Code)
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

func TestWriterErrorEndsTheAttachment(t *testing.T) {
	c, _ := newClient(t)
	bad := errors.New("disk full")
	p := run(t, c, request("a", "hello"), writerFunc(func([]byte) (int, error) { return 0, bad }), nil)
	_, err := p.Wait(t.Context())
	require.ErrorIs(t, err, bad)
	w, err := c.Wait(t.Context(), api.WaitRequest{ID: "a"})
	require.NoError(t, err)
	require.Equal(t, 3, w.Exit.Code)
}

func TestCancelledWaitsAndCreates(t *testing.T) {
	c, _ := newClient(t, "late")
	_, err := c.Ping(t.Context())
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	req := request("a", "true")
	req.Layers[0].Serial = "late"
	done := make(chan error)
	go func() { done <- c.Create(ctx, req) }()
	cancel()
	require.ErrorIs(t, <-done, context.Canceled)

	p := run(t, c, request("b", "sleep"), nil, nil)
	ctx, cancel = context.WithCancel(t.Context())
	go func() {
		_, err := c.Wait(ctx, api.WaitRequest{ID: "b"})
		done <- err
	}()
	cancel()
	require.ErrorIs(t, <-done, context.Canceled)
	ctx, cancel = context.WithCancel(t.Context())
	cancel()
	_, err = p.Wait(ctx)
	require.ErrorIs(t, err, context.Canceled)
}

func TestAgentThatGoesAway(t *testing.T) {
	c, a := newClient(t)
	events, err := c.Events(t.Context())
	require.NoError(t, err)
	p := run(t, c, request("a", "sleep"), nil, nil)
	a.Close()
	for range events { // the exit of a, perhaps, then the end
	}
	<-p.Done()
	_, err = c.Ping(t.Context())
	require.ErrorIs(t, err, errs.ErrUnavailable)
	near, far := net.Pipe()
	a.Serve(far)
	_, err = near.Read(make([]byte, 1))
	require.Equal(t, io.EOF, err)
}

func TestPoweroff(t *testing.T) {
	c, a := newClient(t)
	off := make(chan struct{})
	a.OnPoweroff = func() { close(off) }
	run(t, c, request("a", "sleep"), nil, nil)
	require.NoError(t, c.Poweroff(t.Context()))
	<-off
	require.ErrorIs(t, c.Create(t.Context(), request("b", "true")), errs.ErrClosed)
	_, err := c.VsockCheck(t.Context())
	require.ErrorIs(t, err, errs.ErrUnsupported)
}

func TestOtherVersionIsRefused(t *testing.T) {
	m := &api.Mux{}
	api.Handle(m, api.Ping, func(context.Context, api.PingRequest) (api.PingReply, error) {
		return api.PingReply{Version: api.Version + 1}, nil
	})
	var wg sync.WaitGroup
	defer wg.Wait()
	c := agent.New(func(ctx context.Context) (net.Conn, error) {
		near, far := net.Pipe()
		wg.Go(func() { m.ServeConn(ctx, far) })
		return near, nil
	})
	for range 2 {
		require.ErrorIs(t, c.Create(t.Context(), request("a", "true")), errs.ErrUnsupported)
	}
	_, err := c.Events(t.Context())
	require.ErrorIs(t, err, errs.ErrUnsupported)
}

func TestHostileAgent(t *testing.T) {
	for name, frames := range map[string]func(*api.Stream){
		"garbage exit":     func(s *api.Stream) { s.Send(api.FrameExit, []byte("{")) },
		"unexpected frame": func(s *api.Stream) { s.Send(api.FrameStdin, nil) },
		"error":            func(s *api.Stream) { s.SendJSON(api.FrameError, errs.ToRemote(errs.ErrCorrupt)) },
		"end":              func(*api.Stream) {},
		"unknown frame":    func(s *api.Stream) { s.Send(99, nil) },
	} {
		t.Run(name, func(t *testing.T) {
			m := &api.Mux{}
			api.Handle(m, api.Ping, func(context.Context, api.PingRequest) (api.PingReply, error) {
				return api.PingReply{Version: api.Version}, nil
			})
			api.HandleStream(m, api.Attach, func(_ context.Context, _ api.AttachRequest, s *api.Stream, accept func() error) error {
				defer s.Close()
				if err := accept(); err != nil {
					return err
				}
				frames(s)
				return nil
			})
			api.HandleStream(m, api.Events, func(_ context.Context, _ api.EventsRequest, s *api.Stream, accept func() error) error {
				defer s.Close()
				if err := accept(); err != nil {
					return err
				}
				frames(s)
				return nil
			})
			var wg sync.WaitGroup
			defer wg.Wait()
			c := agent.New(func(ctx context.Context) (net.Conn, error) {
				near, far := net.Pipe()
				wg.Go(func() { m.ServeConn(t.Context(), far) })
				return near, nil
			})
			p, err := c.Attach(t.Context(), api.AttachRequest{ID: "a"}, nil, nil)
			require.NoError(t, err)
			_, err = p.Wait(t.Context())
			require.Error(t, err)
			events, err := c.Events(t.Context())
			require.NoError(t, err)
			for e := range events {
				t.Fatal("an event from nothing:", e)
			}
		})
	}
}

func TestRemoveKeeps(t *testing.T) {
	c, _ := newClient(t)
	ctx := t.Context()
	req := api.CreateRequest{ID: "c", Layers: []api.Layer{{Serial: "l"}}, Process: api.Process{Args: []string{"true"}}}
	require.NoError(t, c.Create(ctx, req))
	require.NoError(t, c.Remove(ctx, api.RemoveRequest{ID: "c", Keep: true}))
	require.ErrorIs(t, c.Remove(ctx, api.RemoveRequest{ID: "c", Keep: true}), errs.ErrNotFound)
	require.NoError(t, c.Remove(ctx, api.RemoveRequest{ID: "c"}), "known by what it wrote only")
	require.ErrorIs(t, c.Remove(ctx, api.RemoveRequest{ID: "c"}), errs.ErrNotFound)
	require.ErrorIs(t, c.Remove(ctx, api.RemoveRequest{ID: "../c"}), errs.ErrNotFound)
	require.NoError(t, c.Create(ctx, req))
	require.NoError(t, c.Remove(ctx, api.RemoveRequest{ID: "c"}))
	require.ErrorIs(t, c.Remove(ctx, api.RemoveRequest{ID: "c"}), errs.ErrNotFound)
}
