package box

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// cgroupParent is the cgroup that has those of all containers.
const cgroupParent = "/sys/fs/cgroup/arcbox"

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

func newCgroup(id string) (cgroup, error) {
	g := cgroup{filepath.Join(cgroupParent, "c-"+id)} // never the name of a file of the kernel
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

// remove deletes the cgroup. It waits for killed processes to leave it. It may be called again.
func (g cgroup) remove() error {
	err := unix.Rmdir(g.dir)
	if err == unix.EBUSY {
		if err := g.waitEmpty(); err != nil {
			return err
		}
		err = unix.Rmdir(g.dir)
	}
	if err != nil && err != unix.ENOENT {
		return fmt.Errorf("remove cgroup: %w", err)
	}
	return nil
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
func (g cgroup) oomKilled() bool {
	b, err := os.ReadFile(g.dir + "/memory.events")
	if err != nil {
		return false
	}
	for line := range bytes.Lines(b) {
		if v, ok := bytes.CutPrefix(line, []byte("oom_kill ")); ok {
			n, err := strconv.ParseUint(string(bytes.TrimSpace(v)), 10, 64)
			return err == nil && n > 0
		}
	}
	return false
}
