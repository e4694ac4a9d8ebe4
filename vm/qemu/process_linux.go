package qemu

import (
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
)

// startProcess starts a program that the kernel kills when the thread that made it ends, so that it cannot outlive this
// process whatever ends that. Go may end a thread any time, therefore one goroutine keeps the thread for itself as long
// as the child lives. See newProcess for the files.
func startProcess(path string, args []string, stderr io.Writer, files []*os.File) (*process, error) {
	p := newProcess(path, args, stderr, files)
	p.cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	pidfd := -1
	p.cmd.SysProcAttr.PidFD = &pidfd
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := p.cmd.Start()
		p.traceable = pidfd >= 0
		started <- err
		if err == nil {
			awaitEnd(pidfd)
			p.wait()
			close(p.done)
		}
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start %s: %w: %w", path, errs.ErrUnavailable, err)
	}
	return p, nil
}

// awaitEnd waits until a process has ended, and leaves it to be waited for. Who waits for a process in the usual way is told
// that it stops, too, where this process traces it. A kernel that has no pidfd does not wait.
func awaitEnd(pidfd int) {
	if pidfd < 0 {
		return
	}
	defer unix.Close(pidfd)
	fds := []unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}
	for {
		if _, err := unix.Poll(fds, -1); !errors.Is(err, unix.EINTR) {
			return
		}
	}
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
