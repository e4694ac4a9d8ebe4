package proc

import (
	"encoding/binary"
	"fmt"
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Reg is a register of a Program: it takes the result of one call and is an argument of later ones.
type Reg uint8

const maxRegs = 16

// Outcomes of a call that fails.
const (
	must = iota // ends the program
	try         // goes on
	exec        // goes on after "no such file" and "permission denied", ends the program otherwise
)

// op is one system call. It holds no Go pointers: the child of a fork must not run write barriers.
type op struct {
	nr     uintptr
	args   [6]uintptr
	fromRg uint8 // bit i: args[i] is the number of a register
	save   uint8 // number of the register for the result plus one
	kind   uint8
	accept syscall.Errno // an error that is as good as success
	want   uintptr       // the result that counts as success where it is not 0
}

// Program is a list of system calls for a new process. Make one with NewProgram, add calls, and fork it once. It is not
// for use by several goroutines.
type Program struct {
	ops    []op
	what   []string
	pins   runtime.Pinner
	regs   [maxRegs]uintptr
	nregs  int
	report [2]int32 // index of the op that failed, errno
	closed bool
}

// NewProgram returns an empty program. Close releases it.
func NewProgram() *Program {
	p := &Program{}
	for i := range p.regs {
		p.regs[i] = ^uintptr(0) // no descriptor, where the call that should set it fails
	}
	return p
}

// Close releases the memory of the program and its arguments. It is called after Fork: see ForkSpec.OwnMemory. A second call
// does nothing.
func (p *Program) Close() {
	if !p.closed {
		p.closed = true
		p.pins.Unpin()
	}
}

// Str returns the address of s as a string that ends with a zero byte.
func (p *Program) Str(s string) uintptr { return p.Bytes(append([]byte(s), 0)) }

// Bytes returns the address of b, which must not be changed or be empty. Calls may write to it in the child only.
func (p *Program) Bytes(b []byte) uintptr {
	p.pins.Pin(&b[0])
	return uintptr(unsafe.Pointer(&b[0]))
}

// Strs returns the address of a list of strings that ends with a nil pointer, as execve takes it.
func (p *Program) Strs(list []string) uintptr {
	n := len(list) + 1
	for _, s := range list {
		n += len(s)/8 + 1
	}
	// One block of memory holds the pointers and then the strings.
	block := make([]uintptr, n)
	p.pins.Pin(&block[0])
	base := uintptr(unsafe.Pointer(&block[0]))
	text := unsafe.Slice((*byte)(unsafe.Pointer(&block[0])), n*8)
	at := (len(list) + 1) * 8
	for i, s := range list {
		block[i] = base + uintptr(at)
		copy(text[at:], s)
		at += len(s) + 1
	}
	return base
}

// Call adds a system call whose failure ends the program. what says in words what it does, for the error.
func (p *Program) Call(what string, nr uintptr, args ...uintptr) *Step {
	return p.add(must, what, nr, args)
}

// Try adds a system call whose failure does not matter.
func (p *Program) Try(what string, nr uintptr, args ...uintptr) *Step {
	return p.add(try, what, nr, args)
}

// Exec adds an execve of path. Where there is no such file, or it may not be executed, the next step follows; so several
// in a row search a command as a shell does.
func (p *Program) Exec(path string, argv, envp uintptr) {
	p.add(exec, "execute "+path, unix.SYS_EXECVE, []uintptr{p.Str(path), argv, envp})
}

// ExecAt adds an execve of an open file.
func (p *Program) ExecAt(what string, fd int, argv, envp uintptr) {
	p.add(exec, what, unix.SYS_EXECVEAT, []uintptr{uintptr(fd), p.Str(""), argv, envp, unix.AT_EMPTY_PATH})
}

// Step is a call of a program that can be refined.
type Step struct {
	p *Program
	i int
}

// Accept takes e for success.
func (s *Step) Accept(e syscall.Errno) *Step {
	s.p.ops[s.i].accept = e
	return s
}

// Want makes every result but n, which is not 0, a failure with ECANCELED.
func (s *Step) Want(n int) *Step {
	s.p.ops[s.i].want = uintptr(n)
	return s
}

// Save keeps the call's result in a new register. A program has sixteen.
func (s *Step) Save() Reg {
	r := s.p.nregs
	s.p.nregs++
	s.p.ops[s.i].save = uint8(r + 1)
	return Reg(r)
}

// Into keeps the call's result in a register that Save has made.
func (s *Step) Into(r Reg) { s.p.ops[s.i].save = uint8(r + 1) }

// Arg makes argument i the value of r.
func (s *Step) Arg(i int, r Reg) *Step {
	o := &s.p.ops[s.i]
	o.args[i], o.fromRg = uintptr(r), o.fromRg|1<<i
	return s
}

func (p *Program) add(kind uint8, what string, nr uintptr, args []uintptr) *Step {
	o := op{nr: nr, kind: kind}
	copy(o.args[:], args)
	p.ops = append(p.ops, o)
	p.what = append(p.what, what)
	return &Step{p, len(p.ops) - 1}
}

// Len returns how many calls the program has.
func (p *Program) Len() int { return len(p.ops) }

// reportSize is the size in bytes of what a child writes about its failure.
const reportSize = 8

// Failure is a step of a program that failed in the child.
type Failure struct {
	What  string        // of the step
	Errno syscall.Errno // of the call
	Exec  bool          // it was the execution of the command, and not a step before it
}

// Error says what failed and why.
func (f *Failure) Error() string { return fmt.Sprintf("%s: %v", f.What, f.Errno) }

// Unwrap returns the error number.
func (f *Failure) Unwrap() error { return f.Errno }

// Decode returns what a child reported, nil for an empty report, which a child leaves that has executed its command.
func (p *Program) Decode(report []byte) error {
	if len(report) == 0 {
		return nil
	}
	if len(report) != reportSize {
		return fmt.Errorf("read the child's report: %d bytes", len(report))
	}
	i := int(int32(binary.NativeEndian.Uint32(report)))
	e := syscall.Errno(binary.NativeEndian.Uint32(report[4:]))
	if i < 0 || i > len(p.ops) || len(p.ops) == 0 {
		return fmt.Errorf("read the child's report: step %d of %d", i, len(p.ops))
	}
	if i == len(p.ops) {
		return &Failure{p.what[i-1], e, true}
	}
	return &Failure{p.what[i], e, p.ops[i].kind == exec}
}
