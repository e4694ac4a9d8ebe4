package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/arcboxlabs/arcbox-go"
)

func (c *cli) statsCommand() *cobra.Command {
	var once bool
	var interval time.Duration
	cmd := &cobra.Command{
		Use:   "stats [flags] [CONTAINER...]",
		Short: "Show what running containers use, all or some, until an interrupt (in arcbox shell)",
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx, stop := interruptible(cmd.Context())
			defer stop()
			return c.withRuntime(nil, func(rt *arcbox.Runtime) error {
				names, err := runningNames(ctx, rt, args)
				if err != nil {
					return c.explain(err)
				}
				w := &statsWatch{c: c, interval: interval, once: once}
				errs := make([]error, len(names))
				var wg sync.WaitGroup
				for i, name := range names {
					wg.Go(func() { errs[i] = w.watch(ctx, rt, name) })
				}
				wg.Wait()
				return c.explain(errors.Join(errs...))
			})
		},
	}
	cmd.Flags().BoolVar(&once, "no-stream", false, "one line, after one interval")
	cmd.Flags().DurationVar(&interval, "interval", time.Second, "from a line to the next")
	return cmd
}

// runningNames returns the names that were given, or those of all containers that run.
func runningNames(ctx context.Context, rt *arcbox.Runtime, names []string) ([]string, error) {
	if len(names) > 0 {
		return names, nil
	}
	list, err := rt.ListContainers(ctx, arcbox.ListContainersOptions{States: []arcbox.ContainerState{arcbox.ContainerRunning, arcbox.ContainerPaused}})
	for _, i := range list {
		names = append(names, i.Name)
	}
	return names, err
}

// statsWatch prints the lines of several containers.
type statsWatch struct {
	c        *cli
	interval time.Duration
	once     bool

	mu    sync.Mutex
	shown bool // the head of the table
}

// watch prints the lines of one container until it ends or ctx does.
func (w *statsWatch) watch(ctx context.Context, rt *arcbox.Runtime, name string) error {
	var before arcbox.Stats
	shown := false
	for s, err := range rt.WatchStats(ctx, name, w.interval) {
		if err != nil && ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		if !before.Time.IsZero() { // the share of the processor is that of an interval
			w.mu.Lock()
			w.c.printStats(name, s, before, !w.shown)
			w.shown = true
			w.mu.Unlock()
			if shown = true; w.once {
				return nil
			}
		}
		before = s
	}
	if !shown && ctx.Err() == nil {
		return fmt.Errorf("stats of %s: %w: it has ended", name, arcbox.ErrConflict)
	}
	return nil
}

const statsFormat = "%-16s %8s %20s %7s %6s %17s %17s\n"

func (c *cli) printStats(name string, s, before arcbox.Stats, head bool) {
	if head {
		fmt.Fprintf(c.out, statsFormat, "NAME", "CPU", "MEMORY / LIMIT", "PEAK", "PIDS", "NET IN / OUT", "BLOCK IN / OUT")
	}
	var rx, tx uint64
	for _, n := range s.Networks {
		rx, tx = rx+n.RxBytes, tx+n.TxBytes
	}
	pair := func(a, b int64) string { return bytesText(a) + " / " + bytesText(b) }
	fmt.Fprintf(c.out, statsFormat, name, fmt.Sprintf("%.1f %%", s.CPUPercent(before)), pair(s.MemoryUsed(), s.MemoryLimit),
		bytesText(s.MemoryPeak), fmt.Sprint(s.PIDs), pair(int64(rx), int64(tx)), pair(int64(s.ReadBytes), int64(s.WriteBytes)))
}

func (c *cli) topCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "top CONTAINER",
		Short: "List the processes of a running container (in arcbox shell)",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.withRuntime(nil, func(rt *arcbox.Runtime) error {
				list, err := rt.ContainerTop(cmd.Context(), args[0])
				if err != nil {
					return c.explain(err)
				}
				w := tabwriter.NewWriter(c.out, 0, 0, 3, ' ', 0)
				fmt.Fprintln(w, "PID\tPPID\tUID\tSTATE\tCPU\tMEMORY\tTTY\tCOMMAND")
				for _, p := range list {
					fmt.Fprintf(w, "%d\t%d\t%d\t%s\t%s\t%s\t%s\t%s\n", p.PID, p.PPID, p.UID, p.State, p.CPU.Round(10*time.Millisecond),
						bytesText(p.RSS), p.TTY, printable(strings.Join(p.Command, " ")))
				}
				return w.Flush()
			})
		},
	}
}

// printable replaces what would change a terminal: the text comes from a container.
func printable(text string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r >= 0x7f && r < 0xa0 {
			return '?'
		}
		return r
	}, text)
}
