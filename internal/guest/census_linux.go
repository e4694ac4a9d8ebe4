package guest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"github.com/arcboxlabs/arcbox-go/agent/api"
)

// maxCensus is how many of a kind a census names: a guest with more has a problem that these show.
const maxCensus = 4096

// cgroupRoot is where the cgroups are mounted.
const cgroupRoot = "/sys/fs/cgroup"

// census counts what there is in the guest. It looks at the kernel and not at the agent's books, which a leak is not in.
func (a *agent) census(ctx context.Context, _ api.CensusRequest) (rep api.CensusReply, err error) {
	rep.Goroutines = runtime.NumGoroutine()
	for _, part := range []struct {
		into *[]string
		list func() ([]string, error)
	}{
		{&rep.Mounts, mountPoints}, {&rep.Cgroups, cgroups}, {&rep.Processes, processes},
		{&rep.Disks, func() ([]string, error) { return entriesOf("/sys/block") }},
		{&rep.Data, a.box.Leftovers}, {&rep.Files, openFiles},
	} {
		if ctx.Err() != nil {
			return rep, ctx.Err()
		}
		found, err := part.list()
		if err != nil {
			return rep, fmt.Errorf("take census: %w", err)
		}
		slices.Sort(found)
		*part.into = found[:min(len(found), maxCensus)]
	}
	return rep, nil
}

func mountPoints() (found []string, err error) {
	b, err := os.ReadFile("/proc/self/mounts")
	for line := range bytes.Lines(b) {
		if f := bytes.Fields(line); len(f) > 1 {
			found = append(found, string(f[1]))
		}
	}
	return found, err
}

func cgroups() (found []string, err error) {
	err = filepath.WalkDir(cgroupRoot, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) { // it went meanwhile
			return nil
		}
		if err == nil && d.IsDir() {
			found = append(found, path)
		}
		return err
	})
	return found, err
}

// processes lists those that are not the kernel's own.
func processes() (found []string, err error) {
	names, err := entriesOf("/proc")
	for _, pid := range names {
		exe, err := os.ReadFile("/proc/" + pid + "/stat")
		if err != nil || pid[0] < '0' || pid[0] > '9' { // no process, or none any more
			continue
		}
		_, rest, _ := bytes.Cut(exe, []byte(") "))
		if f := bytes.Fields(rest); len(f) > 1 && string(f[1]) != "2" && pid != "2" { // 2 is the parent of the kernel's
			comm, _, _ := bytes.Cut(exe, []byte(") "))
			_, name, _ := bytes.Cut(comm, []byte("("))
			if string(f[0]) == "Z" {
				name = append(name, " (zombie)"...)
			}
			found = append(found, pid+" "+string(name))
		}
	}
	return found, err
}

// openFiles names what the agent has open.
func openFiles() (found []string, err error) {
	fds, err := entriesOf("/proc/self/fd")
	for _, fd := range fds {
		if to, err := os.Readlink("/proc/self/fd/" + fd); err == nil {
			kind, _, _ := strings.Cut(to, ":[") // pipes and sockets without their numbers
			found = append(found, kind)
		}
	}
	return found, err
}

func entriesOf(dir string) (found []string, err error) {
	list, err := os.ReadDir(dir)
	for _, e := range list {
		found = append(found, e.Name())
	}
	return found, err
}
