package box

import (
	"context"
	"fmt"
	"io"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/arcboxlabs/arcbox-go/agent/api"
	"github.com/arcboxlabs/arcbox-go/internal/guest/engine"
	"github.com/arcboxlabs/arcbox-go/internal/guest/files"
)

var _ engine.Filer = (*sandbox)(nil)

// openImage opens the root of the image, as if no container had changed anything.
func (t *tree) openImage() (int, error) {
	if len(t.lower) == 1 {
		return unix.Open(t.lower[0], unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	}
	dirs := strings.Join(t.lower, ":")
	if len(dirs) > maxFsconfig {
		return attachOverlay("lowerdir="+dirs, t.upper+"/../i")
	}
	fs, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, err
	}
	defer unix.Close(fs)
	for _, kv := range [][2]string{{"source", "overlay"}, {"lowerdir", dirs}, {"redirect_dir", "nofollow"}} {
		if err := unix.FsconfigSetString(fs, kv[0], kv[1]); err != nil {
			return -1, err
		}
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return -1, err
	}
	return unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_RDONLY)
}

// Stat implements engine.Filer.
func (s *sandbox) Stat(ctx context.Context, path string) (api.StatReply, error) {
	root, done, err := s.view(ctx)
	if err != nil {
		return api.StatReply{}, err
	}
	defer done()
	return files.Stat(root, path)
}

// CopyFrom implements engine.Filer.
func (s *sandbox) CopyFrom(ctx context.Context, path string, begin func() (io.Writer, error)) error {
	root, done, err := s.view(ctx)
	if err != nil {
		return err
	}
	defer done()
	src, err := files.OpenSource(root, path)
	if err != nil {
		return err
	}
	return writeFrom(ctx, src, begin)
}

func writeFrom(ctx context.Context, src *files.Source, begin func() (io.Writer, error)) error {
	defer src.Close()
	w, err := begin()
	if err != nil {
		return err
	}
	return src.WriteTar(ctx, w)
}

// CopyTo implements engine.Filer.
func (s *sandbox) CopyTo(ctx context.Context, req api.CopyToRequest, begin func() (io.Reader, error)) error {
	root, done, err := s.view(ctx)
	if err != nil {
		return err
	}
	defer done()
	t, err := files.OpenTarget(root, req.Path)
	if err != nil {
		return err
	}
	defer t.Close()
	r, err := begin()
	if err != nil {
		return err
	}
	return t.Unpack(ctx, r, files.Options{NoOverwrite: req.NoOverwrite, KeepOwner: req.KeepOwner})
}

// Export implements engine.Filer.
func (s *sandbox) Export(ctx context.Context, layer bool, begin func() (io.Writer, error)) error {
	if err := s.prepared(ctx); err != nil {
		return err
	}
	if !layer {
		root, err := s.tree.open()
		if err != nil {
			return err
		}
		defer unix.Close(root)
		src, err := files.OpenWhole(root)
		if err != nil {
			return err
		}
		return writeFrom(ctx, src, begin)
	}
	return s.withLayer(func(l files.Layer) error {
		w, err := begin()
		if err != nil {
			return err
		}
		return l.WriteTar(ctx, w)
	})
}

// Diff implements engine.Filer.
func (s *sandbox) Diff(ctx context.Context, after string) (rep api.DiffReply, err error) {
	if err := s.prepared(ctx); err != nil {
		return rep, err
	}
	err = s.withLayer(func(l files.Layer) error {
		rep, err = l.Diff(ctx, after)
		return err
	})
	return rep, err
}

// withLayer opens what the container changed and what it was made from.
func (s *sandbox) withLayer(do func(files.Layer) error) error {
	image, err := s.tree.openImage()
	if err != nil {
		return fmt.Errorf("open the image of the container: %w", err)
	}
	defer unix.Close(image)
	upper, err := unix.Open(s.tree.upper, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open what the container changed: %w", err)
	}
	defer unix.Close(upper)
	return do(files.Layer{Upper: upper, Image: image})
}
