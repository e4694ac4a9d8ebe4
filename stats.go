package arcbox

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"time"

	"github.com/arcboxlabs/arcbox-go/agent/api"
)

// Stats is what a container used at one moment. Counters run from the container's start.
type Stats struct {
	Time        time.Time     // by the guest's clock
	CPU         time.Duration // processor time, user and system
	CPUUser     time.Duration
	CPUSystem   time.Duration
	Throttled   time.Duration // in which it would have run but for its quota
	SystemCPU   time.Duration // of the whole machine, all processors together, idle included
	CPUs        int           // processors of the machine
	Memory      int64         // bytes, cache included
	MemoryCache int64         // bytes of it that the kernel can take back
	MemoryLimit int64         // bytes: the container's, or the machine's memory
	MemoryPeak  int64         // bytes; 0 where the kernel does not tell
	OOMKills    uint64        // processes that were killed for lack of memory
	PIDs        int64         // processes and threads
	PIDsLimit   int64         // 0 is none
	ReadBytes   uint64        // of block devices, as the three after it
	WriteBytes  uint64
	ReadOps     uint64
	WriteOps    uint64
	Networks    []NetworkStats // without the loopback interface
}

// NetworkStats are the counters of one network interface, as the container sees them.
type NetworkStats struct {
	Name      string
	RxBytes   uint64
	RxPackets uint64
	RxErrors  uint64
	RxDropped uint64
	TxBytes   uint64
	TxPackets uint64
	TxErrors  uint64
	TxDropped uint64
}

// CPUPercent returns how much of one processor the container used between before and s: 100 is one of them, 200 two. It
// is 0 where no time has passed.
func (s Stats) CPUPercent(before Stats) float64 {
	if s.SystemCPU <= before.SystemCPU || s.CPU <= before.CPU {
		return 0
	}
	return float64(s.CPU-before.CPU) / float64(s.SystemCPU-before.SystemCPU) * float64(s.CPUs) * 100
}

// MemoryUsed returns the bytes of memory that the kernel cannot take back.
func (s Stats) MemoryUsed() int64 { return max(s.Memory-s.MemoryCache, 0) }

func stats(r api.StatsReply) Stats {
	out := Stats{
		Time: r.At, CPU: r.CPU, CPUUser: r.CPUUser, CPUSystem: r.CPUSystem, Throttled: r.Throttled, SystemCPU: r.SystemCPU, CPUs: r.CPUs,
		Memory: r.Memory, MemoryCache: r.MemoryCache, MemoryLimit: r.MemoryLimit, MemoryPeak: r.MemoryPeak, OOMKills: r.OOMKills,
		PIDs: r.PIDs, PIDsLimit: r.PIDsLimit, ReadBytes: r.ReadBytes, WriteBytes: r.WriteBytes, ReadOps: r.ReadOps, WriteOps: r.WriteOps,
	}
	for _, n := range r.Networks {
		out.Networks = append(out.Networks, NetworkStats(n))
	}
	return out
}

// ContainerStats tells what a container uses. One that does not run is ErrConflict.
func (r *Runtime) ContainerStats(ctx context.Context, ref string) (Stats, error) {
	return call(ctx, r, "ContainerStats", ref, func(ctx context.Context) (Stats, error) {
		rep, err := r.containers.Stats(ctx, ref)
		return stats(rep), err
	})
}

// WatchStats returns what a container uses, at once and then at every interval, to range over. It ends without an error
// when the container does not run any more; an error is the last that comes. 0 is an interval of a second, and the least
// is 10 ms. ctx bounds the whole loop.
func (r *Runtime) WatchStats(ctx context.Context, ref string, interval time.Duration) iter.Seq2[Stats, error] {
	return func(yield func(Stats, error) bool) {
		if interval == 0 {
			interval = time.Second
		}
		if interval < 10*time.Millisecond {
			yield(Stats{}, opError("WatchStats", ref, fmt.Errorf("%w interval %s: use at least 10ms, or 0 for a second", ErrInvalid, interval)))
			return
		}
		tick := time.NewTicker(interval)
		defer tick.Stop()
		for first := true; ; first = false {
			s, err := r.ContainerStats(ctx, ref)
			if !first && (errors.Is(err, ErrConflict) || errors.Is(err, ErrNotFound)) {
				return
			}
			if !yield(s, err) || err != nil {
				return
			}
			select {
			case <-tick.C:
			case <-ctx.Done():
			case <-r.ctx.Done():
			}
		}
	}
}

// ProcessInfo is one process of a container.
type ProcessInfo struct {
	PID     int           // in the container
	PPID    int           // in the container; 0 where the parent is outside
	UID     uint32        // in the container
	State   string        // one letter, as ps has it
	CPU     time.Duration // user and system
	RSS     int64         // bytes
	Started time.Time
	TTY     string   // "" is none
	Command []string // argv, cut to 4 KiB; the name in brackets where there is none
}

// ContainerTop lists the processes of a container by PID, at most 4096. One that does not run is ErrConflict.
func (r *Runtime) ContainerTop(ctx context.Context, ref string) ([]ProcessInfo, error) {
	return call(ctx, r, "ContainerTop", ref, func(ctx context.Context) ([]ProcessInfo, error) {
		list, err := r.containers.Top(ctx, ref)
		out := make([]ProcessInfo, len(list))
		for i, p := range list {
			out[i] = ProcessInfo(p)
		}
		return out, err
	})
}
