package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"sync/atomic"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/arcboxlabs/arcbox-go"
)

// session is what the lines of a shell share.
type session struct {
	rt      *arcbox.Runtime
	console *console
	shown   atomic.Pointer[display] // of the line that runs now
}

func (c *cli) shellCommand() *cobra.Command {
	var strict bool
	cmd := &cobra.Command{
		Use:   "shell",
		Short: "Read commands from stdin, which work on containers that run side by side",
		Long: `Read commands from stdin, one in each line, as they are given to arcbox without the word arcbox.

All lines work on the same machine. "run -d" leaves a container in the background, where exec, attach, logs, stats, top,
pause, stop and so on find it. Words are quoted as in sh; nothing is expanded. "help" lists the commands. At the end of the
input, with "exit", and by TERM or HUP, the containers that still run are killed and the machine is powered off. What
they wrote is kept until "rm".

The exit code is that of the last line, or the number after "exit".`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s := &session{}
			inner := s.fresh(c)
			rt, err := arcbox.New(inner.config(nil))
			if err != nil {
				return &exitError{exitOwn, err}
			}
			s.rt, s.console = rt, newConsole(c.in)
			code := inner.lines(cmd.Context(), strict)
			if err := rt.Close(); err != nil {
				return &exitError{exitOwn, err}
			}
			if code != 0 {
				return &exitError{code, nil}
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&strict, "exit-on-error", false, "end with the first line whose exit code is not 0")
	return cmd
}

// lines runs one line after the other and returns the exit code.
func (c *cli) lines(ctx context.Context, strict bool) int {
	ctx, end := context.WithCancelCause(ctx)
	defer end(nil)
	interrupts, stop := c.catch(end)
	defer stop()
	code := 0
	for {
		line, err := c.prompt(ctx, interrupts)
		switch {
		case errors.Is(err, errInterrupted) && ctx.Err() == nil:
			continue
		case errors.Is(err, io.EOF):
			return code
		case ctx.Err() != nil:
			return exitCode(ctx, ctx.Err())
		case err == nil:
			var exit bool
			if code, exit = c.line(ctx, line, code); exit {
				return code
			}
		default:
			fmt.Fprintln(c.err, "arcbox:", err)
			code = exitOwn
		}
		if strict && code != 0 {
			return code
		}
		select {
		case <-interrupts: // it was meant for the line
		default:
		}
	}
}

// line runs a line. exit tells that it ends the shell.
func (c *cli) line(ctx context.Context, line string, before int) (code int, exit bool) {
	args, err := words(line)
	switch {
	case err != nil:
		fmt.Fprintln(c.err, "arcbox:", err)
		return exitOwn, false
	case len(args) == 0:
		return before, false
	case args[0] == "exit" || args[0] == "quit":
		if len(args) == 1 {
			return before, true
		}
		if _, err := fmt.Sscanf(args[1], "%d", &code); err != nil || code < 0 || code > 255 || len(args) > 2 {
			fmt.Fprintln(c.err, "arcbox: exit: use a number from 0 to 255")
			return exitOwn, false
		}
		return code, true
	}
	return c.session.fresh(c).run(ctx, args), false
}

// fresh returns a cli for one line.
func (s *session) fresh(c *cli) *cli {
	return &cli{in: c.in, out: c.out, err: c.err, flags: c.flags, session: s}
}

// prompt reads a line. An interrupt makes it errInterrupted.
func (c *cli) prompt(ctx context.Context, interrupts <-chan struct{}) (string, error) {
	if term.IsTerminal(int(c.in.Fd())) {
		fmt.Fprint(c.err, "arcbox> ")
	}
	done, stop := make(chan struct{}), make(chan struct{})
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		select {
		case <-interrupts:
			fmt.Fprintln(c.err)
			close(done)
		case <-ctx.Done():
			close(done)
		case <-stop:
		}
	}()
	line, err := c.session.console.line(done)
	close(stop)
	<-ended
	return line, err
}

// catch takes the signals of this process: an interrupt is told on the channel, TERM and HUP end what is in progress.
func (c *cli) catch(end context.CancelCauseFunc) (<-chan struct{}, func()) {
	interrupts := make(chan struct{}, 1)
	signals := make(chan os.Signal, 8)
	done, ended := make(chan struct{}), make(chan struct{})
	names := proxied()
	for sig, name := range names {
		if ends(name) {
			signal.Notify(signals, sig)
		}
	}
	go func() {
		defer close(ended)
		for {
			select {
			case sig := <-signals:
				if sig != os.Interrupt {
					end(&signalError{names[sig], number(sig)})
					continue
				}
				select {
				case interrupts <- struct{}{}:
				default:
				}
			case <-done:
				return
			}
		}
	}()
	return interrupts, func() {
		signal.Stop(signals)
		close(done)
		<-ended
	}
}
