package container

import (
	"fmt"
	"math"
	"net/netip"
	"path"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/arcboxlabs/arcbox-go/agent/api"
	"github.com/arcboxlabs/arcbox-go/internal/errs"
)

// Resources are the limits of a container. A zero field sets none; of an update it changes nothing.
type Resources struct {
	Memory     int64         `json:"memory,omitempty"`      // bytes; -1 is none
	MemorySwap int64         `json:"memory_swap,omitempty"` // bytes of memory and swap together; -1 is none
	CPUs       float64       `json:"cpus,omitempty"`        // processors; -1 is none
	CPUQuota   time.Duration `json:"cpu_quota,omitempty"`   // in each period; -1 is none
	CPUPeriod  time.Duration `json:"cpu_period,omitempty"`  // 0 is 100 ms
	CPUShares  uint64        `json:"cpu_shares,omitempty"`
	CPUSet     string        `json:"cpuset,omitempty"`
	PIDs       int64         `json:"pids,omitempty"` // -1 is none
	IOWeight   uint16        `json:"io_weight,omitempty"`
}

// Ulimit is a resource limit of a process.
type Ulimit struct {
	Name string `json:"name"` // "nofile"; RLIMIT_NOFILE is the same
	Soft int64  `json:"soft"` // -1 is none
	Hard int64  `json:"hard"`
}

// Tmpfs is a file system in memory.
type Tmpfs struct {
	Path string `json:"path"`
	Size int64  `json:"size,omitempty"`
	Mode uint32 `json:"mode,omitempty"`
	Exec bool   `json:"exec,omitempty"`
}

// LogLimits bounds a log.
type LogLimits struct {
	MaxSize  int64 `json:"max_size,omitempty"`
	MaxFiles int   `json:"max_files,omitempty"`
}

const (
	minMemory     = 6 << 20 // as Docker: less is not enough for any process to start
	cpuPeriod     = 100 * time.Millisecond
	minCPUPeriod  = time.Millisecond
	maxCPUPeriod  = time.Second
	maxCPUs       = 1024
	minShares     = 2
	maxShares     = 262_144
	minLogSize    = 4 << 10
	maxLogFiles   = 1000
	maxSysctlSize = 4096
)

var cpusetPattern = regexp.MustCompile(`^\d{1,4}(-\d{1,4})?(,\d{1,4}(-\d{1,4})?)*$`)

func (r Resources) validate() error {
	bad := func(field string, value any, fix string) error { return invalid(field, fmt.Sprint(value), fix) }
	switch {
	case r.Memory < -1 || r.Memory > 0 && r.Memory < minMemory:
		return bad("memory limit", r.Memory, fmt.Sprintf("it is in bytes; use at least %d, -1 for none, or 0", minMemory))
	case r.MemorySwap < -1:
		return bad("limit of memory and swap", r.MemorySwap, "it is in bytes; use -1 for none, or 0")
	case r.MemorySwap > 0 && (r.Memory <= 0 || r.MemorySwap < r.Memory):
		return bad("limit of memory and swap", r.MemorySwap, "it needs a memory limit, and includes it: use at least as much")
	case r.PIDs < -1:
		return bad("limit of processes", r.PIDs, "use 1 or more, -1 for none, or 0")
	case r.IOWeight != 0 && (r.IOWeight < 10 || r.IOWeight > 1000):
		return bad("I/O weight", r.IOWeight, "use 10 to 1000, or 0")
	}
	return r.validateCPU(bad)
}

func (r Resources) validateCPU(bad func(string, any, string) error) error {
	switch {
	case math.IsNaN(r.CPUs) || r.CPUs != -1 && r.CPUs != 0 && (r.CPUs < 0.01 || r.CPUs > maxCPUs):
		return bad("number of processors", r.CPUs, fmt.Sprintf("use 0.01 to %d, -1 for no limit, or 0", maxCPUs))
	case r.CPUs != 0 && (r.CPUQuota != 0 || r.CPUPeriod != 0):
		return bad("number of processors", r.CPUs, "a CPU quota or period says the same: give one of them")
	case r.CPUQuota != -1 && r.CPUQuota != 0 && r.CPUQuota < minCPUPeriod:
		return bad("CPU quota", r.CPUQuota, "use at least 1ms, -1 for none, or 0")
	case r.CPUPeriod != 0 && (r.CPUPeriod < minCPUPeriod || r.CPUPeriod > maxCPUPeriod):
		return bad("CPU period", r.CPUPeriod, "use 1ms to 1s, or 0 for 100ms")
	case r.CPUShares != 0 && (r.CPUShares < minShares || r.CPUShares > maxShares):
		return bad("CPU shares", r.CPUShares, fmt.Sprintf("use %d to %d, or 0", minShares, maxShares))
	case r.CPUSet != "" && (len(r.CPUSet) > 1024 || !cpusetPattern.MatchString(r.CPUSet)):
		return bad("cpuset", clip(r.CPUSet), `use a list such as "0-2,4"`)
	}
	return nil
}

func (r Resources) compile() api.Resources {
	out := api.Resources{
		Memory: r.Memory, MemorySwap: r.MemorySwap,
		CPUQuota: r.CPUQuota.Microseconds(), CPUPeriod: uint64(r.CPUPeriod.Microseconds()),
		CPUShares: r.CPUShares, CPUSet: r.CPUSet, PIDs: r.PIDs, IOWeight: r.IOWeight,
	}
	switch {
	case r.CPUQuota == -1 || r.CPUs == -1:
		out.CPUQuota = -1
	case r.CPUs > 0:
		out.CPUQuota = max(int64(r.CPUs*float64(cpuPeriod.Microseconds())), minCPUPeriod.Microseconds())
		out.CPUPeriod = uint64(cpuPeriod.Microseconds())
	}
	return out
}

// over returns the limits with those of change in place of them, where it sets any.
func (r Resources) over(change Resources) Resources {
	set(&r.Memory, change.Memory)
	set(&r.MemorySwap, change.MemorySwap)
	if change.CPUs != 0 {
		r.CPUs, r.CPUQuota, r.CPUPeriod = change.CPUs, 0, 0
	}
	if change.CPUQuota != 0 || change.CPUPeriod != 0 {
		r.CPUs = 0
	}
	set(&r.CPUQuota, change.CPUQuota)
	set(&r.CPUPeriod, change.CPUPeriod)
	set(&r.CPUShares, change.CPUShares)
	set(&r.CPUSet, change.CPUSet)
	set(&r.PIDs, change.PIDs)
	set(&r.IOWeight, change.IOWeight)
	return r
}

func set[T comparable](to *T, v T) {
	var zero T
	if v != zero {
		*to = v
	}
}

// ulimitNames are the resources of setrlimit(2).
const ulimitNames = "as core cpu data fsize locks memlock msgqueue nice nofile nproc rss rtprio rttime sigpending stack"

func (u Ulimit) compile() (api.Rlimit, error) {
	name := strings.TrimPrefix(strings.ToLower(u.Name), "rlimit_")
	if !slices.Contains(strings.Fields(ulimitNames), name) {
		return api.Rlimit{}, invalid("ulimit", clip(u.Name), "use one of "+ulimitNames)
	}
	soft, hard := uint64(u.Soft), uint64(u.Hard) // -1 is RLIM_INFINITY
	if u.Soft < -1 || u.Hard < -1 || soft > hard {
		return api.Rlimit{}, fmt.Errorf("%w ulimit %s %d:%d: the soft limit is at most the hard one, and -1 is none", errs.ErrInvalid, name, u.Soft, u.Hard)
	}
	return api.Rlimit{Type: "RLIMIT_" + strings.ToUpper(name), Soft: soft, Hard: hard}, nil
}

func (t Tmpfs) validate() error {
	switch {
	case !path.IsAbs(t.Path) || path.Clean(t.Path) != t.Path || t.Path == "/" || len(t.Path) > 4095 || strings.ContainsRune(t.Path, 0):
		return invalid("path of a tmpfs", clip(t.Path), "use an absolute path without . and .., other than /")
	case t.Size < 0:
		return invalid("size of a tmpfs", fmt.Sprint(t.Size), "it is in bytes; use 0 for half of the machine's memory")
	case t.Mode > 0o7777:
		return invalid("mode of a tmpfs", fmt.Sprintf("%#o", t.Mode), "use permission bits, at most 07777")
	}
	return nil
}

// sysctlPattern has the form of a name; each part begins with a letter, a digit or '_', so there is no "..".
var sysctlPattern = regexp.MustCompile(`^[a-z]+(\.[A-Za-z0-9_][A-Za-z0-9_-]*)+$`)

// checkSysctl lets through what belongs to the namespaces of a container.
func checkSysctl(name, value string) error {
	const allowed = "a container has net.*, fs.mqueue.*, kernel.shm*, kernel.msg*, kernel.sem and kernel.domainname of its own, and no other"
	ok := len(name) <= 256 && sysctlPattern.MatchString(name)
	if ok {
		ok = name == "kernel.sem" || name == "kernel.domainname"
		for _, p := range []string{"net.", "fs.mqueue.", "kernel.shm", "kernel.msg"} {
			ok = ok || strings.HasPrefix(name, p)
		}
	}
	if !ok {
		return invalid("sysctl", clip(name), allowed)
	}
	if len(value) > maxSysctlSize || strings.ContainsAny(value, "\x00\n") {
		return invalid("value of sysctl "+name, clip(value), fmt.Sprintf("use one line of at most %d bytes", maxSysctlSize))
	}
	return nil
}

// parseHost reads "name:ip" or "name=ip".
func parseHost(s string) (api.Host, error) {
	i := strings.IndexAny(s, ":=")
	if i < 0 {
		return api.Host{}, invalid("extra host", clip(s), "use name:ip")
	}
	name, text := s[:i], strings.Trim(s[i+1:], "[]")
	ip, err := netip.ParseAddr(text)
	if err != nil || ip.Zone() != "" || !hostPattern.MatchString(name) {
		return api.Host{}, invalid("extra host", clip(s), "use name:ip")
	}
	return api.Host{Name: name, IP: ip.String()}, nil
}
