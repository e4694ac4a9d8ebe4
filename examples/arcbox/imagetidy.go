package main

import (
	"errors"
	"fmt"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/arcboxlabs/arcbox-go"
)

func (c *cli) tagCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "tag IMAGE NAME",
		Short: "Give an image one more name",
		Args:  cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.withRuntime(nil, func(rt *arcbox.Runtime) error { return rt.TagImage(cmd.Context(), args[0], args[1]) })
		},
	}
}

func (c *cli) rmiCommand() *cobra.Command {
	var o arcbox.RemoveImageOptions
	cmd := &cobra.Command{
		Use:   "rmi [flags] IMAGE...",
		Short: "Take names from images; with its last name an image is removed",
		Args:  cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.withRuntime(nil, func(rt *arcbox.Runtime) error {
				var all []error
				for _, ref := range args {
					got, err := rt.RemoveImage(cmd.Context(), ref, o)
					all = append(all, err)
					for _, name := range got.Untagged {
						fmt.Fprintln(c.out, "untagged", name)
					}
					if got.Deleted {
						fmt.Fprintln(c.out, "deleted", got.ID)
					}
				}
				return errors.Join(all...)
			})
		},
	}
	cmd.Flags().BoolVarP(&o.Force, "force", "f", false, "also with several names, or with containers that do not run")
	return cmd
}

func (c *cli) historyCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "history IMAGE",
		Short: "Show the steps in the making of an image, the newest first",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.withRuntime(nil, func(rt *arcbox.Runtime) error {
				i, err := rt.InspectImage(cmd.Context(), args[0])
				if err != nil {
					return err
				}
				return c.printHistory(i.History)
			})
		},
	}
}

func (c *cli) printHistory(steps []arcbox.HistoryEntry) error {
	w := tabwriter.NewWriter(c.out, 0, 0, 3, ' ', 0)
	fmt.Fprintln(w, "LAYER\tCREATED\tSIZE\tCREATED BY\tCOMMENT")
	for i := len(steps) - 1; i >= 0; i-- {
		h := steps[i]
		layer := "-"
		if h.DiffID != "" {
			layer = shortID(h.DiffID)
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", layer, since(h.Created), bytesText(h.Size), clip(h.CreatedBy, 60), clip(h.Comment, 40))
	}
	return w.Flush()
}

// clip returns a text that comes from an image as at most n characters that do not move the cursor.
func clip(text string, n int) string {
	runes := []rune(printable(text))
	if len(runes) > n {
		return string(runes[:n-1]) + "…"
	}
	return string(runes)
}
