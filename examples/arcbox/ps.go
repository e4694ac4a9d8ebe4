package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/arcboxlabs/arcbox-go"
)

func (c *cli) psCommand() *cobra.Command {
	var all bool
	var filters []string
	cmd := &cobra.Command{
		Use:   "ps",
		Short: "List containers that run in this process or, with -a, all that are recorded",
		Long: `List the containers that run in this process or, with -a, all that the data directory has a record of.

There is no daemon that would run containers: each runs in the "arcbox run" or "arcbox shell" that started it and ends with
it. So outside of the shell nothing runs, and -a shows what was run before.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			opts, err := listOptions(filters, all)
			if err != nil {
				return &exitError{exitOwn, err}
			}
			return c.withRuntime(nil, func(rt *arcbox.Runtime) error {
				containers, err := rt.ListContainers(cmd.Context(), opts)
				if err != nil {
					return err
				}
				return c.printContainers(containers)
			})
		},
	}
	cmd.Flags().BoolVarP(&all, "all", "a", false, "also those that do not run")
	cmd.Flags().StringArrayVarP(&filters, "filter", "f", nil, "only those that fit `KEY=VALUE`: status, label, name or image")
	return cmd
}

// listOptions reads filters. One for the state shows containers that do not run, too.
func listOptions(filters []string, all bool) (arcbox.ListContainersOptions, error) {
	var opts arcbox.ListContainersOptions
	for _, f := range filters {
		key, value, _ := strings.Cut(f, "=")
		switch {
		case value == "":
			return opts, fmt.Errorf("flag --filter %q: use KEY=VALUE", f)
		case key == "status":
			opts.States = append(opts.States, arcbox.ContainerState(value))
		case key == "label":
			opts.Labels = append(opts.Labels, value)
		case key == "name" && opts.Name == "":
			opts.Name = value
		case key == "image" && opts.Image == "":
			opts.Image = value
		default:
			return opts, fmt.Errorf("flag --filter %q: use status and label, any number of each, and name and image once", f)
		}
	}
	if !all && opts.States == nil {
		opts.States = []arcbox.ContainerState{arcbox.ContainerRunning, arcbox.ContainerPaused, arcbox.ContainerRestarting}
	}
	return opts, nil
}

func (c *cli) printContainers(containers []arcbox.ContainerInfo) error {
	w := tabwriter.NewWriter(c.out, 0, 0, 3, ' ', 0)
	fmt.Fprintln(w, "ID\tNAME\tIMAGE\tSTATE\tCREATED\tPORTS")
	for _, i := range containers {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", shortID(i.ID), i.Name, i.Image, stateText(i), since(i.Created), strings.Join(portTexts(i), ", "))
	}
	return w.Flush()
}

// stateText returns the state with what there is to say about it.
func stateText(i arcbox.ContainerInfo) string {
	switch {
	case i.State == arcbox.ContainerExited:
		return fmt.Sprintf("%s (%d)", i.State, i.Exit.Code)
	case i.State == arcbox.ContainerRunning && i.Health != nil:
		return fmt.Sprintf("%s (%s)", i.State, i.Health.Status)
	}
	return string(i.State)
}

func (c *cli) inspectCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "inspect NAME...",
		Short: "Show all that is known of containers or images, as JSON",
		Args:  cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.withRuntime(nil, func(rt *arcbox.Runtime) error {
				list := []any{}
				for _, ref := range args {
					var found any
					found, err := rt.InspectContainer(cmd.Context(), ref)
					if errors.Is(err, arcbox.ErrNotFound) {
						var ierr error
						if found, ierr = rt.InspectImage(cmd.Context(), ref); ierr != nil {
							return fmt.Errorf("no container or image %q: %w", ref, errors.Join(err, ierr))
						}
					} else if err != nil {
						return err
					}
					list = append(list, found)
				}
				enc := json.NewEncoder(c.out)
				enc.SetIndent("", "    ")
				return enc.Encode(list)
			})
		},
	}
}
