package box

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	ossignal "os/signal"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/arcboxlabs/arcbox-go/internal/guest/proc"
)

// InitName is the name under which the agent's executable is the first process of a container that asks for one, and
// does what Init does.
const InitName = "arcbox-init"

// openSelf opens the agent's executable, which containers cannot write.
func openSelf() (int, error) {
	fd, err := unix.Open("/proc/self/exe", unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("open the agent's executable: %w", err)
	}
	return fd, nil
}

// initCommand executes the agent as the container's init, with the command as its arguments. It gets the report, so that
// a command that cannot be executed is known as without it.
func (s *stage) initCommand(p *proc.Program) {
	s.last(p)
	p.Call("keep report", unix.SYS_FCNTL, uintptr(s.report), unix.F_SETFD, 0)
	tty := "-"
	if s.tty {
		tty = "tty"
	}
	argv := append([]string{InitName, strconv.Itoa(s.report), strconv.Itoa(p.Len()), tty}, s.args...)
	p.ExecAt("execute "+s.args[0], s.exe, p.Strs(argv), p.Strs(s.env))
}

// Init is the first process of a container: it runs the command in its arguments, reaps orphans, forwards signals to the
// command, and returns its exit code when it has ended, 128 plus the signal's number where a signal ended it. As the Go
// runtime uses SIGURG for itself, that is not forwarded. It is called by the agent's main where args[0] is InitName.
func Init(args []string) int {
	const own = 4 // arguments before the command
	if len(args) <= own {
		return codeStage
	}
	report, err1 := strconv.Atoi(args[1])
	step, err2 := strconv.Atoi(args[2])
	if err1 != nil || err2 != nil || report < 3 {
		return codeStage
	}
	unix.CloseOnExec(report)
	children := make(chan os.Signal, 1) // one is enough: all that have ended are reaped
	ossignal.Notify(children, unix.SIGCHLD)
	signals := make(chan os.Signal, 64)
	ossignal.Notify(signals)
	pid, err := startCommand(args[own:], args[3] == "tty")
	if err != nil {
		var e syscall.Errno
		errors.As(err, &e)
		b := binary.NativeEndian.AppendUint32(nil, uint32(step))
		_, _ = unix.Write(report, binary.NativeEndian.AppendUint32(b, uint32(e)))
		return codeStage // the agent knows better
	}
	unix.Close(report)
	for {
		select {
		case <-children:
			if code, ok := reapAll(pid); ok {
				return code
			}
		case s := <-signals:
			if n, ok := s.(syscall.Signal); ok && n != unix.SIGCHLD && n != unix.SIGURG {
				_ = unix.Kill(pid, n)
			}
		}
	}
}

// startCommand executes a command in a group of processes of its own, which has the terminal. It is searched as without
// init.
func startCommand(args []string, tty bool) (pid int, err error) {
	env := os.Environ()
	attr := &syscall.ProcAttr{Env: env, Files: []uintptr{0, 1, 2}, Sys: &syscall.SysProcAttr{Setpgid: true, Foreground: tty}}
	var denied error
	for _, path := range candidates(args[0], env) {
		pid, err = syscall.ForkExec(path, args, attr)
		switch {
		case err == nil:
			return pid, nil
		case errors.Is(err, unix.EACCES):
			denied = err
		case !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENOTDIR):
			return 0, err
		}
	}
	if denied != nil {
		err = denied
	}
	return 0, err
}

// reapAll takes all children that have ended, and returns the exit code of the one that counts where it is among them.
func reapAll(main int) (code int, ok bool) {
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, unix.WNOHANG, nil)
		switch {
		case err == unix.EINTR:
			continue
		case err != nil || pid <= 0:
			return code, ok
		case pid == main && status.Signaled():
			code, ok = 128+int(status.Signal()), true
		case pid == main:
			code, ok = status.ExitStatus(), true
		}
	}
}
