package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/arcboxlabs/arcbox-go"
	"github.com/arcboxlabs/arcbox-go/boot"
	"github.com/arcboxlabs/arcbox-go/vm"
)

// cli is one call of the command, or one line of its shell.
type cli struct {
	in       *os.File
	out, err *os.File
	flags    globalFlags
	session  *session                                                             // of the shell; nil outside
	start    func(context.Context, arcbox.ContainerSpec, arcbox.PullPolicy) error // of run; nil is runContainer
}

// globalFlags are the flags that all commands have.
type globalFlags struct {
	dataDir string
	bootDir string
	arch    string
	cpus    int
	memory  int64 // MiB
	accel   string
	plain   []string // hosts of registries without TLS
	mirrors []string // REGISTRY=HOST
	quiet   bool
	verbose bool
	console bool
}

// exitError is an error that has an exit code of its own. Its error may be nil: then nothing is printed.
type exitError struct {
	code int
	err  error
}

func (e *exitError) Error() string {
	if e.err == nil {
		return fmt.Sprintf("exit code %d", e.code)
	}
	return e.err.Error()
}

func (e *exitError) Unwrap() error { return e.err }

// run executes the command line and returns the exit code.
func (c *cli) run(ctx context.Context, args []string) int {
	root := c.command()
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	var exit *exitError
	switch {
	case err == nil:
		return 0
	case !errors.As(err, &exit):
		exit = &exitError{1, err}
	}
	if exit.err != nil {
		fmt.Fprintln(c.err, "arcbox:", exit.err)
	}
	return exit.code
}

func (c *cli) command() *cobra.Command {
	root := &cobra.Command{
		Use:           "arcbox",
		Short:         "Run Linux containers in a virtual machine of their own, without a daemon",
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	root.SetIn(c.in)
	root.SetOut(c.out)
	root.SetErr(c.err)
	root.CompletionOptions.DisableDefaultCmd = true
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return &exitError{exitOwn, err} })
	root.AddCommand(c.imageCommands()...)
	root.AddCommand(c.containerCommands()...)
	root.AddCommand(c.machineCommands()...)
	root.AddCommand(c.volumeCommand(), c.networkCommand())
	if c.session == nil {
		c.globalFlags(root)
		root.AddCommand(c.shellCommand(), c.doctorCommand())
	}
	return root
}

func (c *cli) globalFlags(root *cobra.Command) {
	f := root.PersistentFlags()
	f.StringVar(&c.flags.dataDir, "data-dir", "", "keep images, containers and boot files in `directory` (default: arcbox in the user's data directory)")
	f.StringVar(&c.flags.bootDir, "boot-dir", "", "keep kernels in `directory` (default: boot in the data directory)")
	f.StringVar(&c.flags.arch, "arch", "", "architecture of the machine, amd64 or arm64 (default: the host's)")
	f.IntVar(&c.flags.cpus, "cpus", 0, "virtual processors of the machine (default: the host's, at most 4)")
	f.Int64Var(&c.flags.memory, "memory", 0, "memory of the machine in `MiB` (default 1024)")
	f.StringVar(&c.flags.accel, "accel", "auto", "accelerator: auto, kvm or tcg")
	f.StringSliceVar(&c.flags.plain, "plain-http", nil, "speak to the registry or mirror `host[:port]` without TLS")
	f.StringSliceVar(&c.flags.mirrors, "mirror", nil, "ask a mirror first, as `REGISTRY=HOST`; may be repeated")
	f.BoolVarP(&c.flags.quiet, "quiet", "q", false, "show no progress")
	f.BoolVar(&c.flags.verbose, "verbose", false, "tell on stderr what is done and decided")
	f.BoolVar(&c.flags.console, "console", false, "show the machine's console on stderr")
}

func (c *cli) imageCommands() []*cobra.Command {
	return []*cobra.Command{
		c.imagesCommand(), c.pullCommand(), c.pushCommand(), c.loadCommand(), c.saveCommand(), c.importCommand(),
		c.tagCommand(), c.rmiCommand(), c.pruneCommand(), c.dfCommand(), c.historyCommand(),
	}
}

func (c *cli) containerCommands() []*cobra.Command {
	return []*cobra.Command{
		c.runCommand(), c.createCommand(), c.startCommand(), c.restartCommand(), c.stopCommand(), c.killCommand(), c.rmCommand(),
		c.pauseCommand(), c.unpauseCommand(), c.renameCommand(), c.updateCommand(), c.waitCommand(),
		c.psCommand(), c.portCommand(), c.inspectCommand(), c.logsCommand(), c.execCommand(), c.attachCommand(), c.statsCommand(), c.topCommand(),
		c.cpCommand(), c.exportCommand(), c.diffCommand(), c.commitCommand(),
	}
}

// config is what the flags say, with progress going to d.
func (c *cli) config(d *display) arcbox.Config {
	cfg := arcbox.Config{
		DataDir: c.flags.dataDir,
		VM:      arcbox.VMConfig{Arch: c.flags.arch, CPUs: c.flags.cpus, Memory: c.flags.memory << 20},
		Boot: arcbox.BootConfig{
			Dir:      c.flags.bootDir,
			Progress: func(p boot.Progress) { c.progress(d).update(string(p.Step), p.Done, p.Total) },
		},
	}
	cfg.Registry.PlainHTTP, cfg.Registry.Proxy = c.flags.plain, http.ProxyFromEnvironment
	for _, m := range c.flags.mirrors {
		registry, host, _ := strings.Cut(m, "=")
		put(&cfg.Registry.Mirrors, registry, append(cfg.Registry.Mirrors[registry], host))
	}
	if c.flags.accel != "auto" {
		cfg.VM.Accelerator = vm.Accelerator(c.flags.accel)
	}
	if c.flags.console {
		cfg.VM.Console = c.err
	}
	if c.flags.verbose {
		cfg.Logger = slog.New(slog.NewTextHandler(c.err, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	return cfg
}

// display shows progress on stderr: bars on a terminal, lines elsewhere, nothing with --quiet.
func (c *cli) display() *display {
	switch {
	case c.flags.quiet:
		return nil
	case term.IsTerminal(int(c.err.Fd())) && !c.flags.verbose && !c.flags.console:
		return &display{w: c.err, now: time.Now, width: func() int {
			if w, _, err := term.GetSize(int(c.err.Fd())); err == nil && w > 0 {
				return w
			}
			return 80
		}}
	}
	return &display{w: c.err, now: time.Now}
}
