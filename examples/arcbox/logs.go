package main

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/arcboxlabs/arcbox-go"
)

func (c *cli) logsCommand() *cobra.Command {
	var opts arcbox.LogsOptions
	var since, until string
	var tail int
	var times bool
	cmd := &cobra.Command{
		Use:   "logs [flags] CONTAINER",
		Short: "Show what a container wrote",
		Long: `Show what a container wrote, to stdout and stderr as it did.

The log is kept until the container is removed. It lies on the machine's disk: the machine is started where none runs.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			now := time.Now()
			var err error
			if opts.Since, err = moment("--since", since, now); err != nil {
				return &exitError{exitOwn, err}
			}
			if opts.Until, err = moment("--until", until, now); err != nil {
				return &exitError{exitOwn, err}
			}
			if opts.Tail = tail; cmd.Flags().Changed("tail") && tail == 0 {
				opts.Tail = -1
			} else if tail < 0 {
				opts.Tail = 0
			}
			ctx, stop := interruptible(cmd.Context())
			defer stop()
			err = c.withMachine(ctx, func(rt *arcbox.Runtime, d *display) error {
				for e, err := range rt.ContainerLogs(ctx, args[0], opts) {
					d.close(true)
					if err != nil {
						return err
					}
					c.printEntry(e, times)
				}
				return nil
			})
			if opts.Follow && ctx.Err() != nil { // an interrupt is how people end it
				return nil
			}
			return err
		},
	}
	fs := cmd.Flags()
	fs.BoolVarP(&opts.Follow, "follow", "f", false, "go on until the container has exited")
	fs.IntVarP(&tail, "tail", "n", -1, "only so many of the last lines; -1 is all")
	fs.StringVar(&since, "since", "", "only from a `time` on, as 2030-01-31T15:04:05Z, or as 10m: that long ago")
	fs.StringVar(&until, "until", "", "only before a `time`")
	fs.BoolVarP(&times, "timestamps", "t", false, "show when each line was written")
	fs.BoolVar(&opts.Stdout, "stdout", false, "only stdout")
	fs.BoolVar(&opts.Stderr, "stderr", false, "only stderr")
	return cmd
}

func (c *cli) printEntry(e arcbox.LogEntry, times bool) {
	w := c.out
	if e.Stderr {
		w = c.err
	}
	if times {
		fmt.Fprint(w, e.Time.UTC().Format("2006-01-02T15:04:05.000000000Z"), " ")
	}
	w.Write(e.Line)
}

// moment reads a time, or how long ago it was; "" is the zero time.
func moment(flag, text string, now time.Time) (time.Time, error) {
	if text == "" {
		return time.Time{}, nil
	}
	if ago, err := time.ParseDuration(text); err == nil {
		return now.Add(-ago), nil
	}
	t, err := time.Parse(time.RFC3339Nano, text)
	if err != nil {
		return t, fmt.Errorf("flag %s %q: use a time as 2030-01-31T15:04:05Z, or how long ago as 10m", flag, text)
	}
	return t, nil
}
