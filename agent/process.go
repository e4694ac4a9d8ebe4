package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/arcboxlabs/arcbox-go/agent/api"
	"github.com/arcboxlabs/arcbox-go/internal/errs"
)

// Process is a stream to the stdio of a container's process. Its methods may be called from many goroutines.
type Process struct {
	s      *api.Stream
	stdin  *stdin
	done   chan struct{} // closed when exit and err are set
	exit   api.Exit
	err    error
	detach sync.Once
	gone   chan struct{} // closed by Close
}

// Attach connects to the stdio of a container, before its start or after. What the process writes from then on is
// written to stdout and stderr by one goroutine, which ends with the process or by Close; a nil writer drops it. A writer
// that blocks slows the process down. ctx bounds the attaching only.
//
// A container that is not there is ErrNotFound. One whose process has ended gives its exit at once.
func (c *Client) Attach(ctx context.Context, req api.AttachRequest, stdout, stderr io.Writer) (*Process, error) {
	s, err := open(ctx, c, api.Attach, req)
	if err != nil {
		return nil, err
	}
	return newProcess(s, stdout, stderr), nil
}

// Exec runs another process in a running container and connects to its stdio as Attach does. It returns when the command
// was executed: one that does not exist is ErrNoCommand, one that cannot be executed ErrNoExecutable. Close kills the
// process, unless the request detaches it: then nothing of it comes here, and Wait returns at once.
//
// A container that does not run, or is paused, is ErrConflict.
func (c *Client) Exec(ctx context.Context, req api.ExecRequest, stdout, stderr io.Writer) (*Process, error) {
	s, err := open(ctx, c, api.Exec, req)
	if err != nil {
		return nil, err
	}
	return newProcess(s, stdout, stderr), nil
}

func newProcess(s *api.Stream, stdout, stderr io.Writer) *Process {
	p := &Process{s: s, stdin: &stdin{s: s}, done: make(chan struct{}), gone: make(chan struct{})}
	go func() {
		defer close(p.done)
		defer s.Close()
		p.exit, p.err = p.copy(stdout, stderr)
	}()
	return p
}

// copy hands on the output until the exit.
func (p *Process) copy(stdout, stderr io.Writer) (exit api.Exit, err error) {
	for {
		kind, b, err := p.s.Recv()
		if err != nil {
			return exit, p.lost(err)
		}
		var w io.Writer
		switch kind {
		case api.FrameStdout:
			w = stdout
		case api.FrameStderr:
			w = stderr
		case api.FrameExit:
			if err := json.Unmarshal(b, &exit); err != nil {
				return exit, fmt.Errorf("attached stream: decode the exit: %w", err)
			}
			return exit, nil
		case api.FrameError:
			return exit, fmt.Errorf("attached stream: %w", api.DecodeError(b))
		default:
			return exit, fmt.Errorf("attached stream: unexpected frame %d", kind)
		}
		if w == nil {
			continue
		}
		if _, err := w.Write(b); err != nil {
			return exit, fmt.Errorf("attached stream: write the process's output: %w", err)
		}
	}
}

// lost explains the end of a stream that has not brought the exit.
func (p *Process) lost(err error) error {
	select {
	case <-p.gone:
		return fmt.Errorf("attached stream: %w", errs.ErrClosed)
	default:
		return fmt.Errorf("attached stream: %w: the connection to the agent ended: %w", errs.ErrUnavailable, err)
	}
}

// Stdin returns the process's stdin. A Write waits while neither the process nor the queues on the way take it. Close
// ends the process's input; on a terminal it types the end of input instead. It returns nil: where the process or the
// connection to it has ended, so has its input, and Wait tells why. Writes after Close, and after the process has ended, are
// errors or go nowhere. It feeds nothing unless the request asked for it.
func (p *Process) Stdin() io.WriteCloser { return p.stdin }

// Resize sets the size of the process's terminal. Where it has none nothing happens.
func (p *Process) Resize(size api.Size) error {
	return p.send("resize terminal", p.s.SendJSON(api.FrameResize, size))
}

// Signal sends a signal, a name such as "TERM", to the process. A process that does not run, or an unknown signal, is no
// error: Client.Kill tells.
func (p *Process) Signal(name string) error {
	return p.send("send signal", p.s.SendJSON(api.FrameSignal, name))
}

func (p *Process) send(what string, err error) error {
	if err != nil {
		return fmt.Errorf("%s: %w: %w", what, errs.ErrClosed, err)
	}
	return nil
}

// Wait waits until the process has ended and all its output was written, and tells how it ended. After Close it returns
// ErrClosed, and where the connection to the agent ended first ErrUnavailable. An error of a writer ends the attachment
// and is returned. It may be called many times, by many.
func (p *Process) Wait(ctx context.Context) (api.Exit, error) {
	select {
	case <-p.done:
		return p.exit, p.err
	case <-ctx.Done():
		return api.Exit{}, ctx.Err()
	}
}

// Done is closed when Wait would not wait.
func (p *Process) Done() <-chan struct{} { return p.done }

// Close detaches from the process, which goes on, and returns when no writer will be written to any more: a Write under
// way is waited for. A second call waits too. It returns nil.
func (p *Process) Close() error {
	p.detach.Do(func() {
		close(p.gone)
		p.s.Close()
	})
	<-p.done
	return nil
}

// stdin sends what is written as frames.
type stdin struct {
	s      *api.Stream
	mu     sync.Mutex
	closed bool
}

// Write sends p in frames.
func (in *stdin) Write(p []byte) (int, error) {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.closed {
		return 0, fmt.Errorf("write stdin: %w", errs.ErrClosed)
	}
	n := 0
	for len(p) > 0 {
		chunk := p[:min(len(p), api.ChunkSize)]
		if err := in.s.Send(api.FrameStdin, chunk); err != nil {
			return n, fmt.Errorf("write stdin: %w: %w", errs.ErrClosed, err)
		}
		n += len(chunk)
		p = p[len(chunk):]
	}
	return n, nil
}

// Close ends the input. A second call does nothing.
func (in *stdin) Close() error {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.closed {
		return nil
	}
	in.closed = true
	_ = in.s.Send(api.FrameStdin, nil)
	return nil
}

// recvEvent reads one event of an event stream.
func recvEvent(s *api.Stream) (api.Event, error) {
	var e api.Event
	kind, b, err := s.Recv()
	switch {
	case err != nil:
		return e, err
	case kind == api.FrameError:
		return e, api.DecodeError(b)
	case kind != api.FrameEvent:
		return e, errors.New("unexpected frame")
	}
	return e, json.Unmarshal(b, &e)
}
