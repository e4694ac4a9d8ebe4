package share

import (
	"encoding/binary"
	"strings"
	"time"
)

// errno is an error of the guest's kernel. Numbers of the host's may differ.
type errno int32

const (
	eNOENT       errno = 2
	eIO          errno = 5
	eBADF        errno = 9
	eACCES       errno = 13
	eINVAL       errno = 22
	eNFILE       errno = 23
	eROFS        errno = 30
	eNAMETOOLONG errno = 36
	eNOLCK       errno = 37
	eNOSYS       errno = 38
	ePROTO       errno = 71
	eSTALE       errno = 116
)

// Types of files in the guest's kernel.
const (
	typeMask = 0o170000
	typeDir  = 0o040000
	typeFile = 0o100000
	typeLink = 0o120000
)

// nameError refuses what is no name in a directory.
func nameError(name string) errno {
	switch {
	case name == "", name == ".", name == "..", strings.ContainsAny(name, "/\x00"):
		return eINVAL
	case len(name) > nameMax:
		return eNAMETOOLONG
	}
	return 0
}

const (
	pathMax = 4096 // bytes of a path in the guest, and of what a link says
	nameMax = 255
)

// The bounds of what a guest can make a share remember.
const (
	maxNodes   = 1 << 19
	maxHandles = 1 << 14
	maxLinks   = 8 // names of one file
)

// rootID is the number of a share's root in the protocol.
const rootID = 1

// reply is a reply that is being written. What does not fit is left out, and full tells.
type reply struct {
	b    []byte
	at   int
	full bool
}

const replyHeader = 16

func (r *reply) u64(list ...uint64) {
	for _, v := range list {
		if r.room(8) {
			binary.LittleEndian.PutUint64(r.b[r.at:], v)
			r.at += 8
		}
	}
}

func (r *reply) u32(list ...uint32) {
	for _, v := range list {
		if r.room(4) {
			binary.LittleEndian.PutUint32(r.b[r.at:], v)
			r.at += 4
		}
	}
}

func (r *reply) room(n int) bool {
	if r.full = r.full || len(r.b)-r.at < n; r.full {
		return false
	}
	return true
}

// bytes writes text and fills it up to a multiple of eight bytes, where pad says so.
func (r *reply) bytes(p []byte, pad bool) {
	n := len(p)
	if pad {
		n = (n + 7) &^ 7
	}
	if r.room(n) {
		clear(r.b[r.at+copy(r.b[r.at:], p) : r.at+n])
		r.at += n
	}
}

// attr is what the guest is told of a file.
type attr struct {
	ino, size uint64
	mtime     time.Time // the zero value is that of the protocol
	mode      uint32
}

func (r *reply) attr(a attr) {
	var sec uint64
	var nsec uint32
	if !a.mtime.IsZero() {
		sec, nsec = uint64(a.mtime.Unix()), uint32(a.mtime.Nanosecond())
	}
	r.u64(a.ino, a.size, (a.size+511)/512, sec, sec, sec)
	r.u32(nsec, nsec, nsec, a.mode, 1, 0, 0, 0, 4096, 0)
}

// entry tells of a file that was found; the number 0 is none.
func (r *reply) entry(id uint64, a attr) {
	r.u64(id, 1, uint64(validity/time.Second), uint64(validity/time.Second))
	r.u32(uint32(validity%time.Second), uint32(validity%time.Second))
	r.attr(a)
}

// dirent tells of a name in a directory; next is where the following one is.
func (r *reply) dirent(e listEntry, ino, next uint64) {
	r.u64(ino, next)
	r.u32(uint32(len(e.name)), e.mode>>12)
	r.bytes([]byte(e.name), true)
}
