package share

import (
	"encoding/binary"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

// errno is an error of the guest's kernel. Numbers of the host's may differ.
type errno int32

const (
	ePERM        errno = 1
	eNOENT       errno = 2
	eIO          errno = 5
	eBADF        errno = 9
	eACCES       errno = 13
	eEXIST       errno = 17
	eNOTDIR      errno = 20
	eINVAL       errno = 22
	eNFILE       errno = 23
	eFBIG        errno = 27
	eROFS        errno = 30
	eNAMETOOLONG errno = 36
	eNOLCK       errno = 37
	eNOSYS       errno = 38
	eNODATA      errno = 61
	ePROTO       errno = 71
	eOVERFLOW    errno = 75
	eNOTSUP      errno = 95
	eSTALE       errno = 116
)

func (e errno) Error() string { return "error " + strconv.Itoa(int(e)) + " of the guest" }

// Types of files in the guest's kernel.
const (
	typeMask = 0o170000
	typeDir  = 0o040000
	typeFile = 0o100000
	typeLink = 0o120000
)

// safeMode returns the mode that a guest may give to a file: a program that it has put into a directory of the host runs as
// who starts it.
func safeMode(mode uint32, dir bool) uint32 {
	mode &= 0o7777
	if !dir {
		mode &^= setUser | setGroup
	}
	return mode
}

// The bits of a mode beside those of who may do what.
const (
	setUser  = 0o4000
	setGroup = 0o2000
	sticky   = 0o1000
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
	maxLinks   = 8       // names of one file
	maxEntries = 1 << 20 // of a directory that is open
)

// budget counts the names that all open directories of a share remember, which a guest may open as often as it likes. Its
// zero value is ready.
type budget struct{ used atomic.Int64 }

const maxListed = 2 * maxEntries

// take asks for n names more.
func (b *budget) take(n int) bool {
	if b.used.Add(int64(n)) <= maxListed {
		return true
	}
	b.give(n)
	return false
}

// give takes back n names.
func (b *budget) give(n int) { b.used.Add(-int64(n)) }

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

// attr is what the guest is told of a file. Times that are zero are those of the protocol.
type attr struct {
	ino, size, blocks         uint64
	atime, mtime, ctime       time.Time
	mode, nlink, uid, gid, io uint32 // io is the size that reads and writes have best
}

func (r *reply) attr(a attr) {
	r.u64(a.ino, a.size, a.blocks)
	var parts [3]uint32
	for i, t := range []time.Time{a.atime, a.mtime, a.ctime} {
		var sec uint64
		if !t.IsZero() {
			sec, parts[i] = uint64(t.Unix()), uint32(t.Nanosecond())
		}
		r.u64(sec)
	}
	r.u32(parts[:]...)
	r.u32(a.mode, a.nlink, a.uid, a.gid, 0, a.io, 0)
}

// attrOut tells of a file that the guest knows.
func (r *reply) attrOut(a attr) {
	r.u64(uint64(validity / time.Second))
	r.u32(uint32(validity%time.Second), 0)
	r.attr(a)
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

// direntLen is how long a name in a directory is; plus is with what is told of the file.
func direntLen(name string, plus bool) int {
	const entrySize, direntSize = 128, 24
	n := direntSize + (len(name)+7)&^7
	if plus {
		n += entrySize
	}
	return n
}

// unknownIno is the number of a file in a list where that is not known.
const unknownIno = 0xffffffff

// answerer works on a message that has a reply.
type answerer func(op uint32, node uint64, msg []byte, r *reply) errno

// write writes the reply to a message that answer works on, and returns how long it is.
func (answer answerer) write(msg, out []byte) int {
	r := &reply{b: out, at: replyHeader}
	code := answer(binary.LittleEndian.Uint32(msg[4:]), binary.LittleEndian.Uint64(msg[16:]), msg, r)
	if r.full {
		code = eIO
	}
	if code != 0 {
		r.at = replyHeader
	}
	binary.LittleEndian.PutUint32(out, uint32(r.at))
	binary.LittleEndian.PutUint32(out[4:], uint32(-int32(code)))
	copy(out[8:16], msg[8:16])
	return r.at
}

// forgetting lets fn forget what a message says, and tells whether it is such a one, which has no reply.
func forgetting(msg []byte, fn func(id, count uint64)) bool {
	body := msg[headerSize:]
	switch binary.LittleEndian.Uint32(msg[4:]) {
	case opForget:
		fn(binary.LittleEndian.Uint64(msg[16:]), binary.LittleEndian.Uint64(body))
		return true
	case opBatchForget:
		for b := body[8:]; len(b) >= 16; b = b[16:] {
			fn(binary.LittleEndian.Uint64(b), binary.LittleEndian.Uint64(b[8:]))
		}
		return true
	}
	return false
}

// The flags of the protocol that this side agrees to: reads at once, large messages, entries with attributes, looks into one
// directory at once, and what was read being dropped where a file has changed.
const wanted = 1<<0 | 1<<5 | 1<<12 | 1<<13 | 1<<18 | flagMaxPages

const flagMaxPages = 1 << 22

// killPriv lets the guest's kernel write without asking for attributes each time: programs do not change their user on a
// share.
const killPriv = 1 << 28

// greet answers the first message, and agrees to those of the flags that both sides know.
func greet(body []byte, known uint32, r *reply) {
	const page = 4096
	flags := binary.LittleEndian.Uint32(body[12:]) & known
	r.u32(7, 31, min(binary.LittleEndian.Uint32(body[8:]), maxWrite), flags)
	r.u32(maxInFlight|maxInFlight*3/4<<16, maxWrite, 1, maxWrite/page)
	r.u32(0, 0, 0, 0, 0, 0, 0, 0)
}

// Where the guest finds a file that it asks once whether it can be polled, see the agent.
const (
	pollName = ".go-fuse-epoll-hack"
	pollNode = 1 << 63
)

func pollAttr() attr { return attr{ino: pollNode, mode: typeFile | 0o444, nlink: 1, io: 4096} }

// The bits that say what a change of attributes changes.
const (
	setMode     = 1 << 0
	setUID      = 1 << 1
	setGID      = 1 << 2
	setSize     = 1 << 3
	setAtime    = 1 << 4
	setMtime    = 1 << 5
	setFH       = 1 << 6
	setAtimeNow = 1 << 7
	setMtimeNow = 1 << 8
)
