package arcbox

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
)

// Cmd is a command to execute in a container, used as os/exec.Cmd is. Make it with Runtime.Command, set its fields, and
// call one of Run, Output, CombinedOutput and Start, once.
type Cmd struct {
	Args   []string  // the command and its arguments
	Env    []string  // KEY=value over the container's; KEY alone removes
	Dir    string    // absolute; "" is the container's
	User   string    // user[:group]; "" is the container's
	TTY    bool      // give the process a terminal
	Stdin  io.Reader // nil is no input. A Read in progress when the process ends cannot be interrupted
	Stdout io.Writer // nil drops the output
	Stderr io.Writer // as Stdout; the two may be one writer, which is then written to by one goroutine at a time

	Process *Process // after Start

	rt      *Runtime
	ctx     context.Context
	ref     string
	begun   bool
	atStart []io.Closer // our ends of pipes, closed when the process could not be started
	atEnd   []io.Closer // our ends of pipes, closed when the process has ended
	done    chan struct{}
	exit    Exit
	err     error
}

// ExitError is the error of a Cmd whose process has ended with an exit code other than 0.
type ExitError struct {
	Exit
	Stderr []byte // the first 64 KiB of stderr, where Cmd.Output ran the command and Cmd.Stderr was nil
}

// Error says how the process ended.
func (e *ExitError) Error() string {
	if e.Signal != "" {
		return "signal: " + e.Signal
	}
	return fmt.Sprintf("exit status %d", e.Code)
}

// ExitCode returns the code, as os/exec.ExitError has it.
func (e *ExitError) ExitCode() int { return e.Code }

// Command returns a command to execute in a running container.
func (r *Runtime) Command(ref, name string, args ...string) *Cmd {
	return r.CommandContext(context.Background(), ref, name, args...)
}

// CommandContext is Command with a context that kills the process when it ends.
func (r *Runtime) CommandContext(ctx context.Context, ref, name string, args ...string) *Cmd {
	return &Cmd{Args: append([]string{name}, args...), rt: r, ctx: ctx, ref: ref}
}

// Start starts the command and returns when it has been executed. The errors are those of Runtime.Exec. Call Wait after
// it.
func (c *Cmd) Start() error {
	if c.begun {
		return c.misuse("it was started before: make another one")
	}
	c.begun = true
	p, err := c.rt.Exec(c.ctx, c.ref, ExecSpec{
		Args: c.Args, Env: c.Env, WorkingDir: c.Dir, User: c.User, TTY: c.TTY,
	}, ExecOptions{Stdin: c.Stdin, Stdout: c.Stdout, Stderr: c.Stderr})
	if err != nil {
		closeAll(c.atStart)
		closeAll(c.atEnd)
		return err
	}
	c.Process, c.done = p, make(chan struct{})
	go func() { // Wait waits for it
		defer close(c.done)
		c.exit, c.err = p.Wait(c.ctx)
		closeAll(c.atEnd) // an output that nobody reads does not hold up Close
		_ = p.Close()
	}()
	return nil
}

func closeAll(cs []io.Closer) {
	for _, c := range cs {
		_ = c.Close()
	}
}

func (c *Cmd) misuse(why string) error {
	return opError("Command", c.ref, fmt.Errorf("%w: command %.40q: %s", ErrConflict, c.Args[0], why))
}

// Wait waits until a started command has ended and all its output was written. An exit code other than 0 is an
// *ExitError. Read what StdoutPipe and StderrPipe give to its end before: a process that cannot write does not end. A
// second call returns the same.
func (c *Cmd) Wait() error {
	if c.done == nil {
		return c.misuse("it was not started")
	}
	<-c.done
	if c.err != nil {
		return c.err
	}
	if c.exit.Code != 0 {
		return &ExitError{Exit: c.exit}
	}
	return nil
}

// Run is Start and Wait.
func (c *Cmd) Run() error {
	if err := c.Start(); err != nil {
		return err
	}
	return c.Wait()
}

// maxErrorOutput is how many bytes of stderr an ExitError has.
const maxErrorOutput = 64 << 10

// Output runs the command and returns its stdout. Where Stderr is nil an *ExitError has its beginning.
func (c *Cmd) Output() ([]byte, error) {
	if c.Stdout != nil {
		return nil, c.misuse("its Stdout is set already")
	}
	var out bytes.Buffer
	c.Stdout = &out
	var said *headWriter
	if c.Stderr == nil {
		said = &headWriter{left: maxErrorOutput}
		c.Stderr = said
	}
	err := c.Run()
	var exit *ExitError
	if said != nil && errors.As(err, &exit) {
		exit.Stderr = said.b
	}
	return out.Bytes(), err
}

// headWriter keeps the beginning of what is written to it.
type headWriter struct {
	b    []byte
	left int
}

// Write implements io.Writer.
func (w *headWriter) Write(p []byte) (int, error) {
	n := min(len(p), w.left)
	w.b, w.left = append(w.b, p[:n]...), w.left-n
	return len(p), nil
}

// CombinedOutput runs the command and returns its stdout and stderr as one.
func (c *Cmd) CombinedOutput() ([]byte, error) {
	if c.Stdout != nil || c.Stderr != nil {
		return nil, c.misuse("its Stdout or Stderr is set already")
	}
	var out bytes.Buffer
	c.Stdout, c.Stderr = &out, &out // written by the one goroutine of the process
	err := c.Run()
	return out.Bytes(), err
}

// StdinPipe returns a writer that feeds the command when it is started. Close it to end the input. Writes after the end
// of the process are errors.
func (c *Cmd) StdinPipe() (io.WriteCloser, error) {
	if c.Stdin != nil || c.begun {
		return nil, c.misuse("its Stdin is set already, or it was started")
	}
	pr, pw := io.Pipe()
	c.Stdin = pr
	c.atEnd = append(c.atEnd, pr)
	return pw, nil
}

// StdoutPipe returns a reader of the command's stdout, which ends with the process. It must be read, or closed, before
// Wait.
func (c *Cmd) StdoutPipe() (io.ReadCloser, error) { return c.outPipe(&c.Stdout) }

// StderrPipe is StdoutPipe for stderr.
func (c *Cmd) StderrPipe() (io.ReadCloser, error) { return c.outPipe(&c.Stderr) }

func (c *Cmd) outPipe(w *io.Writer) (io.ReadCloser, error) {
	if *w != nil || c.begun {
		return nil, c.misuse("that output is set already, or it was started")
	}
	pr, pw := io.Pipe()
	*w = pw
	c.atStart = append(c.atStart, pr)
	c.atEnd = append(c.atEnd, pw)
	return pr, nil
}
