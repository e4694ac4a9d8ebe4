package agent

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"sync"

	"github.com/arcboxlabs/arcbox-go/agent/api"
	"github.com/arcboxlabs/arcbox-go/internal/errs"
)

// Census names what there is in the guest, for those who look for leaks.
func (c *Client) Census(ctx context.Context) (api.CensusReply, error) {
	return call(ctx, c, api.Census, api.CensusRequest{})
}

// Pause freezes the processes of a running container, or thaws them. What is so already is ErrConflict.
func (c *Client) Pause(ctx context.Context, req api.PauseRequest) error {
	_, err := call(ctx, c, api.Pause, req)
	return err
}

// SetNetwork changes the interfaces of a container.
func (c *Client) SetNetwork(ctx context.Context, req api.SetNetworkRequest) error {
	_, err := call(ctx, c, api.SetNetwork, req)
	return err
}

// Update changes the limits of a container. One that the guest's kernel cannot set is ErrUnsupported.
func (c *Client) Update(ctx context.Context, req api.UpdateRequest) error {
	_, err := call(ctx, c, api.Update, req)
	return err
}

// Stats tells what a running container uses. One that does not run is ErrConflict.
func (c *Client) Stats(ctx context.Context, req api.StatsRequest) (api.StatsReply, error) {
	return call(ctx, c, api.Stats, req)
}

// Top lists the processes of a running container. One that does not run is ErrConflict.
func (c *Client) Top(ctx context.Context, req api.TopRequest) (api.TopReply, error) {
	return call(ctx, c, api.Top, req)
}

// ExecInspect tells how a process stands that Exec started, after it has sent the signal, set the size, or waited for the
// end, as the request asks for. A process that is not known is ErrNotFound.
func (c *Client) ExecInspect(ctx context.Context, req api.ExecInspectRequest) (api.ExecInspectReply, error) {
	return call(ctx, c, api.ExecInspect, req)
}

// Logs reads what a container wrote. ctx bounds the opening only; close what is returned.
func (c *Client) Logs(ctx context.Context, req api.LogsRequest) (*Logs, error) {
	s, err := open(ctx, c, api.Logs, req)
	if err != nil {
		return nil, err
	}
	return &Logs{s: s}, nil
}

// Logs are records of a container's log.
type Logs struct {
	s    *api.Stream
	end  error
	once sync.Once
}

// Next returns the next record, and waits for it where the log is followed. At the end it returns io.EOF; where the
// connection to the agent ended first, ErrUnavailable. It is called by one goroutine at a time.
func (l *Logs) Next() (api.LogRecord, error) {
	if l.end != nil {
		return api.LogRecord{}, l.end
	}
	rec, err := l.next()
	l.end = err
	return rec, err
}

func (l *Logs) next() (rec api.LogRecord, err error) {
	kind, b, err := l.s.Recv()
	switch {
	case err != nil:
		return rec, fmt.Errorf("read log: %w: the connection to the agent ended: %w", errs.ErrUnavailable, err)
	case kind == api.FrameExit:
		return rec, io.EOF
	case kind == api.FrameError:
		return rec, fmt.Errorf("read log: %w", api.DecodeError(b))
	case kind != api.FrameLog:
		return rec, fmt.Errorf("read log: unexpected frame %d", kind)
	}
	if err := json.Unmarshal(b, &rec); err != nil {
		return rec, fmt.Errorf("read log: decode record: %w", err)
	}
	return rec, nil
}

// Close ends the reading; a Next under way returns. A second call does nothing. It returns nil.
func (l *Logs) Close() error {
	l.once.Do(func() { l.s.Close() })
	return nil
}
