package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"

	"golang.org/x/term"

	"github.com/arcboxlabs/arcbox-go"
)

// errDetached ends the wait for a process that goes on.
var errDetached = errors.New("detached")

// stdio is what a process in the foreground is connected to.
type stdio struct {
	in         io.Reader // nil for none
	out, err   io.Writer
	rows, cols uint16 // 0 where this is no terminal
}

// waiter waits for the end of a process in the foreground and closes it.
type waiter func(*arcbox.Process) error

// foreground calls start, which starts a process and waits for it, the terminal of the process being this one. With proxy
// the signals of this process are the other's; without, one ends the attachment. The error has the exit code.
func (c *cli) foreground(ctx context.Context, tty, stdin, proxy bool, start func(context.Context, stdio, waiter) error) error {
	f := &foreground{c: c, tty: tty, stdin: stdin, proxy: proxy}
	return f.do(ctx, start)
}

// do is foreground.
func (f *foreground) do(ctx context.Context, start func(context.Context, stdio, waiter) error) error {
	if f.tty && f.stdin && !term.IsTerminal(int(f.c.in.Fd())) {
		return &exitError{exitOwn, errors.New("stdin is not a terminal: leave out -t, or -i")}
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	f.ctx, f.cancel, f.sig = ctx, cancel, newSignals(cancel)
	defer f.sig.stop()
	err := f.run(start)
	switch {
	case errors.Is(context.Cause(ctx), errDetached):
		fmt.Fprintln(f.c.err, "\r\narcbox: detached")
		return nil
	case !f.proxy && err != nil && ctx.Err() != nil: // an interrupt ends the attachment only
		return nil
	case err != nil:
		err = f.c.explain(err)
		var exit *exitError
		if errors.As(err, &exit) {
			return err
		}
		return &exitError{exitCode(ctx, err), err}
	case f.exit.Code != 0:
		return &exitError{f.exit.Code, nil}
	}
	return nil
}

// foreground is a process that has this terminal.
type foreground struct {
	c                 *cli
	ctx               context.Context
	cancel            context.CancelCauseFunc
	sig               *signals
	tty, stdin, proxy bool
	exit              arcbox.Exit
}

func (f *foreground) run(start func(context.Context, stdio, waiter) error) error {
	std := stdio{out: f.c.out, err: f.c.err}
	if f.proxy {
		std.out, std.err = f.sig.output(std.out), f.sig.output(std.err)
	}
	if cols, rows, err := term.GetSize(int(f.c.in.Fd())); err == nil && f.tty {
		std.rows, std.cols = uint16(rows), uint16(cols)
	}
	if f.stdin {
		in, release := f.c.stdin()
		defer release()
		std.in = in
		if f.tty && f.c.session != nil {
			std.in = &detachReader{r: in, detach: func() { f.cancel(errDetached) }}
		}
	}
	return start(f.ctx, std, f.wait)
}

func (f *foreground) wait(p *arcbox.Process) error {
	defer p.Close()
	if in := int(f.c.in.Fd()); f.tty && f.stdin {
		state, err := term.MakeRaw(in)
		if err != nil {
			return fmt.Errorf("switch the terminal to raw mode: %w", err)
		}
		defer term.Restore(in, state)
	}
	if f.proxy {
		f.sig.forward(p, f.c.in, f.tty)
	}
	var err error
	f.exit, err = p.Wait(f.ctx)
	return err
}

// stdin returns the input for a process, and what gives the rest of it back.
func (c *cli) stdin() (io.Reader, func()) {
	if c.session == nil {
		return c.in, func() {}
	}
	l := c.session.console.lease()
	return l, l.close
}

// detachReader calls detach, and ends, where somebody types ctrl-p ctrl-q.
type detachReader struct {
	r      io.Reader
	detach func()
	held   bool // a ctrl-p that was read and not given
	ended  bool
}

const ctrlP, ctrlQ = 0x10, 0x11

// Read reads what was typed. A ctrl-p comes with what is typed after it.
func (d *detachReader) Read(p []byte) (int, error) {
	if d.ended || len(p) < 2 {
		return 0, io.EOF
	}
	from := 0
	if d.held {
		p[0], from, d.held = ctrlP, 1, false
	}
	n, err := d.r.Read(p[from:])
	n += from
	if i := bytes.Index(p[:n], []byte{ctrlP, ctrlQ}); i >= 0 {
		d.ended = true
		d.detach()
		return i, io.EOF
	}
	if err == nil && n > 0 && p[n-1] == ctrlP {
		d.held = true
		n--
	}
	return n, err
}
