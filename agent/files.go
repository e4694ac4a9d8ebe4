package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/arcboxlabs/arcbox-go/agent/api"
	"github.com/arcboxlabs/arcbox-go/internal/errs"
)

// Stat tells of a file of a container, running or not. A path that is not there is ErrNotFound.
func (c *Client) Stat(ctx context.Context, req api.StatRequest) (api.StatReply, error) {
	return call(ctx, c, api.Stat, req)
}

// maxDiff is how many changes Diff returns at most.
const maxDiff = 100_000

// Diff lists what a container changed in its root, the first 100,000 changes; the reply's More tells whether there are
// others. It asks the agent as often as it takes.
func (c *Client) Diff(ctx context.Context, req api.DiffRequest) (api.DiffReply, error) {
	var all api.DiffReply
	for {
		rep, err := call(ctx, c, api.Diff, req)
		if err != nil {
			return api.DiffReply{}, err
		}
		all.Changes, all.More = append(all.Changes, rep.Changes...), rep.More
		if n := len(all.Changes); n > maxDiff {
			all.Changes, all.More = all.Changes[:maxDiff], true
			return all, nil
		}
		if !rep.More || len(rep.Changes) == 0 {
			return all, nil
		}
		req.After = rep.Changes[len(rep.Changes)-1].Path
	}
}

// CopyFrom reads a file or a directory of a container as a tar archive. ctx bounds the whole stream; closing the reader
// early ends it. A path that is not there is ErrNotFound, here or while reading.
func (c *Client) CopyFrom(ctx context.Context, req api.CopyFromRequest) (io.ReadCloser, error) {
	return download(ctx, c, api.CopyFrom, req)
}

// Export reads a container's whole root as a tar archive, or what it changed as the layer of an image. ctx bounds the
// whole stream; closing the reader early ends it.
func (c *Client) Export(ctx context.Context, req api.ExportRequest) (io.ReadCloser, error) {
	return download(ctx, c, api.Export, req)
}

// CopyTo unpacks the archive that r yields into a directory of a container, and returns when all is written. r is read to
// its end by the caller's goroutine, unless the agent refuses the archive before; a Read that blocks is not interrupted
// by ctx. An error of r ends the copy and is returned.
func (c *Client) CopyTo(ctx context.Context, req api.CopyToRequest, r io.Reader) error {
	return send(ctx, c, api.CopyTo, req, r)
}

// send sends what r yields, and returns when the agent has taken it all.
func send[Req any](ctx context.Context, c *Client, m api.StreamMethod[Req], req Req, r io.Reader) error {
	s, err := open(ctx, c, m, req)
	if err != nil {
		return err
	}
	defer s.Close()
	defer context.AfterFunc(ctx, func() { s.Close() })()
	result := make(chan error, 1)
	go func() { result <- uploaded(s) }()
	readErr := upload(s, r)
	if readErr != nil {
		s.Close()
	}
	err = <-result
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("%s: %w", m.Name, ctx.Err())
	case readErr != nil:
		return fmt.Errorf("%s: read the archive: %w", m.Name, readErr)
	case err != nil:
		return fmt.Errorf("%s: %w", m.Name, err)
	}
	return nil
}

// upload sends what r yields. It stops without an error when nobody takes it any more.
func upload(s *api.Stream, r io.Reader) error {
	b := make([]byte, copyChunk)
	for {
		n, err := r.Read(b)
		if n > 0 && s.Send(api.FrameStdin, b[:n]) != nil {
			return nil
		}
		if err == io.EOF {
			_ = s.Send(api.FrameStdin, nil) // the reply tells
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// copyChunk is how many bytes of an archive go into one frame.
const copyChunk = 128 << 10

// uploaded waits for the agent's word, and then ends the sending.
func uploaded(s *api.Stream) error {
	defer s.Close()
	return ended(s.Recv())
}

// ended turns the last frame of a stream into an error, nil for its good end.
func ended(kind api.FrameType, b []byte, err error) error {
	switch {
	case err != nil:
		return fmt.Errorf("%w: the connection to the agent ended: %w", errs.ErrUnavailable, err)
	case kind == api.FrameError:
		return api.DecodeError(b)
	case kind != api.FrameExit:
		return fmt.Errorf("unexpected frame %d", kind)
	}
	return nil
}

func download[Req any](ctx context.Context, c *Client, m api.StreamMethod[Req], req Req) (io.ReadCloser, error) {
	s, err := open(ctx, c, m, req)
	if err != nil {
		return nil, err
	}
	r := &reader{s: s, ctx: ctx, name: m.Name, closed: make(chan struct{})}
	r.stop = context.AfterFunc(ctx, func() { s.Close() })
	return r, nil
}

// reader reads the frames of an archive. Close may be called during a Read.
type reader struct {
	s    *api.Stream
	ctx  context.Context
	stop func() bool
	name string
	left []byte
	err  error // of the end

	once   sync.Once
	closed chan struct{}
}

// Read reads the archive. It returns io.EOF where the agent has said that it is whole.
func (r *reader) Read(p []byte) (int, error) {
	for len(r.left) == 0 && r.err == nil && len(p) > 0 {
		kind, b, err := r.s.Recv()
		if err == nil && kind == api.FrameStdout {
			r.left = b
			continue
		}
		if r.err = r.explain(ended(kind, b, err)); r.err == nil {
			r.err = io.EOF
		}
		r.stop()
		r.s.Close()
	}
	if len(r.left) == 0 {
		return 0, r.err
	}
	n := copy(p, r.left)
	r.left = r.left[n:]
	return n, nil
}

func (r *reader) explain(err error) error {
	if err == nil {
		return nil
	}
	select {
	case <-r.closed:
		err = errs.ErrClosed
	default:
		if r.ctx.Err() != nil && errors.Is(err, errs.ErrUnavailable) {
			err = r.ctx.Err()
		}
	}
	return fmt.Errorf("%s: %w", r.name, err)
}

// Close ends the stream. A second call does nothing. It returns nil.
func (r *reader) Close() error {
	r.once.Do(func() {
		close(r.closed)
		r.stop()
		r.s.Close()
	})
	return nil
}
