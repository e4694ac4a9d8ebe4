package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/arcboxlabs/arcbox-go"
)

func (c *cli) imagesCommand() *cobra.Command {
	var filters []string
	cmd := &cobra.Command{
		Use:   "images [flags] [PATTERN...]",
		Short: "List the images in the data directory",
		RunE: func(cmd *cobra.Command, args []string) error {
			o, err := imageFilter(args, filters)
			if err != nil {
				return &exitError{exitOwn, err}
			}
			return c.withRuntime(nil, func(rt *arcbox.Runtime) error {
				images, err := rt.ListImages(cmd.Context(), o)
				if err != nil {
					return err
				}
				return c.printImages(images)
			})
		},
	}
	cmd.Flags().StringArrayVarP(&filters, "filter", "f", nil, "dangling=`BOOL`, label=KEY[=VALUE], reference=PATTERN, before=IMAGE or since=IMAGE")
	return cmd
}

// imageFilter reads patterns and filters as docker has them.
func imageFilter(patterns, filters []string) (arcbox.ListImagesOptions, error) {
	o := arcbox.ListImagesOptions{References: patterns}
	for _, f := range filters {
		key, value, _ := strings.Cut(f, "=")
		switch key {
		case "reference":
			o.References = append(o.References, value)
		case "label":
			o.Labels = append(o.Labels, value)
		case "before":
			o.Before = value
		case "since":
			o.Since = value
		case "dangling":
			b, err := strconv.ParseBool(value)
			if err != nil {
				return o, fmt.Errorf("flag --filter %q: use dangling=true or dangling=false", f)
			}
			o.Dangling = &b
		default:
			return o, fmt.Errorf("flag --filter %q: use dangling, label, reference, before or since", f)
		}
	}
	return o, nil
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
