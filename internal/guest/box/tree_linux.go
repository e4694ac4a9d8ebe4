package box

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/arcboxlabs/arcbox-go/agent/api"
	"github.com/arcboxlabs/arcbox-go/internal/errs"
	"github.com/arcboxlabs/arcbox-go/internal/guest/files"
)

// tree is where the agent finds a container's files, whether its process runs or not.
type tree struct {
	at       string // a directory of the agent, where the root is mounted as long as it is looked at with its volumes
	upper    string
	lower    []string // directories of the image, the highest first
	readOnly bool

	mu    sync.Mutex
	root  int // the container's root as a mount of the agent's own, mounted nowhere, without the mounts below it; -1 is closed
	view  int // the same one, mounted, with the volumes; -1 is none
	users int // of view
}

// newTree mounts a root that is mounted nowhere yet, and keeps it. The container's process gets a mount of its own with the
// copy that it has of all mounts; detach is called then. After an error it has let go of the root.
func newTree(root int, lower []string, s scratch, readOnly bool) (_ *tree, err error) {
	t := &tree{at: s.dir + "/m", root: root, view: -1, upper: s.upper(), lower: lower, readOnly: readOnly}
	if err := os.MkdirAll(t.at, 0o700); err != nil {
		t.close()
		return nil, fmt.Errorf("keep the root: %w", err)
	}
	if t.view, err = t.mount(); err != nil {
		t.close()
		return nil, err
	}
	return t, nil
}

// detach unmounts the root that newTree has mounted. A second call does nothing.
func (t *tree) detach() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.view >= 0 && t.users == 0 {
		t.unmount()
	}
}

// mount mounts the root, and keeps another mount of it as the root: only what is mounted somewhere can be mounted twice, and
// what was mounted cannot be mounted again. After an error the root is kept as it was. The caller holds mu.
func (t *tree) mount() (int, error) {
	mounted := t.root
	if err := unix.MoveMount(mounted, "", unix.AT_FDCWD, t.at, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return -1, fmt.Errorf("mount the root: %w", err)
	}
	root, err := cloneMount(mounted, false)
	if err != nil {
		return -1, errors.Join(err, unix.Unmount(t.at, unix.MNT_DETACH))
	}
	t.root = root
	return mounted, nil
}

// close lets go of the root. A second call does nothing.
func (t *tree) close() {
	t.detach()
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.root >= 0 {
		unix.Close(t.root)
		t.root = -1
	}
}

// open opens the root, without what is mounted in it.
func (t *tree) open() (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	fd, err := unix.FcntlInt(uintptr(t.root), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return -1, fmt.Errorf("open the root: %w", err)
	}
	return fd, nil
}

// look opens the root with the volumes that mount mounts in it. All who look at once share one such root. The caller calls
// done when it has let go of it.
func (t *tree) look(mount func(root int) error) (fd int, done func(), err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.users == 0 {
		if t.view, err = t.mount(); err != nil {
			return -1, nil, err
		}
		if t.readOnly {
			err = unix.MountSetattr(t.view, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY})
		}
		if err == nil {
			err = mount(t.view)
		}
		if err != nil {
			t.unmount()
			return -1, nil, fmt.Errorf("mount the root: %w", err)
		}
	}
	t.users++
	return t.view, sync.OnceFunc(func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		if t.users--; t.users == 0 {
			t.unmount()
		}
	}), nil
}

// unmount unmounts the view. The caller holds mu.
func (t *tree) unmount() {
	_ = unix.Unmount(t.at, unix.MNT_DETACH)
	unix.Close(t.view)
	t.view = -1
}

// view opens the root that the container sees: of a running one with all its mounts, of another one with its volumes, when
// its process has made their places. The caller calls done when it has let go of it.
func (s *sandbox) view(ctx context.Context) (fd int, done func(), err error) {
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
				return fd, func() { unix.Close(fd) }, nil
			}
		}
	}
	if err := s.prepared(ctx); err != nil {
		return -1, nil, err
	}
	if len(s.volumes) == 0 && !s.tree.readOnly {
		fd, err := s.tree.open()
		if err != nil {
			return -1, nil, err
		}
		return fd, func() { unix.Close(fd) }, nil
	}
	return s.tree.look(func(root int) error {
		for _, m := range s.volumes {
			if err := s.mountVolume(ctx, root, m); err != nil {
				return err
			}
		}
		return nil
	})
}

// volumesOf returns the volumes among mounts, what lies higher first.
func volumesOf(mounts []api.Mount) []api.Mount {
	volumes := slices.DeleteFunc(slices.Clone(mounts), func(m api.Mount) bool { return m.Kind != api.MountVolume })
	slices.SortStableFunc(volumes, func(a, b api.Mount) int { return cmp.Compare(depth(a.Target), depth(b.Target)) })
	return volumes
}

// mountVolume mounts a volume in a root. Where either is not there any more, it is left out.
func (s *sandbox) mountVolume(ctx context.Context, root int, m api.Mount) error {
	at, err := files.OpenIn(root, m.Target)
	if errors.Is(err, errs.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(at)
	m.NoCopy = true // it was made before
	mnt, err := s.box.openMount(ctx, m, root)
	if errors.Is(err, errs.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(mnt.fd)
	return unix.MoveMount(mnt.fd, "", at, "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH)
}
