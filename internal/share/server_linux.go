package share

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"log/slog"
	"sync"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

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
	// killPriv lets the guest's kernel write without asking for attributes each time: programs do not change their user on
	// a share.
	killPriv = 1 << 28
)

// The header of a request: length, operation, number, node, user, group, process, two more.
const headerSize = 40

// The operations that are looked at before the library parses them.
const (
	opForget      = 2
	opReadlink    = 5
	opWrite       = 16
	opInit        = 26
	opSetLkWait   = 33
	opInterrupt   = 36
	opBatchForget = 42
)

// server answers the messages of one share.
type server struct {
	ps     *fuse.ProtocolServer
	stream Stream
	slots  chan struct{}
	waits  chan struct{}
	wg     sync.WaitGroup
}

// serve answers messages until the stream ends, and returns when nothing of it is left.
func serve(fs fuse.RawFileSystem, stream Stream) {
	s := &server{
		ps: fuse.NewProtocolServer(fs, &fuse.MountOptions{
			MaxWrite: maxWrite, MaxReadAhead: maxWrite, MaxBackground: maxInFlight, DisableSplice: true, Logger: slog.NewLogLogger(slog.DiscardHandler, slog.LevelInfo),
			EnableLocks:       true,
			ExtraCapabilities: fuse.CAP_ASYNC_DIO | killPriv,
			PanicHandler:      func(any) fuse.Status { return fuse.EIO },
		}),
		stream: stream, slots: make(chan struct{}, maxInFlight), waits: make(chan struct{}, maxWaiting),
	}
	if f, ok := fs.(interface{ onAhead(aheadFunc) }); ok {
		f.onAhead(s.ahead)
	}
	defer s.wg.Wait()
	if f, ok := fs.(interface{ end() }); ok {
		defer f.end()
	}
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
	size, errno := check(msg)
	if errno != 0 {
		s.refuse(msg, errno)
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
			s.refuse(msg, unix.ENOLCK)
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
		s.refuse(msg, unix.EIO)
		return
	}
	if n > 0 && s.stream.Send(api.FrameFuse, out[:n]) != nil {
		s.stream.Close()
	}
}

// handle lets the library work on a message. What it, or a caller's file system, makes of a message must not end the
// program.
func (s *server) handle(msg, out []byte) (n int, ok bool) {
	defer func() {
		if recover() != nil {
			n, ok = 0, false
		}
	}()
	n, st := s.ps.HandleRequest([][]byte{msg}, [][]byte{out})
	return n, st == fuse.OK
}

// refuse answers a message with an error, where it says what number it has.
func (s *server) refuse(msg []byte, errno unix.Errno) {
	if len(msg) < 16 {
		s.stream.Close() // the peer does not speak the protocol
		return
	}
	switch binary.LittleEndian.Uint32(msg[4:]) {
	case opForget, opBatchForget, opInterrupt:
		return // nobody waits
	}
	out := binary.LittleEndian.AppendUint32(nil, 16)
	out = binary.LittleEndian.AppendUint32(out, uint32(-int32(errno)))
	out = append(out, msg[8:16]...)
	if s.stream.Send(api.FrameFuse, out) != nil {
		s.stream.Close()
	}
}

// check tells whether the library can parse a message, and how long its reply can be.
func check(msg []byte) (size int, errno unix.Errno) {
	if len(msg) < headerSize || uint64(binary.LittleEndian.Uint32(msg)) != uint64(len(msg)) || len(msg) > maxWrite+4096 {
		return 0, unix.EINVAL
	}
	if binary.LittleEndian.Uint16(msg[36:]) != 0 { // extensions, which nobody has agreed on
		return 0, unix.EINVAL
	}
	op := binary.LittleEndian.Uint32(msg[4:])
	f, ok := formOf(op)
	if !ok {
		return 0, unix.ENOSYS
	}
	body := msg[headerSize:]
	if len(body) < f.input || bytes.Count(body[f.input:], []byte{0}) < f.names {
		return 0, unix.EINVAL
	}
	size = 512
	if op == opReadlink {
		size += unix.PathMax
	}
	if f.sized >= 0 {
		n := binary.LittleEndian.Uint32(body[f.sized:])
		if n > maxWrite {
			return 0, unix.EINVAL
		}
		size += int(n)
	}
	switch op {
	case opInit:
		if binary.LittleEndian.Uint32(body) != 7 || binary.LittleEndian.Uint32(body[4:]) < 31 {
			return 0, unix.EPROTO
		}
	case opWrite:
		if uint64(binary.LittleEndian.Uint32(body[16:])) != uint64(len(body)-f.input) {
			return 0, unix.EINVAL
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
	case 5, 17, 38: // readlink, statfs, destroy
		return form{0, 0, -1}, true
	case 1, 10, 11, 24: // lookup, unlink, rmdir, removexattr
		return form{0, 1, -1}, true
	case 6: // symlink
		return form{0, 2, -1}, true
	case opForget, opInterrupt, opBatchForget, 14, 27, 34: // open, opendir, access
		return form{8, 0, -1}, true
	case 9, 13, 21: // mkdir, link, setxattr
		return form{8, 1, -1}, true
	case 12: // rename
		return form{8, 2, -1}, true
	case 22: // getxattr
		return form{8, 1, 0}, true
	case 23: // listxattr
		return form{8, 0, 0}, true
	case 3, 20, 30, opInit: // getattr, fsync, fsyncdir
		return form{16, 0, -1}, true
	case 8, 35: // mknod, create
		return form{16, 1, -1}, true
	case 45: // rename2
		return form{16, 2, -1}, true
	case 18, 25, 29, 46: // release, flush, releasedir, lseek
		return form{24, 0, -1}, true
	case 43: // fallocate
		return form{32, 0, -1}, true
	case 15, 28, 44: // read, readdir, readdirplus
		return form{40, 0, 16}, true
	case 31, 32, opSetLkWait: // getlk, setlk
		return form{48, 0, -1}, true
	case opWrite:
		return form{40, 0, -1}, true
	case 47: // copy_file_range
		return form{56, 0, -1}, true
	case 4: // setattr
		return form{88, 0, -1}, true
	}
	return form{}, false
}
