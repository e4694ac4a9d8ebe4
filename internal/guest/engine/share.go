package engine

import (
	"context"
	"fmt"

	"github.com/arcboxlabs/arcbox-go/agent/api"
	"github.com/arcboxlabs/arcbox-go/internal/errs"
)

// Sharer is a Backend that mounts file systems which the host serves. Share calls accept once containers can mount it, and
// returns when the messages or ctx have ended and the file system is gone. The request was checked.
type Sharer interface {
	Share(ctx context.Context, req api.ShareRequest, accept func() (Messages, error)) error
}

// Messages carries the messages of a share. Recv is called by one goroutine. Close makes both return.
type Messages interface {
	Send([]byte) error
	Recv() (api.FrameType, []byte, error) // FrameFuse or FrameAhead
	Close() error
}

// share mounts a file system until the host ends the stream.
func (e *Engine) share(ctx context.Context, req api.ShareRequest, s *api.Stream, accept func() error) error {
	if err := checkID("share", req.ID); err != nil {
		return err
	}
	sharer, ok := e.backend.(Sharer)
	if !ok {
		return fmt.Errorf("share: %w", errs.ErrUnsupported)
	}
	ctx, end, ok := e.bulk.begin(ctx)
	if !ok {
		return fmt.Errorf("share: %w: the guest is powering off", errs.ErrClosed)
	}
	defer end()
	stop := context.AfterFunc(ctx, func() { s.Close() })
	defer stop()
	return sharer.Share(ctx, req, func() (Messages, error) { return messages{s}, accept() })
}

// messages are the frames of a stream.
type messages struct{ s *api.Stream }

func (m messages) Send(p []byte) error { return m.s.Send(api.FrameFuse, p) }
func (m messages) Close() error        { return m.s.Close() }

func (m messages) Recv() (api.FrameType, []byte, error) {
	t, p, err := m.s.Recv()
	if err == nil && t != api.FrameFuse && t != api.FrameAhead {
		err = fmt.Errorf("share: %w frame %d", errs.ErrInvalid, t)
	}
	return t, p, err
}
