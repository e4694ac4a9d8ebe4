package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/arcboxlabs/arcbox-go"
)

func (c *cli) pullCommand() *cobra.Command {
	var o arcbox.PullOptions
	cmd := &cobra.Command{
		Use:   "pull [flags] REF",
		Short: "Fetch an image from a registry",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.transfer(cmd.Context(), func(ctx context.Context, rt *arcbox.Runtime, d *display) (string, error) {
				o.Progress = d.pull
				i, err := rt.PullImage(ctx, args[0], o)
				return fmt.Sprint("pulled ", args[0], " ", shortID(i.ID)), err
			})
		},
	}
	cmd.Flags().StringVar(&o.Platform, "platform", "", "of an image for several, as `OS/ARCH` (default: the machine's)")
	return cmd
}

func (c *cli) pushCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "push REF",
		Short: "Send an image to the registry of its name",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.transfer(cmd.Context(), func(ctx context.Context, rt *arcbox.Runtime, d *display) (string, error) {
				i, err := rt.PushImage(ctx, args[0], arcbox.PushOptions{Progress: d.pull})
				return fmt.Sprint("pushed ", args[0], " ", i.Digest), err
			})
		},
	}
}

// transfer shows how far do is, and prints what it returns when it is done.
func (c *cli) transfer(ctx context.Context, do func(context.Context, *arcbox.Runtime, *display) (string, error)) error {
	ctx, stop := interruptible(ctx)
	defer stop()
	d := c.display()
	return c.withRuntime(d, func(rt *arcbox.Runtime) error {
		defer d.close(false)
		done, err := do(ctx, rt, d)
		if err != nil {
			return err
		}
		d.close(false)
		fmt.Fprintln(c.out, done)
		return nil
	})
}

// pull shows how far a layer is.
func (d *display) pull(p arcbox.LayerProgress) {
	label := "layer " + shortID(p.Layer)
	switch p.State {
	case arcbox.LayerExists:
		d.settle(label, "is there already")
	case arcbox.LayerMounted:
		d.settle(label, "is there already, in another repository")
	default:
		d.update(label, p.Done, p.Total)
	}
}

func (c *cli) loadCommand() *cobra.Command {
	var o arcbox.LoadOptions
	cmd := &cobra.Command{
		Use:   "load [flags] FILE|-",
		Short: "Load images from an OCI layout, an OCI archive or an archive of docker save",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx, stop := interruptible(cmd.Context())
			defer stop()
			return c.withRuntime(nil, func(rt *arcbox.Runtime) error {
				var images []arcbox.ImageInfo
				var err error
				if args[0] == "-" {
					images, err = rt.LoadImageFrom(ctx, c.in, o)
				} else {
					images, err = rt.LoadImage(ctx, args[0], o)
				}
				for _, i := range images {
					fmt.Fprintln(c.out, "loaded", nameOf(i))
				}
				return err
			})
		},
	}
	cmd.Flags().StringVar(&o.Platform, "platform", "", "of images for several, as `OS/ARCH` (default: the machine's)")
	cmd.Flags().StringVarP(&o.Name, "tag", "t", "", "a `name` for the image besides its own")
	return cmd
}

func (c *cli) saveCommand() *cobra.Command {
	var to string
	cmd := &cobra.Command{
		Use:   "save [flags] IMAGE...",
		Short: "Write images to an archive that is an OCI layout and one of docker save at once",
		Args:  cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx, stop := interruptible(cmd.Context())
			defer stop()
			return c.withRuntime(nil, func(rt *arcbox.Runtime) error {
				return c.writeTo(to, func(w io.Writer) error { return rt.SaveImage(ctx, w, args...) })
			})
		},
	}
	cmd.Flags().StringVarP(&to, "output", "o", "", "write to `file` instead of stdout")
	return cmd
}

// writeTo calls fn with stdout, or with a file that has its name only when fn has succeeded.
func (c *cli) writeTo(name string, fn func(io.Writer) error) (err error) {
	if name == "" {
		if term.IsTerminal(int(c.out.Fd())) {
			return errors.New("stdout is a terminal: name a file with --output")
		}
		return fn(c.out)
	}
	f, err := os.CreateTemp(filepath.Dir(name), filepath.Base(name)+".*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			os.Remove(f.Name())
		}
	}()
	if err := errors.Join(fn(f), f.Chmod(0o644), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), name)
}

func (c *cli) importCommand() *cobra.Command {
	var o arcbox.ImportOptions
	var changes []string
	cmd := &cobra.Command{
		Use:   "import [flags] FILE|- [NAME]",
		Short: "Make an image of a tar archive of a whole root and print its id",
		Args:  cobra.RangeArgs(1, 2),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			ctx, stop := interruptible(cmd.Context())
			defer stop()
			if o.Change, err = parseChanges(changes); err != nil {
				return &exitError{exitOwn, err}
			}
			from := io.Reader(c.in)
			if args[0] != "-" {
				f, err := os.Open(args[0])
				if err != nil {
					return err
				}
				defer f.Close()
				from = f
			}
			o.Names = args[1:]
			return c.withRuntime(nil, func(rt *arcbox.Runtime) error {
				i, err := rt.ImportImage(ctx, from, o)
				if err != nil {
					return err
				}
				fmt.Fprintln(c.out, i.ID)
				return nil
			})
		},
	}
	changeFlag(cmd.Flags(), &changes)
	cmd.Flags().StringVarP(&o.Comment, "message", "m", "", "what is to be said of the image")
	cmd.Flags().StringVar(&o.Platform, "platform", "", "of what is in the archive, as `OS/ARCH` (default: the machine's)")
	return cmd
}
