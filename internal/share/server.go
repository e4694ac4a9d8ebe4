package share

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"sync"

	"github.com/arcboxlabs/arcbox-go/agent/api"
)

// The guest's kernel always asks for the attributes of the files in a directory when it asks for the names: looking at a
// file here costs a hundredth of what a question for one takes on its way.
const (
	// maxWrite is how many bytes of a file go into one message.
	maxWrite = 256 << 10
	// maxInFlight bounds the messages that are worked on at once.
	maxInFlight = 64
	// maxWaiting bounds those that wait for a lock, beside them.
	maxWaiting = 1 << 10
)

// The header of a request: length, operation, number, node, user, group, process, two more.
const headerSize = 40

// The operations of the protocol.
const (
	opLookup      = 1
	opForget      = 2
	opGetAttr     = 3
	opSetAttr     = 4
	opReadlink    = 5
	opSymlink     = 6
	opMknod       = 8
	opMkdir       = 9
	opUnlink      = 10
	opRmdir       = 11
	opRename      = 12
	opLink        = 13
	opOpen        = 14
	opRead        = 15
	opWrite       = 16
	opStatFS      = 17
	opRelease     = 18
	opFsync       = 20
	opSetXAttr    = 21
	opGetXAttr    = 22
	opListXAttr   = 23
	opRemoveXAttr = 24
	opFlush       = 25
	opInit        = 26
	opOpenDir     = 27
	opReadDir     = 28
	opReleaseDir  = 29
	opFsyncDir    = 30
	opGetLk       = 31
	opSetLk       = 32
	opSetLkWait   = 33
	opAccess      = 34
	opCreate      = 35
	opInterrupt   = 36
	opDestroy     = 38
	opBatchForget = 42
	opFallocate   = 43
	opReadDirPlus = 44
	opRename2     = 45
	opLseek       = 46
	opCopy        = 47
)

// backend is a file system that is served.
type backend interface {
	// handle works on a message that check has passed, and writes the reply, if there is one, to out, which has room for
	// it. ok is false where that cannot be.
	handle(msg, out []byte) (n int, ok bool)
	// onAhead sets who tells the guest to read a directory. It is called before handle.
	onAhead(aheadFunc)
	// end makes those calls of handle return that wait for something: there are no more.
	end()
}

// server answers the messages of one share.
type server struct {
	fs     backend
	stream Stream
	slots  chan struct{}
	waits  chan struct{}
	wg     sync.WaitGroup
}

// serve answers messages until the stream ends, and returns when nothing of it is left.
func serve(fs backend, stream Stream) {
	s := &server{fs: fs, stream: stream, slots: make(chan struct{}, maxInFlight), waits: make(chan struct{}, maxWaiting)}
	fs.onAhead(s.ahead)
	defer s.wg.Wait()
	defer fs.end()
	defer stream.Close()
	for {
		kind, msg, err := stream.Recv()
		if err != nil || kind != api.FrameFuse {
			return
		}
		s.take(msg)
	}
}

// ahead tells the guest to read a directory.
func (s *server) ahead(a api.ReadAhead) {
	b, err := json.Marshal(a)
	if err == nil && s.stream.Send(api.FrameAhead, b) != nil {
		s.stream.Close()
	}
}

// take works on a message: those whose order matters at once, the others at the side.
func (s *server) take(msg []byte) {
	size, code := check(msg)
	if code != 0 {
		s.refuse(msg, code)
		return
	}
	switch binary.LittleEndian.Uint32(msg[4:]) {
	case opForget, opInit, opInterrupt, opBatchForget:
		s.answer(msg, size)
		return
	case opSetLkWait: // it may wait for another one, which has to be answered
		select {
		case s.waits <- struct{}{}:
		default:
			s.refuse(msg, eNOLCK)
			return
		}
		s.wg.Go(func() {
			defer func() { <-s.waits }()
			s.answer(msg, size)
		})
		return
	}
	s.slots <- struct{}{}
	s.wg.Go(func() {
		defer func() { <-s.slots }()
		s.answer(msg, size)
	})
}

// answer works on a message and sends the reply, where it has one.
func (s *server) answer(msg []byte, size int) {
	out := make([]byte, size)
	n, ok := s.handle(msg, out)
	if !ok {
		s.refuse(msg, eIO)
		return
	}
	if n > 0 && s.stream.Send(api.FrameFuse, out[:n]) != nil {
		s.stream.Close()
	}
}

// handle lets the file system work on a message. What it makes of one must not end the program.
func (s *server) handle(msg, out []byte) (n int, ok bool) {
	defer func() {
		if recover() != nil {
			n, ok = 0, false
		}
	}()
	return s.fs.handle(msg, out)
}

// refuse answers a message with an error, where it says what number it has.
func (s *server) refuse(msg []byte, code errno) {
	if len(msg) < 16 {
		s.stream.Close() // the peer does not speak the protocol
		return
	}
	switch binary.LittleEndian.Uint32(msg[4:]) {
	case opForget, opBatchForget, opInterrupt:
		return // nobody waits
	}
	out := binary.LittleEndian.AppendUint32(nil, 16)
	out = binary.LittleEndian.AppendUint32(out, uint32(-int32(code)))
	out = append(out, msg[8:16]...)
	if s.stream.Send(api.FrameFuse, out) != nil {
		s.stream.Close()
	}
}

// check tells whether the library can parse a message, and how long its reply can be.
func check(msg []byte) (size int, code errno) {
	if len(msg) < headerSize || uint64(binary.LittleEndian.Uint32(msg)) != uint64(len(msg)) || len(msg) > maxWrite+4096 {
		return 0, eINVAL
	}
	if binary.LittleEndian.Uint16(msg[36:]) != 0 { // extensions, which nobody has agreed on
		return 0, eINVAL
	}
	op := binary.LittleEndian.Uint32(msg[4:])
	f, ok := formOf(op)
	if !ok {
		return 0, eNOSYS
	}
	body := msg[headerSize:]
	if len(body) < f.input || bytes.Count(body[f.input:], []byte{0}) < f.names {
		return 0, eINVAL
	}
	size = 512
	if op == opReadlink {
		size += pathMax
	}
	if f.sized >= 0 {
		n := binary.LittleEndian.Uint32(body[f.sized:])
		if n > maxWrite {
			return 0, eINVAL
		}
		size += int(n)
	}
	switch op {
	case opInit:
		if binary.LittleEndian.Uint32(body) != 7 || binary.LittleEndian.Uint32(body[4:]) < 31 {
			return 0, ePROTO
		}
	case opWrite:
		if uint64(binary.LittleEndian.Uint32(body[16:])) != uint64(len(body)-f.input) {
			return 0, eINVAL
		}
	}
	return size, 0
}

// form is the form of a request after its header.
type form struct {
	input int // bytes
	names int // strings with a zero byte that follow
	sized int // where it says how long the reply may be; -1 is nowhere
}

// formOf returns the form of an operation. One that is not there is not supported: ioctl, and what is newer than all that.
func formOf(op uint32) (form, bool) {
	switch op {
	case opReadlink, opStatFS, opDestroy:
		return form{0, 0, -1}, true
	case opLookup, opUnlink, opRmdir, opRemoveXAttr:
		return form{0, 1, -1}, true
	case opSymlink:
		return form{0, 2, -1}, true
	case opForget, opInterrupt, opBatchForget, opOpen, opOpenDir, opAccess:
		return form{8, 0, -1}, true
	case opMkdir, opLink, opSetXAttr:
		return form{8, 1, -1}, true
	case opRename:
		return form{8, 2, -1}, true
	case opGetXAttr:
		return form{8, 1, 0}, true
	case opListXAttr:
		return form{8, 0, 0}, true
	case opGetAttr, opFsync, opFsyncDir, opInit:
		return form{16, 0, -1}, true
	case opMknod, opCreate:
		return form{16, 1, -1}, true
	case opRename2:
		return form{16, 2, -1}, true
	case opRelease, opFlush, opReleaseDir, opLseek:
		return form{24, 0, -1}, true
	case opFallocate:
		return form{32, 0, -1}, true
	case opRead, opReadDir, opReadDirPlus:
		return form{40, 0, 16}, true
	case opGetLk, opSetLk, opSetLkWait:
		return form{48, 0, -1}, true
	case opWrite:
		return form{40, 0, -1}, true
	case opCopy:
		return form{56, 0, -1}, true
	case opSetAttr:
		return form{88, 0, -1}, true
	}
	return form{}, false
}
