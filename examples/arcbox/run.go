package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/arcboxlabs/arcbox-go"
	"github.com/arcboxlabs/arcbox-go/event"
)

// Exit codes that are not the container's own, as docker has them.
const (
	exitOwn         = 125 // arcbox itself failed
	exitNotRunnable = 126 // the command cannot be executed
	exitNoCommand   = 127 // the command does not exist
	exitSignal      = 128 // and the number of the signal
)

// runFlags are the flags of arcbox run.
type runFlags struct {
	name        string
	hostname    string
	env         []string
	labels      []string
	workdir     string
	user        string
	entrypoint  string
	stopSignal  string
	pull        string
	rm          bool
	interactive bool
	tty         bool
}

func (c *cli) runCommand() *cobra.Command {
	var f runFlags
	cmd := &cobra.Command{
		Use:   "run [flags] IMAGE [COMMAND [ARG...]]",
		Short: "Run a container and exit with its exit code",
		Long: `Run a container and exit with its exit code.

A machine is booted for it, and the image is pulled where the data directory does not have it. Signals that this
process gets go to the container; the third INT, TERM or HUP kills it. Container and machine end with this process, whatever
happens to it.

Exit codes other than the container's own: 125 where arcbox itself failed, 126 where the command cannot be executed, 127
where it does not exist, and 128 and the number of the signal where a signal came before the start.`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			spec, err := f.spec(args, os.LookupEnv)
			if err != nil {
				return &exitError{exitOwn, err}
			}
			start := c.start
			if start == nil {
				start = c.runContainer
			}
			return start(cmd.Context(), spec, arcbox.PullPolicy(strings.TrimPrefix(f.pull, "missing")))
		},
	}
	fs := cmd.Flags()
	fs.SetInterspersed(false) // what follows IMAGE belongs to the command
	fs.StringVar(&f.name, "name", "", "name of the container")
	fs.StringVar(&f.hostname, "hostname", "", "host name in the container")
	fs.StringArrayVarP(&f.env, "env", "e", nil, "set `KEY=VALUE`, or KEY to this process's value")
	fs.StringArrayVarP(&f.labels, "label", "l", nil, "set the label `KEY=VALUE`")
	fs.StringVarP(&f.workdir, "workdir", "w", "", "working directory")
	fs.StringVarP(&f.user, "user", "u", "", "`user[:group]`, as names or numbers")
	fs.StringVar(&f.entrypoint, "entrypoint", "", "in place of the image's entrypoint")
	fs.StringVar(&f.stopSignal, "stop-signal", "", "signal that asks the process to end")
	fs.StringVar(&f.pull, "pull", "missing", "when to pull the image: always, missing or never")
	fs.BoolVar(&f.rm, "rm", false, "remove the container as soon as it has ended; without it that is done when this process ends")
	fs.BoolVarP(&f.interactive, "interactive", "i", false, "connect stdin")
	fs.BoolVarP(&f.tty, "tty", "t", false, "give the container a terminal")
	cmd.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return &exitError{exitOwn, err} })
	return cmd
}

// spec describes the container that the flags and arguments ask for. lookup finds variables of this process.
func (f *runFlags) spec(args []string, lookup func(string) (string, bool)) (arcbox.ContainerSpec, error) {
	s := arcbox.ContainerSpec{
		Name: f.name, Image: args[0], Args: args[1:], WorkingDir: f.workdir, User: f.user, Hostname: f.hostname,
		TTY: f.tty, Stdin: f.interactive, StopSignal: f.stopSignal, AutoRemove: f.rm,
	}
	if f.entrypoint != "" {
		s.Entrypoint = []string{f.entrypoint}
	}
	for _, e := range f.env {
		key, _, set := strings.Cut(e, "=")
		if key == "" {
			return s, fmt.Errorf("flag --env %q: use KEY=VALUE or KEY", e)
		}
		if !set {
			value, ok := lookup(key)
			if !ok {
				continue
			}
			e = key + "=" + value
		}
		s.Env = append(s.Env, e)
	}
	for _, l := range f.labels {
		key, value, _ := strings.Cut(l, "=")
		if key == "" {
			return s, fmt.Errorf("flag --label %q: use KEY=VALUE or KEY", l)
		}
		if s.Labels == nil {
			s.Labels = map[string]string{}
		}
		s.Labels[key] = value
	}
	switch f.pull {
	case "missing", "always", "never":
	default:
		return s, fmt.Errorf("flag --pull %q: use always, missing or never", f.pull)
	}
	return s, nil
}

// runContainer runs a container to its end. The error has the exit code.
func (c *cli) runContainer(ctx context.Context, spec arcbox.ContainerSpec, pull arcbox.PullPolicy) error {
	terminal := spec.TTY && spec.Stdin
	if terminal && !term.IsTerminal(int(c.in.Fd())) {
		return &exitError{exitOwn, errors.New("stdin is not a terminal: leave out -t, or -i")}
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	sig := newSignals(cancel)
	defer sig.stop()

	d := c.display()
	defer d.close(true)
	var code int
	var wg sync.WaitGroup
	err := c.withRuntime(d, func(rt *arcbox.Runtime) (err error) {
		events := rt.Events(ctx, arcbox.EventsOptions{})
		wg.Go(func() { d.machine(events) })
		code, err = c.runIn(ctx, rt, spec, pull, d, sig)
		return err
	})
	wg.Wait() // the end of the Runtime ends the events
	if err != nil {
		return &exitError{exitCode(ctx, err), err}
	}
	if code != 0 {
		return &exitError{code, nil}
	}
	return nil
}

func (c *cli) runIn(ctx context.Context, rt *arcbox.Runtime, spec arcbox.ContainerSpec, pull arcbox.PullPolicy, d *display, sig *signals) (int, error) {
	opts := arcbox.RunOptions{
		Stdout: c.out, Stderr: c.err, Pull: pull, PullProgress: d.pull,
	}
	if cols, rows, err := term.GetSize(int(c.in.Fd())); err == nil && spec.TTY {
		opts.Rows, opts.Cols = uint16(rows), uint16(cols)
	}
	if spec.Stdin {
		opts.Stdin = c.in
	}
	p, err := rt.RunContainer(ctx, spec, opts)
	if err != nil {
		return 0, err
	}
	defer p.Close()
	d.close(true)
	if spec.TTY && spec.Stdin {
		state, err := term.MakeRaw(int(c.in.Fd()))
		if err != nil {
			return 0, fmt.Errorf("switch the terminal to raw mode: %w", err)
		}
		defer term.Restore(int(c.in.Fd()), state)
	}
	sig.forward(p, c.in, spec.TTY)
	exit, err := p.Wait(ctx)
	return exit.Code, err
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
