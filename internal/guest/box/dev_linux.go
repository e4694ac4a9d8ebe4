package box

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// devices are the nodes of a container's /dev.
func devices() []struct {
	name         string
	major, minor uint32
} {
	return []struct {
		name         string
		major, minor uint32
	}{{"null", 1, 3}, {"zero", 1, 5}, {"full", 1, 7}, {"random", 1, 8}, {"urandom", 1, 9}, {"tty", 5, 0}}
}

// mountFS mounts a file system attached nowhere and returns it. options are names and values in turn.
func mountFS(kind string, attr int, options ...string) (int, error) {
	fs, err := unix.Fsopen(kind, unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("open %s: %w", kind, err)
	}
	defer unix.Close(fs)
	for i := 0; i+1 < len(options); i += 2 {
		if err := unix.FsconfigSetString(fs, options[i], options[i+1]); err != nil {
			return -1, fmt.Errorf("set %s of %s: %w", options[i], kind, err)
		}
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return -1, fmt.Errorf("make %s: %w", kind, err)
	}
	fd, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, attr)
	if err != nil {
		return -1, fmt.Errorf("mount %s: %w", kind, err)
	}
	return fd, nil
}

// mountDev makes a container's /dev. The agent makes it: a container's process would need one system call for each node
// too, and here they are made while it does something else.
// A privileged container gets all devices of the machine.
func mountDev(privileged bool) (fd int, err error) {
	fd, err = mountFS("tmpfs", unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NOEXEC, "mode", "0755", "size", "64m")
	if err != nil {
		return -1, err
	}
	defer func() {
		if err != nil {
			unix.Close(fd)
			err = fmt.Errorf("make /dev: %w", err)
			fd = -1
		}
	}()
	for _, d := range devices() {
		if err = unix.Mknodat(fd, d.name, unix.S_IFCHR|0o666, int(unix.Mkdev(d.major, d.minor))); err != nil {
			return
		}
	}
	if privileged {
		if err = copyDevices(fd); err != nil {
			return
		}
	}
	if err = unix.Mknodat(fd, "console", unix.S_IFREG|0o620, 0); err != nil {
		return
	}
	for _, l := range [][2]string{
		{"/proc/self/fd", "fd"}, {"/proc/self/fd/0", "stdin"}, {"/proc/self/fd/1", "stdout"}, {"/proc/self/fd/2", "stderr"},
		{"pts/ptmx", "ptmx"}, {"/proc/kcore", "core"},
	} {
		if err = unix.Symlinkat(l[0], fd, l[1]); err != nil {
			return
		}
	}
	for _, d := range []string{"pts", "shm", "mqueue"} {
		if err = unix.Mkdirat(fd, d, 0o755); err != nil {
			return
		}
	}
	return fd, nil
}

// copyDevices makes the nodes of the agent's own /dev that are not there yet, below a container's /dev.
func copyDevices(dev int) error {
	return filepath.WalkDir("/dev", func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // a device went away
		}
		if err != nil || path == "/dev" {
			return err
		}
		name := path[len("/dev/"):]
		switch {
		case name == "pts" || name == "shm" || name == "mqueue":
			return filepath.SkipDir
		case d.IsDir():
			err = unix.Mkdirat(dev, name, 0o755)
		case d.Type()&fs.ModeDevice != 0 && name != "console" && name != "ptmx":
			var st unix.Stat_t
			if unix.Lstat(path, &st) != nil {
				return nil
			}
			err = unix.Mknodat(dev, name, st.Mode, int(st.Rdev))
		}
		if err == unix.EEXIST {
			return nil
		}
		return err
	})
}

// mountPts makes a container's /dev/pts.
func mountPts() (int, error) {
	return mountFS("devpts", unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NOEXEC, "ptmxmode", "0666", "mode", "0620", "gid", "5")
}

// openTerminal opens a pair of terminals on a devpts: the agent's end, which does not block, and the process's.
func openTerminal(pts int) (master *os.File, slave int, err error) {
	fd, err := unix.Openat(pts, "ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, -1, fmt.Errorf("open terminal: %w", err)
	}
	master = os.NewFile(uintptr(fd), "ptmx")
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		master.Close()
		return nil, -1, fmt.Errorf("unlock terminal: %w", err)
	}
	r, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)
	if e != 0 {
		master.Close()
		return nil, -1, fmt.Errorf("open terminal's other end: %w", e)
	}
	return master, int(r), nil
}

// findHidden returns which of the paths that a container must not see or write this kernel has. They are those of other
// container engines.
func findHidden() hidden {
	var h hidden
	for _, p := range strings.Fields("/proc/asound /proc/acpi /proc/interrupts /proc/kcore /proc/keys /proc/latency_stats " +
		"/proc/timer_list /proc/timer_stats /proc/sched_debug /proc/scsi /sys/firmware /sys/devices/virtual/powercap") {
		st, err := os.Stat(p)
		switch {
		case err != nil:
		case st.IsDir():
			h.dirs = append(h.dirs, p)
		default:
			h.files = append(h.files, p)
		}
	}
	for _, p := range strings.Fields("/proc/bus /proc/fs /proc/irq /proc/sys /proc/sysrq-trigger") {
		if _, err := os.Stat(p); err == nil {
			h.readonly = append(h.readonly, p)
		}
	}
	return h
}
