package arcbox

import (
	"context"
	"io"

	"github.com/arcboxlabs/arcbox-go/agent/api"
	"github.com/arcboxlabs/arcbox-go/internal/container"
)

// RunOptions tunes RunContainer. The zero value drops the process's output.
type RunOptions struct {
	// Stdin is read until its end, or until the process has ended, and fed to the process; it makes
	// ContainerSpec.Stdin true. nil gives the process no input. A Read in progress when the process ends cannot be
	// interrupted: its goroutine ends when it returns.
	Stdin io.Reader
	// Stdout and Stderr get the process's output, from one goroutine. With a TTY everything comes on Stdout. nil drops
	// it. A writer that blocks slows the process down.
	Stdout, Stderr io.Writer
	// Rows and Cols are the size of the terminal at the start, for a spec with TTY. 0 is 24 and 80.
	Rows, Cols uint16

	Pull         PullPolicy         // as CreateOptions.Pull
	PullProgress func(PullProgress) // as CreateOptions.PullProgress
}

// AttachOptions tunes AttachContainer. The zero value only waits.
type AttachOptions struct {
	Stdin          io.Reader // as RunOptions.Stdin, for a container whose spec has Stdin
	Stdout, Stderr io.Writer // as in RunOptions
}

// Process is the handle on the process of a container. Close it, or Wait for its end.
type Process struct {
	rt  *Runtime
	att *container.Attachment
}

// RunContainer makes a container, attaches to it and starts it: no output is lost. ctx bounds these three; the process
// runs on when it ends. Where an error is returned, the container has been removed, but for a command that could not be
// executed: that container has exited with 127 or 126, and is only removed if AutoRemove says so.
//
// The errors are those of CreateContainer and StartContainer.
func (r *Runtime) RunContainer(ctx context.Context, spec ContainerSpec, opts RunOptions) (*Process, error) {
	return call(ctx, r, "RunContainer", refOf(spec), func(ctx context.Context) (*Process, error) {
		if opts.Stdin != nil {
			spec.Stdin = true
		}
		info, err := r.create(ctx, spec, CreateOptions{Pull: opts.Pull, PullProgress: opts.PullProgress})
		if err != nil {
			return nil, err
		}
		p, err := r.attach(ctx, info.ID, AttachOptions{Stdin: opts.Stdin, Stdout: opts.Stdout, Stderr: opts.Stderr})
		if err != nil {
			r.containers.Discard(info.ID)
			return nil, err
		}
		if opts.Rows > 0 && opts.Cols > 0 {
			_ = p.att.Resize(api.Size{Rows: opts.Rows, Cols: opts.Cols}) // a stream that has ended shows in Start
		}
		if err := r.containers.Start(ctx, info.ID); err != nil {
			_ = p.att.Close()
			if code := container.ExitCode(err); code == 0 {
				r.containers.Discard(info.ID)
			}
			return nil, err
		}
		return p, nil
	})
}

// AttachContainer connects to the stdio of a container, created or running. It gets what the process writes from then
// on; any number may be attached. One that has exited is ErrConflict.
func (r *Runtime) AttachContainer(ctx context.Context, ref string, opts AttachOptions) (*Process, error) {
	return call(ctx, r, "AttachContainer", ref, func(ctx context.Context) (*Process, error) {
		return r.attach(ctx, ref, opts)
	})
}

func (r *Runtime) attach(ctx context.Context, ref string, opts AttachOptions) (*Process, error) {
	att, err := r.containers.Attach(ctx, ref, opts.Stdin != nil, opts.Stdout, opts.Stderr)
	if err != nil {
		return nil, err
	}
	if opts.Stdin != nil {
		go func() { // ends with the reader or the process; see RunOptions.Stdin
			_, _ = io.Copy(att.Stdin(), opts.Stdin)
			_ = att.Stdin().Close()
		}()
	}
	return &Process{rt: r, att: att}, nil
}

// ID returns the id of the process's container.
func (p *Process) ID() string { return p.att.ID() }

// Wait waits until the process has ended and all its output was written, and returns how it ended. When ctx ends first
// the process runs on. It may be called many times. After Close it is ErrClosed; where the machine ended under the
// process, ErrUnavailable; and where a writer failed, the writer's error.
func (p *Process) Wait(ctx context.Context) (Exit, error) {
	return call(ctx, p.rt, "Wait", p.ID()[:12], func(ctx context.Context) (Exit, error) {
		exit, err := p.att.Wait(ctx)
		return Exit(exit), err
	})
}

// Signal sends a signal to the process, as KillContainer does.
func (p *Process) Signal(ctx context.Context, signal string) error {
	return p.rt.KillContainer(ctx, p.ID(), signal)
}

// Resize sets the size of the process's terminal in characters. Without a terminal it does nothing.
func (p *Process) Resize(ctx context.Context, rows, cols uint16) error {
	return callNone(ctx, p.rt, "Resize", p.ID()[:12], func(context.Context) error {
		return p.att.Resize(api.Size{Rows: rows, Cols: cols})
	})
}

// Close detaches from the process, which runs on, and returns when no writer is written to any more. A second call does
// nothing. It returns nil.
func (p *Process) Close() error { return p.att.Close() }
