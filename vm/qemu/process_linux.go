package qemu

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
)

// process is a running QEMU.
type process struct {
	cmd  *exec.Cmd
	done chan struct{} // closed when it has ended and was waited for; err is set then
	err  error
}

// firstFD is the number under which a child finds the first of its extra files.
const firstFD = 3

// startProcess starts a program with files as its descriptors from firstFD on and nothing else that this process has
// opened. What this process was itself given without close-on-exec passes on, as it does to every child of a Go program.
//
// The kernel kills the child when the thread that made it ends, so that it cannot outlive this process whatever ends
// that. Go may end a thread any time, therefore one goroutine keeps the thread for itself as long as the child lives.
// The child has a session of its own: what a terminal sends to this process is not meant for it.
func startProcess(path string, args []string, stderr io.Writer, files []*os.File) (*process, error) {
	cmd := exec.Command(path, args...)
	cmd.Env = environment()
	cmd.Dir = "/"
	cmd.Stderr = stderr
	cmd.ExtraFiles = files
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setsid: true}
	cmd.WaitDelay = time.Second // for a child of the child that keeps stderr open
	p := &process{cmd: cmd, done: make(chan struct{})}
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err != nil {
			return
		}
		p.err = cmd.Wait()
		if errors.Is(p.err, exec.ErrWaitDelay) {
			p.err = nil
		}
		close(p.done)
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start %s: %w: %w", path, errs.ErrUnavailable, err)
	}
	return p, nil
}

// anonymous returns a file in memory, without a name, that is gone when nobody has it any more.
func anonymous(name string, size int64) (*os.File, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), name)
	if err := f.Truncate(size); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// kill ends the process. It does not wait.
func (p *process) kill() { p.cmd.Process.Kill() }

// pair returns two connected sockets: one for this process, one for a child.
func pair() (net.Conn, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
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
	cerr := raw.Control(func(fd uintptr) { n, _, err = u.WriteMsgUnix(p, unix.UnixRights(int(fd)), nil) })
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
