package box

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/arcboxlabs/arcbox-go/agent/api"
	"github.com/arcboxlabs/arcbox-go/internal/errs"
	"github.com/arcboxlabs/arcbox-go/internal/guest/engine"
	"github.com/arcboxlabs/arcbox-go/internal/guest/files"
)

var _ engine.Filer = (*sandbox)(nil)

// tree is where the agent finds a container's files, whether its process runs or not.
type tree struct {
	root     int // the container's root as a mount of the agent's own, without the mounts below it
	upper    string
	lower    []string // directories of the image, the highest first
	readOnly bool
	once     sync.Once
}

// newTree keeps a root that is mounted nowhere yet, and returns another mount of it for the container.
func newTree(root int, lower []string, s scratch, readOnly bool) (_ *tree, mine int, err error) {
	at := s.dir + "/m"
	if err := os.MkdirAll(at, 0o700); err != nil {
		return nil, -1, fmt.Errorf("keep the root: %w", err)
	}
	// Only what is mounted somewhere can be mounted twice.
	if err := unix.MoveMount(root, "", unix.AT_FDCWD, at, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return nil, -1, fmt.Errorf("keep the root: %w", err)
	}
	defer unix.Unmount(at, unix.MNT_DETACH)
	mine, err = unix.OpenTree(root, "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH)
	if err != nil {
		return nil, -1, fmt.Errorf("keep the root: %w", err)
	}
	return &tree{root: root, upper: s.upper(), lower: lower, readOnly: readOnly}, mine, nil
}

// close lets go of the root. A second call does nothing.
func (t *tree) close() { t.once.Do(func() { unix.Close(t.root) }) }

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

// view opens the root that the container sees: of a running one with its mounts. inside tells whether it is that.
func (s *sandbox) view() (fd int, inside bool, err error) {
	s.mu.Lock()
	executed := s.executed
	s.mu.Unlock()
	if executed {
		fd, err := unix.Open(fmt.Sprintf("/proc/%d/root", s.child.PID()), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		select {
		case <-s.child.Done(): // and its number may be another's
			if err == nil {
				unix.Close(fd)
			}
		default:
			if err == nil {
				return fd, true, nil
			}
		}
	}
	fd, err = unix.FcntlInt(uintptr(s.tree.root), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return -1, false, fmt.Errorf("open the root: %w", err)
	}
	return fd, false, nil
}

// Stat implements engine.Filer.
func (s *sandbox) Stat(_ context.Context, path string) (api.StatReply, error) {
	root, _, err := s.view()
	if err != nil {
		return api.StatReply{}, err
	}
	defer unix.Close(root)
	return files.Stat(root, path)
}

// CopyFrom implements engine.Filer.
func (s *sandbox) CopyFrom(ctx context.Context, path string, begin func() (io.Writer, error)) error {
	root, _, err := s.view()
	if err != nil {
		return err
	}
	defer unix.Close(root)
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
	root, inside, err := s.view()
	if err != nil {
		return err
	}
	defer unix.Close(root)
	if s.tree.readOnly && !inside {
		return fmt.Errorf("copy to %.300q: %w: the root of the container is read-only", req.Path, errs.ErrConflict)
	}
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
	if !layer {
		src, err := files.OpenWhole(s.tree.root)
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
