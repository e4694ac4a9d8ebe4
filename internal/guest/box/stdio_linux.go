package box

import (
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/arcboxlabs/arcbox-go/agent/api"
	"github.com/arcboxlabs/arcbox-go/internal/guest/engine"
)

// outputPipe is how many bytes of output a pipe holds.
const outputPipe = 256 << 10

// ends are both ends of a process's stdio.
type ends struct {
	agent engine.Stdio
	child [3]int // stdin, stdout, stderr; may be the same
}

// closeChild closes the process's ends, which the agent has no use for after the fork. A second call does nothing.
func (e *ends) closeChild() {
	for i, fd := range e.child {
		if fd >= 0 && (i == 0 || fd != e.child[i-1]) {
			unix.Close(fd)
		}
	}
	e.child = [3]int{-1, -1, -1}
}

// closeAgent closes the agent's ends.
func (e *ends) closeAgent() {
	if e.agent.Stdin != nil {
		e.agent.Stdin.Close()
	}
	for _, r := range []engine.Reader{e.agent.Stdout, e.agent.Stderr} {
		if r != nil {
			r.Close()
		}
	}
}

// openStdio opens the stdio of a process that runs as owner. pts is the container's /dev/pts.
func openStdio(p api.Process, pts int, owner user) (*ends, error) {
	if p.TTY {
		return openTTY(p, pts, owner)
	}
	e := &ends{child: [3]int{-1, -1, -1}}
	fail := func(err error) (*ends, error) {
		e.closeChild()
		e.closeAgent()
		return nil, fmt.Errorf("open stdio: %w", err)
	}
	if p.Stdin {
		r, w, err := pipe()
		if err != nil {
			return fail(err)
		}
		e.child[0] = r
		// Before NewFile, which looks at it to tell whether the poller can wait for the pipe.
		if err := unix.SetNonblock(w, true); err != nil {
			unix.Close(w)
			return fail(err)
		}
		e.agent.Stdin = os.NewFile(uintptr(w), "stdin")
	} else {
		fd, err := unix.Open("/dev/null", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return fail(err)
		}
		e.child[0] = fd
	}
	for i, to := range []*engine.Reader{&e.agent.Stdout, &e.agent.Stderr} {
		r, w, err := pipe()
		if err != nil {
			return fail(err)
		}
		e.child[i+1] = w
		// Best effort: where both sides have more to do at a time, they wake one another less often.
		_, _ = unix.FcntlInt(uintptr(r), unix.F_SETPIPE_SZ, outputPipe)
		if err := unix.SetNonblock(r, true); err != nil {
			unix.Close(r)
			return fail(err)
		}
		*to = os.NewFile(uintptr(r), "output")
	}
	if owner.uid != 0 {
		// So that the process may open /dev/stdout and the like.
		for i, fd := range e.child {
			if i == 0 && !p.Stdin {
				continue
			}
			if err := unix.Fchown(fd, int(owner.uid), -1); err != nil {
				return fail(err)
			}
		}
	}
	return e, nil
}

func pipe() (r, w int, err error) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		return -1, -1, err
	}
	return fds[0], fds[1], nil
}

func openTTY(p api.Process, pts int, owner user) (*ends, error) {
	master, slave, err := openTerminal(pts)
	if err != nil {
		return nil, err
	}
	e := &ends{child: [3]int{slave, slave, slave}}
	t := &terminal{f: master}
	e.agent = engine.Stdio{Stdout: master, Resize: t.resize}
	if p.Stdin {
		e.agent.Stdin, e.agent.EOF = writeEnd{t}, t.eof
	}
	if p.Size != (api.Size{}) {
		err = t.resize(p.Size)
	}
	if err == nil {
		err = unix.Fchown(slave, int(owner.uid), 5)
	}
	if err != nil {
		e.closeChild()
		master.Close()
		return nil, fmt.Errorf("set up terminal: %w", err)
	}
	return e, nil
}

// terminal is the agent's end of a process's terminal. Input and output are the same file; it is closed with the output.
type terminal struct{ f *os.File }

// writeEnd is the input of a terminal. Its Close makes a Write under way return and leaves the output open.
type writeEnd struct{ t *terminal }

// Write writes input.
func (w writeEnd) Write(p []byte) (int, error) { return w.t.f.Write(p) }

// Close ends writing.
func (w writeEnd) Close() error { return w.t.f.SetWriteDeadline(time.Unix(1, 0)) }

func (t *terminal) resize(s api.Size) error {
	return t.control(func(fd int) error {
		return unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: s.Rows, Col: s.Cols})
	})
}

// eof types the end of input where the terminal reads lines. A program that reads single keys has no end of input.
func (t *terminal) eof() error {
	var key []byte
	err := t.control(func(fd int) error {
		tio, err := unix.IoctlGetTermios(fd, unix.TCGETS)
		if err == nil && tio.Lflag&unix.ICANON != 0 {
			key = []byte{tio.Cc[unix.VEOF]}
		}
		return err
	})
	if err != nil || key == nil {
		return err
	}
	_, err = t.f.Write(key)
	return err
}

func (t *terminal) control(fn func(fd int) error) error {
	raw, err := t.f.SyscallConn()
	if err != nil {
		return err
	}
	if cerr := raw.Control(func(fd uintptr) { err = fn(int(fd)) }); cerr != nil {
		return cerr
	}
	return err
}
