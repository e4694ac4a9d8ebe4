package guest

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/arcboxlabs/arcbox-go/agent/api"
	"github.com/arcboxlabs/arcbox-go/internal/guest/box"
)

// phases is the record of the start.
type phases struct {
	mu   sync.Mutex
	list []api.Phase
}

func (p *phases) done(name string) {
	at := uptime()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.list = append(p.list, api.Phase{Name: name, At: at})
}

func (p *phases) get() []api.Phase {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]api.Phase(nil), p.list...)
}

// uptime returns the time since the kernel started.
func uptime() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		return 0
	}
	return time.Duration(ts.Nano())
}

// switchRoot makes a tmpfs the root, with the file systems of the kernel, and the initramfs's /etc and /lib on it. A
// container's change of root needs that: the kernel's own first root cannot be left.
//
// The first root, which has the agent's executable, becomes read-only: a container can reach the executable of a process
// by /proc, and a kernel may let it write there.
func switchRoot() error {
	const root = "/root.new"
	if err := os.Mkdir(root, 0o755); err != nil {
		return fmt.Errorf("make root: %w", err)
	}
	if err := unix.Mount("tmpfs", root, "tmpfs", 0, "mode=0755"); err != nil {
		return fmt.Errorf("mount root: %w", err)
	}
	for _, d := range []string{"dev", "proc", "sys", "run", "tmp", "etc", "lib"} {
		if err := os.Mkdir(root+"/"+d, 0o755); err != nil {
			return fmt.Errorf("make root: %w", err)
		}
	}
	const safe = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	for _, m := range []struct {
		source, kind string
		flags        uintptr
	}{{"dev", "devtmpfs", unix.MS_NOSUID}, {"proc", "proc", safe}, {"sys", "sysfs", safe}} {
		if err := unix.Mount(m.source, root+"/"+m.source, m.kind, m.flags, ""); err != nil {
			return fmt.Errorf("mount /%s: %w", m.source, err)
		}
	}
	for _, d := range []string{"/etc", "/lib"} {
		if err := unix.Mount(d, root+d, "", unix.MS_BIND, ""); err != nil && err != unix.ENOENT {
			return fmt.Errorf("bind %s: %w", d, err)
		}
	}
	if err := unix.Mount("", "/", "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		return fmt.Errorf("protect the first root: %w", err)
	}
	if err := unix.Chdir(root); err != nil {
		return fmt.Errorf("enter root: %w", err)
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("move root: %w", err)
	}
	if err := unix.Chroot("."); err != nil {
		return fmt.Errorf("enter root: %w", err)
	}
	if err := unix.Chdir("/"); err != nil {
		return fmt.Errorf("enter root: %w", err)
	}
	return nil
}

// maxOpenFiles is how many files the agent may have open: several for each container and stream.
const maxOpenFiles = 1 << 20

// setUp makes what containers need of the machine and what no module is needed for.
func setUp() error {
	if err := os.Chmod("/tmp", 0o1777); err != nil {
		return fmt.Errorf("set up /tmp: %w", err)
	}
	if err := unix.Mount("cgroup2", cgroupRoot, "cgroup2", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount %s: %w", cgroupRoot, err)
	}
	if err := box.Delegate(cgroupRoot); err != nil {
		return err
	}
	if err := box.FlushEarly(); err != nil {
		return err
	}
	if err := unix.Sethostname([]byte("arcbox")); err != nil {
		return fmt.Errorf("set host name: %w", err)
	}
	lim := unix.Rlimit{Cur: maxOpenFiles, Max: maxOpenFiles}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &lim); err != nil {
		return fmt.Errorf("set limit of open files: %w", err)
	}
	return loopbackUp()
}

// registrationTime is how often, in milliseconds, an interface with a VLAN looks whether it has to announce that.
const registrationTime = "3600000"

// calmVLANs keeps the kernel from waking up twenty times in a second for each interface with a VLAN: it runs the protocols
// by which switches learn of VLANs, of which nobody here has told it. A kernel without them has nothing to set.
func calmVLANs() error {
	for _, name := range []string{"garp/parameters/garp_join_time", "mrp/parameters/mrp_join_time", "mrp/parameters/mrp_periodic_time"} {
		if err := os.WriteFile("/sys/module/"+name, []byte(registrationTime), 0); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("set how often VLANs are announced: %w", err)
		}
	}
	return nil
}

func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("bring up loopback: %w", err)
	}
	defer unix.Close(fd)
	ifr, err := unix.NewIfreq("lo")
	if err != nil {
		return fmt.Errorf("bring up loopback: %w", err)
	}
	ifr.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, ifr); err != nil {
		return fmt.Errorf("bring up loopback: %w", err)
	}
	return nil
}
