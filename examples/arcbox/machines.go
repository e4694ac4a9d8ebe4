package main

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/arcboxlabs/arcbox-go"
	"github.com/arcboxlabs/arcbox-go/event"
)

func (c *cli) machineCommands() []*cobra.Command {
	m := &cobra.Command{
		Use:   "machine",
		Short: "Create, start, stop, list, save and remove machines",
		Long: `Create, start, stop, list, save and remove machines.

Machines are kept in the data directory. There is no daemon that would run them: one that was started runs as long as the
arcbox that has started it, so start, stop and the like are for "arcbox shell". Exec and shell start one for themselves.`,
	}
	m.AddCommand(
		c.machineCreate(), c.machineList(), c.machineInspect(), c.machineRemove(), c.machineSnapshot(), c.machineConsole(),
		c.machineUpdate(), c.machineExec(), c.machineShell(),
		c.machineVerb("start", "Start machines (in arcbox shell)", (*arcbox.Runtime).StartMachine),
		c.machineVerb("stop", "Power machines off (in arcbox shell)", (*arcbox.Runtime).StopMachine),
		c.machineVerb("restart", "Power machines off and start them (in arcbox shell)", (*arcbox.Runtime).RestartMachine),
		c.machineVerb("pause", "Stop the processors of machines (in arcbox shell)", (*arcbox.Runtime).PauseMachine),
		c.machineVerb("resume", "Let paused machines go on (in arcbox shell)", (*arcbox.Runtime).ResumeMachine),
	)
	return []*cobra.Command{m, c.eventsCommand()}
}

func (c *cli) machineCreate() *cobra.Command {
	var spec arcbox.MachineSpec
	var memory, disk int64
	var labels []string
	cmd := &cobra.Command{
		Use:   "create [flags] NAME",
		Short: "Create a machine",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			spec.Name, spec.Memory, spec.Disk = args[0], memory<<20, disk<<30
			spec.Labels = labelsOf(labels)
			return c.withRuntime(nil, func(rt *arcbox.Runtime) error {
				info, err := rt.CreateMachine(cmd.Context(), spec)
				if err == nil {
					fmt.Fprintln(c.out, info.Name)
				}
				return err
			})
		},
	}
	f := cmd.Flags()
	f.IntVar(&spec.CPUs, "processors", 0, "virtual processors (default: that of --cpus)")
	f.Int64Var(&memory, "size", 0, "memory in `MiB` (default: that of --memory)")
	f.Int64Var(&disk, "disk", 0, "size of the disk in `GiB` (default 64); it takes what is written")
	f.StringArrayVarP(&labels, "label", "l", nil, "label `KEY=VALUE`")
	f.BoolVar(&spec.Forkable, "forkable", false, "let machine snapshot save it")
	f.StringVar(&spec.Snapshot, "snapshot", "", "go on from a `snapshot`, with its containers")
	return cmd
}

// labelsOf are the labels of flags KEY=VALUE.
func labelsOf(flags []string) map[string]string {
	labels := make(map[string]string, len(flags))
	for _, l := range flags {
		k, v, _ := strings.Cut(l, "=")
		labels[k] = v
	}
	return labels
}

func (c *cli) machineUpdate() *cobra.Command {
	var opts arcbox.UpdateMachineOptions
	var memory int64
	var labels []string
	cmd := &cobra.Command{
		Use:   "update [flags] NAME",
		Short: "Change what a machine has from its next start on",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			opts.Memory = memory << 20
			if labels != nil {
				opts.Labels = labelsOf(labels)
			}
			return c.withRuntime(nil, func(rt *arcbox.Runtime) error {
				info, err := rt.UpdateMachine(cmd.Context(), args[0], opts)
				if err == nil {
					fmt.Fprintln(c.out, info.Name)
				}
				return err
			})
		},
	}
	f := cmd.Flags()
	f.IntVar(&opts.CPUs, "processors", 0, "virtual processors (default: as they are)")
	f.Int64Var(&memory, "size", 0, "memory in `MiB` (default: as it is)")
	f.StringArrayVarP(&labels, "label", "l", nil, "label `KEY=VALUE`, in place of all that it has")
	return cmd
}

// machineVerb is a command that does one thing to each of its machines.
func (c *cli) machineVerb(verb, short string, do func(*arcbox.Runtime, context.Context, string) error) *cobra.Command {
	return &cobra.Command{
		Use:   verb + " NAME...",
		Short: short,
		Args:  cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := c.needsShell("machine " + verb); err != nil {
				return err
			}
			return c.withRuntime(nil, func(rt *arcbox.Runtime) error {
				for _, name := range args {
					if err := do(rt, cmd.Context(), name); err != nil {
						return err
					}
					fmt.Fprintln(c.out, name)
				}
				return nil
			})
		},
	}
}

func (c *cli) machineList() *cobra.Command {
	var snapshots bool
	cmd := &cobra.Command{
		Use:   "ls",
		Short: "List machines, or snapshots of machines",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return c.withRuntime(nil, func(rt *arcbox.Runtime) error {
				if snapshots {
					return c.listSnapshots(cmd.Context(), rt)
				}
				list, err := rt.ListMachines(cmd.Context(), arcbox.ListMachinesOptions{})
				if err != nil {
					return err
				}
				w := tabwriter.NewWriter(c.out, 0, 0, 3, ' ', 0)
				fmt.Fprintln(w, "NAME\tSTATE\tCPUS\tMEMORY\tCONTAINERS\tCREATED")
				for _, m := range list {
					fmt.Fprintf(w, "%s\t%s\t%d\t%d MiB\t%d\t%s\n", m.Name, m.State, m.CPUs, m.Memory>>20, m.Containers, since(m.Created))
				}
				return w.Flush()
			})
		},
	}
	cmd.Flags().BoolVar(&snapshots, "snapshots", false, "list snapshots")
	return cmd
}

func (c *cli) listSnapshots(ctx context.Context, rt *arcbox.Runtime) error {
	list, err := rt.ListSnapshots(ctx, arcbox.ListSnapshotsOptions{})
	if err != nil {
		return err
	}
	w := tabwriter.NewWriter(c.out, 0, 0, 3, ' ', 0)
	fmt.Fprintln(w, "ID\tNAME\tMACHINE\tSIZE\tCONTAINERS\tCREATED")
	for _, s := range list {
		fmt.Fprintf(w, "%s\t%s\t%s\t%d MiB\t%s\t%s\n", s.ID, s.Name, s.Machine, s.Size>>20, strings.Join(s.Containers, ","), since(s.Created))
	}
	return w.Flush()
}

func (c *cli) machineInspect() *cobra.Command {
	return &cobra.Command{
		Use:   "inspect NAME...",
		Short: "Show all that is known of machines, as JSON",
		Args:  cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.withRuntime(nil, func(rt *arcbox.Runtime) error {
				list := []arcbox.MachineInfo{}
				for _, name := range args {
					info, err := rt.InspectMachine(cmd.Context(), name)
					if err != nil {
						return err
					}
					list = append(list, info)
				}
				enc := json.NewEncoder(c.out)
				enc.SetIndent("", "    ")
				return enc.Encode(list)
			})
		},
	}
}

func (c *cli) machineRemove() *cobra.Command {
	var force, snapshots bool
	cmd := &cobra.Command{
		Use:   "rm [flags] NAME...",
		Short: "Remove machines with their disks, or snapshots",
		Args:  cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.withRuntime(nil, func(rt *arcbox.Runtime) error {
				for _, name := range args {
					var err error
					if snapshots {
						err = rt.RemoveSnapshot(cmd.Context(), name)
					} else {
						err = rt.RemoveMachine(cmd.Context(), name, arcbox.RemoveMachineOptions{Force: force})
					}
					if err != nil {
						return err
					}
					fmt.Fprintln(c.out, name)
				}
				return nil
			})
		},
	}
	cmd.Flags().BoolVarP(&force, "force", "f", false, "stop them, and remove their containers")
	cmd.Flags().BoolVar(&snapshots, "snapshots", false, "remove snapshots")
	return cmd
}

func (c *cli) machineSnapshot() *cobra.Command {
	var opts arcbox.SnapshotOptions
	cmd := &cobra.Command{
		Use:   "snapshot [flags] MACHINE",
		Short: "Save a running machine with its containers, for machine create --snapshot (in arcbox shell)",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := c.needsShell("machine snapshot"); err != nil {
				return err
			}
			return c.withRuntime(nil, func(rt *arcbox.Runtime) error {
				info, err := rt.SnapshotMachine(cmd.Context(), args[0], opts)
				if err == nil {
					fmt.Fprintln(c.out, info.ID)
				}
				return err
			})
		},
	}
	cmd.Flags().StringVar(&opts.Name, "name", "", "name of the snapshot")
	return cmd
}

func (c *cli) machineConsole() *cobra.Command {
	return &cobra.Command{
		Use:   "console MACHINE",
		Short: "Show the last lines of a running machine's console (in arcbox shell)",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := c.needsShell("machine console"); err != nil {
				return err
			}
			return c.withRuntime(nil, func(rt *arcbox.Runtime) error {
				text, err := rt.MachineConsole(cmd.Context(), args[0])
				if err == nil && text != "" {
					fmt.Fprintln(c.out, text)
				}
				return err
			})
		},
	}
}

func (c *cli) eventsCommand() *cobra.Command {
	var count int
	cmd := &cobra.Command{
		Use:   "events",
		Short: "Show what happens, until it is interrupted (in arcbox shell)",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := c.needsShell("events"); err != nil {
				return err
			}
			ctx, stop := interruptible(cmd.Context())
			defer stop()
			return c.withRuntime(nil, func(rt *arcbox.Runtime) error {
				for e := range rt.Events(ctx, arcbox.EventsOptions{}) {
					fmt.Fprintln(c.out, eventText(e))
					if count--; count == 0 {
						break
					}
				}
				return nil
			})
		},
	}
	cmd.Flags().IntVarP(&count, "count", "n", 0, "end after so many (default: never)")
	return cmd
}

// eventText is an event as one line.
func eventText(e event.Event) string {
	words := []string{e.Time.Format(time.RFC3339Nano), string(e.Kind)}
	for _, field := range []struct{ key, value string }{{"id", shortID(e.ID)}, {"name", e.Name}, {"machine", e.Machine}, {"image", e.Image}} {
		if field.value != "" {
			words = append(words, field.key+"="+field.value)
		}
	}
	for _, key := range slices.Sorted(maps.Keys(e.Attributes)) {
		words = append(words, fmt.Sprintf("%s=%q", key, e.Attributes[key]))
	}
	if e.Dropped > 0 {
		words = append(words, fmt.Sprint("dropped=", e.Dropped))
	}
	return strings.Join(words, " ")
}
