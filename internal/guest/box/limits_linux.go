package box

import (
	"errors"
	"fmt"
	"math"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/arcboxlabs/arcbox-go/agent/api"
	"github.com/arcboxlabs/arcbox-go/internal/errs"
)

// setting is a value for a file of a cgroup.
type setting struct {
	limit, controller string // in words, for the error
	file, value       string
	optional          bool // not asked for: nothing is lost where the kernel has no such file
}

// limit sets the limits that r names. A new container, of which nothing is set yet, gets as much swap as memory where r
// says nothing of swap. One that the kernel does not have is ErrUnsupported, one that it does not take ErrInvalid.
func (g cgroup) limit(r api.Resources, isNew bool) error {
	list, err := g.settings(r, isNew)
	if err != nil {
		return err
	}
	for _, s := range list {
		err := os.WriteFile(g.dir+"/"+s.file, []byte(s.value), 0)
		switch {
		case err == nil, s.optional && errors.Is(err, os.ErrNotExist):
		case errors.Is(err, os.ErrNotExist):
			return fmt.Errorf("limit %s: %w: the guest's kernel has no controller %s with %s", s.limit, errs.ErrUnsupported, s.controller, s.file)
		case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ERANGE), errors.Is(err, unix.ENOSPC), errors.Is(err, unix.ENODEV):
			return fmt.Errorf("limit %s to %s: %w: %w", s.limit, s.value, errs.ErrInvalid, err)
		default:
			return fmt.Errorf("limit %s to %s: %w", s.limit, s.value, err)
		}
	}
	return nil
}

// settings turns limits into what the files of a cgroup take.
func (g cgroup) settings(r api.Resources, isNew bool) ([]setting, error) {
	var out []setting
	if r.Memory != 0 {
		out = append(out, setting{limit: "memory", controller: "memory", file: "memory.max", value: orMax(r.Memory)})
	}
	swap, ok, err := g.swap(r, isNew)
	if err != nil {
		return nil, err
	}
	if ok {
		out = append(out, setting{"swap", "memory", "memory.swap.max", orMax(swap), r.MemorySwap <= 0})
	}
	if r.CPUQuota != 0 || r.CPUPeriod != 0 {
		out = append(out, setting{limit: "CPU quota", controller: "cpu", file: "cpu.max", value: g.cpuMax(r)})
	}
	if r.CPUShares != 0 {
		out = append(out, setting{limit: "CPU shares", controller: "cpu", file: "cpu.weight", value: strconv.FormatUint(cpuWeight(r.CPUShares), 10)})
	}
	if r.CPUSet != "" {
		out = append(out, setting{limit: "cpuset", controller: "cpuset", file: "cpuset.cpus", value: r.CPUSet})
	}
	if r.PIDs != 0 {
		out = append(out, setting{limit: "PIDs", controller: "pids", file: "pids.max", value: orMax(r.PIDs)})
	}
	if r.IOWeight != 0 {
		out = append(out, g.ioWeight(r.IOWeight))
	}
	return out, nil
}

// orMax writes a limit, of which a negative one is none.
func orMax(n int64) string {
	if n < 0 {
		return "max"
	}
	return strconv.FormatInt(n, 10)
}

// swap returns the limit of swap alone and whether to set it: requests have one of memory and swap together.
func (g cgroup) swap(r api.Resources, isNew bool) (int64, bool, error) {
	memory := r.Memory
	switch {
	case r.MemorySwap == 0 && isNew && memory > 0:
		return memory, true, nil
	case r.MemorySwap == 0:
		return 0, false, nil
	case r.MemorySwap < 0:
		return -1, true, nil
	case memory == 0:
		n, err := strconv.ParseInt(strings.TrimSpace(string(g.read("memory.max"))), 10, 64)
		if err != nil {
			n = -1
		}
		memory = n
	}
	if memory < 0 || r.MemorySwap < memory {
		return 0, false, fmt.Errorf("limit memory and swap to %d: %w: it is memory and swap together, so memory needs a limit that is not above it", r.MemorySwap, errs.ErrInvalid)
	}
	return r.MemorySwap - memory, true, nil
}

// defaultPeriod is the period of CPU quotas in microseconds.
const defaultPeriod = 100_000

// cpuMax returns the quota and its period; what the request leaves out stays as it is.
func (g cgroup) cpuMax(r api.Resources) string {
	quota, period := "max", strconv.Itoa(defaultPeriod)
	if f := strings.Fields(string(g.read("cpu.max"))); len(f) == 2 {
		quota, period = f[0], f[1]
	}
	if r.CPUQuota != 0 {
		quota = orMax(r.CPUQuota)
	}
	if r.CPUPeriod != 0 {
		period = strconv.FormatUint(r.CPUPeriod, 10)
	}
	return quota + " " + period
}

// cpuWeight turns shares, 2 to 262,144 about 1024, into a weight, 1 to 10,000 about 100. It is runc's formula, a curve
// through these three points.
func cpuWeight(shares uint64) uint64 {
	switch {
	case shares <= 2:
		return 1
	case shares >= 262144:
		return 10000
	}
	l := math.Log2(float64(shares))
	return uint64(math.Ceil(math.Pow(10, (l*l+125*l)/612-7.0/34)))
}

// ioWeight returns how to set a weight of 10 to 1000: as it is for the scheduler BFQ, stretched to 1 to 10,000 otherwise.
func (g cgroup) ioWeight(w uint16) setting {
	s := setting{limit: "I/O weight", controller: "io", file: "io.bfq.weight", value: strconv.Itoa(int(w))}
	if _, err := os.Stat(g.dir + "/" + s.file); err != nil {
		s.file, s.value = "io.weight", strconv.Itoa(1+(int(w)-10)*9999/990)
	}
	return s
}
