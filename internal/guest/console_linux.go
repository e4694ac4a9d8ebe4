package guest

import (
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// lateConsole writes to a file that may be /dev/null at first: the console of some hypervisors needs a module that the
// agent loads, so that there is none when the kernel executes the agent. As soon as there is one, it becomes the stdout and
// the stderr of the process.
type lateConsole struct {
	file *os.File

	mu   sync.Mutex
	done bool // the file is the console
}

// Write writes to the console, or to nowhere where there is none yet.
func (c *lateConsole) Write(p []byte) (int, error) {
	c.look()
	return c.file.Write(p)
}

// look takes the console where the process has none and there is one now.
func (c *lateConsole) look() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.done {
		return
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(c.file.Fd()), &st); err != nil || st.Rdev != unix.Mkdev(1, 3) || st.Mode&unix.S_IFMT != unix.S_IFCHR {
		c.done = true // it is the console since the start, or a file of a test
		return
	}
	fd, err := unix.Open("/dev/console", unix.O_WRONLY|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return
	}
	defer unix.Close(fd)
	for _, std := range []int{1, 2} {
		if unix.Dup3(fd, std, 0) != nil {
			return
		}
	}
	c.done = true
}
