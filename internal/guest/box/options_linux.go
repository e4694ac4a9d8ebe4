package box

import (
	"encoding/binary"
	"maps"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/arcboxlabs/arcbox-go/agent/api"
	"github.com/arcboxlabs/arcbox-go/internal/guest/engine"
	"github.com/arcboxlabs/arcbox-go/internal/guest/proc"
)

// defaultShm is the size in bytes of a container's /dev/shm that names none.
const defaultShm = 64 << 20

// newStage returns what a request says of a container's surroundings. Its files and its process are set later.
func newStage(req api.CreateRequest, hide hidden) *stage {
	s := &stage{
		exe: -1, netns: -1, hostname: hostname(req), hide: hide, readOnly: req.ReadOnly, privileged: req.Privileged,
		shmSize: req.ShmSize, memory: req.Resources.Memory, tmpfs: req.Tmpfs, sysctls: req.Sysctls,
	}
	if s.shmSize == 0 {
		s.shmSize = defaultShm
	}
	return s
}

// withPrivilege returns a process with all capabilities and no filter where privileged is set.
func withPrivilege(p api.Process, privileged bool) api.Process {
	if privileged {
		p.Capabilities, p.Seccomp = []string{"ALL"}, nil
	}
	return p
}

// hostLines returns lines of /etc/hosts.
func hostLines(list []api.Host) string {
	var b strings.Builder
	for _, h := range list {
		b.WriteString(h.IP + "\t" + h.Name + "\n")
	}
	return b.String()
}

// tmpfsOptions returns the flags and the data of a mount.
func tmpfsOptions(t api.Tmpfs) (flags uintptr, data string) {
	flags = noAccess
	if t.Exec {
		flags &^= unix.MS_NOEXEC
	}
	mode := t.Mode
	if mode == 0 {
		mode = 0o1777
	}
	data = "mode=" + strconv.FormatUint(uint64(mode), 8)
	if t.Size > 0 {
		data += ",size=" + strconv.FormatInt(t.Size, 10)
	}
	return flags, data
}

// sysctlStep begins the names of the steps that set variables of the request.
const sysctlStep = "set sysctl "

// setSysctls sets the variables of the request. One that the kernel does not have, or a value it does not take, ends the
// program.
func (s *stage) setSysctls(p *proc.Program) {
	if len(s.sysctls) == 0 {
		return
	}
	var fd proc.Reg
	for i, name := range slices.Sorted(maps.Keys(s.sysctls)) {
		value := s.sysctls[name]
		open := p.Call(sysctlStep+name, unix.SYS_OPENAT, atCwd, p.Str("/proc/sys/"+engine.SysctlPath(name)), unix.O_WRONLY, 0)
		if i == 0 {
			fd = open.Save()
		} else {
			open.Into(fd)
		}
		p.Call(sysctlStep+name, unix.SYS_WRITE, 0, p.Str(value), uintptr(len(value))).Arg(0, fd)
		p.Call(sysctlStep+name, unix.SYS_CLOSE).Arg(0, fd)
	}
}

// protect makes the root read-only where the request says so. What is mounted on it stays as it is.
func (s *stage) protect(p *proc.Program) {
	if !s.readOnly {
		return
	}
	if s.cwd != "" {
		makeDirs(p, s.cwd) // nobody can later
	}
	p.Call("make the root read-only", unix.SYS_MOUNT, 0, p.Str("/"), 0, unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, 0)
}

// limits sets resource limits and how soon the kernel kills the process for want of memory.
func (s *process) limits(p *proc.Program) {
	if s.oomScore != 0 {
		value := strconv.Itoa(s.oomScore)
		fd := p.Call("open oom_score_adj", unix.SYS_OPENAT, atCwd, p.Str("/proc/self/oom_score_adj"), unix.O_WRONLY, 0).Save()
		p.Call("set oom_score_adj", unix.SYS_WRITE, 0, p.Str(value), uintptr(len(value))).Arg(0, fd)
		p.Call("close oom_score_adj", unix.SYS_CLOSE).Arg(0, fd)
	}
	all := s.rlimits
	if !slices.ContainsFunc(all, func(l api.Rlimit) bool { return l.Type == "RLIMIT_NOFILE" }) {
		all = append(slices.Clip(all), api.Rlimit{Type: "RLIMIT_NOFILE", Soft: 1024, Hard: 1 << 19})
	}
	for _, l := range all {
		n, _ := engine.RlimitNumber(l.Type)
		b := binary.NativeEndian.AppendUint64(binary.NativeEndian.AppendUint64(nil, l.Soft), l.Hard)
		p.Call("set "+l.Type, unix.SYS_PRLIMIT64, 0, uintptr(n), p.Bytes(b), 0)
	}
}

// filter loads the seccomp program. That takes CAP_SYS_ADMIN or no_new_privs. The steps after it are under the filter.
func (s *process) filter(p *proc.Program) {
	if len(s.seccomp) == 0 {
		return
	}
	prog := make([]byte, 16) // struct sock_fprog: the number of instructions, then their address
	binary.NativeEndian.PutUint16(prog, uint16(len(s.seccomp)/8))
	binary.NativeEndian.PutUint64(prog[8:], uint64(p.Bytes(s.seccomp)))
	// As runc does, without the slow-down of all memory accesses that older kernels combine with filters.
	const specAllow = 1 << 2 // SECCOMP_FILTER_FLAG_SPEC_ALLOW
	p.Call("load the seccomp filter", unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, specAllow, p.Bytes(prog))
}
