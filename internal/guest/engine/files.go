package engine

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"sync"

	"github.com/arcboxlabs/arcbox-go/agent/api"
	"github.com/arcboxlabs/arcbox-go/internal/errs"
)

// Filer is a Sandbox whose files can be reached from outside, whether its process runs or not. The methods may be called
// by many goroutines, until Remove is called; the engine waits for them before that. They return soon after ctx ends.
// Those that make an archive call begin once they know that they can.
type Filer interface {
	Stat(ctx context.Context, path string) (api.StatReply, error)
	CopyFrom(ctx context.Context, path string, begin func() (io.Writer, error)) error
	CopyTo(ctx context.Context, req api.CopyToRequest, begin func() (io.Reader, error)) error
	Export(ctx context.Context, layer bool, begin func() (io.Writer, error)) error
	Diff(ctx context.Context, after string) (api.DiffReply, error)
}

// registerFiles adds the methods of files to m.
func (e *Engine) registerFiles(m *api.Mux) {
	api.Handle(m, api.Stat, e.stat)
	api.Handle(m, api.Diff, e.diff)
	api.HandleStream(m, api.CopyTo, e.copyTo)
	api.HandleStream(m, api.CopyFrom, func(ctx context.Context, req api.CopyFromRequest, s *api.Stream, accept func() error) error {
		return e.send(ctx, req.ID, s, accept, func(ctx context.Context, f Filer, begin func() (io.Writer, error)) error {
			return f.CopyFrom(ctx, req.Path, begin)
		})
	})
	api.HandleStream(m, api.Export, func(ctx context.Context, req api.ExportRequest, s *api.Stream, accept func() error) error {
		return e.send(ctx, req.ID, s, accept, func(ctx context.Context, f Filer, begin func() (io.Writer, error)) error {
			return f.Export(ctx, req.Layer, begin)
		})
	})
}

// copies counts the users of a container's files, who are sent away before it is removed.
type copies struct {
	mu     sync.Mutex
	closed bool
	users  sync.WaitGroup
	cancel map[*context.CancelFunc]struct{}
}

// begin returns a context that ends when the container is removed. The caller calls end when it has let go of the files.
func (c *copies) begin(ctx context.Context) (_ context.Context, end func(), ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return ctx, nil, false
	}
	ctx, cancel := context.WithCancel(ctx)
	if c.cancel == nil {
		c.cancel = make(map[*context.CancelFunc]struct{})
	}
	c.cancel[&cancel] = struct{}{}
	c.users.Add(1)
	return ctx, func() {
		cancel()
		c.mu.Lock()
		delete(c.cancel, &cancel)
		c.mu.Unlock()
		c.users.Done()
	}, true
}

// close sends the users away, refuses new ones, and returns when nobody uses the files any more.
func (c *copies) close() {
	c.mu.Lock()
	c.closed = true
	for cancel := range c.cancel {
		(*cancel)()
	}
	c.mu.Unlock()
	c.users.Wait()
}

// files gives access to a container's files until the returned function is called.
func (e *Engine) files(ctx context.Context, id string) (context.Context, Filer, func(), error) {
	c, err := e.get(id)
	if err != nil {
		return ctx, nil, nil, err
	}
	f, ok := c.sb.(Filer)
	if !ok {
		return ctx, nil, nil, fmt.Errorf("files of container %s: %w", id, errs.ErrUnsupported)
	}
	ctx, end, ok := c.copies.begin(ctx)
	if !ok {
		return ctx, nil, nil, fmt.Errorf("container %s: %w: it is being removed", id, errs.ErrNotFound)
	}
	return ctx, f, end, nil
}

func (e *Engine) stat(ctx context.Context, req api.StatRequest) (api.StatReply, error) {
	ctx, f, end, err := e.files(ctx, req.ID)
	if err != nil {
		return api.StatReply{}, err
	}
	defer end()
	return f.Stat(ctx, req.Path)
}

func (e *Engine) diff(ctx context.Context, req api.DiffRequest) (api.DiffReply, error) {
	ctx, f, end, err := e.files(ctx, req.ID)
	if err != nil {
		return api.DiffReply{}, err
	}
	defer end()
	return f.Diff(ctx, req.After)
}

// send runs what writes an archive of a container's files.
func (e *Engine) send(ctx context.Context, id string, s *api.Stream, accept func() error, run func(context.Context, Filer, func() (io.Writer, error)) error) error {
	ctx, f, end, err := e.files(ctx, id)
	if err != nil {
		return err
	}
	defer end()
	return sendArchive(ctx, s, accept, func(ctx context.Context, begin func() (io.Writer, error)) error { return run(ctx, f, begin) })
}

// sendArchive runs what writes an archive, with a stream as its writer.
func sendArchive(ctx context.Context, s *api.Stream, accept func() error, run func(context.Context, func() (io.Writer, error)) error) error {
	ctx, w, stop := watchStream(ctx, s)
	defer stop()
	err := run(ctx, func() (io.Writer, error) { return w, accept() })
	if err == nil {
		err = w.Flush()
	}
	if err != nil {
		return err
	}
	return s.SendJSON(api.FrameExit, api.Exit{})
}

// watchStream returns a writer of frames. The context ends when the other side has gone, and its end closes the stream,
// so that a write under way returns.
func watchStream(ctx context.Context, s *api.Stream) (context.Context, *bufio.Writer, func()) {
	ctx = s.CloseRead(ctx)
	stop := context.AfterFunc(ctx, func() { s.Close() })
	return ctx, bufio.NewWriterSize(frameWriter{s}, copyChunk), func() { stop() }
}

// kill is the number of the signal KILL.
const kill = 9

// copyChunk is how many bytes of an archive go into one frame.
const copyChunk = 128 << 10

type frameWriter struct{ s *api.Stream }

func (w frameWriter) Write(p []byte) (int, error) {
	for n := 0; n < len(p); n += copyChunk {
		if err := w.s.Send(api.FrameStdout, p[n:min(n+copyChunk, len(p))]); err != nil {
			return n, err
		}
	}
	return len(p), nil
}

// copyTo unpacks what the other side sends.
func (e *Engine) copyTo(ctx context.Context, req api.CopyToRequest, s *api.Stream, accept func() error) error {
	ctx, f, end, err := e.files(ctx, req.ID)
	if err != nil {
		return err
	}
	defer end()
	return receiveArchive(ctx, s, func(begin func() (io.Reader, error)) error { return f.CopyTo(ctx, req, begin) }, accept)
}

// receiveArchive runs what reads an archive, with a stream as its reader.
func receiveArchive(ctx context.Context, s *api.Stream, run func(begin func() (io.Reader, error)) error, accept func() error) error {
	stop := context.AfterFunc(ctx, func() { s.Close() })
	defer stop()
	if err := run(func() (io.Reader, error) { return &frameReader{s: s}, accept() }); err != nil {
		return err
	}
	return s.SendJSON(api.FrameExit, api.Exit{})
}

// frameReader reads the bytes of FrameStdin up to an empty one.
type frameReader struct {
	s    *api.Stream
	left []byte
	err  error
}

func (r *frameReader) Read(p []byte) (int, error) {
	for len(r.left) == 0 && r.err == nil {
		t, b, err := r.s.Recv()
		switch {
		case err != nil:
			r.err = fmt.Errorf("%w: the stream broke off: %w", errs.ErrUnavailable, err)
		case t != api.FrameStdin:
			r.err = fmt.Errorf("%w frame %d", errs.ErrInvalid, t)
		case len(b) == 0:
			r.err = io.EOF
		default:
			r.left = b
		}
	}
	if len(r.left) == 0 {
		return 0, r.err
	}
	n := copy(p, r.left)
	r.left = r.left[n:]
	return n, nil
}
