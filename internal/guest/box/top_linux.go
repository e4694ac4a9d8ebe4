package box

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/arcboxlabs/arcbox-go/agent/api"
)

// The bounds of a list of processes.
const (
	maxProcesses = 4096
	maxCommand   = 4 << 10 // bytes of arguments of one process
)

// Top lists the processes of the container, those of execs included.
func (s *sandbox) Top(ctx context.Context) ([]api.ProcessInfo, error) {
	pids, err := s.cgroup.processes()
	if err != nil {
		return nil, err
	}
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &now); err != nil {
		return nil, fmt.Errorf("read the clock: %w", err)
	}
	boot := time.Now().Add(-time.Duration(now.Nano()))
	own := strings.TrimPrefix(s.cgroup.dir, "/sys/fs/cgroup")
	inner := make(map[int]int) // numbers in the container by those of the machine
	var list []api.ProcessInfo
	for _, pid := range pids {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		p, ok := readProcess("/proc/"+strconv.Itoa(pid), own)
		if !ok {
			continue // it has ended
		}
		inner[pid] = p.PID
		p.Started = boot.Add(p.Started.Sub(time.Time{})).UTC()
		list = append(list, p)
	}
	for i := range list {
		list[i].PPID = inner[list[i].PPID]
	}
	slices.SortFunc(list, func(a, b api.ProcessInfo) int { return a.PID - b.PID })
	return list, nil
}

// processes returns the numbers of the processes in the cgroup and below, at most maxProcesses.
func (g cgroup) processes() (pids []int, err error) {
	err = filepath.WalkDir(g.dir, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil || !d.IsDir() {
			return err
		}
		list, err := os.ReadFile(path + "/cgroup.procs")
		if err != nil {
			return nil // it was removed, or is one of threads
		}
		for f := range bytes.FieldsSeq(list) {
			if len(pids) == maxProcesses {
				return filepath.SkipAll
			}
			if pid, err := strconv.Atoi(string(f)); err == nil && pid > 0 {
				pids = append(pids, pid)
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list the processes of the cgroup: %w", err)
	}
	return pids, nil
}

// readProcess reads a process from its directory in /proc. PPID is that of the machine, and Started the time from the
// machine's start. It returns false for a process that has ended, or is not below the cgroup own: the number of one that
// has ended may have been given away.
func readProcess(dir, own string) (p api.ProcessInfo, ok bool) {
	command, err := readSome(dir+"/cmdline", maxCommand)
	if err != nil {
		return p, false
	}
	stat, err := readSome(dir+"/stat", maxRead)
	if err != nil || !parseStat(stat, &p) {
		return p, false
	}
	status, err := readSome(dir+"/status", maxRead)
	if err != nil || !parseStatus(status, &p) {
		return p, false
	}
	group, err := readSome(dir+"/cgroup", maxRead)
	if err != nil || !isBelow(group, own) {
		return p, false
	}
	if len(command) > 0 {
		p.Command = arguments(command)
	}
	return p, true
}

// readSome reads the beginning of a file.
func readSome(path string, n int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, n))
}

// parseStat takes what /proc/PID/stat has. The name, which becomes the command, may have any bytes in it, so that the
// last parenthesis ends it.
func parseStat(stat []byte, p *api.ProcessInfo) bool {
	begin, end := bytes.IndexByte(stat, '('), bytes.LastIndexByte(stat, ')')
	if begin < 0 || end < begin {
		return false
	}
	f := strings.Fields(string(stat[end+1:]))
	if len(f) < 22 {
		return false
	}
	var n [22]int64
	for i := 1; i < len(n); i++ {
		n[i], _ = strconv.ParseInt(f[i], 10, 64) // one that is no number here is none that is used
	}
	p.State = f[0][:1]
	p.PPID = int(n[1])
	p.TTY = terminalName(n[4])
	p.CPU = time.Duration(n[11]+n[12]) * tick
	p.Started = time.Time{}.Add(time.Duration(n[19]) * tick)
	p.RSS = n[21] * int64(os.Getpagesize())
	p.Command = []string{"[" + string(stat[begin+1:end]) + "]"}
	return true
}

// terminalName returns the name of a terminal by the number of its device, "" where it is none that a container has.
func terminalName(dev int64) string {
	major, minor := dev>>8&0xfff, dev&0xff|dev>>12&0xfff00
	switch {
	case major == 136:
		return "pts/" + strconv.FormatInt(minor, 10)
	case major == 5 && minor == 1:
		return "console"
	}
	return ""
}

// parseStatus takes the numbers of the process in the container and of its user.
func parseStatus(status []byte, p *api.ProcessInfo) bool {
	found := false
	for line := range bytes.Lines(status) {
		name, rest, _ := bytes.Cut(line, []byte{':'})
		switch string(name) {
		case "Uid":
			if f := strings.Fields(string(rest)); len(f) > 1 { // real, effective
				uid, _ := parseID(f[1])
				p.UID = uid
			}
		case "NSpid":
			f := strings.Fields(string(rest))
			if len(f) < 2 {
				return false // in no container
			}
			pid, err := strconv.Atoi(f[1])
			p.PID, found = pid, err == nil && pid > 0
		}
	}
	return found
}

// isBelow tells whether /proc/PID/cgroup names own or a cgroup below it.
func isBelow(group []byte, own string) bool {
	path, ok := bytes.CutPrefix(bytes.TrimSpace(group), []byte("0::"))
	rest, below := bytes.CutPrefix(path, []byte(own))
	return ok && below && (len(rest) == 0 || rest[0] == '/')
}

// arguments splits /proc/PID/cmdline.
func arguments(command []byte) []string {
	text := strings.ToValidUTF8(string(command), "\uFFFD")
	return strings.Split(strings.TrimSuffix(text, "\x00"), "\x00")
}
