package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/arcboxlabs/arcbox-go"
)

// each makes a command that does something to each container that is named, and prints the name where it worked. An error
// does not keep it from the others.
func (c *cli) each(use, short string, do func(context.Context, *arcbox.Runtime, string) error) *cobra.Command {
	return &cobra.Command{
		Use:   use,
		Short: short,
		Args:  cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx, stop := interruptible(cmd.Context())
			defer stop()
			return c.withMachine(ctx, func(rt *arcbox.Runtime, d *display) error {
				var all []error
				for _, ref := range args {
					if err := do(ctx, rt, ref); err != nil {
						all = append(all, err)
						continue
					}
					d.close(true)
					fmt.Fprintln(c.out, ref)
				}
				return c.explain(errors.Join(all...))
			})
		},
	}
}

func (c *cli) pauseCommand() *cobra.Command {
	return c.each("pause CONTAINER...", "Freeze the processes of containers (in arcbox shell)", func(ctx context.Context, rt *arcbox.Runtime, ref string) error {
		return rt.PauseContainer(ctx, ref)
	})
}

func (c *cli) unpauseCommand() *cobra.Command {
	return c.each("unpause CONTAINER...", "Let paused containers go on (in arcbox shell)", func(ctx context.Context, rt *arcbox.Runtime, ref string) error {
		return rt.ResumeContainer(ctx, ref)
	})
}

func (c *cli) killCommand() *cobra.Command {
	var signal string
	cmd := c.each("kill CONTAINER...", "Send a signal to containers (in arcbox shell)", func(ctx context.Context, rt *arcbox.Runtime, ref string) error {
		return rt.KillContainer(ctx, ref, signal)
	})
	cmd.Flags().StringVarP(&signal, "signal", "s", "KILL", "name or number of the signal")
	return cmd
}

func (c *cli) rmCommand() *cobra.Command {
	var opts arcbox.RemoveOptions
	cmd := c.each("rm CONTAINER...", "Remove containers, what they wrote and their logs", func(ctx context.Context, rt *arcbox.Runtime, ref string) error {
		return rt.RemoveContainer(ctx, ref, opts)
	})
	cmd.Flags().BoolVarP(&opts.Force, "force", "f", false, "kill those that run")
	cmd.Flags().BoolVarP(&opts.Volumes, "volumes", "v", false, "remove their anonymous volumes too")
	return cmd
}

func (c *cli) stopCommand() *cobra.Command {
	var f stopFlags
	cmd := c.each("stop CONTAINER...", "Ask containers to end, and kill those that do not", func(ctx context.Context, rt *arcbox.Runtime, ref string) error {
		return rt.StopContainer(ctx, ref, f.options())
	})
	f.register(cmd)
	return cmd
}

func (c *cli) restartCommand() *cobra.Command {
	var f stopFlags
	cmd := c.each("restart CONTAINER...", "Stop containers and start them again (in arcbox shell)", func(ctx context.Context, rt *arcbox.Runtime, ref string) error {
		if err := c.needsShell("restart"); err != nil {
			return err
		}
		return rt.RestartContainer(ctx, ref, f.options())
	})
	f.register(cmd)
	return cmd
}

type stopFlags struct {
	cmd     *cobra.Command
	signal  string
	timeout time.Duration
}

func (f *stopFlags) register(cmd *cobra.Command) {
	f.cmd = cmd
	cmd.Flags().StringVarP(&f.signal, "signal", "s", "", "in place of the container's stop signal")
	cmd.Flags().DurationVarP(&f.timeout, "time", "t", 0, "from the signal to KILL, as 5s; negative is for ever (default: the container's)")
}

func (f *stopFlags) options() arcbox.StopOptions {
	opts := arcbox.StopOptions{Signal: f.signal}
	if f.cmd.Flags().Changed("time") {
		opts.Timeout = &f.timeout
	}
	return opts
}

func (c *cli) renameCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "rename CONTAINER NAME",
		Short: "Give a container another name",
		Args:  cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.withRuntime(nil, func(rt *arcbox.Runtime) error { return rt.RenameContainer(cmd.Context(), args[0], args[1]) })
		},
	}
}

func (c *cli) updateCommand() *cobra.Command {
	var l limitFlags
	var restart string
	cmd := &cobra.Command{
		Use:   "update [flags] CONTAINER...",
		Short: "Change limits and the restart policy of containers",
		Args:  cobra.MinimumNArgs(1),
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		r, err := l.resources()
		if err != nil {
			return &exitError{exitOwn, err}
		}
		opts := arcbox.UpdateOptions{Resources: r}
		if cmd.Flags().Changed("restart") {
			p, err := restartPolicy(restart)
			if err != nil {
				return &exitError{exitOwn, err}
			}
			opts.Restart = &p
		}
		return c.withRuntime(nil, func(rt *arcbox.Runtime) error {
			for _, ref := range args {
				if _, err := rt.UpdateContainer(cmd.Context(), ref, opts); err != nil {
					return err
				}
				fmt.Fprintln(c.out, ref)
			}
			return nil
		})
	}
	l.register(cmd.Flags())
	cmd.Flags().StringVar(&restart, "restart", "", "`policy`: no, always, unless-stopped or on-failure[:max]")
	return cmd
}

func (c *cli) waitCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "wait CONTAINER...",
		Short: "Wait for the end of containers and print their exit codes",
		Args:  cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx, stop := interruptible(cmd.Context())
			defer stop()
			return c.withRuntime(nil, func(rt *arcbox.Runtime) error {
				for _, ref := range args {
					i, err := rt.InspectContainer(ctx, ref)
					if err != nil {
						return err
					}
					if i.State == arcbox.ContainerCreated {
						if err := c.needsShell("wait for " + ref + ", which was not started"); err != nil {
							return err
						}
					}
					exit, err := rt.WaitContainer(ctx, i.ID, arcbox.WaitOptions{})
					if err != nil {
						return err
					}
					fmt.Fprintln(c.out, exit.Code)
				}
				return nil
			})
		},
	}
}
