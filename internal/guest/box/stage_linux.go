package box

import (
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/arcboxlabs/arcbox-go/agent/api"
	"github.com/arcboxlabs/arcbox-go/internal/guest/proc"
)

// stage is what a container's process does before it executes its command.
type stage struct {
	process

	// File descriptors of the agent. They are not below 3.
	root     int    // the root
	dev, pts int    // mounts of /dev and /dev/pts
	start    int    // pipe: see sandbox
	files    []file // mounted over files of the container
	netns    int    // the network namespace to join, else -1
	exe      int    // the agent's executable where it is the container's init, else -1

	at         string // where the root is mounted
	inMachine  bool   // in the machine itself: with its namespaces but for that of mounts, and its root at /host
	hostname   string
	hide       hidden
	readOnly   bool // the root
	privileged bool
	shmSize    int64
	memory     int64 // limit in bytes, not above 0 for none
	tmpfs      []api.Tmpfs
	mounted    []mounted
	sysctls    map[string]string
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

// namespaces are those to make for the process.
func (s *stage) namespaces() uintptr {
	var flags uintptr = unix.CLONE_NEWNS
	if !s.inMachine {
		flags |= unix.CLONE_NEWPID | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC | unix.CLONE_NEWCGROUP
	}
	return flags
}

// smallMemory is the limit in bytes below which the kernel may kill a process for the memory that its surroundings take.
const smallMemory = 64 << 20

// ownMemory tells whether the process needs a copy of the agent's memory, which it shares otherwise until it executes: nobody
// else is in its namespaces. But the kernel kills all that share memory where one of them has to go for the lack of it, and
// gives all the same score for that.
func (s *stage) ownMemory() bool {
	return s.oomScore != 0 || s.memory > 0 && s.memory < smallMemory
}

// machineRoot is where a process in the machine itself finds the machine's root.
const machineRoot = "host"

const (
	atCwd    = ^uintptr(99) // AT_FDCWD
	noAccess = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
)

// program returns the system calls of the stage. The caller closes it after the fork.
func (s *stage) program() *proc.Program {
	p := proc.NewProgram()
	keep := []int{s.dev, s.pts, s.start}
	for _, f := range s.files {
		keep = append(keep, f.fd)
	}
	for _, m := range s.mounted {
		keep = append(keep, m.fd)
	}
	if s.exe >= 0 {
		keep = append(keep, s.exe)
	}
	if s.netns >= 0 {
		p.Call("join the network", unix.SYS_SETNS, uintptr(s.netns), unix.CLONE_NEWNET)
	}
	s.isolate(p, keep)
	s.enter(p)
	s.mounts(p)
	s.mask(p)
	s.identity(p)
	s.protect(p)
	late := []int{s.start}
	if s.exe >= 0 {
		late = append(late, s.exe)
	}
	s.become(p, late...)
	p.Call("report", unix.SYS_WRITE, uintptr(s.report), p.Bytes(make([]byte, 1)), 1).Want(1)
	p.Call("wait for start", unix.SYS_READ, uintptr(s.start), p.Bytes(make([]byte, 1)), 1).Want(1)
	if s.exe >= 0 {
		s.initCommand(p)
	} else {
		s.command(p)
	}
	return p
}

// enter makes the container's root the root, and leaves nothing of the agent's file systems. All that is mounted is so in the
// process's copy of the mounts too.
func (s *stage) enter(p *proc.Program) {
	dot := p.Str(".")
	p.Call("enter root", unix.SYS_CHDIR, p.Str(s.at))
	if s.inMachine {
		old := p.Str(machineRoot)
		p.Call("make /"+machineRoot, unix.SYS_MKDIRAT, atCwd, old, 0o755).Accept(unix.EEXIST)
		p.Call("change root", unix.SYS_PIVOT_ROOT, dot, old)
		p.Call("enter root", unix.SYS_CHDIR, p.Str("/"))
		return
	}
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
	s.setSysctls(p)
	var ro uintptr = unix.MS_RDONLY
	if s.privileged {
		ro = 0
	}
	mount("sysfs", mkdir("/sys"), "/sys", noAccess|ro, "")
	mount("cgroup2", p.Str("/sys/fs/cgroup"), "/sys/fs/cgroup", noAccess|ro, "")
	p.Call("mount /dev", unix.SYS_MOVE_MOUNT, uintptr(s.dev), empty, atCwd, mkdir("/dev"), unix.MOVE_MOUNT_F_EMPTY_PATH)
	p.Call("mount /dev/pts", unix.SYS_MOVE_MOUNT, uintptr(s.pts), empty, atCwd, p.Str("/dev/pts"), unix.MOVE_MOUNT_F_EMPTY_PATH)
	mount("tmpfs", p.Str("/dev/shm"), "/dev/shm", noAccess, "mode=1777,size="+strconv.FormatInt(s.shmSize, 10))
	mount("mqueue", p.Str("/dev/mqueue"), "/dev/mqueue", noAccess, "")
	s.targets(p)
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

// mask hides what the container must not see and makes read-only what it must not write.
func (s *stage) mask(p *proc.Program) {
	if s.privileged {
		return
	}
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

// identity sets the host name.
func (s *stage) identity(p *proc.Program) {
	if !s.inMachine {
		p.Call("set host name", unix.SYS_SETHOSTNAME, p.Str(s.hostname), uintptr(len(s.hostname)))
	}
}
