package box

import (
	"encoding/binary"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/arcboxlabs/arcbox-go/internal/guest/proc"
)

// newRoot is an empty directory of the agent where a container's root is mounted, in the container's own mount
// namespace, before it becomes the root.
const newRoot = "/run/root"

// stage is what a container's process does before it executes its command.
type stage struct {
	// File descriptors of the agent. They are not below 3.
	stdin, stdout, stderr int
	root                  int    // mount of the root
	dev, pts              int    // mounts of /dev and /dev/pts
	start, report         int    // pipes: see sandbox
	files                 []file // mounted over files of the container
	tty                   bool

	hostname string
	hide     hidden
	cwd      string
	user     user
	caps     uint64
	args     []string
	env      []string
}

// file is a mount of one file.
type file struct {
	fd   int
	path string
}

// hidden is what a container must not see or write of /proc and /sys, as far as this kernel has it.
type hidden struct {
	files, dirs, readonly []string
}

const (
	atCwd    = ^uintptr(99)       // AT_FDCWD
	maxFD    = uintptr(1)<<32 - 1 // close_range's end
	noAccess = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
)

// program returns the system calls of the stage. The caller closes it after the fork.
func (s *stage) program() *proc.Program {
	p := proc.NewProgram()
	s.isolate(p)
	s.enter(p)
	s.mounts(p)
	s.mask(p)
	s.identity(p)
	s.ready(p)
	s.command(p)
	return p
}

// isolate lets go of the agent: its memory may not be looked at, its files are closed.
func (s *stage) isolate(p *proc.Program) {
	p.Call("become undumpable", unix.SYS_PRCTL, unix.PR_SET_DUMPABLE, 0)
	keep := []int{s.stdin, s.stdout, s.stderr, s.root, s.dev, s.pts, s.start, s.report}
	for _, f := range s.files {
		keep = append(keep, f.fd)
	}
	closeAllBut(p, keep)
	for i, fd := range []int{s.stdin, s.stdout, s.stderr} {
		p.Call("set stdio", unix.SYS_DUP3, uintptr(fd), uintptr(i), 0)
	}
	p.Call("make session", unix.SYS_SETSID)
	p.Try("make keyring", unix.SYS_KEYCTL, unix.KEYCTL_JOIN_SESSION_KEYRING, 0)
	if s.tty {
		p.Call("set controlling terminal", unix.SYS_IOCTL, 0, unix.TIOCSCTTY, 0)
	}
	p.Call("set umask", unix.SYS_UMASK, 0o022)
}

// closeAllBut closes all descriptors from 3 on but those to keep.
func closeAllBut(p *proc.Program, keep []int) {
	set := make(map[int]bool)
	last := 2
	for _, fd := range keep {
		set[fd] = true
		last = max(last, fd)
	}
	for from := 3; from <= last; from++ {
		if set[from] {
			continue
		}
		to := from
		for !set[to+1] {
			to++
		}
		p.Call("close files", unix.SYS_CLOSE_RANGE, uintptr(from), uintptr(to), 0)
		from = to
	}
	p.Call("close files", unix.SYS_CLOSE_RANGE, uintptr(last+1), maxFD, 0)
}

// enter makes the container's root the root, and leaves nothing of the agent's file systems.
func (s *stage) enter(p *proc.Program) {
	empty, dot := p.Str(""), p.Str(".")
	p.Call("mount root", unix.SYS_MOVE_MOUNT, uintptr(s.root), empty, atCwd, p.Str(newRoot), unix.MOVE_MOUNT_F_EMPTY_PATH)
	p.Call("enter root", unix.SYS_CHDIR, p.Str(newRoot))
	p.Call("change root", unix.SYS_PIVOT_ROOT, dot, dot)
	// The old root now lies on top of the new one: this unmounts the old one.
	p.Call("leave old root", unix.SYS_UMOUNT2, dot, unix.MNT_DETACH)
	p.Call("enter root", unix.SYS_CHDIR, p.Str("/"))
}

// mounts makes the file systems of the kernel and mounts what the agent has prepared.
func (s *stage) mounts(p *proc.Program) {
	empty := p.Str("")
	mkdir := func(path string) uintptr {
		at := p.Str(path)
		p.Call("make "+path, unix.SYS_MKDIRAT, atCwd, at, 0o755).Accept(unix.EEXIST)
		return at
	}
	mount := func(kind string, at uintptr, path string, flags uintptr, data string) {
		k := p.Str(kind)
		var d uintptr
		if data != "" {
			d = p.Str(data)
		}
		p.Call("mount "+path, unix.SYS_MOUNT, k, at, k, flags, d)
	}
	mount("proc", mkdir("/proc"), "/proc", noAccess, "")
	// As in other container engines, any user may listen on any port and ping.
	sysctl(p, "/proc/sys/net/ipv4/ip_unprivileged_port_start", "0")
	sysctl(p, "/proc/sys/net/ipv4/ping_group_range", "0 2147483647")
	mount("sysfs", mkdir("/sys"), "/sys", noAccess|unix.MS_RDONLY, "")
	mount("cgroup2", p.Str("/sys/fs/cgroup"), "/sys/fs/cgroup", noAccess|unix.MS_RDONLY, "")
	p.Call("mount /dev", unix.SYS_MOVE_MOUNT, uintptr(s.dev), empty, atCwd, mkdir("/dev"), unix.MOVE_MOUNT_F_EMPTY_PATH)
	p.Call("mount /dev/pts", unix.SYS_MOVE_MOUNT, uintptr(s.pts), empty, atCwd, p.Str("/dev/pts"), unix.MOVE_MOUNT_F_EMPTY_PATH)
	mount("tmpfs", p.Str("/dev/shm"), "/dev/shm", noAccess, "mode=1777,size=65536k")
	mount("mqueue", p.Str("/dev/mqueue"), "/dev/mqueue", noAccess, "")
	if s.tty {
		p.Call("mount /dev/console", unix.SYS_MOUNT, p.Str("/dev/pts/0"), p.Str("/dev/console"), 0, unix.MS_BIND, 0)
	}
	if len(s.files) > 0 {
		mkdir("/etc")
	}
	for _, f := range s.files {
		// Where the image has something odd in the file's place, such as a link to nowhere, it is left alone.
		at := p.Str(f.path)
		fd := p.Try("make "+f.path, unix.SYS_OPENAT, atCwd, at, unix.O_CREAT|unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0o644).Save()
		p.Try("close "+f.path, unix.SYS_CLOSE).Arg(0, fd)
		p.Try("mount "+f.path, unix.SYS_MOVE_MOUNT, uintptr(f.fd), empty, atCwd, at, unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_SYMLINKS)
	}
}

// sysctl sets a variable of the kernel, where it has it.
func sysctl(p *proc.Program, path, value string) {
	fd := p.Try("open "+path, unix.SYS_OPENAT, atCwd, p.Str(path), unix.O_WRONLY, 0).Save()
	p.Try("write "+path, unix.SYS_WRITE, 0, p.Str(value), uintptr(len(value))).Arg(0, fd)
	p.Try("close "+path, unix.SYS_CLOSE).Arg(0, fd)
}

// mask hides what the container must not see and makes read-only what it must not write.
func (s *stage) mask(p *proc.Program) {
	null := p.Str("/dev/null")
	for _, f := range s.hide.files {
		p.Call("hide "+f, unix.SYS_MOUNT, null, p.Str(f), 0, unix.MS_BIND, 0)
	}
	var first uintptr
	for _, d := range s.hide.dirs {
		at := p.Str(d)
		if first == 0 {
			kind := p.Str("tmpfs")
			p.Call("hide "+d, unix.SYS_MOUNT, kind, at, kind, noAccess|unix.MS_RDONLY, p.Str("size=0k"))
			first = at
			continue
		}
		p.Call("hide "+d, unix.SYS_MOUNT, first, at, 0, unix.MS_BIND, 0)
	}
	for _, d := range s.hide.readonly {
		at := p.Str(d)
		p.Call("protect "+d, unix.SYS_MOUNT, at, at, 0, unix.MS_BIND, 0)
		p.Call("protect "+d, unix.SYS_MOUNT, at, at, 0, unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY|noAccess, 0)
	}
}

// identity sets the host name, the network, the working directory, the limits and whom the process runs as.
func (s *stage) identity(p *proc.Program) {
	p.Call("set host name", unix.SYS_SETHOSTNAME, p.Str(s.hostname), uintptr(len(s.hostname)))
	sock := p.Call("open socket", unix.SYS_SOCKET, unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0).Save()
	ifreq := make([]byte, 40) // struct ifreq: name, then flags
	copy(ifreq, "lo")
	binary.NativeEndian.PutUint16(ifreq[unix.IFNAMSIZ:], unix.IFF_UP|unix.IFF_RUNNING)
	p.Call("bring up loopback", unix.SYS_IOCTL, 0, unix.SIOCSIFFLAGS, p.Bytes(ifreq)).Arg(0, sock)
	p.Call("close socket", unix.SYS_CLOSE).Arg(0, sock)
	// Before the change of directory nothing of the agent may be open: a path below /proc/self/fd would lead there.
	closeAllBut(p, []int{s.start, s.report})
	s.chdir(p)
	limit := func(what string, soft, hard uint64) {
		b := binary.NativeEndian.AppendUint64(binary.NativeEndian.AppendUint64(nil, soft), hard)
		kind := uintptr(unix.RLIMIT_NOFILE)
		p.Call("set limit of "+what, unix.SYS_PRLIMIT64, 0, kind, p.Bytes(b), 0)
	}
	limit("open files", 1024, 1<<19)
	s.credentials(p)
}

// chdir goes to the working directory, and makes it where it is not there.
func (s *stage) chdir(p *proc.Program) {
	if s.cwd == "" || s.cwd == "/" {
		return
	}
	for i := 1; i < len(s.cwd); i++ {
		if s.cwd[i] == '/' && s.cwd[i-1] != '/' {
			p.Try("make directory", unix.SYS_MKDIRAT, atCwd, p.Str(s.cwd[:i]), 0o755)
		}
	}
	at := p.Str(s.cwd)
	p.Try("make directory", unix.SYS_MKDIRAT, atCwd, at, 0o755)
	p.Call("enter working directory "+s.cwd, unix.SYS_CHDIR, at)
}

// credentials drops capabilities and becomes the user. As in other container engines a user other than root has no
// capabilities of its own; what it executes may get those of the bounding set.
func (s *stage) credentials(p *proc.Program) {
	for c := range strings.Count(capNames, " ") + 1 {
		if s.caps&(1<<c) == 0 {
			p.Call("drop capability", unix.SYS_PRCTL, unix.PR_CAPBSET_DROP, uintptr(c)).Accept(unix.EINVAL)
		}
	}
	groups := []byte{0, 0, 0, 0}
	for _, g := range s.user.groups {
		groups = binary.NativeEndian.AppendUint32(groups, g)
	}
	p.Call("set groups", unix.SYS_SETGROUPS, uintptr(len(s.user.groups)), p.Bytes(append(groups[4:], 0)))
	gid, uid := uintptr(s.user.gid), uintptr(s.user.uid)
	p.Call("set group", unix.SYS_SETRESGID, gid, gid, gid)
	p.Call("set user", unix.SYS_SETRESUID, uid, uid, uid)
	if uid != 0 {
		return // the kernel has dropped all capabilities with the user
	}
	header := binary.NativeEndian.AppendUint32(nil, unix.LINUX_CAPABILITY_VERSION_3)
	header = binary.NativeEndian.AppendUint32(header, 0)
	var sets []byte // effective, permitted and inheritable, low words and then high words
	for _, half := range []uint32{uint32(s.caps), uint32(s.caps >> 32)} {
		for _, v := range []uint32{half, half, 0} {
			sets = binary.NativeEndian.AppendUint32(sets, v)
		}
	}
	p.Call("set capabilities", unix.SYS_CAPSET, p.Bytes(header), p.Bytes(sets))
}

// ready unblocks signals, waits for the start, and closes all files but stdio.
func (s *stage) ready(p *proc.Program) {
	p.Call("unblock signals", unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, p.Bytes(make([]byte, 8)), 0, 8)
	p.Call("wait for start", unix.SYS_READ, uintptr(s.start), p.Bytes(make([]byte, 1)), 1).Want(1)
	p.Call("close files", unix.SYS_CLOSE_RANGE, 3, maxFD, unix.CLOSE_RANGE_CLOEXEC)
	// A seccomp filter belongs here, as the last thing before the command.
}

// command executes the command: a name without a slash is searched in the PATH of the container's environment.
func (s *stage) command(p *proc.Program) {
	argv, envp := p.Strs(s.args), p.Strs(s.env)
	for _, path := range candidates(s.args[0], s.env) {
		p.Exec(path, argv, envp)
	}
}

// defaultPath is the PATH of a container that sets none.
const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// maxPathDirs is how many directories of PATH are searched.
const maxPathDirs = 1024

// candidates returns the paths where a command may be, in order. There is at least one.
func candidates(name string, env []string) []string {
	if strings.Contains(name, "/") || name == "" {
		return []string{name}
	}
	path, _ := getenv(env, "PATH")
	var out []string
	for dir := range strings.SplitSeq(path, ":") {
		if len(out) == maxPathDirs {
			break
		}
		if dir == "" {
			dir = "."
		}
		out = append(out, strings.TrimSuffix(dir, "/")+"/"+name)
	}
	return out
}

// getenv returns the value of the last entry of a variable, which is the one that counts.
func getenv(env []string, name string) (string, bool) {
	for i := len(env) - 1; i >= 0; i-- {
		if v, ok := strings.CutPrefix(env[i], name+"="); ok {
			return v, true
		}
	}
	return "", false
}
