package proc

import (
	"fmt"
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// cloneArgs is struct clone_args of the kernel, version 2.
type cloneArgs struct {
	flags      uint64
	_          [3]uint64 // pidfd, child_tid, parent_tid
	exitSignal uint64
	_          [5]uint64 // stack, stack_size, tls, set_tid, set_tid_size
	cgroup     uint64
}

// ForkSpec says how Fork makes the child.
type ForkSpec struct {
	Flags  uintptr // CLONE_NEW* flags
	Cgroup int     // file descriptor of the cgroup to be born in, -1 for the parent's own
	Report int     // file descriptor of a pipe to which the child writes a failure; the program keeps it open

	// OwnMemory gives the child a copy of the parent's memory, which takes longer the more that has. Otherwise it shares the
	// parent's until it executes, and the program is closed no earlier than it has done that or has ended.
	OwnMemory bool

	// PIDs is the file descriptor of a process in whose PID namespace the child is born, a pidfd; 0 is the parent's own.
	// A namespace whose first process has ended is ESRCH or ENOMEM.
	PIDs int
}

// Fork makes a child that runs the program, and returns its process number. The parent goes on
// at once, whatever the program waits for.
//
// The child inherits every file descriptor: the program closes what the command must not get. All signals are blocked
// in the child and have their default action: the program unblocks them.
//
// Whoever reaps children calls Fork by Reaper.Start.
func (p *Program) Fork(spec ForkSpec) (int, error) {
	if len(p.ops) == 0 || p.nregs > maxRegs {
		return 0, fmt.Errorf("fork: a program of %d steps and %d registers", len(p.ops), p.nregs)
	}
	args := &cloneArgs{
		flags:      uint64(spec.Flags) | unix.CLONE_CLEAR_SIGHAND,
		exitSignal: uint64(unix.SIGCHLD),
	}
	if spec.Cgroup >= 0 {
		args.flags |= unix.CLONE_INTO_CGROUP
		args.cgroup = uint64(spec.Cgroup)
	}
	p.report = [2]int32{int32(len(p.ops)), int32(unix.ENOENT)} // unless a step fails
	var pin runtime.Pinner
	defer pin.Unpin()
	pin.Pin(args)
	p.pins.Pin(p)
	p.pins.Pin(&p.ops[0])
	if !spec.OwnMemory {
		args.flags |= unix.CLONE_VM
	}
	all, old := new(unix.Sigset_t), new(unix.Sigset_t)
	for i := range all.Val {
		all.Val[i] = ^all.Val[i]
	}
	pin.Pin(all)
	pin.Pin(old)
	own := -1
	if spec.PIDs > 0 {
		var err error
		if own, err = unix.Open("/proc/self/ns/pid", unix.O_RDONLY|unix.O_CLOEXEC, 0); err != nil {
			return 0, fmt.Errorf("open the own PID namespace: %w", err)
		}
		defer unix.Close(own)
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	join := pidNamespaces{spec.PIDs, own}
	pid, e, lost := fork(p, args, all, old, uintptr(spec.Report), join)
	if lost {
		runtime.LockOSThread() // the thread ends with its goroutine
	}
	if e != 0 {
		return 0, fmt.Errorf("clone: %w", e)
	}
	return int(pid), nil
}

// pidNamespaces are where a child is born, 0 for the parent's own namespace, and where the thread's children are born
// otherwise.
type pidNamespaces struct{ child, own int }

// clone calls clone3, and returns in the parent. In the child it runs the program: it ends the process where a step fails, and
// where no step executed a command. The memory may be that of the parent, which goes on to use it, the stack included: so it
// is written in assembly, and touches no stack, nor anything but the program.
//
//go:noescape
func clone(args *cloneArgs, size uintptr, p *Program, report uintptr) (pid uintptr, e syscall.Errno)

// fork clones. No signal handler of the Go runtime may run in the child, hence the mask. It must not grow the stack, allocate,
// or be preempted, and neither must what it calls.
//
// A thread has a PID namespace for its children. It is another one only here, where the runtime starts no thread: one
// with such a namespace cannot. lost tells that the thread's own could not be set again.
//
//go:norace
//go:nosplit
func fork(p *Program, args *cloneArgs, all, old *unix.Sigset_t, report uintptr, ns pidNamespaces) (pid uintptr, e syscall.Errno, lost bool) {
	const sigsetSize = 8
	syscall.RawSyscall6(unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, uintptr(unsafe.Pointer(all)), uintptr(unsafe.Pointer(old)), sigsetSize, 0, 0)
	if ns.child > 0 {
		_, _, e = syscall.RawSyscall6(unix.SYS_SETNS, uintptr(ns.child), unix.CLONE_NEWPID, 0, 0, 0, 0)
	}
	if e == 0 {
		pid, e = clone(args, unsafe.Sizeof(*args), p, report)
	}
	if ns.child > 0 {
		_, _, back := syscall.RawSyscall6(unix.SYS_SETNS, uintptr(ns.own), unix.CLONE_NEWPID, 0, 0, 0, 0)
		lost = back != 0
	}
	syscall.RawSyscall6(unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, uintptr(unsafe.Pointer(old)), 0, sigsetSize, 0, 0)
	return pid, e, lost
}
