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

	Pull         PullPolicy          // as CreateOptions.Pull
	PullProgress func(LayerProgress) // as CreateOptions.PullProgress
}

// AttachOptions tunes AttachContainer. The zero value only waits.
type AttachOptions struct {
	Stdin          io.Reader // as RunOptions.Stdin, for a container whose spec has Stdin
	Stdout, Stderr io.Writer // as in RunOptions
}

// Process is the handle on a process: of a container, from RunContainer and AttachContainer, in one, from Exec, or in a
// machine, from ExecMachine. Close it, or Wait for its end.
type Process struct {
	rt  *Runtime
	att connection
}

// connection is what containers give of a process.
type connection interface {
	ID() string
	ContainerID() string
	Stdin() io.WriteCloser
	Resize(api.Size) error
	Signal(ctx context.Context, signal string) error
	Wait(context.Context) (api.Exit, error)
	Close() error
}

var (
	_ connection = (*container.Attachment)(nil)
	_ connection = (*container.Execution)(nil)
)

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
	return r.process(att, opts.Stdin), nil
}

// process makes the handle of a connection, and feeds the process.
func (r *Runtime) process(c connection, stdin io.Reader) *Process {
	if stdin != nil {
		go func() { // ends with the reader or the process; see RunOptions.Stdin
			_, _ = io.Copy(c.Stdin(), stdin)
			_ = c.Stdin().Close()
		}()
	}
	return &Process{rt: r, att: c}
}

// ID returns the id of the process's container or, where Exec or ExecMachine returned it, of the process.
func (p *Process) ID() string { return p.att.ID() }

// ContainerID returns the id of the container in which the process runs, "" for one that ExecMachine returned.
func (p *Process) ContainerID() string { return p.att.ContainerID() }

// Wait waits until the process has ended and all its output was written, and returns how it ended. When ctx ends first
// the process runs on. It may be called many times. After Close it is ErrClosed; where the machine ended under the
// process, ErrUnavailable; and where a writer failed, the writer's error.
func (p *Process) Wait(ctx context.Context) (Exit, error) {
	return call(ctx, p.rt, "Wait", p.ID()[:12], func(ctx context.Context) (Exit, error) {
		exit, err := p.att.Wait(ctx)
		return Exit(exit), err
	})
}

// Signal sends a signal to the process: a name such as "TERM" or "SIGTERM", or a number; "" is KILL. A process that has
// ended is ErrConflict.
func (p *Process) Signal(ctx context.Context, signal string) error {
	return callNone(ctx, p.rt, "Signal", p.ID()[:12], func(ctx context.Context) error { return p.att.Signal(ctx, signal) })
}

// Resize sets the size of the process's terminal in characters. Without a terminal it does nothing.
func (p *Process) Resize(ctx context.Context, rows, cols uint16) error {
	return callNone(ctx, p.rt, "Resize", p.ID()[:12], func(context.Context) error {
		return p.att.Resize(api.Size{Rows: rows, Cols: cols})
	})
}

// Close detaches from the process and returns when no writer is written to any more. The process of a container runs on;
// one of Exec or ExecMachine is killed, unless it was detached. A second call does nothing. It returns nil.
func (p *Process) Close() error { return p.att.Close() }

// ExecSpec describes a process to run in a container beside its own. Only Args is required.
type ExecSpec struct {
	Args       []string // the command and its arguments; the command is looked up in the container's PATH
	Env        []string // KEY=value over the container's; KEY alone removes
	WorkingDir string   // absolute; "" is the container's
	User       string   // user[:group]; "" is the container's
	TTY        bool     // give the process a terminal
	Stdin      bool     // give the process a stdin that can be written; ExecOptions.Stdin does that too
	Privileged bool     // all capabilities and no seccomp filter, whatever the container has
	Detach     bool     // the process runs on when the Process is closed or the connection ends; its output is dropped
}

// ExecOptions tunes Exec. The zero value drops the process's output.
type ExecOptions struct {
	Stdin          io.Reader // as RunOptions.Stdin
	Stdout, Stderr io.Writer // as in RunOptions
	Rows, Cols     uint16    // as in RunOptions
}

// Exec executes a command in a running container and returns when it has been: ctx bounds that only. The limits of the
// container apply to it. Any number may run at a time. It ends with the container.
//
// A command that does not exist is ErrCommandNotFound, one that cannot be executed ErrCommandNotExecutable. A container
// that does not run, or is paused, is ErrConflict.
func (r *Runtime) Exec(ctx context.Context, ref string, spec ExecSpec, opts ExecOptions) (*Process, error) {
	return call(ctx, r, "Exec", ref, func(ctx context.Context) (*Process, error) {
		if spec.Detach {
			opts.Stdin, opts.Stdout, opts.Stderr = nil, nil, nil
		}
		x, err := r.containers.Exec(ctx, ref, container.ExecSpec{
			Args: spec.Args, Env: spec.Env, WorkingDir: spec.WorkingDir, User: spec.User,
			TTY: spec.TTY, Stdin: spec.Stdin && !spec.Detach || opts.Stdin != nil, Rows: opts.Rows, Cols: opts.Cols,
			Privileged: spec.Privileged, Detach: spec.Detach,
		}, opts.Stdout, opts.Stderr)
		if err != nil {
			return nil, err
		}
		return r.process(x, opts.Stdin), nil
	})
}

// ExecInfo is how a process stands that Exec executed.
type ExecInfo struct {
	ID          string // 64 hexadecimal digits
	ContainerID string
	Running     bool
	PID         int  // in the machine; 0 where it is not known
	Exit        Exit // of one that has ended; code 255 where nobody saw how
	Args        []string
}

// InspectExec tells how a process stands that Exec executed, by its id or a unique prefix. It is known until its
// container is removed or this Runtime closed, the newest 1024 of each container; others are ErrNotFound.
func (r *Runtime) InspectExec(ctx context.Context, id string) (ExecInfo, error) {
	return call(ctx, r, "InspectExec", id, func(ctx context.Context) (ExecInfo, error) {
		i, err := r.containers.InspectExec(ctx, id)
		return ExecInfo{ID: i.ID, ContainerID: i.Container, Running: i.Running, PID: i.PID, Exit: Exit(i.Exit), Args: i.Spec.Args}, err
	})
}

// ResizeExec sets the size of the terminal of a process that Exec executed, by its id, for those who do not have its
// Process. One that has ended is ErrConflict.
func (r *Runtime) ResizeExec(ctx context.Context, id string, rows, cols uint16) error {
	return callNone(ctx, r, "ResizeExec", id, func(ctx context.Context) error {
		return r.containers.ResizeExec(ctx, id, api.Size{Rows: rows, Cols: cols})
	})
}
