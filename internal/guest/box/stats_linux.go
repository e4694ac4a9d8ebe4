package box

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/arcboxlabs/arcbox-go/agent/api"
)

// tick is the unit of processor time in /proc.
const tick = time.Second / 100

// Stats tells what the container uses.
func (s *sandbox) Stats() (api.StatsReply, error) {
	var net *os.File
	err := s.child.With(func(pid int) (err error) {
		net, err = os.Open("/proc/" + strconv.Itoa(pid) + "/net/dev")
		return err
	})
	if err != nil {
		return api.StatsReply{}, ended(err)
	}
	defer net.Close()
	dev, err := io.ReadAll(io.LimitReader(net, maxRead))
	if err != nil {
		return api.StatsReply{}, ended(err) // of a process that has just ended
	}
	stat, err := os.ReadFile("/proc/stat")
	if err != nil {
		return api.StatsReply{}, fmt.Errorf("read the machine's processor time: %w", err)
	}
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return api.StatsReply{}, fmt.Errorf("read the machine's memory: %w", err)
	}
	rep := s.cgroup.stats(int64(info.Totalram) * int64(info.Unit))
	rep.At = time.Now()
	rep.SystemCPU, rep.CPUs = machineCPU(stat)
	rep.Networks = interfaces(dev)
	return rep, nil
}

// stats reads what the kernel counts for the cgroup on a machine with that much memory. What the kernel does not count
// is 0.
func (g cgroup) stats(memory int64) api.StatsReply {
	cpu := keyed(g.read("cpu.stat"))
	micro := func(name string) time.Duration { return time.Duration(cpu[name]) * time.Microsecond }
	number := func(name string) int64 {
		n, err := strconv.ParseInt(string(bytes.TrimSpace(g.read(name))), 10, 64)
		if err != nil {
			return 0 // "max", or not there
		}
		return n
	}
	rep := api.StatsReply{
		CPU:         micro("usage_usec"),
		CPUUser:     micro("user_usec"),
		CPUSystem:   micro("system_usec"),
		Throttled:   micro("throttled_usec"),
		Memory:      number("memory.current"),
		MemoryCache: int64(keyed(g.read("memory.stat"))["inactive_file"]),
		MemoryPeak:  number("memory.peak"),
		MemoryLimit: memory,
		OOMKills:    g.oomKills(),
		PIDs:        number("pids.current"),
		PIDsLimit:   number("pids.max"),
	}
	if limit := number("memory.max"); limit > 0 {
		rep.MemoryLimit = min(limit, memory)
	}
	for field := range bytes.FieldsSeq(g.read("io.stat")) {
		name, value, _ := bytes.Cut(field, []byte{'='})
		n, err := strconv.ParseUint(string(value), 10, 64)
		if err != nil {
			continue // the name of a device
		}
		switch string(name) {
		case "rbytes":
			rep.ReadBytes += n
		case "wbytes":
			rep.WriteBytes += n
		case "rios":
			rep.ReadOps += n
		case "wios":
			rep.WriteOps += n
		}
	}
	return rep
}

// machineCPU returns the time of all processors, idle included, and how many there are, from the text of /proc/stat.
func machineCPU(stat []byte) (total time.Duration, cpus int) {
	for line := range bytes.Lines(stat) {
		f := bytes.Fields(line)
		if len(f) == 0 || !bytes.HasPrefix(f[0], []byte("cpu")) {
			continue
		}
		if len(f[0]) > len("cpu") {
			cpus++
			continue
		}
		for _, v := range f[1:min(len(f), 9)] { // the time of virtual machines is in the others already
			n, _ := strconv.ParseUint(string(v), 10, 64)
			total += time.Duration(n) * tick
		}
	}
	return total, cpus
}

// interfaces parses /proc/net/dev. The loopback interface is left out.
func interfaces(dev []byte) []api.NetStats {
	var list []api.NetStats
	for line := range bytes.Lines(dev) {
		name, values, ok := bytes.Cut(line, []byte{':'})
		f := bytes.Fields(values)
		if !ok || len(f) < 16 {
			continue // the head of the table
		}
		n := make([]uint64, len(f))
		for i, v := range f {
			n[i], _ = strconv.ParseUint(string(v), 10, 64)
		}
		s := api.NetStats{
			Name: string(bytes.TrimSpace(name)), RxBytes: n[0], RxPackets: n[1], RxErrors: n[2], RxDropped: n[3],
			TxBytes: n[8], TxPackets: n[9], TxErrors: n[10], TxDropped: n[11],
		}
		if s.Name != "lo" {
			list = append(list, s)
		}
	}
	return list
}
