//go:build linux || darwin

package qemu

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"syscall"
	"time"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
)

// process is a running QEMU.
type process struct {
	cmd  *exec.Cmd
	done chan struct{} // closed when it has ended and was waited for; err is set then
	err  error

	traceable bool // nothing that waits for its end is disturbed when it is stopped
}

// firstFD is the number under which a child finds the first of its extra files.
const firstFD = 3

// newProcess returns a process to start. It gets files as its descriptors from firstFD on and nothing else that this
// process has opened. What this process was itself given without close-on-exec passes on, as it does to every child of a
// Go program. It has a session of its own: what a terminal sends to this process is not meant for it.
func newProcess(path string, args []string, stderr io.Writer, files []*os.File) *process {
	cmd := exec.Command(path, args...)
	cmd.Env = environment()
	cmd.Dir = "/"
	cmd.Stderr = stderr
	cmd.ExtraFiles = files
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	cmd.WaitDelay = time.Second // for a child of the child that keeps stderr open
	return &process{cmd: cmd, done: make(chan struct{})}
}

// wait waits for the end of a process that was started.
func (p *process) wait() {
	p.err = p.cmd.Wait()
	if errors.Is(p.err, exec.ErrWaitDelay) {
		p.err = nil
	}
}

// end tells how a process that was waited for has ended; never nil.
func (p *process) end() error {
	if p.err == nil {
		return errors.New("exit status 0")
	}
	return p.err
}

// pid is the number of the process.
func (p *process) pid() int { return p.cmd.Process.Pid }

// kill ends the process. It does not wait.
func (p *process) kill() { p.cmd.Process.Kill() }

// watched is a shell's script that becomes the program of its arguments, after it has left a child behind: the watch, which
// kills the program when the other end of its standard input is closed. As long as the watch lives, no other process can
// get the number of the program, because the program's session has it. The watch keeps nothing else open.
const watched = `exec 9<&0
{ exec 3>&- 4>&- 5>&- 6>&- 7>&- 8>&-; read -r _ <&9; kill -9 $$; } </dev/null >/dev/null 2>&1 &
exec "$0" "$@" 9<&- </dev/null`

// startWatched starts a program as startProcess does, for systems whose kernels do not end a child with its parent: a
// second process does it.
func startWatched(path string, args []string, stderr io.Writer, files []*os.File) (*process, error) {
	const most = 6 // files; the ninth descriptor is the highest that every shell can name
	if len(files) > most {
		return nil, fmt.Errorf("start %s with %d files: %w: at most %d", path, len(files), errs.ErrUnsupported, most)
	}
	ours, theirs, err := pair()
	if err != nil {
		return nil, err
	}
	p := newProcess("/bin/sh", append([]string{"-c", watched, path}, args...), stderr, files)
	p.cmd.Stdin = theirs
	err = p.cmd.Start()
	theirs.Close()
	if err != nil {
		ours.Close()
		return nil, fmt.Errorf("start %s: %w: %w", path, errs.ErrUnavailable, err)
	}
	go func() {
		defer close(p.done)
		p.wait()
		endWatch(ours)
	}()
	return p, nil
}

// endWatch ends the watch of a program that has ended, and waits until it has.
func endWatch(conn net.Conn) {
	defer conn.Close()
	if err := conn.(*net.UnixConn).CloseWrite(); err != nil {
		return // it has ended
	}
	conn.SetReadDeadline(time.Now().Add(grace))
	conn.Read(make([]byte, 1)) // it never writes
}

// pair returns two connected sockets: one for this process, one for a child.
func pair() (net.Conn, *os.File, error) {
	syscall.ForkLock.RLock() // not every system can make sockets that no child gets
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM, 0)
	if err == nil {
		syscall.CloseOnExec(fds[0])
		syscall.CloseOnExec(fds[1])
	}
	syscall.ForkLock.RUnlock()
	if err != nil {
		return nil, nil, fmt.Errorf("make a socket pair: %w", err)
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "qemu"), os.NewFile(uintptr(fds[1]), "qemu")
	conn, err := net.FileConn(ours)
	ours.Close()
	if err != nil {
		theirs.Close()
		return nil, nil, fmt.Errorf("make a socket pair: %w", err)
	}
	return conn, theirs, nil
}

// writeWith writes to a socket of pair, and passes a file along where there is one.
func writeWith(conn net.Conn, p []byte, file *os.File) (int, error) {
	if file == nil {
		return conn.Write(p)
	}
	u, ok := conn.(*net.UnixConn)
	if !ok {
		return 0, fmt.Errorf("pass a file over %T: %w", conn, errs.ErrUnsupported)
	}
	raw, err := file.SyscallConn()
	if err != nil {
		return 0, err
	}
	var n int
	cerr := raw.Control(func(fd uintptr) { n, _, err = u.WriteMsgUnix(p, syscall.UnixRights(int(fd)), nil) })
	if cerr != nil {
		return 0, cerr
	}
	if err == nil && n < len(p) {
		var more int
		more, err = conn.Write(p[n:])
		n += more
	}
	return n, err
}
