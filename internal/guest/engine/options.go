package engine

import (
	"fmt"
	"net/netip"
	"path"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/arcboxlabs/arcbox-go/agent/api"
	"github.com/arcboxlabs/arcbox-go/internal/errs"
)

// The limits of the options of a request.
const (
	MaxOptions = 256  // of each kind in one request: sysctls, tmpfs mounts, extra hosts, groups
	MaxSeccomp = 4096 // instructions of a filter, as the kernel has it
)

// rlimits has the resource limits of Linux by number; it is the same for amd64 and arm64.
const rlimits = "CPU FSIZE DATA STACK CORE RSS NPROC NOFILE MEMLOCK AS LOCKS SIGPENDING MSGQUEUE NICE RTPRIO RTTIME"

// RlimitNumber returns the Linux number of a limit such as RLIMIT_NOFILE.
func RlimitNumber(name string) (int, bool) {
	for i, n := range strings.Fields(rlimits) {
		if name == "RLIMIT_"+n {
			return i, true
		}
	}
	return 0, false
}

// SysctlPath returns the path of a variable below /proc/sys. As in sysctl(8), dots and slashes change places, so that a
// part of a name may have a dot.
func SysctlPath(name string) string {
	return strings.Map(func(r rune) rune {
		switch r {
		case '.':
			return '/'
		case '/':
			return '.'
		}
		return r
	}, name)
}

// checkLimits checks what a process may do and use.
func checkLimits(p api.Process) error {
	seen := make(map[string]bool)
	for _, l := range p.Rlimits {
		if _, ok := RlimitNumber(l.Type); !ok {
			return fmt.Errorf("process: limit %.40q: %w: want RLIMIT_ and one of %s", l.Type, errs.ErrInvalid, rlimits)
		}
		if l.Soft > l.Hard {
			return fmt.Errorf("process: %s: %w: the soft limit %d is above the hard one %d", l.Type, errs.ErrInvalid, l.Soft, l.Hard)
		}
		if seen[l.Type] {
			return fmt.Errorf("process: %s: %w: it is there twice", l.Type, errs.ErrInvalid)
		}
		seen[l.Type] = true
	}
	if p.OOMScoreAdj < -1000 || p.OOMScoreAdj > 1000 {
		return fmt.Errorf("process: OOM score %d: %w: want -1000 to 1000", p.OOMScoreAdj, errs.ErrInvalid)
	}
	if len(p.Groups) > MaxOptions {
		return fmt.Errorf("process: %w: %d groups, want at most %d", errs.ErrInvalid, len(p.Groups), MaxOptions)
	}
	for _, g := range p.Groups {
		if g == "" || len(g) > 256 || strings.ContainsAny(g, "\x00\n:") {
			return fmt.Errorf("process: %w group %.80q", errs.ErrInvalid, g)
		}
	}
	if n := len(p.Seccomp); n%8 != 0 || n > 8*MaxSeccomp {
		return fmt.Errorf("process: seccomp filter: %w: %d bytes, want a multiple of 8 and at most %d", errs.ErrInvalid, n, 8*MaxSeccomp)
	}
	return nil
}

// checkOptions checks what surrounds a process.
func checkOptions(req api.CreateRequest) error {
	for what, n := range map[string]int{"sysctls": len(req.Sysctls), "tmpfs mounts": len(req.Tmpfs), "mounts": len(req.Mounts), "extra hosts": len(req.ExtraHosts)} {
		if n > MaxOptions {
			return fmt.Errorf("%w: %d %s, want at most %d", errs.ErrInvalid, n, what, MaxOptions)
		}
	}
	if req.ShmSize < 0 {
		return fmt.Errorf("shm size %d: %w: want bytes, or 0 for the default", req.ShmSize, errs.ErrInvalid)
	}
	for _, t := range req.Tmpfs {
		if err := checkTmpfs(t); err != nil {
			return err
		}
	}
	if err := checkMounts(req); err != nil {
		return err
	}
	for name, value := range req.Sysctls {
		if err := checkSysctl(name, value); err != nil {
			return err
		}
	}
	for _, h := range req.ExtraHosts {
		if a, err := netip.ParseAddr(h.IP); err != nil || a.Zone() != "" {
			return fmt.Errorf("extra host %.80q: %w address %.80q", h.Name, errs.ErrInvalid, h.IP)
		}
		if h.Name == "" || len(h.Name) > 255 || strings.ContainsAny(h.Name, "\x00\n\t\r #") {
			return fmt.Errorf("extra host %.80q: %w name", h.Name, errs.ErrInvalid)
		}
	}
	return nil
}

func checkTmpfs(t api.Tmpfs) error {
	if err := checkTarget("tmpfs", t.Path); err != nil {
		return err
	}
	if t.Size < 0 || t.Mode > 0o7777 {
		return fmt.Errorf("tmpfs %.80q: %w size %d or mode %o", t.Path, errs.ErrInvalid, t.Size, t.Mode)
	}
	return nil
}

func checkTarget(what, target string) error {
	if !strings.HasPrefix(target, "/") || len(target) >= 4096 || strings.IndexByte(target, 0) >= 0 {
		return fmt.Errorf("%s %.80q: %w: want an absolute path", what, target, errs.ErrInvalid)
	}
	switch clean := path.Clean(target); {
	case clean == "/", clean == "/dev", clean == "/proc", clean == "/sys", strings.HasPrefix(clean, "/proc/"), strings.HasPrefix(clean, "/sys/"):
		return fmt.Errorf("%s %.80q: %w: the container's own file systems are there", what, target, errs.ErrInvalid)
	}
	return nil
}

// checkMounts checks the mounts, of which no two may have one target.
func checkMounts(req api.CreateRequest) error {
	targets := make(map[string]bool)
	for _, m := range req.Mounts {
		if err := checkTarget("mount", m.Target); err != nil {
			return err
		}
		clean := path.Clean(m.Target)
		if targets[clean] {
			return fmt.Errorf("mount %.80q: %w: something else is mounted there", m.Target, errs.ErrInvalid)
		}
		targets[clean] = true
		if m.Kind != api.MountVolume && m.Kind != api.MountShare {
			return fmt.Errorf("mount %.80q: %w kind %.40q", m.Target, errs.ErrInvalid, m.Kind)
		}
		if m.Kind == api.MountShare && m.SubPath != "" {
			return fmt.Errorf("mount %.80q: %w: a share has no sub-path", m.Target, errs.ErrInvalid)
		}
		if host, ok := strings.CutPrefix(m.Source, api.HostShare); ok && m.Kind == api.MountShare {
			if len(host) >= 4096 || strings.IndexByte(host, 0) >= 0 || !filepath.IsLocal(host) {
				return fmt.Errorf("mount %.80q: %w path %.80q in the directory of the host", m.Target, errs.ErrInvalid, host)
			}
		} else if err := checkID(string(m.Kind), m.Source); err != nil {
			return err
		}
		if s := m.SubPath; len(s) >= 4096 || strings.IndexByte(s, 0) >= 0 {
			return fmt.Errorf("mount %.80q: %w sub-path %.80q", m.Target, errs.ErrInvalid, s)
		}
	}
	return nil
}

// checkSysctl takes variables that belong to the namespaces of a container, and no others.
func checkSysctl(name, value string) error {
	p := SysctlPath(name)
	own := strings.HasPrefix(p, "net/") || strings.HasPrefix(p, "fs/mqueue/")
	for _, k := range strings.Fields("msgmax msgmnb msgmni sem shmall shmmax shmmni shm_rmid_forced domainname") {
		own = own || p == "kernel/"+k
	}
	if !own || len(name) > 256 || path.Clean(p) != p || strings.IndexByte(name, 0) >= 0 {
		return fmt.Errorf("sysctl %.80q: %w: want net.*, fs.mqueue.*, kernel.domainname, kernel.sem, or one of kernel.msg* and kernel.shm*", name, errs.ErrInvalid)
	}
	if value == "" || len(value) > 1024 || strings.ContainsAny(value, "\x00\n") {
		return fmt.Errorf("sysctl %s: %w value %.80q", name, errs.ErrInvalid, value)
	}
	return nil
}

// CheckResources returns ErrInvalid, with the reason, for limits that no kernel takes.
func CheckResources(r api.Resources) error {
	bad := func(what string, value any, want string) error {
		return fmt.Errorf("limit %s %v: %w: want %s", what, value, errs.ErrInvalid, want)
	}
	const minMemory = 6 << 20 // as Docker has it: with less nothing starts
	switch {
	case r.Memory < -1 || r.Memory > 0 && r.Memory < minMemory:
		return bad("memory", r.Memory, "at least 6 MiB, or -1 for none")
	case r.MemorySwap < -1:
		return bad("memory and swap", r.MemorySwap, "bytes, or -1 for none")
	case r.MemorySwap > 0 && r.Memory > 0 && r.MemorySwap < r.Memory:
		return bad("memory and swap", r.MemorySwap, "at least the memory limit: it is both together")
	case r.CPUQuota < -1 || r.CPUQuota > 0 && r.CPUQuota < 1000:
		return bad("CPU quota", r.CPUQuota, "at least 1000 microseconds, or -1 for none")
	case r.CPUPeriod != 0 && (r.CPUPeriod < 1000 || r.CPUPeriod > 1_000_000):
		return bad("CPU period", r.CPUPeriod, "1000 to 1000000 microseconds")
	case r.CPUShares != 0 && (r.CPUShares < 2 || r.CPUShares > 262144):
		return bad("CPU shares", r.CPUShares, "2 to 262144")
	case !isCPUSet(r.CPUSet):
		return bad("cpuset", strconv.Quote(r.CPUSet[:min(80, len(r.CPUSet))]), `a list such as "0-2,4"`)
	case r.PIDs < -1:
		return bad("PIDs", r.PIDs, "a positive number, or -1 for none")
	case r.IOWeight != 0 && (r.IOWeight < 10 || r.IOWeight > 1000):
		return bad("I/O weight", r.IOWeight, "10 to 1000")
	}
	return nil
}

// isCPUSet tells whether s is empty or a list of processors and ranges.
func isCPUSet(s string) bool {
	if s == "" {
		return true
	}
	if len(s) > 1024 {
		return false
	}
	for part := range strings.SplitSeq(s, ",") {
		first, last, isRange := strings.Cut(part, "-")
		a, err := strconv.ParseUint(first, 10, 12)
		if err != nil {
			return false
		}
		if !isRange {
			continue
		}
		if b, err := strconv.ParseUint(last, 10, 12); err != nil || b < a {
			return false
		}
	}
	return true
}
