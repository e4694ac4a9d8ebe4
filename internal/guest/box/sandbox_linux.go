package box

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/arcboxlabs/arcbox-go/agent/api"
	"github.com/arcboxlabs/arcbox-go/internal/errs"
	"github.com/arcboxlabs/arcbox-go/internal/guest/engine"
	"github.com/arcboxlabs/arcbox-go/internal/guest/proc"
)

// codeStage is the exit code of a container whose surroundings could not be made, as of other container engines.
const codeStage = 128

// sandbox is one container.
//
// Two pipes lead to its process while it prepares itself: start, from which it reads one byte before it executes its
// command, and report, to which it writes a byte when it is ready for that, and which of its steps failed. Its end of report
// closes when it executes, or ends.
type sandbox struct {
	box     *Box
	id      string
	net     *network // nil where it has none of its own
	scratch scratch
	tree    *tree
	volumes []api.Mount // what lies higher first
	cgroup  cgroup
	oom     *oomCounter
	ends    *ends
	program *proc.Program
	child   *proc.Child
	start   *os.File
	report  *os.File
	ready   func() []byte // waits until the process is ready or has failed, and returns the first byte of report, if any

	joining sync.RWMutex // held for reading while an exec is forked
	removed bool         // no exec is forked any more; under joining

	mu       sync.Mutex // held while it starts
	executed bool       // the command was
	code     int        // the exit code where it was not
}

// fork makes the process, which prepares itself at once.
func (s *sandbox) fork(st *stage, files *descriptors) error {
	startR, startW, err := pipe()
	if err != nil {
		return fmt.Errorf("open start pipe: %w", err)
	}
	s.start = os.NewFile(uintptr(startW), "start")
	files.add(startR, nil)
	reportR, reportW, err := pipe()
	if err != nil {
		s.start.Close()
		return fmt.Errorf("open report pipe: %w", err)
	}
	files.add(reportW, nil)
	if err := unix.SetNonblock(reportR, true); err != nil {
		s.start.Close()
		unix.Close(reportR)
		return fmt.Errorf("open report pipe: %w", err)
	}
	s.report = os.NewFile(uintptr(reportR), "report")
	s.ready = sync.OnceValue(func() []byte {
		b := make([]byte, 1)
		n, _ := s.report.Read(b) // what else is wrong shows in its exit
		return b[:n]
	})
	st.start, st.report = startR, reportW
	st.stdin, st.stdout, st.stderr = s.ends.child[0], s.ends.child[1], s.ends.child[2]
	s.program, s.code = st.program(), codeStage
	cg, err := files.add(s.cgroup.open())
	if err == nil {
		s.child, err = s.box.reaper.Start(func() (int, error) {
			return s.program.Fork(proc.ForkSpec{
				Flags:  st.namespaces(),
				Cgroup: cg,
				Report: reportW,

				OwnMemory: st.ownMemory(),
			})
		})
	}
	if err != nil {
		s.program.Close()
		s.start.Close()
		s.report.Close()
	}
	return err
}

// Stdio returns the agent's ends of the process's stdio.
func (s *sandbox) Stdio() engine.Stdio { return s.ends.agent }

// Start lets the process execute its command.
func (s *sandbox) Start(ctx context.Context) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	stop := context.AfterFunc(ctx, func() { s.cgroup.kill() })
	defer stop()
	defer s.report.Close()
	if err := s.net.wait(); err != nil {
		_ = s.cgroup.kill()
		return 0, fmt.Errorf("prepare the container's network: %w", err)
	}
	_, startErr := s.start.Write([]byte{0})
	s.start.Close()
	if startErr != nil {
		_ = s.cgroup.kill() // it is ending already: its report or its exit tells why
	}
	first := s.ready()
	b, err := io.ReadAll(io.LimitReader(s.report, 64))
	if err != nil {
		_ = s.cgroup.kill()
		return 0, fmt.Errorf("start the process: %w", err)
	}
	s.program.Close()
	if b = append(first, b...); len(b)%2 == 1 {
		b = b[1:] // it was ready: what tells of a failure has 8 bytes
	}
	err = s.program.Decode(b)
	var f *proc.Failure
	switch {
	case ctx.Err() != nil:
		return 0, ctx.Err()
	case err == nil:
		// It executes its command, or it has ended without a word: an OOM kill, a seccomp filter that forbids the report.
		// Its exit tells which.
		s.executed = true
		return s.child.PID(), nil
	case errors.As(err, &f) && f.Exec:
		s.code, err = commandError(f)
		return 0, err
	case errors.As(err, &f) && isUserError(f):
		return 0, fmt.Errorf("%w: %w", errs.ErrInvalid, f)
	}
	return 0, fmt.Errorf("prepare the container: %w", err)
}

// prepared waits until the process has made what is its to make in the container's root, or has failed to.
func (s *sandbox) prepared(ctx context.Context) error {
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.ready()
	}()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// isUserError tells whether a step failed because of what the request or the image says.
func isUserError(f *proc.Failure) bool {
	return f.Errno == unix.ENOTDIR || f.Errno == unix.ELOOP || strings.HasPrefix(f.What, sysctlStep)
}

// Signal sends a signal to the process.
func (s *sandbox) Signal(sig int) error { return signal(s.child, sig) }

func signal(child *proc.Child, sig int) error {
	err := child.Signal(unix.Signal(sig))
	if errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("%w: the process has ended: %w", errs.ErrConflict, err)
	}
	return err
}

// Wait returns when the process has ended.
func (s *sandbox) Wait() api.Exit {
	<-s.child.Done()
	go s.net.close() // Remove waits for it
	status := s.child.Status()
	s.oom.check()
	s.mu.Lock() // a start under way ends first: it knows why the process has ended
	defer s.mu.Unlock()
	if !s.executed && !status.Signaled() {
		return api.Exit{Code: s.code}
	}
	if status.Signaled() {
		n := int(status.Signal())
		return api.Exit{Code: 128 + n, Signal: engine.SignalName(n), OOMKilled: s.cgroup.oomKilled()}
	}
	return api.Exit{Code: status.ExitStatus(), OOMKilled: s.cgroup.oomKilled()}
}

// Remove kills the process and releases everything.
func (s *sandbox) Remove(d engine.Data) error {
	if err := s.cgroup.kill(); err != nil {
		return err
	}
	<-s.child.Done()
	s.box.nets.forget(s.id, s)
	s.net.close()
	s.start.Close()
	s.report.Close()
	s.mu.Lock()
	s.program.Close() // where it was not started
	s.mu.Unlock()
	s.joining.Lock()
	s.removed = true
	s.joining.Unlock()
	s.oom.close()
	if err := s.cgroup.remove(); err != nil {
		return err
	}
	if d == engine.KeepData || d == engine.UndoData && s.scratch.earlier {
		s.tree.close()
		return nil
	}
	if s.scratch.trash == nil {
		s.tree.close()
		return s.scratch.remove()
	}
	// Letting go of the root syncs the disk that it writes to. Nobody waits for that on account of data that is deleted.
	err := s.scratch.remove()
	s.box.data.Load().later(s.tree.close)
	return err
}
