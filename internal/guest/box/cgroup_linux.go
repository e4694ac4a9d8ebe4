package box

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// The cgroups that have those of all containers. The device program guards the first; privileged containers, which may
// use all devices, are in the other.
const (
	cgroupParent     = "/sys/fs/cgroup/arcbox"
	privilegedParent = "/sys/fs/cgroup/arcbox-privileged"
)

// cgroup is the cgroup of one container.
type cgroup struct{ dir string }

// Delegate lets the children of a cgroup have all controllers that it has itself.
func Delegate(dir string) error {
	b, err := os.ReadFile(dir + "/cgroup.controllers")
	if err != nil {
		return fmt.Errorf("read controllers of cgroup: %w", err)
	}
	var all []byte
	for _, c := range bytes.Fields(b) {
		all = append(append(all, " +"...), c...)
	}
	if err := os.WriteFile(dir+"/cgroup.subtree_control", all, 0); err != nil {
		return fmt.Errorf("delegate controllers of cgroup: %w", err)
	}
	return nil
}

func newCgroup(id string, privileged bool) (cgroup, error) {
	parent := cgroupParent
	if privileged {
		parent = privilegedParent
	}
	return makeCgroup(filepath.Join(parent, "c-"+id)) // never the name of a file of the kernel
}

// sub makes a cgroup below, to which all limits of g apply.
func (g cgroup) sub(id string) (cgroup, error) { return makeCgroup(filepath.Join(g.dir, "exec-"+id)) }

func makeCgroup(dir string) (cgroup, error) {
	g := cgroup{dir}
	if err := os.Mkdir(g.dir, 0o755); err != nil {
		return g, fmt.Errorf("make cgroup: %w", err)
	}
	return g, nil
}

// open returns a descriptor of the cgroup, to be born in.
func (g cgroup) open() (int, error) {
	fd, err := unix.Open(g.dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("open cgroup: %w", err)
	}
	return fd, nil
}

// kill kills all processes in the cgroup, those that are just being born included.
func (g cgroup) kill() error {
	err := os.WriteFile(g.dir+"/cgroup.kill", []byte("1"), 0)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("kill cgroup: %w", err)
	}
	return nil
}

// emptyTime bounds in milliseconds how long remove waits for the last process to leave the cgroup.
const emptyTime = 5000

// remove deletes the cgroup and those below it. It waits for killed processes to leave them. It may be called again.
func (g cgroup) remove() error {
	err := unix.Rmdir(g.dir)
	if err == unix.EBUSY {
		if err := g.waitEmpty(); err != nil {
			return err
		}
		err = g.removeBelow()
	}
	if err != nil && err != unix.ENOENT {
		return fmt.Errorf("remove cgroup: %w", err)
	}
	return nil
}

// removeBelow deletes a cgroup without processes from the bottom up.
func (g cgroup) removeBelow() error {
	var dirs []string
	err := filepath.WalkDir(g.dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			dirs = append(dirs, path)
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	})
	if err != nil {
		return err
	}
	for i := len(dirs) - 1; i >= 0; i-- {
		if err := unix.Rmdir(dirs[i]); err != nil && err != unix.ENOENT {
			return err
		}
	}
	return nil
}

// maxMoves is how often dissolve moves processes that keep forking.
const maxMoves = 32

// dissolve deletes the cgroup of an exec whose process has ended. What the process has left behind goes on in the
// container's own cgroup. Where that fails, the cgroup goes with the container.
func (g cgroup) dissolve() {
	parent := filepath.Dir(g.dir) + "/cgroup.procs"
	for range maxMoves {
		if err := unix.Rmdir(g.dir); err != unix.EBUSY {
			return
		}
		list, err := os.ReadFile(g.dir + "/cgroup.procs")
		if err != nil {
			return
		}
		for pid := range bytes.FieldsSeq(list) {
			_ = os.WriteFile(parent, pid, 0) // it may have ended
		}
		if len(list) == 0 && g.waitEmpty() != nil { // those that are left are ending
			return
		}
	}
}

func (g cgroup) waitEmpty() error {
	fd, err := unix.Open(g.dir+"/cgroup.events", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open events of cgroup: %w", err)
	}
	defer unix.Close(fd)
	buf := make([]byte, 256)
	for {
		n, err := unix.Pread(fd, buf, 0)
		if err != nil {
			return fmt.Errorf("read events of cgroup: %w", err)
		}
		if bytes.Contains(buf[:n], []byte("populated 0")) {
			return nil
		}
		// The kernel wakes those who poll when the file changes.
		n, err = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLPRI}}, emptyTime)
		if err != nil && err != unix.EINTR {
			return fmt.Errorf("wait for cgroup: %w", err)
		}
		if n == 0 {
			return fmt.Errorf("wait for cgroup: processes are still in it after %d ms", emptyTime)
		}
	}
}

// oomKilled tells whether the kernel killed a process of the cgroup for want of memory.
func (g cgroup) oomKilled() bool { return g.oomKills() > 0 }

// oomKills is how many processes of the cgroup the kernel killed for want of memory.
func (g cgroup) oomKills() uint64 {
	return keyed(g.read("memory.events"))["oom_kill"]
}

// read returns a file of the cgroup, nothing where it is not there.
func (g cgroup) read(name string) []byte {
	b, _ := os.ReadFile(filepath.Join(g.dir, name))
	return b
}

// keyed parses lines of a name and a number.
func keyed(text []byte) map[string]uint64 {
	m := make(map[string]uint64)
	for line := range bytes.Lines(text) {
		name, value, _ := bytes.Cut(bytes.TrimSpace(line), []byte{' '})
		if n, err := strconv.ParseUint(string(value), 10, 64); err == nil {
			m[string(name)] = n
		}
	}
	return m
}
