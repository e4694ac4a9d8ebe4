package box

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/arcboxlabs/arcbox-go/agent/api"
	"github.com/arcboxlabs/arcbox-go/internal/errs"
	"github.com/arcboxlabs/arcbox-go/internal/guest/files"
	"github.com/arcboxlabs/arcbox-go/internal/guest/proc"
)

// mounted is a mount that is attached nowhere yet.
type mounted struct {
	fd     int
	target string
	dir    bool // it is of a directory
}

// targets mounts what the request asks for, what lies higher first.
func (s *stage) targets(p *proc.Program) {
	type step struct {
		target string
		mount  func()
	}
	var steps []step
	for _, t := range s.tmpfs {
		steps = append(steps, step{t.Path, func() {
			makeDirs(p, t.Path)
			kind := p.Str("tmpfs")
			flags, data := tmpfsOptions(t)
			p.Call("mount "+t.Path, unix.SYS_MOUNT, kind, p.Str(t.Path), kind, flags, p.Str(data))
		}})
	}
	for _, m := range s.mounted {
		steps = append(steps, step{m.target, func() { m.attach(p) }})
	}
	slices.SortStableFunc(steps, func(a, b step) int { return cmp.Compare(depth(a.target), depth(b.target)) })
	for _, s := range steps {
		s.mount()
	}
}

// depth is the number of elements of a path.
func depth(p string) int {
	if p = path.Clean(p); p == "/" {
		return 0
	}
	return strings.Count(p, "/")
}

// attach mounts m in the container's root. What is at its target is made where there is nothing.
func (m mounted) attach(p *proc.Program) {
	at := p.Str(m.target)
	if m.dir {
		makeDirs(p, m.target)
	} else {
		makeDirs(p, path.Dir(m.target))
		p.Try("make "+m.target, unix.SYS_MKNODAT, atCwd, at, unix.S_IFREG|0o644, 0)
	}
	p.Call("mount "+m.target, unix.SYS_MOVE_MOUNT, uintptr(m.fd), p.Str(""), atCwd, at, unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_SYMLINKS)
}

// openMount makes a mount of what a request names. root is the container's.
func (b *Box) openMount(ctx context.Context, m api.Mount, root int) (mounted, error) {
	if path, ok := strings.CutPrefix(m.Source, api.HostShare); ok && m.Kind == api.MountShare {
		return b.hostMount(path, m)
	}
	if m.Kind == api.MountShare {
		return b.shares.mount(m)
	}
	v, err := b.volume(ctx, m.Source)
	if err != nil {
		return mounted{}, err
	}
	if m.SubPath == "" && !m.NoCopy {
		if err := b.fill(ctx, v, root, m.Target); err != nil {
			return mounted{}, fmt.Errorf("copy what the image has there: %w", err)
		}
	}
	dir, err := v.open()
	if err != nil {
		return mounted{}, err
	}
	defer unix.Close(dir)
	return mountOf(dir, m)
}

// mountOf makes a mount of a directory, or of what SubPath means in it.
func mountOf(dir int, m api.Mount) (mounted, error) {
	src := dir
	if m.SubPath != "" {
		var err error
		if src, err = files.OpenIn(dir, m.SubPath); err != nil {
			return mounted{}, err
		}
		defer unix.Close(src)
	}
	var st unix.Stat_t
	if err := unix.Fstat(src, &st); err != nil {
		return mounted{}, fmt.Errorf("look at the source: %w", err)
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR, unix.S_IFREG:
	default:
		return mounted{}, fmt.Errorf("%w sub-path %.300q: it is neither a directory nor a file", errs.ErrInvalid, m.SubPath)
	}
	fd, err := cloneMount(src, m.ReadOnly)
	return mounted{fd, m.Target, st.Mode&unix.S_IFMT == unix.S_IFDIR}, err
}

// cloneMount makes a mount, attached nowhere, of what a descriptor names.
func cloneMount(src int, readOnly bool) (int, error) {
	fd, err := unix.OpenTree(src, "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH)
	if err != nil {
		return -1, fmt.Errorf("open the source: %w", err)
	}
	if !readOnly {
		return fd, nil
	}
	if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}); err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("make the mount read-only: %w", err)
	}
	return fd, nil
}

// volume is the place of a volume. Its data is in a directory of the place, so that it can have any owner and mode.
type volume struct{ place }

func (v volume) data() string { return v.dir + "/d" }

// filling is there from before the image's files are copied until they are all there.
func (v volume) filling() string { return v.dir + "/filling" }

func (v volume) open() (int, error) {
	fd, err := unix.Open(v.data(), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err != nil {
		return -1, fmt.Errorf("open volume: %w", err)
	}
	return fd, nil
}

// volume returns the place of a volume, which is made where it does not exist. It waits for a data disk.
func (b *Box) volume(ctx context.Context, id string) (volume, error) {
	v, err := b.findVolume(ctx, id)
	if err != nil {
		return v, err
	}
	if _, err = v.make(); err == nil {
		err = os.Mkdir(v.data(), 0o755)
	}
	if err != nil && !errors.Is(err, os.ErrExist) {
		return v, fmt.Errorf("make volume: %w", err)
	}
	return v, nil
}

// findVolume returns the place of a volume, which may not exist.
func (b *Box) findVolume(ctx context.Context, id string) (volume, error) {
	select {
	case <-b.ready:
	case <-ctx.Done():
		return volume{}, ctx.Err()
	}
	if b.err != nil {
		return volume{}, b.err
	}
	data := b.data.Load()
	disk, err := data.wait(ctx)
	if err != nil {
		return volume{}, err
	}
	p, err := data.place(disk, diskVolumes, memoryVolumes, id)
	return volume{p}, err
}

// fills has the volumes that are being filled: of two containers with a new volume one waits for the other.
type fills struct {
	mu  sync.Mutex
	now map[string]chan struct{}
}

func (f *fills) begin(ctx context.Context, id string) (end func(), err error) {
	for {
		f.mu.Lock()
		busy := f.now[id]
		if busy == nil {
			if f.now == nil {
				f.now = make(map[string]chan struct{})
			}
			done := make(chan struct{})
			f.now[id] = done
			f.mu.Unlock()
			return func() {
				f.mu.Lock()
				delete(f.now, id)
				f.mu.Unlock()
				close(done)
			}, nil
		}
		f.mu.Unlock()
		select {
		case <-busy:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// fill copies what the image has at target into a volume that is empty. A copy that was cut short by the end of the
// machine is begun anew.
func (b *Box) fill(ctx context.Context, v volume, root int, target string) error {
	end, err := b.fills.begin(ctx, v.dir)
	if err != nil {
		return err
	}
	defer end()
	if _, err := os.Lstat(v.filling()); err == nil {
		if err := v.clear(); err != nil {
			return err
		}
	}
	from, err := files.OpenIn(root, target)
	if errors.Is(err, errs.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(from)
	var st unix.Stat_t
	if err := unix.Fstat(from, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return err // a file that the image has there is hidden
	}
	to, err := v.open()
	if err != nil {
		return err
	}
	defer unix.Close(to)
	if empty, err := files.IsEmpty(to); err != nil || !empty {
		return err
	}
	if err := os.WriteFile(v.filling(), nil, 0o600); err != nil {
		return err
	}
	if err := files.CopyTree(ctx, from, to); err != nil {
		return errors.Join(err, v.clear())
	}
	return os.Remove(v.filling())
}

// clear deletes what a volume has, and what says that it is being filled.
func (v volume) clear() error {
	var err error
	if v.trash != nil {
		err = v.trash.take(v.data())
	} else {
		err = os.RemoveAll(v.data()) // what the image had: no deeper than names can be long
	}
	if err == nil {
		err = os.Mkdir(v.data(), 0o755)
	}
	if err != nil {
		return err
	}
	return os.Remove(v.filling())
}
