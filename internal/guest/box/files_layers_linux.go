package box

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
)

// sharedDir is where the file system is mounted whose files are disks.
const sharedDir = "/run/f"

// shared is a file system of the host's whose files are disks: on hypervisors that cannot add a disk to a running machine.
// It is mounted when it is first needed. The host may add files to it at any time, and take them away.
type shared struct {
	kind, source string       // of the mount; "" is none
	prepare      func() error // loads the modules that this needs

	mu      sync.Mutex
	mounted bool
}

// UseFiles makes the files of a file system disks, each with its name as serial number: source is mounted as kind,
// read-only. prepare loads the modules for it and for loop devices; it is called before the mount. UseFiles is called
// before Ready.
func (b *Box) UseFiles(kind, source string, prepare func() error) {
	b.layers.shared.kind, b.layers.shared.source, b.layers.shared.prepare = kind, source, prepare
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
	path = filepath.Join(sharedDir, name)
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
	if err := os.MkdirAll(sharedDir, 0o700); err != nil {
		return fmt.Errorf("mount the disks of the host: %w", err)
	}
	const flags = unix.MS_RDONLY | unix.MS_NODEV | unix.MS_NOSUID | unix.MS_NOEXEC | unix.MS_NOATIME
	if err := unix.Mount(s.source, sharedDir, s.kind, flags, ""); err != nil {
		return fmt.Errorf("mount the disks of the host, %s as %s: %w", s.source, s.kind, err)
	}
	s.mounted = true
	return nil
}

func (s *shared) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mounted {
		_ = unix.Unmount(sharedDir, unix.MNT_DETACH)
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
