package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/arcboxlabs/arcbox-go"
)

func (c *cli) execCommand() *cobra.Command {
	var spec arcbox.ExecSpec
	var env []string
	cmd := &cobra.Command{
		Use:   "exec [flags] CONTAINER COMMAND [ARG...]",
		Short: "Execute a command in a running container (in arcbox shell)",
		Args:  cobra.MinimumNArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			var err error
			if spec.Env, err = environment(env, os.LookupEnv); err != nil {
				return &exitError{exitOwn, err}
			}
			spec.Args = args[1:]
			if spec.Detach {
				return c.execDetached(cmd.Context(), args[0], spec)
			}
			return c.foreground(cmd.Context(), spec.TTY, spec.Stdin, true, func(ctx context.Context, std stdio, wait waiter) error {
				return c.withRuntime(nil, func(rt *arcbox.Runtime) error {
					p, err := rt.Exec(ctx, args[0], spec, arcbox.ExecOptions{
						Stdin: std.in, Stdout: std.out, Stderr: std.err, Rows: std.rows, Cols: std.cols,
					})
					if err != nil {
						return err
					}
					return wait(p)
				})
			})
		},
	}
	fs := cmd.Flags()
	fs.SetInterspersed(false)
	fs.StringArrayVarP(&env, "env", "e", nil, "set `KEY=VALUE`, or KEY to this process's value")
	fs.StringVarP(&spec.WorkingDir, "workdir", "w", "", "working directory")
	fs.StringVarP(&spec.User, "user", "u", "", "`user[:group]`, as names or numbers")
	fs.BoolVarP(&spec.Stdin, "interactive", "i", false, "connect stdin")
	fs.BoolVarP(&spec.TTY, "tty", "t", false, "give the command a terminal")
	fs.BoolVarP(&spec.Detach, "detach", "d", false, "leave the command in the background, without its output, and print its id")
	fs.BoolVar(&spec.Privileged, "privileged", false, "all capabilities, no seccomp")
	return cmd
}

func (c *cli) execDetached(ctx context.Context, ref string, spec arcbox.ExecSpec) error {
	ctx, stop := interruptible(ctx)
	defer stop()
	spec.Stdin = false
	return c.withRuntime(nil, func(rt *arcbox.Runtime) error {
		p, err := rt.Exec(ctx, ref, spec, arcbox.ExecOptions{})
		if err != nil {
			return &exitError{exitCode(ctx, err), c.explain(err)}
		}
		fmt.Fprintln(c.out, p.ID())
		return p.Close()
	})
}

func (c *cli) attachCommand() *cobra.Command {
	var noStdin, proxy bool
	cmd := &cobra.Command{
		Use:   "attach [flags] CONTAINER",
		Short: "Connect to the stdio of a running container (in arcbox shell)",
		Long: `Connect to the stdio of a running container and exit with its exit code.

Of a container with a terminal, ctrl-p ctrl-q detaches and leaves it running; of another, an interrupt does with
--sig-proxy=false.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := c.needsShell("attach"); err != nil {
				return err
			}
			i, err := c.session.rt.InspectContainer(cmd.Context(), args[0])
			if err != nil {
				return &exitError{exitOwn, err}
			}
			return c.foreground(cmd.Context(), i.TTY, i.Stdin && !noStdin, proxy, func(ctx context.Context, std stdio, wait waiter) error {
				p, err := c.session.rt.AttachContainer(ctx, i.ID, arcbox.AttachOptions{Stdin: std.in, Stdout: std.out, Stderr: std.err})
				if err != nil {
					return err
				}
				return wait(p)
			})
		},
	}
	cmd.Flags().BoolVar(&noStdin, "no-stdin", false, "do not connect stdin")
	cmd.Flags().BoolVar(&proxy, "sig-proxy", true, "send the signals of this process to the container")
	return cmd
}

func (c *cli) startCommand() *cobra.Command {
	var attach, stdin bool
	cmd := &cobra.Command{
		Use:   "start [-a [-i]] CONTAINER...",
		Short: "Start containers that were made before",
		Long: `Start containers that were made before. What they wrote is as they left it.

Outside of "arcbox shell" only -a makes sense, for one container: it ends with this process. Its output is shown and its
exit code is the command's. With -i stdin is connected, of a container that was made with -i.`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			switch {
			case attach && len(args) > 1:
				return &exitError{exitOwn, fmt.Errorf("start --attach: name one container, not %d", len(args))}
			case attach:
				return c.startAttached(cmd.Context(), args[0], stdin)
			case stdin:
				return &exitError{exitOwn, errors.New("start --interactive: it takes --attach")}
			}
			if err := c.needsShell("start without --attach"); err != nil {
				return err
			}
			return c.each("", "", func(ctx context.Context, rt *arcbox.Runtime, ref string) error { return rt.StartContainer(ctx, ref) }).RunE(cmd, args)
		},
	}
	cmd.Flags().BoolVarP(&attach, "attach", "a", false, "show the output and wait for the end")
	cmd.Flags().BoolVarP(&stdin, "interactive", "i", false, "connect stdin")
	return cmd
}

// startAttached starts a container and shows what it writes from then on. That comes from its log: one that has exited
// cannot be attached to before it is started, and what it writes first would be lost after.
func (c *cli) startAttached(ctx context.Context, ref string, stdin bool) error {
	f := &foreground{c: c, proxy: true, stdin: stdin}
	return f.do(ctx, func(ctx context.Context, std stdio, _ waiter) error {
		return c.withMachine(ctx, func(rt *arcbox.Runtime, d *display) error {
			i, err := rt.InspectContainer(ctx, ref)
			if err != nil {
				return err
			}
			var since time.Time // after what it wrote before
			if i.State == arcbox.ContainerExited {
				for e, err := range rt.ContainerLogs(ctx, i.ID, arcbox.LogsOptions{Tail: 1}) {
					if err != nil {
						return err
					}
					since = e.Time.Add(1)
				}
			}
			if err := rt.StartContainer(ctx, i.ID); err != nil {
				return err
			}
			d.close(true)
			if stdin {
				p, err := rt.AttachContainer(ctx, i.ID, arcbox.AttachOptions{Stdin: std.in})
				if err == nil {
					defer p.Close()
				} else if now, ierr := rt.InspectContainer(ctx, i.ID); ierr != nil || now.State != arcbox.ContainerExited {
					return err // it has not ended meanwhile
				}
			}
			f.sig.forward(recorded{rt, i.ID}, c.in, false)
			if err := rt.CopyLogs(ctx, i.ID, c.out, c.err, arcbox.LogsOptions{Follow: true, Since: since}); err != nil {
				return err
			}
			f.exit, err = rt.WaitContainer(ctx, i.ID, arcbox.WaitOptions{})
			return err
		})
	})
}

// recorded is a container's process without a connection to it.
type recorded struct {
	rt *arcbox.Runtime
	id string
}

// Signal sends the process a signal.
func (r recorded) Signal(ctx context.Context, name string) error {
	return r.rt.KillContainer(ctx, r.id, name)
}

// Resize does nothing.
func (recorded) Resize(context.Context, uint16, uint16) error { return nil }
