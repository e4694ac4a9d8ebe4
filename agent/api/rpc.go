package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"reflect"
	"runtime/debug"
	"slices"
	"sync"
	"time"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
)

// Method is a call with one request and one reply.
type Method[Req, Rep any] struct{ Name string }

// StreamMethod is a call whose stream stays open after the request was accepted.
type StreamMethod[Req any] struct{ Name string }

// DialFunc opens a stream to the other side.
type DialFunc func(context.Context) (net.Conn, error)

type request struct {
	Method string          `json:"method"`
	Body   json.RawMessage `json:"body"`
}

// Call opens a stream, sends req, and waits for the reply. When ctx ends, the stream is closed, which cancels the
// handler's context on the other side, and the error is that of ctx.
func Call[Req, Rep any](ctx context.Context, dial DialFunc, m Method[Req, Rep], req Req) (Rep, error) {
	var rep Rep
	s, body, err := begin(ctx, dial, m.Name, req)
	if err != nil {
		return rep, err
	}
	defer s.Close()
	if err := json.Unmarshal(body, &rep); err != nil {
		return rep, fmt.Errorf("%s: decode reply: %w", m.Name, err)
	}
	return rep, nil
}

// Open opens a stream, sends req, and returns the stream once the other side has accepted it. ctx bounds the opening
// only; the caller closes the stream.
func Open[Req any](ctx context.Context, dial DialFunc, m StreamMethod[Req], req Req) (*Stream, error) {
	s, _, err := begin(ctx, dial, m.Name, req)
	return s, err
}

// begin does what Call and Open share: request out, reply or error in. The stream is closed where it returns an error.
func begin(ctx context.Context, dial DialFunc, name string, req any) (_ *Stream, body []byte, err error) {
	conn, err := dial(ctx)
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", name, err)
	}
	s := NewStream(conn)
	stop := context.AfterFunc(ctx, func() { s.Close() })
	defer func() {
		if !stop() && err == nil {
			err = ctx.Err() // ctx ended and has closed the stream
		}
		if err != nil {
			s.Close()
			if ctx.Err() != nil {
				err = ctx.Err()
			}
			err = fmt.Errorf("%s: %w", name, err)
		}
	}()
	b, err := json.Marshal(req)
	if err != nil {
		return nil, nil, fmt.Errorf("encode request: %w", err)
	}
	if err := s.SendJSON(FrameRequest, request{name, b}); err != nil {
		return nil, nil, errors.Join(errs.ErrUnavailable, err)
	}
	t, p, err := s.Recv()
	switch {
	case err != nil:
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return nil, nil, errors.Join(errs.ErrUnavailable, err)
	case t == FrameError:
		return nil, nil, DecodeError(p)
	case t != FrameReply:
		return nil, nil, fmt.Errorf("unexpected frame %d", t)
	}
	return s, p, nil
}

// DecodeError turns the payload of a FrameError into an error that wraps the sentinel of the other side.
func DecodeError(p []byte) error {
	var r errs.Remote
	if err := json.Unmarshal(p, &r); err != nil {
		return fmt.Errorf("decode error: %w", err)
	}
	return &r
}

// Stream carries frames over one connection. Send may be called from many goroutines, Recv from one at a time.
type Stream struct {
	conn net.Conn
	wmu  sync.Mutex
	buf  []byte // of the frame that is sent; under wmu
	once sync.Once
	err  error

	readers sync.WaitGroup // of HandleFrames
}

// NewStream wraps conn. Closing the stream closes it.
func NewStream(conn net.Conn) *Stream { return &Stream{conn: conn} }

// Send writes one frame.
func (s *Stream) Send(t FrameType, payload []byte) error {
	s.wmu.Lock()
	defer s.wmu.Unlock()
	var err error
	if s.buf, err = writeFrame(s.conn, s.buf, t, payload); cap(s.buf) > 2*ChunkSize {
		s.buf = nil
	}
	return err
}

// SendJSON writes one frame with v encoded as JSON.
func (s *Stream) SendJSON(t FrameType, v any) error {
	s.wmu.Lock()
	defer s.wmu.Unlock()
	return writeJSON(s.conn, t, v)
}

// Recv reads one frame. It returns io.EOF when the other side has closed the stream between two frames.
func (s *Stream) Recv() (FrameType, []byte, error) { return ReadFrame(s.conn) }

// CloseRead is for handlers that only send: it reads and drops what comes, and returns a context that ends when the
// other side closes the stream. Recv must not be called any more. The reading ends with the stream, and ServeConn waits
// for it.
func (s *Stream) CloseRead(ctx context.Context) context.Context {
	return s.HandleFrames(ctx, func(FrameType, []byte) bool { return true })
}

// HandleFrames is for handlers that send and receive at once: it reads frames and gives each to fn, and returns a
// context that ends when fn returns false or the other side closes the stream. Recv must not be called any more. The
// reading ends with the stream, and ServeConn waits for it, so fn must not wait for longer than the handler runs.
func (s *Stream) HandleFrames(ctx context.Context, fn func(FrameType, []byte) bool) context.Context {
	ctx, cancel := context.WithCancel(ctx)
	s.readers.Go(func() {
		defer cancel()
		for {
			kind, p, err := s.Recv()
			if err != nil || !fn(kind, p) {
				return
			}
		}
	})
	return ctx
}

// Gone is closed once the other side has closed the stream, also where frames that it sent before were not received yet.
// It is nil, which never says so, where the transport does not tell.
func (s *Stream) Gone() <-chan struct{} {
	if c, ok := s.conn.(interface{ Gone() <-chan struct{} }); ok {
		return c.Gone()
	}
	return nil
}

// Close closes the connection. A second call does nothing and returns the same error.
func (s *Stream) Close() error {
	s.once.Do(func() { s.err = s.conn.Close() })
	return s.err
}

// Mux serves methods. Register handlers first, then call ServeConn for each connection.
type Mux struct {
	handlers map[string]func(context.Context, json.RawMessage, *Stream) error
	types    []reflect.Type // of requests and replies
}

func (m *Mux) add(name string, h func(context.Context, json.RawMessage, *Stream) error, types ...reflect.Type) {
	if m.handlers == nil {
		m.handlers = make(map[string]func(context.Context, json.RawMessage, *Stream) error)
	}
	m.handlers[name] = h
	m.types = append(m.types, types...)
}

// Learn has the JSON package look at the types of all requests, replies and frames, which it else does when it first sees
// each of them. A guest does it before it is saved.
func (m *Mux) Learn() {
	frames := []reflect.Type{
		reflect.TypeFor[request](), reflect.TypeFor[errs.Remote](), reflect.TypeFor[Event](), reflect.TypeFor[Exit](),
		reflect.TypeFor[LogRecord](),
	}
	for _, t := range slices.Concat(m.types, frames) {
		v := reflect.New(t).Interface()
		_ = json.Unmarshal([]byte("{}"), v)
		_, _ = json.Marshal(v)
	}
}

// Handle registers fn for a method. Its context ends when the caller goes away. A panic in fn becomes an error.
func Handle[Req, Rep any](m *Mux, method Method[Req, Rep], fn func(context.Context, Req) (Rep, error)) {
	HandleThen(m, method, fn, func(context.Context) {})
}

// HandleThen is Handle for a method that does something after its reply was sent: then is called with a context that
// ends when the caller has closed the stream, as Call does once it has the reply. It is not called where fn returns an
// error.
func HandleThen[Req, Rep any](m *Mux, method Method[Req, Rep], fn func(context.Context, Req) (Rep, error), then func(context.Context)) {
	m.add(method.Name, func(ctx context.Context, body json.RawMessage, s *Stream) error {
		var req Req
		if err := json.Unmarshal(body, &req); err != nil {
			return fmt.Errorf("%w request: %w", errs.ErrInvalid, err)
		}
		ctx = s.CloseRead(ctx)
		rep, err := fn(ctx, req)
		if err != nil {
			return err
		}
		if err := s.SendJSON(FrameReply, rep); err != nil {
			return err
		}
		then(ctx)
		return nil
	}, reflect.TypeFor[Req](), reflect.TypeFor[Rep]())
}

// HandleUndo is Handle for what the caller must know of: fn also returns how to undo what it did, which is called where the
// caller closed the stream before the reply was on its way.
func HandleUndo[Req, Rep any](m *Mux, method Method[Req, Rep], fn func(context.Context, Req) (Rep, func(), error)) {
	m.add(method.Name, func(ctx context.Context, body json.RawMessage, s *Stream) error {
		var req Req
		if err := json.Unmarshal(body, &req); err != nil {
			return fmt.Errorf("%w request: %w", errs.ErrInvalid, err)
		}
		rep, undo, err := fn(s.CloseRead(ctx), req)
		if err != nil {
			return err
		}
		if err := s.SendJSON(FrameReply, rep); err != nil {
			undo()
			return err
		}
		return nil
	}, reflect.TypeFor[Req](), reflect.TypeFor[Rep]())
}

// HandleStream registers fn for a stream method. fn owns the stream until it returns: it calls accept once before it
// sends a frame, and an error it returns is sent as the last frame.
func HandleStream[Req any](m *Mux, method StreamMethod[Req], fn func(ctx context.Context, req Req, s *Stream, accept func() error) error) {
	m.add(method.Name, func(ctx context.Context, body json.RawMessage, s *Stream) error {
		var req Req
		if err := json.Unmarshal(body, &req); err != nil {
			return fmt.Errorf("%w request: %w", errs.ErrInvalid, err)
		}
		return fn(ctx, req, s, func() error { return s.Send(FrameReply, []byte("{}")) })
	}, reflect.TypeFor[Req]())
}

// requestTimeout bounds how long a caller may take from opening a stream to its request.
const requestTimeout = 30 * time.Second

// ServeConn reads one request from conn, runs its handler, and closes conn. It returns when the handler has ended.
func (m *Mux) ServeConn(ctx context.Context, conn net.Conn) {
	s := NewStream(conn)
	defer s.readers.Wait()
	defer s.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { s.Close() })
	defer stop()
	_ = conn.SetReadDeadline(time.Now().Add(requestTimeout))
	t, p, err := s.Recv()
	if err != nil || t != FrameRequest {
		return
	}
	_ = conn.SetReadDeadline(time.Time{})
	var req request
	if err := json.Unmarshal(p, &req); err != nil {
		s.sendError(fmt.Errorf("%w request: %w", errs.ErrInvalid, err))
		return
	}
	if err := m.serve(ctx, req, s); err != nil {
		s.sendError(err)
	}
}

// maxErrorText bounds the text of an error in bytes, so that it fits into a frame whatever it quotes.
const maxErrorText = 64 << 10

func (s *Stream) sendError(err error) {
	r := errs.ToRemote(err)
	if len(r.Message) > maxErrorText {
		r.Message = r.Message[:maxErrorText] + "..."
	}
	_ = s.SendJSON(FrameError, r) // the caller may be gone
}

func (m *Mux) serve(ctx context.Context, req request, s *Stream) (err error) {
	h, ok := m.handlers[req.Method]
	if !ok {
		return fmt.Errorf("method %q: %w: host and agent are of different versions", req.Method, errs.ErrUnsupported)
	}
	defer func() {
		if v := recover(); v != nil {
			err = fmt.Errorf("%s: panic: %v\n%s", req.Method, v, debug.Stack())
		}
	}()
	return h(ctx, req.Body, s)
}
