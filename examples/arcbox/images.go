package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/arcboxlabs/arcbox-go"
)

func (c *cli) imagesCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "images",
		Short: "List the images in the data directory",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return c.withRuntime(nil, func(rt *arcbox.Runtime) error {
				images, err := rt.ListImages(cmd.Context(), arcbox.ListImagesOptions{})
				if err != nil {
					return err
				}
				return c.printImages(images)
			})
		},
	}
}

func (c *cli) printImages(images []arcbox.ImageInfo) error {
	w := tabwriter.NewWriter(c.out, 0, 0, 3, ' ', 0)
	fmt.Fprintln(w, "NAME\tID\tPLATFORM\tCREATED\tSIZE")
	for _, i := range images {
		names := i.Names
		if len(names) == 0 {
			names = []string{"<none>"}
		}
		for _, name := range names {
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", name, shortID(i.ID), i.Platform, since(i.Created), bytesText(i.Size))
		}
	}
	return w.Flush()
}

func (c *cli) loadCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "load FILE",
		Short: "Load images from an OCI layout, an OCI archive or an archive of docker save",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx, stop := interruptible(cmd.Context())
			defer stop()
			return c.withRuntime(nil, func(rt *arcbox.Runtime) error {
				images, err := rt.LoadImage(ctx, args[0], arcbox.LoadOptions{})
				for _, i := range images {
					fmt.Fprintln(c.out, "loaded", nameOf(i))
				}
				return err
			})
		},
	}
}

func (c *cli) pullCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "pull REF",
		Short: "Fetch an image from a registry",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx, stop := interruptible(cmd.Context())
			defer stop()
			d := c.display()
			return c.withRuntime(d, func(rt *arcbox.Runtime) error {
				defer d.close(false)
				i, err := rt.PullImage(ctx, args[0], arcbox.PullOptions{Progress: d.pull})
				if err != nil {
					return err
				}
				d.close(false)
				fmt.Fprintln(c.out, "pulled", nameOf(i))
				return nil
			})
		},
	}
}

// pull shows how far a layer is.
func (d *display) pull(p arcbox.LayerProgress) {
	d.update("layer "+shortID(p.Layer), p.Done, p.Total)
}

// interruptible returns a context that an interrupt ends.
func interruptible(ctx context.Context) (context.Context, context.CancelFunc) {
	return signal.NotifyContext(ctx, os.Interrupt)
}

func nameOf(i arcbox.ImageInfo) string {
	if len(i.Names) > 0 {
		return i.Names[0] + " " + shortID(i.ID)
	}
	return shortID(i.ID)
}

// shortID returns the first 12 digits of an id or a digest.
func shortID(id string) string {
	if _, hex, ok := strings.Cut(id, ":"); ok {
		id = hex
	}
	return id[:min(12, len(id))]
}

// since returns how long ago t was, for people.
func since(t time.Time) string {
	if t.IsZero() {
		return "unknown"
	}
	for _, u := range []struct {
		name string
		of   time.Duration
	}{
		{"years", 365 * 24 * time.Hour}, {"months", 30 * 24 * time.Hour}, {"days", 24 * time.Hour}, {"hours", time.Hour}, {"minutes", time.Minute},
	} {
		if n := int(time.Since(t) / u.of); n >= 2 {
			return fmt.Sprintf("%d %s ago", n, u.name)
		}
	}
	return fmt.Sprintf("%d seconds ago", max(0, int(time.Since(t).Seconds())))
}
