package api

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

type text struct {
	S string `json:"s"`
}

// The methods of the tests.
var (
	echo  = Method[text, text]{"echo"}
	count = StreamMethod[int]{"count"}
)

// serve serves m on pipes and returns how to open one. All handlers have ended when the test has.
func serve(t *testing.T, m *Mux) DialFunc {
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	t.Cleanup(func() {
		cancel()
		wg.Wait()
	})
	return func(context.Context) (net.Conn, error) {
		near, far := net.Pipe()
		wg.Go(func() { m.ServeConn(ctx, far) })
		return near, nil
	}
}

func TestCall(t *testing.T) {
	m := &Mux{}
	Handle(m, echo, func(_ context.Context, req text) (text, error) {
		switch req.S {
		case "conflict":
			return text{}, errs.ErrConflict
		case "panic":
			panic("boom")
		case "long":
			return text{}, errors.New(strings.Repeat("x", MaxFrame))
		case "huge":
			return text{strings.Repeat("x", MaxFrame)}, nil
		}
		return req, nil
	})
	dial := serve(t, m)
	ctx := t.Context()

	rep, err := Call(ctx, dial, echo, text{"hello"})
	require.NoError(t, err)
	require.Equal(t, "hello", rep.S)

	_, err = Call(ctx, dial, echo, text{"conflict"})
	require.ErrorIs(t, err, errs.ErrConflict)

	_, err = Call(ctx, dial, echo, text{"panic"})
	require.ErrorContains(t, err, "boom")
	_, err = Call(ctx, dial, echo, text{"still serves"})
	require.NoError(t, err)

	_, err = Call(ctx, dial, echo, text{"long"})
	require.ErrorContains(t, err, "xxx...")
	_, err = Call(ctx, dial, echo, text{"huge"})
	require.ErrorContains(t, err, "more than")
	_, err = Call(ctx, dial, echo, text{strings.Repeat("x", MaxFrame)})
	require.ErrorContains(t, err, "more than")

	_, err = Call(ctx, dial, Method[text, text]{"nope"}, text{})
	require.ErrorIs(t, err, errs.ErrUnsupported)
	_, err = Call(ctx, dial, Method[int, text]{"echo"}, 5)
	require.ErrorIs(t, err, errs.ErrInvalid)
	_, err = Call(ctx, dial, Method[text, int]{"echo"}, text{"x"})
	require.ErrorContains(t, err, "decode reply")
}

func TestCancelledCallCancelsTheHandler(t *testing.T) {
	m := &Mux{}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	Handle(m, echo, func(hctx context.Context, _ text) (text, error) {
		cancel()
		<-hctx.Done()
		close(ended)
		return text{}, hctx.Err()
	})
	_, err := Call(ctx, serve(t, m), echo, text{})
	require.ErrorIs(t, err, context.Canceled)
	<-ended
}

// TestUndoOfWhatTheCallerDoesNotKnow has a handler that succeeds after its caller has gone.
func TestUndoOfWhatTheCallerDoesNotKnow(t *testing.T) {
	m := &Mux{}
	begun, undone := make(chan struct{}), make(chan string, 1)
	HandleUndo(m, echo, func(ctx context.Context, req text) (text, func(), error) {
		switch req.S {
		case "fails":
			return text{}, nil, errs.ErrConflict
		case "late":
			close(begun)
			<-ctx.Done()
		}
		return req, func() { undone <- req.S }, nil
	})
	dial := serve(t, m)
	_, err := Call(t.Context(), dial, echo, text{"fails"})
	require.ErrorIs(t, err, errs.ErrConflict)
	_, err = Call(t.Context(), dial, echo, text{"known"})
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-begun
		cancel()
	}()
	_, err = Call(ctx, dial, echo, text{"late"})
	require.ErrorIs(t, err, context.Canceled)
	require.Equal(t, "late", <-undone)
}

func TestThenRunsWhenTheCallerHasTheReply(t *testing.T) {
	m := &Mux{}
	got, ran := make(chan struct{}), make(chan struct{})
	HandleThen(m, echo, func(_ context.Context, req text) (text, error) {
		if req.S == "" {
			return text{}, errs.ErrInvalid
		}
		return req, nil
	}, func(ctx context.Context) {
		<-ctx.Done()
		<-got
		close(ran)
	})
	dial := serve(t, m)
	_, err := Call(t.Context(), dial, echo, text{})
	require.ErrorIs(t, err, errs.ErrInvalid)
	rep, err := Call(t.Context(), dial, echo, text{"x"})
	require.NoError(t, err)
	require.Equal(t, "x", rep.S)
	close(got)
	<-ran
}

func TestServeConnEndsWithItsContext(t *testing.T) {
	m := &Mux{}
	ctx, cancel := context.WithCancel(t.Context())
	Handle(m, echo, func(hctx context.Context, _ text) (text, error) {
		cancel()
		<-hctx.Done()
		return text{}, hctx.Err()
	})
	near, far := net.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		m.ServeConn(ctx, far)
	}()
	_, err := Call(t.Context(), func(context.Context) (net.Conn, error) { return near, nil }, echo, text{})
	require.Error(t, err) // that of the handler, or of the broken stream
	<-done
}

func TestCallWhenTheOtherSideGoes(t *testing.T) {
	for name, far := range map[string]func(net.Conn){
		"at once":           func(c net.Conn) { c.Close() },
		"after the request": func(c net.Conn) { ReadFrame(c); c.Close() },
		"in the reply":      func(c net.Conn) { ReadFrame(c); c.Write([]byte{byte(FrameReply), 0}); c.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Call(t.Context(), dialTo(t, far), echo, text{})
			require.ErrorIs(t, err, errs.ErrUnavailable)
		})
	}
	t.Run("with another frame", func(t *testing.T) {
		_, err := Call(t.Context(), dialTo(t, func(c net.Conn) {
			ReadFrame(c)
			WriteFrame(c, FrameStdout, nil)
			c.Close()
		}), echo, text{})
		require.ErrorContains(t, err, "unexpected frame")
	})
	t.Run("dial fails", func(t *testing.T) {
		_, err := Call(t.Context(), func(context.Context) (net.Conn, error) { return nil, errs.ErrClosed }, echo, text{})
		require.ErrorIs(t, err, errs.ErrClosed)
	})
}

// dialTo gives the far end of each connection to fn.
func dialTo(t *testing.T, fn func(net.Conn)) DialFunc {
	var wg sync.WaitGroup
	t.Cleanup(wg.Wait)
	return func(context.Context) (net.Conn, error) {
		near, far := net.Pipe()
		wg.Go(func() { fn(far) })
		return near, nil
	}
}

func TestStreamMethod(t *testing.T) {
	m := &Mux{}
	HandleStream(m, count, func(ctx context.Context, n int, s *Stream, accept func() error) error {
		if n < 0 {
			return errs.ErrInvalid
		}
		if err := accept(); err != nil {
			return err
		}
		for i := range n {
			if err := s.Send(FrameStdout, []byte{byte(i)}); err != nil {
				return err
			}
		}
		return errs.ErrClosed
	})
	dial := serve(t, m)
	_, err := Open(t.Context(), dial, count, -1)
	require.ErrorIs(t, err, errs.ErrInvalid)

	s, err := Open(t.Context(), dial, count, 3)
	require.NoError(t, err)
	defer s.Close()
	for i := range 3 {
		kind, p, err := s.Recv()
		require.NoError(t, err)
		require.Equal(t, FrameStdout, kind)
		require.Equal(t, []byte{byte(i)}, p)
	}
	kind, p, err := s.Recv()
	require.NoError(t, err)
	require.Equal(t, FrameError, kind)
	require.ErrorIs(t, DecodeError(p), errs.ErrClosed)
	_, _, err = s.Recv()
	require.Equal(t, io.EOF, err)
	require.Error(t, DecodeError([]byte("{")))
}

func TestBadRequestsAreAnswered(t *testing.T) {
	m := &Mux{}
	near, far := net.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		m.ServeConn(t.Context(), far)
	}()
	require.NoError(t, WriteFrame(near, FrameRequest, []byte("not json")))
	kind, p, err := ReadFrame(near)
	require.NoError(t, err)
	require.Equal(t, FrameError, kind)
	require.ErrorIs(t, DecodeError(p), errs.ErrInvalid)
	<-done

	near, far = net.Pipe()
	go WriteFrame(near, FrameStdin, nil)
	m.ServeConn(t.Context(), far) // returns: no request, no answer
	near.Close()
}

func TestReadFrameBounds(t *testing.T) {
	header := func(kind byte, n uint32) string {
		return string(binary.BigEndian.AppendUint32([]byte{kind}, n))
	}
	for name, tc := range map[string]struct {
		in   string
		want error
	}{
		"nothing":        {"", io.EOF},
		"half a header":  {header(1, 0)[:3], io.ErrUnexpectedEOF},
		"half a payload": {header(1, 4) + "ab", io.ErrUnexpectedEOF},
		"no payload":     {header(1, 4), io.ErrUnexpectedEOF},
	} {
		t.Run(name, func(t *testing.T) {
			_, _, err := ReadFrame(strings.NewReader(tc.in))
			require.Equal(t, tc.want, err)
		})
	}
	_, _, err := ReadFrame(strings.NewReader(header(1, MaxFrame+1)))
	require.ErrorContains(t, err, "more than")
	_, _, err = ReadFrame(strings.NewReader(header(0, 0)))
	require.ErrorContains(t, err, "unknown type")
	_, _, err = ReadFrame(strings.NewReader(header(byte(frameEnd), 0)))
	require.ErrorContains(t, err, "unknown type")
	require.Error(t, WriteFrame(io.Discard, FrameStdin, make([]byte, MaxFrame+1)))
	require.NoError(t, WriteFrame(io.Discard, FrameStdin, make([]byte, MaxFrame)))
	require.Error(t, NewStream(nil).SendJSON(FrameReply, make(chan int)))
}

func TestSendFromManyGoroutinesKeepsFramesWhole(t *testing.T) {
	near, far := net.Pipe()
	s, r := NewStream(near), NewStream(far)
	defer r.Close()
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			for range 50 {
				if err := s.Send(FrameStdout, []byte(strings.Repeat(string(rune('a'+g)), 100))); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	go func() {
		wg.Wait()
		s.Close()
		s.Close()
	}()
	n := 0
	for {
		_, p, err := r.Recv()
		if err == io.EOF {
			break
		}
		require.NoError(t, err)
		require.Equal(t, strings.Repeat(string(p[0]), 100), string(p))
		n++
	}
	require.Equal(t, 400, n)
}

func FuzzReadFrame(f *testing.F) {
	f.Add([]byte{})
	f.Add([]byte{1, 0, 0, 0, 2, 'h', 'i', 9, 0, 0, 0, 0})
	f.Add([]byte{1, 0xff, 0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, in []byte) {
		r := strings.NewReader(string(in))
		for {
			kind, p, err := ReadFrame(r)
			if err != nil {
				return
			}
			var b strings.Builder
			require.NoError(t, WriteFrame(&b, kind, p))
			require.Contains(t, string(in), b.String())
		}
	})
}

func FuzzServeConn(f *testing.F) {
	for _, v := range []any{request{"echo", json.RawMessage(`{"s":"x"}`)}, request{"count", json.RawMessage("3")}, "x"} {
		p, err := json.Marshal(v)
		require.NoError(f, err)
		var b strings.Builder
		require.NoError(f, WriteFrame(&b, FrameRequest, p))
		f.Add([]byte(b.String()))
	}
	m := &Mux{}
	Handle(m, echo, func(_ context.Context, req text) (text, error) { return req, nil })
	HandleStream(m, count, func(_ context.Context, n int, s *Stream, accept func() error) error {
		if n > 5 {
			return errs.ErrInvalid
		}
		return accept()
	})
	f.Fuzz(func(t *testing.T, in []byte) {
		near, far := net.Pipe()
		var wg sync.WaitGroup
		wg.Go(func() {
			near.Write(in)
			near.Close()
		})
		wg.Go(func() { io.Copy(io.Discard, near) })
		m.ServeConn(t.Context(), far) // always returns
		wg.Wait()
	})
}

// watched is of a type that counts how often the JSON package looks at it.
type watched struct{}

var looks struct{ read, written atomic.Int32 }

func (*watched) UnmarshalJSON([]byte) error { looks.read.Add(1); return errors.New("unreadable") }

func (watched) MarshalJSON() ([]byte, error) {
	looks.written.Add(1)
	return nil, errors.New("cannot be written")
}

func TestLearnLooksAtAllTypes(t *testing.T) {
	m := &Mux{}
	Handle(m, Method[watched, watched]{"a"}, func(context.Context, watched) (watched, error) { panic("called") })
	HandleUndo(m, Method[watched, watched]{"b"}, func(context.Context, watched) (watched, func(), error) { panic("called") })
	HandleStream(m, StreamMethod[watched]{"c"}, func(context.Context, watched, *Stream, func() error) error { panic("called") })
	m.Learn()
	require.EqualValues(t, 5, looks.read.Load())
	require.EqualValues(t, 5, looks.written.Load())
}
