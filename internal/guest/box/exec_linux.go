package box

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/arcboxlabs/arcbox-go/agent/api"
	"github.com/arcboxlabs/arcbox-go/internal/errs"
	"github.com/arcboxlabs/arcbox-go/internal/guest/engine"
	"github.com/arcboxlabs/arcbox-go/internal/guest/proc"
)

// join is what the process of an exec does before it executes its command. It is born in the container's PID namespace
// and below its cgroup, and joins the other namespaces itself.
type join struct {
	process
	target int // pidfd of the container's process
}

// joined are the namespaces of a container but for that of PIDs.
const joined = unix.CLONE_NEWNS | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC | unix.CLONE_NEWNET | unix.CLONE_NEWCGROUP

// program returns the system calls of the exec. The caller closes it after the fork.
func (j *join) program() *proc.Program {
	p := proc.NewProgram()
	j.isolate(p, []int{j.target})
	p.Call("join the container", unix.SYS_SETNS, uintptr(j.target), joined)
	j.become(p)
	j.command(p)
	return p
}

// execution is the process of an exec. It has a cgroup of its own below the container's, so that the container's limits
// apply and it can be killed with all that it started, wherever that has hidden.
type execution struct {
	box       *sandbox
	cgroup    cgroup
	ends      *ends
	child     *proc.Child
	oomBefore uint64
}

// Exec starts another process in the container.
func (s *sandbox) Exec(ctx context.Context, req api.ExecRequest) (_ engine.Process, err error) {
	x := &execution{box: s, oomBefore: s.cgroup.oomKills()}
	report, program, err := x.fork(req)
	if err != nil {
		return nil, err
	}
	defer report.Close()
	if err := x.executed(ctx, report, program); err != nil {
		_ = x.Kill()
		<-x.child.Done()
		x.Release()
		x.ends.closeAgent()
		return nil, err
	}
	return x, nil
}

// executed waits until the process has executed its command.
func (x *execution) executed(ctx context.Context, report *os.File, program *proc.Program) error {
	stop := context.AfterFunc(ctx, func() { _ = x.cgroup.kill() })
	defer stop()
	b, err := io.ReadAll(io.LimitReader(report, 64))
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err == nil {
		err = program.Decode(b)
	}
	var f *proc.Failure
	switch {
	case err == nil:
		return nil
	case errors.As(err, &f) && f.Exec:
		_, err := commandError(f)
		return err
	case errors.As(err, &f) && isUserError(f):
		return fmt.Errorf("%w: %w", errs.ErrInvalid, f)
	}
	return ended(err)
}

// ended explains an error that means that the container's process has ended.
func ended(err error) error {
	if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("%w: the container's process has ended: %w", errs.ErrConflict, err)
	}
	return err
}

// fork makes the process and returns the reading end of its report. After an error nothing is left.
func (x *execution) fork(req api.ExecRequest) (_ *os.File, _ *proc.Program, err error) {
	s := x.box
	s.joining.RLock()
	defer s.joining.RUnlock()
	if s.removed {
		return nil, nil, fmt.Errorf("%w: the container is being removed", errs.ErrConflict)
	}
	var u undo
	defer func() {
		if err != nil {
			u.run()
		}
	}()
	files := &descriptors{}
	defer files.close()
	j := &join{}
	var root int
	if j.target, root, err = s.open(files); err != nil {
		return nil, nil, ended(err)
	}
	if j.process, err = newProcess(withPrivilege(req.Process, req.Privileged), root); err != nil {
		return nil, nil, err
	}
	pts := -1
	if req.Process.TTY {
		if pts, err = files.add(openPts(root)); err != nil {
			return nil, nil, err
		}
	}
	if x.ends, err = openStdio(req.Process, pts, j.user); err != nil {
		return nil, nil, err
	}
	u = append(u, x.ends.closeAgent)
	defer x.ends.closeChild()
	j.stdin, j.stdout, j.stderr = x.ends.child[0], x.ends.child[1], x.ends.child[2]
	if x.cgroup, err = s.cgroup.sub(req.ExecID); err != nil {
		return nil, nil, ended(err)
	}
	u = append(u, x.cgroup.dissolve)
	report, program, err := x.clone(j, files)
	return report, program, err
}

// clone forks the process into its cgroup and the container's PID namespace.
func (x *execution) clone(j *join, files *descriptors) (*os.File, *proc.Program, error) {
	reportR, reportW, err := pipe()
	if err != nil {
		return nil, nil, fmt.Errorf("open report pipe: %w", err)
	}
	files.add(reportW, nil)
	if err := unix.SetNonblock(reportR, true); err != nil {
		unix.Close(reportR)
		return nil, nil, fmt.Errorf("open report pipe: %w", err)
	}
	report := os.NewFile(uintptr(reportR), "report")
	j.report = reportW
	program := j.program()
	defer program.Close()
	cg, err := files.add(x.cgroup.open())
	if err == nil {
		x.child, err = x.box.box.reaper.Start(func() (int, error) {
			// Its memory is its own: processes of the container may look into it, and the kernel kills all that share memory
			// where one has to go for the lack of it.
			return program.Fork(proc.ForkSpec{Cgroup: cg, Report: reportW, PIDs: j.target, OwnMemory: true})
		})
	}
	if err == nil {
		return report, program, nil
	}
	report.Close()
	switch {
	case errors.Is(err, unix.ENOMEM): // what the kernel says of a PID namespace whose first process is ending, too
		err = fmt.Errorf("%w: the container's process is ending, or the machine has no memory left: %w", errs.ErrConflict, err)
	case errors.Is(err, unix.EAGAIN):
		err = fmt.Errorf("%w: the container has as many processes as it may have: %w", errs.ErrUnavailable, err)
	}
	return nil, nil, ended(err)
}

// open returns a pidfd of the container's process and its root directory.
func (s *sandbox) open(files *descriptors) (pidfd, root int, err error) {
	err = s.child.With(func(pid int) (err error) {
		if pidfd, err = files.add(unix.PidfdOpen(pid, 0)); err != nil {
			return fmt.Errorf("open the container's process: %w", err)
		}
		path := "/proc/" + strconv.Itoa(pid) + "/root"
		if root, err = files.add(unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)); err != nil {
			return fmt.Errorf("open the container's root: %w", err)
		}
		return nil
	})
	return pidfd, root, err
}

// openPts opens the /dev/pts of a container. What is not a file system of terminals is refused.
func openPts(root int) (int, error) {
	fd, err := unix.Openat2(root, "dev/pts", &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_SYMLINKS,
	})
	if err != nil {
		return -1, fmt.Errorf("open /dev/pts of the container: %w", err)
	}
	var st unix.Statfs_t
	if err := unix.Fstatfs(fd, &st); err != nil || st.Type != unix.DEVPTS_SUPER_MAGIC {
		unix.Close(fd)
		return -1, fmt.Errorf("open /dev/pts of the container: %w: it is no file system of terminals", errs.ErrUnsupported)
	}
	return fd, nil
}

// PID returns the process number.
func (x *execution) PID() int { return x.child.PID() }

// Stdio returns the agent's ends of the process's stdio.
func (x *execution) Stdio() engine.Stdio { return x.ends.agent }

// Signal sends a signal to the process.
func (x *execution) Signal(sig int) error { return signal(x.child, sig) }

// Wait returns when the process has ended.
func (x *execution) Wait() api.Exit {
	<-x.child.Done()
	status := x.child.Status()
	if !status.Signaled() {
		return api.Exit{Code: status.ExitStatus()}
	}
	n := int(status.Signal())
	// Memory is accounted to the container: a kill while the process ran is taken for its own where it was killed.
	oom := n == int(unix.SIGKILL) && x.box.cgroup.oomKills() > x.oomBefore
	return api.Exit{Code: 128 + n, Signal: engine.SignalName(n), OOMKilled: oom}
}

// Kill kills the process and all that it started.
func (x *execution) Kill() error { return x.cgroup.kill() }

// Release lets go of a process that has ended. What it started and left goes on.
func (x *execution) Release() { x.cgroup.dissolve() }
