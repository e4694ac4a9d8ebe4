package main

import (
	"fmt"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/arcboxlabs/arcbox-go"
)

func (c *cli) psCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "ps",
		Short: "List the containers of this process (see --help)",
		Long: `List the containers of this process.

There is no daemon that would know of others: a container belongs to the "arcbox run" that made it and ends with it. So
this command, which makes none, has none to show. It is here to show the call; a program that embeds arcbox sees its
own containers.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return c.withRuntime(nil, func(rt *arcbox.Runtime) error {
				containers, err := rt.ListContainers(cmd.Context(), arcbox.ListContainersOptions{})
				if err != nil {
					return err
				}
				return c.printContainers(containers)
			})
		},
	}
}

func (c *cli) printContainers(containers []arcbox.ContainerInfo) error {
	w := tabwriter.NewWriter(c.out, 0, 0, 3, ' ', 0)
	fmt.Fprintln(w, "ID\tNAME\tIMAGE\tSTATE\tCREATED")
	for _, i := range containers {
		state := string(i.State)
		if i.State == arcbox.ContainerExited {
			state = fmt.Sprintf("%s (%d)", i.State, i.Exit.Code)
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", shortID(i.ID), i.Name, i.Image, state, since(i.Created))
	}
	return w.Flush()
}
