package box

import (
	"encoding/binary"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/arcboxlabs/arcbox-go/agent/api"
	"github.com/arcboxlabs/arcbox-go/internal/guest/proc"
)

// maxFD is the end of close_range's range.
const maxFD = uintptr(1)<<32 - 1

// process is what every process of a container does that the agent starts there, the first one and those of execs: it
// lets go of the agent, becomes who it runs as, and executes its command. In between it gets into the container, which
// the first process makes.
type process struct {
	// File descriptors of the agent. They are not below 3.
	stdin, stdout, stderr int
	report                int // pipe to which a failure is written

	tty  bool
	cwd  string
	user user
	caps uint64
	args []string
	env  []string

	noNewPrivs bool
	oomScore   int
	rlimits    []api.Rlimit
	seccomp    []byte // a program, empty for none
}

// newProcess returns what a request says, but for the files. Its user is looked up below root, a directory.
func newProcess(req api.Process, root int) (process, error) {
	s := process{
		tty: req.TTY, cwd: req.Cwd, args: req.Args, env: req.Env,
		noNewPrivs: req.NoNewPrivileges, oomScore: req.OOMScoreAdj, rlimits: req.Rlimits, seccomp: req.Seccomp,
	}
	var err error
	if s.caps, err = parseCaps(req.Capabilities); err != nil {
		return s, err
	}
	passwd, err := readIn(root, "etc/passwd")
	if err != nil {
		return s, err
	}
	group, err := readIn(root, "etc/group")
	if err != nil {
		return s, err
	}
	if s.user, err = lookupUser(req.User, passwd, group); err != nil {
		return s, err
	}
	if err := s.user.join(req.Groups, group); err != nil {
		return s, err
	}
	for _, kv := range [][2]string{{"PATH", defaultPath}, {"HOME", s.user.home}} {
		if _, ok := getenv(s.env, kv[0]); !ok {
			s.env = append(s.env[:len(s.env):len(s.env)], kv[0]+"="+kv[1])
		}
	}
	return s, nil
}

// isolate lets go of the agent: its memory may not be looked at, its files are closed but those to keep.
func (s *process) isolate(p *proc.Program, keep []int) {
	p.Call("become undumpable", unix.SYS_PRCTL, unix.PR_SET_DUMPABLE, 0)
	closeAllBut(p, append(keep, s.stdin, s.stdout, s.stderr, s.report))
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

// become sets the working directory, the limits and whom the process runs as, and unblocks signals. Of the agent's files
// only report and those to keep are open still.
func (s *process) become(p *proc.Program, keep ...int) {
	// Before the change of directory nothing of the agent may be open: a path below /proc/self/fd would lead there.
	closeAllBut(p, append(keep, s.report))
	s.chdir(p)
	s.limits(p)
	if !s.noNewPrivs {
		s.filter(p) // takes a capability that credentials drops
	}
	s.credentials(p)
	p.Call("unblock signals", unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, p.Bytes(make([]byte, 8)), 0, 8)
}

// chdir goes to the working directory, and makes it where it is not there.
func (s *process) chdir(p *proc.Program) {
	if s.cwd == "" || s.cwd == "/" {
		return
	}
	makeDirs(p, s.cwd)
	p.Call("enter working directory "+s.cwd, unix.SYS_CHDIR, p.Str(s.cwd))
}

// makeDirs makes a directory and those above it, as far as it can.
func makeDirs(p *proc.Program, path string) {
	for i := 1; i <= len(path); i++ {
		if i == len(path) || path[i] == '/' && path[i-1] != '/' {
			p.Try("make directory", unix.SYS_MKDIRAT, atCwd, p.Str(path[:i]), 0o755)
		}
	}
}

// credentials drops capabilities and becomes the user. As in other container engines a user other than root has no
// capabilities of its own; what it executes may get those of the bounding set.
func (s *process) credentials(p *proc.Program) {
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

// command executes the command, with stdio as its only files: a name without a slash is searched in the PATH of the container's environment.
func (s *process) command(p *proc.Program) {
	s.last(p)
	argv, envp := p.Strs(s.args), p.Strs(s.env)
	for _, path := range candidates(s.args[0], s.env) {
		p.Exec(path, argv, envp)
	}
}

// last is what comes last before the command.
func (s *process) last(p *proc.Program) {
	p.Call("close files", unix.SYS_CLOSE_RANGE, 3, maxFD, unix.CLOSE_RANGE_CLOEXEC)
	if s.noNewPrivs {
		p.Call("set no_new_privs", unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
		s.filter(p)
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
