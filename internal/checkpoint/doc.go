// Package checkpoint saves a process that stands still as a program, from which any number of processes go on: each has the
// memory, the threads and the open files of the one that was saved, and shares the memory that it does not write with the
// others.
//
// The program, called an image, is an ELF executable. Its one segment is a loader and its script, a list of system calls that was
// made when the process was saved: they map the memory, from the image and from the files that the process had mapped, open
// the descriptors, make the threads, and let each return to where it was as from a signal handler. So a process goes on by one execve,
// in which nobody has to help, and without any right. To save one takes ptrace, which a parent may do to its child.
//
// Memory that a process has written is mapped from the image, privately. Were the process to drop it, it would find there
// what was saved, and not zeros; so that madvise refuses MADV_DONTNEED, by a seccomp filter, as systems do that do not know
// it.
//
// It is made for emulators whose machine is stopped, and refuses what such a process does not have: other files than those
// of Spec, sockets of its own, timers, shared memory. All else that the process knows stays as it was, addresses and the
// state of random number generators included: who lets many processes go on from one image sees to it that no secret of
// theirs rests on these.
//
// An image is good until the host's kernel is started anew, and as long as the files that the process had mapped are what they were: see Check.
package checkpoint

import (
	"fmt"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
)

// Spec says what of a process is not saved, because one that goes on is given its own.
type Spec struct {
	// Given is how many descriptors, from 0, the process got from its parent. One that goes on gets as many of its own, under
	// the same numbers.
	Given int
	// Memory is the path of a file that the process has mapped shared. One that goes on maps the file that it is given in its
	// place. "" is none.
	Memory string
	// Filter is the seccomp filter of a process that goes on, in place of those that the process had: struct sock_filter, 8
	// bytes each, little endian. It must allow what the loader does after it: clone for threads, set_robust_list, rseq,
	// rt_sigreturn. nil is none.
	Filter []byte
}

// Mode says how a process goes on. The zero value maps its memory privately.
type Mode struct {
	// Shared maps the file of its memory shared; the file must be open for writing too then.
	Shared bool
	// Eager has it begin with more of the memory that others have used: see Preload.
	Eager bool
}

// Args returns the arguments, after the image's path, of a process that goes on. The name, of up to 15 bytes, is that of its
// threads. Its descriptors are those that Spec.Given counts, then the image, then the file of its memory where Spec has one.
func Args(name string, m Mode) []string {
	mode := '0'
	if m.Shared {
		mode |= modeShared
	}
	if m.Eager {
		mode |= modeEager
	}
	return []string{name, string(mode)}
}

// The bits of a mode, as the loader knows it.
const (
	modeShared = 1
	modeEager  = 2
)

// Collision is the exit status of a process that did not go on because the kernel had put something of its own where memory
// of the image belongs. The kernel does so at random, so the next one will succeed. Every other process that does not go on has the number of an error of the system as its
// status.
const Collision = 17 // EEXIST

// Used is the memory that a process uses: see Look.
type Used struct{ read, written []Range }

// refused is the error for what a process has that cannot be saved.
func refused(format string, args ...any) error {
	return fmt.Errorf(format+": %w: it cannot be saved", append(args, errs.ErrUnsupported)...)
}
