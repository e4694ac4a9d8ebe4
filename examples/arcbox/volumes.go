package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/arcboxlabs/arcbox-go"
)

func (c *cli) volumeCommand() *cobra.Command {
	v := &cobra.Command{Use: "volume", Short: "Create, list, look at, fill, empty and remove volumes"}
	v.AddCommand(c.volumeCreate(), c.volumeList(), c.volumeInspect(), c.volumePrune(), c.volumeExport(), c.volumeImport(),
		c.each("rm VOLUME...", "Remove volumes and their data", func(ctx context.Context, rt *arcbox.Runtime, name string) error {
			return rt.RemoveVolume(ctx, name)
		}))
	return v
}

func (c *cli) volumeCreate() *cobra.Command {
	var labels []string
	cmd := &cobra.Command{
		Use:   "create [flags] [NAME]",
		Short: "Create a volume",
		Args:  cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			var spec arcbox.VolumeSpec
			if len(args) > 0 {
				spec.Name = args[0]
			}
			var err error
			if spec.Labels, err = pairs("--label", labels, true); err != nil {
				return &exitError{exitOwn, err}
			}
			return c.withRuntime(nil, func(rt *arcbox.Runtime) error {
				info, err := rt.CreateVolume(cmd.Context(), spec)
				if err == nil {
					fmt.Fprintln(c.out, info.Name)
				}
				return err
			})
		},
	}
	cmd.Flags().StringArrayVarP(&labels, "label", "l", nil, "set the label `KEY=VALUE`")
	return cmd
}

func (c *cli) volumeList() *cobra.Command {
	var opts arcbox.ListVolumesOptions
	cmd := &cobra.Command{
		Use:   "ls [flags]",
		Short: "List volumes",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return c.withRuntime(nil, func(rt *arcbox.Runtime) error {
				list, err := rt.ListVolumes(cmd.Context(), opts)
				if err != nil {
					return err
				}
				w := tabwriter.NewWriter(c.out, 0, 8, 2, ' ', 0)
				fmt.Fprintln(w, "NAME\tCREATED\tUSED BY")
				for _, v := range list {
					fmt.Fprintf(w, "%s\t%s\t%s\n", v.Name, v.Created.Format(time.DateTime), strings.Join(v.UsedBy, ", "))
				}
				return w.Flush()
			})
		},
	}
	cmd.Flags().StringArrayVar(&opts.Labels, "label", nil, "only those with the label `KEY[=VALUE]`")
	cmd.Flags().StringVar(&opts.Name, "name", "", "only those with this `part` of a name")
	cmd.Flags().BoolVar(&opts.Unused, "dangling", false, "only those that no container mounts")
	return cmd
}

func (c *cli) volumeInspect() *cobra.Command {
	var opts arcbox.InspectVolumeOptions
	cmd := &cobra.Command{
		Use:   "inspect [flags] VOLUME...",
		Short: "Print the records of volumes as JSON",
		Args:  cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.withRuntime(nil, func(rt *arcbox.Runtime) error {
				list := make([]arcbox.VolumeInfo, len(args))
				for i, name := range args {
					var err error
					if list[i], err = rt.InspectVolume(cmd.Context(), name, opts); err != nil {
						return err
					}
				}
				enc := json.NewEncoder(c.out)
				enc.SetIndent("", "  ")
				return enc.Encode(list)
			})
		},
	}
	cmd.Flags().BoolVarP(&opts.Usage, "size", "s", false, "find out how much there is in them, in a machine")
	cmd.Flags().StringVar(&opts.Machine, "machine", "", "of which `machine` --size looks at the data (default: the default one)")
	return cmd
}

func (c *cli) volumePrune() *cobra.Command {
	var opts arcbox.PruneVolumesOptions
	cmd := &cobra.Command{
		Use:   "prune [flags]",
		Short: "Remove the anonymous volumes that no container mounts",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return c.withRuntime(nil, func(rt *arcbox.Runtime) error {
				list, err := rt.PruneVolumes(cmd.Context(), opts)
				for _, v := range list {
					fmt.Fprintln(c.out, v.Name)
				}
				return err
			})
		},
	}
	cmd.Flags().BoolVarP(&opts.All, "all", "a", false, "those with a name too")
	cmd.Flags().StringArrayVar(&opts.Labels, "label", nil, "only those with the label `KEY[=VALUE]`")
	return cmd
}

func (c *cli) volumeExport() *cobra.Command {
	return &cobra.Command{
		Use:   "export VOLUME FILE",
		Short: "Write what is in a volume to a tar archive",
		Args:  cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.withRuntime(nil, func(rt *arcbox.Runtime) error {
				if _, err := rt.InspectVolume(cmd.Context(), args[0], arcbox.InspectVolumeOptions{}); err != nil {
					return err
				}
				f, err := os.Create(args[1])
				if err != nil {
					return err
				}
				defer f.Close()
				if err := rt.ExportVolume(cmd.Context(), args[0], f); err != nil {
					return err
				}
				return f.Close()
			})
		},
	}
}

func (c *cli) volumeImport() *cobra.Command {
	return &cobra.Command{
		Use:   "import VOLUME FILE",
		Short: "Unpack a tar archive into a volume",
		Args:  cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			f, err := os.Open(args[1])
			if err != nil {
				return err
			}
			defer f.Close()
			return c.withRuntime(nil, func(rt *arcbox.Runtime) error { return rt.ImportVolume(cmd.Context(), args[0], f) })
		},
	}
}
