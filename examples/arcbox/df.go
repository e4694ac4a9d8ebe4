package main

import (
	"fmt"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/arcboxlabs/arcbox-go"
)

func (c *cli) dfCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "df",
		Short: "Show what the data directory takes on disk",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return c.withRuntime(nil, func(rt *arcbox.Runtime) error {
				d, err := rt.DiskUsage(cmd.Context())
				if err != nil {
					return err
				}
				return c.printUsage(d)
			})
		},
	}
}

func (c *cli) printUsage(d arcbox.DiskUsage) error {
	w := tabwriter.NewWriter(c.out, 0, 0, 3, ' ', 0)
	fmt.Fprintln(w, "KIND\tCOUNT\tACTIVE\tSIZE\tRECLAIMABLE")
	for _, k := range []struct {
		name string
		arcbox.Usage
	}{
		{"images", d.Images}, {"  blobs", d.Blobs}, {"  layer images", d.LayerImages}, {"containers", d.Containers},
		{"machines", d.Machines}, {"boot files", d.Boot}, {"templates", d.Templates},
	} {
		fmt.Fprintf(w, "%s\t%d\t%d\t%s\t%s\n", k.name, k.Count, k.Active, bytesText(k.Bytes), bytesText(k.Reclaimable))
	}
	fmt.Fprintf(w, "total\t\t\t%s\t\n", bytesText(d.Total()))
	return w.Flush()
}

// pruneFlags are those of prune.
type pruneFlags struct {
	opts   arcbox.PruneImagesOptions
	budget string
	unused time.Duration
}

func (f *pruneFlags) options() (arcbox.PruneImagesOptions, error) {
	o := f.opts
	o.Unused = f.unused
	if f.budget != "" {
		n, err := size("--budget", f.budget)
		if err != nil {
			return o, err
		}
		if n <= 0 {
			return o, fmt.Errorf("--budget %q: use a positive size, such as 10g", f.budget)
		}
		o.Budget = n
	}
	return o, nil
}

func (c *cli) pruneCommand() *cobra.Command {
	var f pruneFlags
	cmd := &cobra.Command{
		Use:   "prune",
		Short: "Remove images that have no name, or more, and what belongs to no image",
		Long: "Remove images that have no name, and what failed and cancelled pulls left. Images that a container was made from\n" +
			"stay, those of other programs' containers too.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			opts, err := f.options()
			if err != nil {
				return &exitError{exitOwn, err}
			}
			ctx, stop := interruptible(cmd.Context())
			defer stop()
			return c.withRuntime(nil, func(rt *arcbox.Runtime) error {
				p, err := rt.PruneImages(ctx, opts)
				for _, i := range p.Images {
					fmt.Fprintln(c.out, "removed", nameOf(i))
				}
				fmt.Fprintln(c.out, "freed", bytesText(p.Bytes))
				return err
			})
		},
	}
	fs := cmd.Flags()
	fs.BoolVarP(&f.opts.All, "all", "a", false, "remove images that have a name too")
	fs.BoolVar(&f.opts.Keep, "keep", false, "remove no image, only what belongs to none")
	fs.DurationVar(&f.unused, "unused", 0, "remove only what was not used for that `long`, such as 240h")
	fs.StringArrayVar(&f.opts.Labels, "label", nil, "remove only images with the label, `KEY or KEY=VALUE`; may be given again")
	fs.StringVar(&f.budget, "budget", "", "remove only as much as must go for the images to take that `size`, such as 10g")
	fs.BoolVar(&f.opts.LayerImages, "layer-images", false, "remove the file systems of images without a container too; they are made again when they are needed")
	return cmd
}
