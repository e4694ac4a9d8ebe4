package main

import (
	"context"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/arcboxlabs/arcbox-go"
)

// Exit codes that are not the container's own, as docker has them.
const (
	exitOwn         = 125 // arcbox itself failed
	exitNotRunnable = 126 // the command cannot be executed
	exitNoCommand   = 127 // the command does not exist
	exitSignal      = 128 // and the number of the signal
)

func (c *cli) runCommand() *cobra.Command {
	var f runFlags
	var detach bool
	cmd := &cobra.Command{
		Use:   "run [flags] IMAGE [COMMAND [ARG...]]",
		Short: "Run a container and exit with its exit code",
		Long: `Run a container and exit with its exit code.

A machine is started for it where none runs, and the image is pulled where the data directory does not have it. Signals
that this process gets go to the container; the third INT, TERM or HUP kills it. The container ends with this process,
whatever happens to it; what it wrote and its log are kept until "arcbox rm", unless --rm is given.

In "arcbox shell" -d leaves the container in the background, and ctrl-p ctrl-q detaches from one that was given -it.

Exit codes other than the container's own: 125 where arcbox itself failed, 126 where the command cannot be executed, 127
where it does not exist, and 128 and the number of the signal where a signal came before the start.`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			spec, err := f.spec(args, os.LookupEnv)
			if err != nil {
				return &exitError{exitOwn, err}
			}
			start := c.start
			switch {
			case start != nil:
			case detach:
				if err := c.needsShell("run --detach"); err != nil {
					return err
				}
				start = c.runDetached
			default:
				start = c.runContainer
			}
			return start(cmd.Context(), spec, f.policy())
		},
	}
	f.register(cmd.Flags())
	cmd.Flags().BoolVarP(&detach, "detach", "d", false, "leave the container in the background and print its id (in arcbox shell only)")
	return cmd
}

func (c *cli) createCommand() *cobra.Command {
	var f runFlags
	cmd := &cobra.Command{
		Use:   "create [flags] IMAGE [COMMAND [ARG...]]",
		Short: "Make a container, to be started later, and print its id",
		Args:  cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			spec, err := f.spec(args, os.LookupEnv)
			if err != nil {
				return &exitError{exitOwn, err}
			}
			if c.start != nil {
				return c.start(cmd.Context(), spec, f.policy())
			}
			ctx, stop := interruptible(cmd.Context())
			defer stop()
			return c.withMachine(ctx, func(rt *arcbox.Runtime, d *display) error {
				i, err := rt.CreateContainer(ctx, spec, arcbox.CreateOptions{Pull: f.policy(), PullProgress: d.pull})
				d.close(true)
				if err != nil {
					return &exitError{exitOwn, err}
				}
				fmt.Fprintln(c.out, i.ID)
				return nil
			})
		},
	}
	f.register(cmd.Flags())
	return cmd
}

// policy is what --pull says, which spec has checked.
func (f *runFlags) policy() arcbox.PullPolicy {
	return arcbox.PullPolicy(f.pull)
}

// runContainer runs a container to its end. The error has the exit code.
func (c *cli) runContainer(ctx context.Context, spec arcbox.ContainerSpec, pull arcbox.PullPolicy) error {
	return c.foreground(ctx, spec.TTY, spec.Stdin, true, func(ctx context.Context, std stdio, wait waiter) error {
		return c.withMachine(ctx, func(rt *arcbox.Runtime, d *display) error {
			p, err := rt.RunContainer(ctx, spec, arcbox.RunOptions{
				Stdin: std.in, Stdout: std.out, Stderr: std.err, Rows: std.rows, Cols: std.cols, Pull: pull, PullProgress: d.pull,
			})
			if err != nil {
				return err
			}
			d.close(true)
			return wait(p)
		})
	})
}

// runDetached starts a container in the background.
func (c *cli) runDetached(ctx context.Context, spec arcbox.ContainerSpec, pull arcbox.PullPolicy) error {
	ctx, stop := interruptible(ctx)
	defer stop()
	return c.withMachine(ctx, func(rt *arcbox.Runtime, d *display) error {
		p, err := rt.RunContainer(ctx, spec, arcbox.RunOptions{Pull: pull, PullProgress: d.pull})
		d.close(true)
		if err != nil {
			return &exitError{exitCode(ctx, err), err}
		}
		fmt.Fprintln(c.out, p.ID())
		return p.Close()
	})
}
