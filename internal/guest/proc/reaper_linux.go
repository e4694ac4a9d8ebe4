package proc

import (
	"errors"
	"fmt"
	"sync"

	"golang.org/x/sys/unix"
)

// Reaper waits for all children of this process: those started by Start, and orphans that became its children. Nobody
// else in the process may wait for a child. Make one with NewReaper.
type Reaper struct {
	mu       sync.Mutex
	idle     sync.Cond // a child was started, or Close was called
	children map[int]*Child
	started  uint64
	closed   bool
	done     chan struct{}
}

// Child is a child process. Its methods may be called from many goroutines.
type Child struct {
	pid    int
	r      *Reaper
	done   chan struct{}
	status unix.WaitStatus
}

// NewReaper returns a reaper that works. Close ends it.
func NewReaper() *Reaper {
	r := &Reaper{children: make(map[int]*Child), done: make(chan struct{})}
	r.idle.L = &r.mu
	go r.run()
	return r
}

// Start calls fork, which makes a child and returns its process number. The child cannot be reaped before it is known.
func (r *Reaper) Start(fork func() (int, error)) (*Child, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return nil, errors.New("start a process: the reaper has ended")
	}
	pid, err := fork()
	if err != nil {
		return nil, err
	}
	c := &Child{pid: pid, r: r, done: make(chan struct{})}
	r.children[pid] = c
	r.started++
	r.idle.Signal()
	return c, nil
}

// Close ends the reaper when the last child has ended, and returns then: end them before. A second call waits too.
func (r *Reaper) Close() {
	r.mu.Lock()
	r.closed = true
	r.idle.Signal()
	r.mu.Unlock()
	<-r.done
}

// run reaps. A process without children can get none but by Start: an orphan is a descendant of a child. So it sleeps in
// the kernel while there are children and on the condition while there are none, and needs no signal.
func (r *Reaper) run() {
	defer close(r.done)
	for {
		r.mu.Lock()
		seen := r.started
		r.mu.Unlock()
		// The child stays a zombie until reap has the lock, so that nobody signals a number that was given away.
		var info unix.Siginfo
		err := unix.Waitid(unix.P_ALL, 0, &info, unix.WEXITED|unix.WNOWAIT, nil)
		switch {
		case err == nil:
			r.reap()
		case errors.Is(err, unix.ECHILD):
			if r.rest(seen) {
				return
			}
		}
	}
}

// rest waits for a start after the one that was seen, and tells whether the reaper ends.
func (r *Reaper) rest(seen uint64) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	for r.started == seen && !r.closed {
		r.idle.Wait()
	}
	return r.started == seen
}

// reap takes all children that have ended.
func (r *Reaper) reap() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, unix.WNOHANG, nil)
		if err != nil || pid <= 0 {
			return
		}
		if c := r.children[pid]; c != nil {
			delete(r.children, pid)
			c.status = status
			close(c.done)
		}
	}
}

// PID returns the process number.
func (c *Child) PID() int { return c.pid }

// Done is closed when the child has ended and was reaped.
func (c *Child) Done() <-chan struct{} { return c.done }

// Status returns how the child ended. It is valid once Done is closed.
func (c *Child) Status() unix.WaitStatus { return c.status }

// With calls fn with the process number while nobody can take the child, dead or alive, and give its number away. For a
// child that was reaped it returns ESRCH. fn must not wait.
func (c *Child) With(fn func(pid int) error) error {
	c.r.mu.Lock()
	defer c.r.mu.Unlock()
	if c.r.children[c.pid] != c {
		return fmt.Errorf("process %d: %w", c.pid, unix.ESRCH)
	}
	return fn(c.pid)
}

// Signal sends a signal. For a child that has ended it returns ESRCH, never reaching another process.
func (c *Child) Signal(sig unix.Signal) error {
	c.r.mu.Lock()
	defer c.r.mu.Unlock()
	if c.r.children[c.pid] != c {
		return fmt.Errorf("signal process %d: %w", c.pid, unix.ESRCH)
	}
	if err := unix.Kill(c.pid, sig); err != nil {
		return fmt.Errorf("signal process %d: %w", c.pid, err)
	}
	return nil
}
