package checkpoint

import (
	"encoding/binary"
	"fmt"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// thread is what a stopped thread consists of.
type thread struct {
	regs     unix.PtraceRegs
	xstate   []byte    // registers of floating-point numbers and vectors
	mask     uint64    // blocked signals
	altStack [3]uint64 // stack for signals: address, flags, size
	tid      uint64    // address at which its number is, which the kernel clears when it ends; 0 is none
	robust   [2]uint64 // list of its robust mutexes: address, size
	rseq     rseq
}

// rseq is what a thread has registered for restartable sequences: struct ptrace_rseq_configuration.
type rseq struct {
	addr      uint64
	size      uint32
	signature uint32
	flags, _  uint32
}

// What x/sys does not have.
const (
	ptraceGetSigmask = 0x420a
	ptraceGetRseq    = 0x420f
	ntX86XState      = 0x202
	prGetTIDAddress  = 40
	archSetFS        = 0x1002
)

func ptrace(request, tid int, addr, data uintptr) error {
	if _, _, e := syscall.Syscall6(unix.SYS_PTRACE, uintptr(request), uintptr(tid), addr, data, 0, 0); e != 0 {
		return e
	}
	return nil
}

func (t *tracer) thread(tid int) (th thread, err error) {
	if err := unix.PtraceGetRegs(tid, &th.regs); err != nil {
		return th, fmt.Errorf("read registers: %w", err)
	}
	if th.regs.Gs_base != 0 {
		return th, refused("a segment GS")
	}
	b := make([]byte, 64<<10)
	v := unix.Iovec{Base: &b[0], Len: uint64(len(b))}
	if err := ptrace(unix.PTRACE_GETREGSET, tid, ntX86XState, uintptr(unsafe.Pointer(&v))); err != nil {
		return th, fmt.Errorf("read registers of vectors: %w", err)
	}
	th.xstate = b[:v.Len]
	if err := ptrace(ptraceGetSigmask, tid, unsafe.Sizeof(th.mask), uintptr(unsafe.Pointer(&th.mask))); err != nil {
		return th, fmt.Errorf("read the mask of signals: %w", err)
	}
	if err := ptrace(ptraceGetRseq, tid, unsafe.Sizeof(th.rseq), uintptr(unsafe.Pointer(&th.rseq))); err != nil {
		return th, fmt.Errorf("read what is registered for restartable sequences: %w", err)
	}
	_, _, e := syscall.Syscall(unix.SYS_GET_ROBUST_LIST, uintptr(tid), uintptr(unsafe.Pointer(&th.robust[0])), uintptr(unsafe.Pointer(&th.robust[1])))
	if e != 0 {
		return th, fmt.Errorf("read the list of robust mutexes: %w", e)
	}
	if b, err = t.ask(tid, 8, unix.SYS_PRCTL, func(at uint64) []uint64 { return []uint64{prGetTIDAddress, at} }); err != nil {
		return th, fmt.Errorf("read where its number is: %w", err)
	}
	th.tid = words(b)[0]
	if b, err = t.ask(tid, 24, unix.SYS_SIGALTSTACK, func(at uint64) []uint64 { return []uint64{0, at} }); err != nil {
		return th, fmt.Errorf("read the stack for signals: %w", err)
	}
	copy(th.altStack[:], words(b))
	return th, nil
}

// What the kernel has, negative, as the result of a system call that a stop has interrupted and that begins anew.
const (
	restartSys    = 512
	restartNoIntr = 513
	restartNoHand = 514
	restartBlock  = 516 // with what is left of its time
)

// resumed returns the registers with which another thread goes on: a system call that was interrupted is made anew, and one
// that counts time has been interrupted by a signal.
func (th *thread) resumed() unix.PtraceRegs {
	r := th.regs
	if int64(r.Orig_rax) < 0 {
		return r
	}
	switch -int64(r.Rax) {
	case restartSys, restartNoIntr, restartNoHand:
		r.Rax = r.Orig_rax
		r.Rip -= 2 // the length of the instruction
	case restartBlock:
		r.Rax = ^uint64(unix.EINTR) + 1
	}
	return r
}

// frame adds a signal frame, struct ucontext, from which a thread returns to where it was, and returns its address.
func (s *script) frame(th *thread) uint64 {
	vectors := s.put(vectorFrame(th.xstate), 64)
	r := th.resumed()
	const flags = 1 | 2 | 4 // UC_FP_XSTATE, UC_SIGCONTEXT_SS, UC_STRICT_RESTORE_SS
	var b []byte
	add := func(all ...uint64) {
		for _, v := range all {
			b = binary.LittleEndian.AppendUint64(b, v)
		}
	}
	add(flags, 0, th.altStack[0], th.altStack[1], th.altStack[2])
	add(r.R8, r.R9, r.R10, r.R11, r.R12, r.R13, r.R14, r.R15, r.Rdi, r.Rsi, r.Rbp, r.Rbx, r.Rdx, r.Rax, r.Rcx, r.Rsp, r.Rip, r.Eflags)
	add(r.Cs&0xffff|r.Ss<<48, 0, 0, 0, 0, vectors)
	add(make([]uint64, 8)...)
	add(th.mask)
	return s.put(b, 16)
}

// vectorFrame returns registers as they stand in a signal frame. What ptrace reads has the features of the processor where a frame has a
// description of itself.
func vectorFrame(xstate []byte) []byte {
	const at, end = 464, 512
	le := binary.LittleEndian
	b := append([]byte(nil), xstate...)
	features := le.Uint64(b[at:])
	clear(b[at:end])
	le.PutUint32(b[at:], 0x46505853) // FP_XSTATE_MAGIC1
	le.PutUint32(b[at+4:], uint32(len(b)+4))
	le.PutUint64(b[at+8:], features)
	le.PutUint32(b[at+16:], uint32(len(b)))
	return le.AppendUint32(b, 0x46505845) // FP_XSTATE_MAGIC2
}

// resume adds the steps that make the threads and let all go on.
func (s *script) resume(threads []thread) error {
	const shared = unix.CLONE_VM | unix.CLONE_FS | unix.CLONE_FILES | unix.CLONE_SIGHAND | unix.CLONE_THREAD | unix.CLONE_SYSVSEM
	main := s.steps
	for i := range threads[1:] {
		s.steps = nil
		s.goOn(&threads[1+i])
		s.threads = append(s.threads, s.steps)
	}
	s.steps = main
	first := &threads[0]
	s.add(0, unix.SYS_ARCH_PRCTL, archSetFS, first.regs.Fs_base)
	s.add(0, unix.SYS_SET_TID_ADDRESS, first.tid).store = first.tid
	for i, th := range threads[1:] {
		flags := uint64(shared | unix.CLONE_SETTLS)
		if th.tid != 0 {
			flags |= unix.CLONE_PARENT_SETTID | unix.CLONE_CHILD_CLEARTID
		}
		s.add(forks, unix.SYS_CLONE, flags, 0, th.tid, th.tid, th.regs.Fs_base).child = uint64(i)
	}
	s.goOn(first)
	return nil
}

// goOn adds the steps of one thread.
func (s *script) goOn(th *thread) {
	if th.robust[0] != 0 {
		s.add(0, unix.SYS_SET_ROBUST_LIST, th.robust[0], th.robust[1])
	}
	if th.rseq.addr != 0 {
		s.add(0, unix.SYS_RSEQ, th.rseq.addr, uint64(th.rseq.size), 0, uint64(th.rseq.signature))
	}
	s.add(resumes, unix.SYS_RT_SIGRETURN, s.frame(th))
}
