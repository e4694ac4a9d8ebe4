package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/arcboxlabs/arcbox-go"
)

func (c *cli) doctorCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "doctor",
		Short: "Tell what this host lacks, and how to mend it",
		Long: `Tell what this host lacks, and how to mend it.

The exit code is 1 where no container can run as it is.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, stop := interruptible(cmd.Context())
			defer stop()
			findings, err := arcbox.Doctor(ctx, c.config(nil))
			if err != nil {
				return err
			}
			return c.printFindings(findings)
		},
	}
}

func (c *cli) printFindings(findings []arcbox.Finding) error {
	fatal := false
	for _, f := range findings {
		word := "note"
		if f.Fatal {
			word, fatal = "missing", true
		}
		fmt.Fprintf(c.out, "%s: %s: %s\n", word, f.Kind, f.Message)
		if f.Fix != "" {
			fmt.Fprintf(c.out, "\tto mend it: %s\n", f.Fix)
		}
	}
	if fatal {
		return &exitError{1, nil}
	}
	if len(findings) == 0 {
		fmt.Fprintln(c.out, "all is well")
	} else {
		fmt.Fprintln(c.out, "containers can run")
	}
	return nil
}
