package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/arcboxlabs/arcbox-go"
)

func (c *cli) cpCommand() *cobra.Command {
	var keep bool
	cmd := &cobra.Command{
		Use:   "cp CONTAINER:PATH DIR|- | cp PATH|- CONTAINER:DIR",
		Short: "Copy files from or to a container, running or not",
		Long: `Copy files from or to a container, running or not.

A file or a directory, with all that is in it, is put into a directory that is there, under its own name; with "/." behind
the path of the source what is in it is put there without that name. "-" is a tar archive on stdout or stdin. What comes
out of a container is written below the directory only, whatever links it has; devices and pipes are left out, and owners
and set-id bits are not kept. A path of this host that has a colon begins with ./ or /.`,
		Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx, stop := interruptible(cmd.Context())
			defer stop()
			from, fromPath, out := containerPath(args[0])
			to, toPath, in := containerPath(args[1])
			if in == out {
				return &exitError{exitOwn, errors.New("cp: one of the two, and only one, is CONTAINER:PATH")}
			}
			return c.withMachine(ctx, func(rt *arcbox.Runtime, d *display) error {
				if out {
					return c.copyOut(ctx, rt, d, from, fromPath, args[1])
				}
				return c.copyIn(ctx, rt, args[0], to, toPath, arcbox.CopyToOptions{KeepOwner: keep})
			})
		},
	}
	cmd.Flags().BoolVar(&keep, "archive", false, "give files copied to a container the owners they have, by number; else root has them")
	return cmd
}

// containerPath splits CONTAINER:PATH. A path of this host is none.
func containerPath(text string) (ref, path string, ok bool) {
	if filepath.IsAbs(text) || strings.HasPrefix(text, "/") || strings.HasPrefix(text, ".") {
		return "", "", false
	}
	ref, path, ok = strings.Cut(text, ":")
	return ref, path, ok && ref != ""
}

func (c *cli) copyOut(ctx context.Context, rt *arcbox.Runtime, d *display, ref, path, dir string) error {
	archive, _, err := rt.CopyFrom(ctx, ref, path)
	if err != nil {
		return err
	}
	defer archive.Close()
	d.close(true)
	if dir == "-" {
		return c.writeArchive(archive)
	}
	return unpack(archive, dir)
}

// writeArchive copies an archive to stdout.
func (c *cli) writeArchive(archive io.Reader) error {
	if term.IsTerminal(int(c.out.Fd())) {
		return &exitError{exitOwn, errors.New("stdout is a terminal: redirect it to write an archive")}
	}
	_, err := io.Copy(c.out, archive)
	return err
}

func (c *cli) copyIn(ctx context.Context, rt *arcbox.Runtime, path, ref, dir string, opts arcbox.CopyToOptions) error {
	if path == "-" {
		in, release := c.stdin()
		defer release()
		return rt.CopyTo(ctx, ref, dir, in, opts)
	}
	if _, err := os.Lstat(path); err != nil {
		return err
	}
	r, w := io.Pipe()
	packed := make(chan struct{})
	go func() {
		defer close(packed)
		w.CloseWithError(pack(w, path))
	}()
	err := rt.CopyTo(ctx, ref, dir, r, opts)
	r.CloseWithError(errors.New("the copy has ended"))
	<-packed
	return err
}

func (c *cli) exportCommand() *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:   "export CONTAINER",
		Short: "Write the root of a container, running or not, as a tar archive",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx, stop := interruptible(cmd.Context())
			defer stop()
			return c.withMachine(ctx, func(rt *arcbox.Runtime, d *display) error {
				archive, err := rt.ExportContainer(ctx, args[0])
				if err != nil {
					return err
				}
				defer archive.Close()
				d.close(true)
				if output == "" {
					return c.writeArchive(archive)
				}
				return writeFile(output, archive)
			})
		},
	}
	cmd.Flags().StringVarP(&output, "output", "o", "", "write to `FILE` in place of stdout")
	return cmd
}

// writeFile writes a file, and none where that does not succeed.
func writeFile(path string, r io.Reader) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, r)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return errors.Join(err, os.Remove(path))
	}
	return nil
}

func (c *cli) diffCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "diff CONTAINER",
		Short: "List what a container has changed: A is added, C changed, D deleted",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx, stop := interruptible(cmd.Context())
			defer stop()
			return c.withMachine(ctx, func(rt *arcbox.Runtime, d *display) error {
				changes, err := rt.DiffContainer(ctx, args[0])
				d.close(true)
				letters := map[arcbox.ChangeKind]string{arcbox.ChangeAdded: "A", arcbox.ChangeModified: "C", arcbox.ChangeDeleted: "D"}
				for _, ch := range changes {
					fmt.Fprintln(c.out, letters[ch.Kind], printable(ch.Path))
				}
				return err
			})
		},
	}
}

func (c *cli) commitCommand() *cobra.Command {
	var opts arcbox.CommitOptions
	var changes []string
	cmd := &cobra.Command{
		Use:   "commit [flags] CONTAINER [NAME]",
		Short: "Make an image of a container, running or not, and print its id",
		Args:  cobra.RangeArgs(1, 2),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			ctx, stop := interruptible(cmd.Context())
			defer stop()
			if opts.Change, err = parseChanges(changes); err != nil {
				return &exitError{exitOwn, err}
			}
			opts.Names = args[1:]
			return c.withMachine(ctx, func(rt *arcbox.Runtime, d *display) error {
				i, err := rt.CommitContainer(ctx, args[0], opts)
				if err != nil {
					return err
				}
				d.close(true)
				fmt.Fprintln(c.out, i.ID)
				return nil
			})
		},
	}
	cmd.Flags().StringVarP(&opts.Author, "author", "a", "", "who made the image")
	cmd.Flags().StringVarP(&opts.Comment, "message", "m", "", "what is to be said of it")
	changeFlag(cmd.Flags(), &changes)
	cmd.Flags().BoolVar(&opts.NoPause, "no-pause", false, "let the container run on meanwhile")
	return cmd
}
