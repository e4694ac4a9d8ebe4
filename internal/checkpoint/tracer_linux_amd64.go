package checkpoint

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
)

// tracer is a process whose threads are stopped. Its methods must be called on the thread that made it.
type tracer struct {
	pid  int
	mem  *os.File
	tids []int  // of its threads; the first is the one that is the process
	gate uint64 // address of an instruction that makes a system call
}

// attach stops all threads of a process. detach must be called after an error too.
func attach(pid int) (t *tracer, err error) {
	t = &tracer{pid: pid}
	if t.mem, err = os.Open(t.proc("mem")); err != nil {
		return t, err
	}
	if err := t.stop(pid); err != nil {
		return t, fmt.Errorf("stop it: %w", err)
	}
	seen := map[int]bool{pid: true}
	for more := true; more; { // a thread may make threads until it is stopped
		more = false
		tasks, err := os.ReadDir(t.proc("task"))
		if err != nil {
			return t, err
		}
		for _, task := range tasks {
			tid, err := strconv.Atoi(task.Name())
			if err != nil || seen[tid] {
				continue
			}
			seen[tid], more = true, true
			if err := t.stop(tid); err != nil && !errors.Is(err, unix.ESRCH) {
				return t, fmt.Errorf("stop thread %d: %w", tid, err)
			}
		}
	}
	return t, nil
}

func (t *tracer) proc(name string) string { return fmt.Sprintf("/proc/%d/%s", t.pid, name) }

// stop stops one thread.
func (t *tracer) stop(tid int) error {
	switch err := unix.PtraceSeize(tid); {
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("%w: this host does not let it be traced: %w", errs.ErrUnsupported, err)
	case err != nil:
		return err
	}
	t.tids = append(t.tids, tid)
	if err := unix.PtraceInterrupt(tid); err != nil {
		return err
	}
	return t.await(tid)
}

// await waits until a thread has stopped. One that has ended instead is ESRCH, a process that has ended ErrUnavailable.
func (t *tracer) await(tid int) error {
	const byPID, any, trapped = 1, 0, 4
	for {
		// All threads that this one traces are looked at: one that has ended keeps the process from ending until it is
		// taken notice of. The end of the process itself is left to who waits for it.
		who, code, err := waitid(any, 0, unix.WSTOPPED|unix.WEXITED|unix.WNOWAIT|unix.WNOTHREAD)
		if err != nil {
			return err
		}
		if who == t.pid && code != trapped {
			return fmt.Errorf("%w: it has ended", errs.ErrUnavailable)
		}
		if _, _, err := waitid(byPID, who, unix.WSTOPPED|unix.WEXITED|unix.WNOTHREAD); err != nil {
			return err
		}
		switch {
		case who == tid && code == trapped:
			return nil
		case who == tid:
			return unix.ESRCH
		}
	}
}

// waitid waits for a thread, or any, and tells which and what became of it.
func waitid(kind, id int, flags uintptr) (who int, code int32, err error) {
	var info struct {
		_, _, code, _, pid int32
		_                  [108]byte
	}
	for {
		_, _, e := syscall.Syscall6(unix.SYS_WAITID, uintptr(kind), uintptr(id), uintptr(unsafe.Pointer(&info)), flags|unix.WALL, 0, 0)
		if e == 0 {
			return int(info.pid), info.code, nil
		}
		if e != unix.EINTR {
			return 0, 0, fmt.Errorf("wait for a thread: %w", e)
		}
	}
}

// detach lets the process go on, or end.
func (t *tracer) detach() error {
	var all []error
	for _, tid := range slices.Backward(t.tids) { // the process itself does not end before its threads
		if err := t.release(tid); err != nil && !errors.Is(err, unix.ESRCH) && !errors.Is(err, unix.ECHILD) && !errors.Is(err, errs.ErrUnavailable) {
			all = append(all, fmt.Errorf("let thread %d go on: %w", tid, err))
		}
	}
	if t.mem != nil {
		all = append(all, t.mem.Close())
	}
	return errors.Join(all...)
}

// release lets one thread go on. One that is not stopped is about to end, or to stop.
func (t *tracer) release(tid int) error {
	err := unix.PtraceDetach(tid)
	if !errors.Is(err, unix.ESRCH) {
		return err
	}
	_ = unix.PtraceInterrupt(tid)
	if err := t.await(tid); err != nil {
		return err
	}
	return unix.PtraceDetach(tid)
}

// busy names a thread that does something, so that it may have a lock which another one waits for. It is "" where all wait for
// something else.
func (t *tracer) busy() (string, error) {
	for _, tid := range t.tids {
		var r unix.PtraceRegs
		if err := unix.PtraceGetRegs(tid, &r); err != nil {
			return "", fmt.Errorf("read registers of thread %d: %w", tid, err)
		}
		waits := false
		switch r.Orig_rax {
		case unix.SYS_POLL, unix.SYS_PPOLL, unix.SYS_EPOLL_WAIT, unix.SYS_EPOLL_PWAIT, unix.SYS_FUTEX,
			unix.SYS_RESTART_SYSCALL: // one of these, with a limit of time, that was stopped before
			switch -int64(r.Rax) {
			case restartSys, restartNoIntr, restartNoHand, restartBlock, int64(unix.EINTR):
				waits = true
			}
		}
		if !waits {
			name, _ := os.ReadFile(t.proc(fmt.Sprintf("task/%d/comm", tid)))
			return fmt.Sprintf("thread %s is in system call %d with %d", bytes.TrimSpace(name), int64(r.Orig_rax), int64(r.Rax)), nil
		}
	}
	return "", nil
}

// call lets a stopped thread make a system call, and returns its result. What the thread was doing is unharmed.
func (t *tracer) call(tid int, nr uint64, args ...uint64) (uint64, error) {
	var old unix.PtraceRegs
	if err := unix.PtraceGetRegs(tid, &old); err != nil {
		return 0, fmt.Errorf("read registers: %w", err)
	}
	var a [6]uint64
	copy(a[:], args)
	r := old
	r.Rip, r.Rax, r.Orig_rax = t.gate, nr, ^uint64(0)
	r.Rdi, r.Rsi, r.Rdx, r.R10, r.R8, r.R9 = a[0], a[1], a[2], a[3], a[4], a[5]
	err := unix.PtraceSetRegs(tid, &r)
	if err == nil {
		err = unix.PtraceSingleStep(tid)
	}
	if err == nil {
		err = t.await(tid)
	}
	if err == nil {
		err = unix.PtraceGetRegs(tid, &r)
	}
	if err = errors.Join(err, unix.PtraceSetRegs(tid, &old)); err != nil {
		return 0, fmt.Errorf("make system call %d: %w", nr, err)
	}
	if n := -int64(r.Rax); n > 0 && n < 4096 {
		return 0, fmt.Errorf("system call %d: %w", nr, syscall.Errno(n))
	}
	return r.Rax, nil
}

// ask lets a stopped thread make a system call that writes to memory, at the address that args gets, and returns what it has
// written.
func (t *tracer) ask(tid, size int, nr uint64, args func(at uint64) []uint64) ([]byte, error) {
	var r unix.PtraceRegs
	if err := unix.PtraceGetRegs(tid, &r); err != nil {
		return nil, fmt.Errorf("read registers: %w", err)
	}
	const redZone = 128 // bytes that a function may use below its stack
	at := (r.Rsp - redZone - uint64(size)) &^ 15
	if _, err := t.call(tid, nr, args(at)...); err != nil {
		return nil, err
	}
	b := make([]byte, size)
	_, err := t.mem.ReadAt(b, int64(at))
	return b, err
}

func words(b []byte) []uint64 {
	out := make([]uint64, len(b)/8)
	for i := range out {
		out[i] = binary.LittleEndian.Uint64(b[8*i:])
	}
	return out
}
