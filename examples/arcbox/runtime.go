package main

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/arcboxlabs/arcbox-go"
	"github.com/arcboxlabs/arcbox-go/event"
)

// withRuntime calls fn with the Runtime of the shell or, outside, with one of its own that is closed afterwards.
func (c *cli) withRuntime(d *display, fn func(*arcbox.Runtime) error) error {
	if c.session != nil {
		c.session.shown.Store(d)
		defer c.session.shown.Store(nil)
		return fn(c.session.rt)
	}
	rt, err := arcbox.New(c.config(d))
	if err != nil {
		return err
	}
	err = fn(rt)
	if cerr := rt.Close(); err == nil {
		err = cerr
	}
	return err
}

// progress returns where progress goes: to the line of the shell that runs now, or to d.
func (c *cli) progress(d *display) *display {
	if c.session != nil {
		return c.session.shown.Load()
	}
	return d
}

// withMachine is withRuntime for what may boot the machine, which is shown. fn closes the display before it prints.
func (c *cli) withMachine(ctx context.Context, fn func(*arcbox.Runtime, *display) error) error {
	d := c.display()
	defer d.close(true)
	var wg sync.WaitGroup
	defer wg.Wait()
	return c.withRuntime(d, func(rt *arcbox.Runtime) error {
		ctx, stop := context.WithCancel(ctx)
		defer stop()
		events := rt.Events(ctx, arcbox.EventsOptions{})
		wg.Go(func() { d.machine(events) })
		return fn(rt, d)
	})
}

// machine shows the boot of the machine.
func (d *display) machine(events <-chan event.Event) {
	const label = "boot machine"
	for e := range events {
		switch e.Kind {
		case event.MachineBooting:
			d.update(label, 0, 0)
		case event.MachineReady:
			d.complete(label, false)
		case event.MachineFailed:
			d.complete(label, true)
		}
	}
}

// noDaemon says why a call cannot do what it was asked for.
const noDaemon = "there is no daemon: a container runs only as long as the arcbox that started it; use arcbox shell, or arcbox run"

// explain adds to an error what having no daemon means for it. The exit code is 125 then.
func (c *cli) explain(err error) error {
	if c.session != nil || !errors.Is(err, arcbox.ErrConflict) {
		return err
	}
	return &exitError{exitOwn, fmt.Errorf("%w (%s)", err, noDaemon)}
}

// needsShell is the error of a command that makes sense in the shell only; nil there.
func (c *cli) needsShell(what string) error {
	if c.session != nil {
		return nil
	}
	return &exitError{exitOwn, fmt.Errorf("%s: %s", what, noDaemon)}
}

// exitCode returns the exit code for an error.
func exitCode(ctx context.Context, err error) int {
	var s *signalError
	switch {
	case errors.As(context.Cause(ctx), &s):
		return exitSignal + s.number
	case errors.Is(err, arcbox.ErrCommandNotFound):
		return exitNoCommand
	case errors.Is(err, arcbox.ErrCommandNotExecutable):
		return exitNotRunnable
	}
	return exitOwn
}
