package box

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/arcboxlabs/arcbox-go/agent/api"
	"github.com/arcboxlabs/arcbox-go/internal/errs"
)

// Where file systems of the host are mounted: filesDir one whose files are disks, hostDir one whose directories containers
// mount.
const (
	filesDir = "/run/f"
	hostDir  = "/run/h"
)

// shared is a file system of the host's that the machine has from its start. It is mounted when it is first needed. The
// host may change what is in it at any time.
type shared struct {
	dir          string       // where it is mounted
	flags        uintptr      // of the mount
	kind, source string       // of the mount; "" is none
	prepare      func() error // loads the modules that this needs

	mu      sync.Mutex
	mounted bool
}

// UseFiles makes the files of a file system disks, each with its name as serial number: source is mounted as kind,
// read-only. prepare loads the modules for it and for loop devices; it is called before the mount. UseFiles is called
// before Ready.
func (b *Box) UseFiles(kind, source string, prepare func() error) {
	s := &b.layers.shared
	s.dir, s.kind, s.source, s.prepare = filesDir, kind, source, prepare
	s.flags = unix.MS_RDONLY | unix.MS_NODEV | unix.MS_NOSUID | unix.MS_NOEXEC | unix.MS_NOATIME
}

// UseHost lets containers mount what is in a file system, as api.HostShare says: source is mounted as kind. prepare is as
// for UseFiles. UseHost is called before Ready.
func (b *Box) UseHost(kind, source string, prepare func() error) {
	s := &b.host
	s.dir, s.kind, s.source, s.prepare = hostDir, kind, source, prepare
	s.flags = unix.MS_NODEV | unix.MS_NOSUID
}

// hostMount makes a mount of a path in the directory of the host. Symbolic links there do not lead out of it.
func (b *Box) hostMount(path string, m api.Mount) (mounted, error) {
	if b.host.kind == "" {
		return mounted{}, fmt.Errorf("share %.300q: %w: the host shares no directory", path, errs.ErrNotFound)
	}
	if err := b.host.mount(); err != nil {
		return mounted{}, err
	}
	dir, err := unix.Open(hostDir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return mounted{}, fmt.Errorf("open the directory of the host: %w", err)
	}
	defer unix.Close(dir)
	m.SubPath = path
	return mountOf(dir, m)
}

// find returns the path of the file with the name and what tells it from another that had the name before. It returns
// false where there is none.
func (s *shared) find(name string) (path, identity string, ok bool, err error) {
	if s.kind == "" || name != filepath.Base(name) || name == "." || name == ".." {
		return "", "", false, nil
	}
	if err := s.mount(); err != nil {
		return "", "", false, err
	}
	path = filepath.Join(s.dir, name)
	var st unix.Stat_t
	err = unix.Lstat(path, &st)
	if errors.Is(err, fs.ErrNotExist) {
		return "", "", false, nil
	}
	if err != nil {
		return "", "", false, fmt.Errorf("look for disk %s: %w", name, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return "", "", false, fmt.Errorf("disk %s: %w: it is no regular file", name, errs.ErrInvalid)
	}
	// No device has a name with a slash.
	return path, fmt.Sprintf("%s/%d", path, st.Ino), true, nil
}

// mount mounts the file system once. After an error the next one who needs it tries again.
func (s *shared) mount() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mounted {
		return nil
	}
	if err := s.prepare(); err != nil {
		return err
	}
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return fmt.Errorf("mount a directory of the host: %w", err)
	}
	if err := unix.Mount(s.source, s.dir, s.kind, s.flags, ""); err != nil {
		return fmt.Errorf("mount a directory of the host, %s as %s: %w", s.source, s.kind, err)
	}
	s.mounted = true
	return nil
}

func (s *shared) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mounted {
		_ = unix.Unmount(s.dir, unix.MNT_DETACH)
		s.mounted = false
	}
}

// mountFile mounts a layer that is a file.
func mountFile(path, dir string) error {
	device, free, err := loopDevice(path)
	if err != nil {
		return fmt.Errorf("mount layer: %w", err)
	}
	defer free()
	return mountLayer(device, dir)
}

// loopDevice makes a file a block device, read-only, and returns the device's name. The device goes when nobody has it
// open or mounted any more after free was called.
func loopDevice(path string) (name string, free func(), err error) {
	file, err := os.Open(path)
	if err != nil {
		return "", nil, fmt.Errorf("open %s: %w", path, err)
	}
	defer file.Close()
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return "", nil, fmt.Errorf("make a loop device: %w", err)
	}
	defer control.Close()
	for {
		n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return "", nil, fmt.Errorf("find a free loop device: %w", err)
		}
		name = fmt.Sprintf("loop%d", n)
		dev, err := os.OpenFile("/dev/"+name, os.O_RDONLY, 0)
		if err != nil {
			return "", nil, fmt.Errorf("open a loop device: %w", err)
		}
		config := unix.LoopConfig{Fd: uint32(file.Fd())}
		config.Info.Flags = unix.LO_FLAGS_READ_ONLY | unix.LO_FLAGS_AUTOCLEAR
		err = unix.IoctlLoopConfigure(int(dev.Fd()), &config)
		if err == nil {
			return name, func() { dev.Close() }, nil
		}
		dev.Close()
		if err != unix.EBUSY { // somebody else has taken the free one
			return "", nil, fmt.Errorf("make %s a loop device: %w", path, err)
		}
	}
}
