package main

import (
	"context"
	"os"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/term"

	"github.com/arcboxlabs/arcbox-go"
)

// visit is a command to execute in a machine itself.
type visit struct {
	spec  arcbox.MachineExecSpec
	pull  string
	stdin bool
}

// image registers the flags that say where the programs come from.
func (v *visit) image(fs *pflag.FlagSet) {
	fs.StringVar(&v.spec.Image, "image", "busybox", "image that has the programs")
	fs.StringVar(&v.pull, "pull", string(arcbox.PullMissing), "pull the image: missing, always or never")
}

func (c *cli) machineExec() *cobra.Command {
	var v visit
	var env []string
	cmd := &cobra.Command{
		Use:   "exec [flags] MACHINE COMMAND [ARG...]",
		Short: "Execute a command in a machine itself",
		Long: `Execute a command in a machine itself, as root with all rights, and exit with its exit code.

The command sees the machine's processes, network and devices. Its root is that of an image, since a machine has no programs
of its own, and the machine's own root is at /host. The machine is started where it does not run.`,
		Args: cobra.MinimumNArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			var err error
			if v.spec.Env, err = environment(env, os.LookupEnv); err != nil {
				return &exitError{exitOwn, err}
			}
			v.spec.Args = args[1:]
			return c.visit(cmd.Context(), args[0], v)
		},
	}
	fs := cmd.Flags()
	fs.SetInterspersed(false)
	v.image(fs)
	fs.StringArrayVarP(&env, "env", "e", nil, "set `KEY=VALUE`, or KEY to this process's value")
	fs.StringVarP(&v.spec.WorkingDir, "workdir", "w", "", "working directory")
	fs.StringVarP(&v.spec.User, "user", "u", "", "`user[:group]`, as names or numbers")
	fs.BoolVarP(&v.stdin, "interactive", "i", false, "connect stdin")
	fs.BoolVarP(&v.spec.TTY, "tty", "t", false, "give the command a terminal")
	return cmd
}

func (c *cli) machineShell() *cobra.Command {
	v := visit{stdin: true}
	cmd := &cobra.Command{
		Use:   "shell [flags] MACHINE",
		Short: "Open a shell in a machine itself: machine exec -it MACHINE sh; without a terminal it reads a script",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			v.spec.Args, v.spec.TTY = []string{"sh"}, term.IsTerminal(int(c.in.Fd()))
			return c.visit(cmd.Context(), args[0], v)
		},
	}
	v.image(cmd.Flags())
	return cmd
}

// visit executes a command in a machine to its end. The error has the exit code.
func (c *cli) visit(ctx context.Context, machine string, v visit) error {
	return c.foreground(ctx, v.spec.TTY, v.stdin, true, func(ctx context.Context, std stdio, wait waiter) error {
		return c.withMachine(ctx, func(rt *arcbox.Runtime, d *display) error {
			p, err := rt.ExecMachine(ctx, machine, v.spec, arcbox.RunOptions{
				Stdin: std.in, Stdout: std.out, Stderr: std.err, Rows: std.rows, Cols: std.cols,
				Pull: arcbox.PullPolicy(v.pull), PullProgress: d.pull,
			})
			if err != nil {
				return err
			}
			d.close(true)
			return wait(p)
		})
	})
}
