package checkpoint

import (
	"encoding/binary"
	"fmt"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
)

// step is a system call that the loader makes. The loader knows where its fields are.
type step struct {
	nr    uint64
	args  [6]uint64
	flags uint64
	store uint64 // address at which the lower half of the result is stored; 0 is none
	child uint64 // of a thread that was made: the address of its steps; of a jump: that of the next step
}

const stepSize = 10 * 8 // bytes

// Flags of a step.
const (
	ifShared     = 1 << iota // the step is for a process with Mode.Shared
	unlessShared             // the step is for a process without
	ifEager                  // the step is for a process with Mode.Eager
	ofVDSO                   // the first argument is an offset from the vDSO
	saves                    // the result is saved
	savedFirst               // the first argument is what was saved
	savedFifth               // the fifth argument is what was saved
	named                    // the second argument is the name
	forks                    // what was made goes on with the steps at child
	resumes                  // the stack is at the first argument before the call
	mayFail                  // an error is no reason to end
	jumps                    // no call is made: the next step is at child
)

// The layout of the loader's segment.
const (
	codeAt   = 0x100  // behind the ELF headers
	dataAt   = 0x400  // behind the loader
	pageSize = 0x1000 // bytes
)

// script is what the loader does in a new process, and the data for it. While it is made, the child of a step is an index:
// of a thread in threads, of the step that is jumped to in steps.
type script struct {
	base    uint64 // address of the segment
	data    []byte
	steps   []step
	threads [][]step
}

// add adds a step, and returns it.
func (s *script) add(flags, nr uint64, args ...uint64) *step {
	st := step{nr: nr, flags: flags}
	copy(st.args[:], args)
	s.steps = append(s.steps, st)
	return &s.steps[len(s.steps)-1]
}

// leave leaves room for steps, and returns the index of the first. Until something is written there it is jumped over.
func (s *script) leave(n int) int {
	at := len(s.steps)
	s.add(jumps, 0).child = uint64(at + n)
	s.steps = append(s.steps, make([]step, n-1)...)
	return at
}

// put adds data, aligned to a power of two, and returns its address.
func (s *script) put(b []byte, align int) uint64 {
	at := s.reserve(align)
	s.data = append(s.data, b...)
	return at
}

// reserve returns the address of what is put next.
func (s *script) reserve(align int) uint64 {
	for (dataAt+len(s.data))%align != 0 {
		s.data = append(s.data, 0)
	}
	return s.base + dataAt + uint64(len(s.data))
}

// text adds a string with a zero at its end.
func (s *script) text(v string) uint64 { return s.put(append([]byte(v), 0), 1) }

// words adds numbers of 8 bytes.
func (s *script) words(v ...uint64) uint64 {
	var b []byte
	for _, w := range v {
		b = binary.LittleEndian.AppendUint64(b, w)
	}
	return s.put(b, 8)
}

// stepAddr returns the address of a step, after all data was put.
func (s *script) stepAddr(index int) uint64 { return s.reserve(8) + uint64(index)*stepSize }

// program returns an ELF executable whose one segment is the loader with the script. It fills whole pages.
func (s *script) program(code []byte) ([]byte, error) {
	first := s.stepAddr(0)
	code = append(binary.LittleEndian.AppendUint64([]byte{0x48, 0xbb}, first), code...) // movabs $first, %rbx
	if len(code) > dataAt-codeAt {
		return nil, fmt.Errorf("a loader of %d bytes: %w: there is room for %d", len(code), errs.ErrUnsupported, dataAt-codeAt)
	}
	addr := make([]uint64, len(s.threads))
	next := s.stepAddr(len(s.steps))
	for i, t := range s.threads {
		addr[i], next = next, next+uint64(len(t))*stepSize
	}
	size := int(next-s.base+pageSize-1) &^ (pageSize - 1)
	out := make([]byte, 0, size)
	out = append(out, elfHeaders(s.base, uint64(size))...)
	out = append(append(out, make([]byte, codeAt-len(out))...), code...)
	out = append(append(out, make([]byte, dataAt-len(out))...), s.data...)
	for _, list := range append([][]step{s.steps}, s.threads...) {
		for _, st := range list {
			switch {
			case st.flags&forks != 0:
				st.child = addr[st.child]
			case st.flags&jumps != 0:
				st.child = s.stepAddr(int(st.child))
			}
			out = st.append(out)
		}
	}
	return append(out, make([]byte, size-len(out))...), nil
}

func (st step) append(b []byte) []byte {
	le := binary.LittleEndian
	b = le.AppendUint64(b, st.nr)
	for _, a := range st.args {
		b = le.AppendUint64(b, a)
	}
	return le.AppendUint64(le.AppendUint64(le.AppendUint64(b, st.flags), st.store), st.child)
}

// elfHeaders are those of an executable for amd64 with one segment, read-only code, at the begin of the file.
func elfHeaders(base, size uint64) []byte {
	b := []byte{0x7f, 'E', 'L', 'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0}
	le := binary.LittleEndian
	b = le.AppendUint16(b, 2)  // ET_EXEC
	b = le.AppendUint16(b, 62) // EM_X86_64
	b = le.AppendUint32(b, 1)
	b = le.AppendUint64(b, base+codeAt)
	b = le.AppendUint64(b, 64) // program headers
	b = le.AppendUint64(b, 0)  // no sections
	b = le.AppendUint32(b, 0)
	b = le.AppendUint16(b, 64)
	b = le.AppendUint16(b, 56)
	b = le.AppendUint16(b, 2)
	b = append(b, make([]byte, 6)...)
	header := func(kind, flags uint32, addr, size, align uint64) {
		b = le.AppendUint32(b, kind)
		b = le.AppendUint32(b, flags)
		for _, v := range []uint64{0, addr, addr, size, size, align} {
			b = le.AppendUint64(b, v)
		}
	}
	header(1, 5, base, size, pageSize) // PT_LOAD, readable and executable
	header(0x6474e551, 6, 0, 0, 16)    // PT_GNU_STACK, not executable
	return b
}
