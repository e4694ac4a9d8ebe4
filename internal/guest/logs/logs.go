// Package logs keeps what the processes of containers write, in files.
//
// A log is a directory of files with rising numbers, of which the oldest go. A file is a row of blocks of 32 KiB, and a
// block a row of records, none of which goes over its end. A record is a piece of what was written at one time, with a
// checksum. So a log that lost its tail, or was damaged in the middle, is read on from the next block, and its end is
// found without reading its beginning. Lines are made by the reader: what is written is kept at once, whole line or not.
package logs

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// The format of a record: checksum of all that follows, length of the payload, flags, time in nanoseconds since 1970,
// payload. Numbers are little endian. A length of 0 ends a block.
const (
	blockSize  = 32 << 10
	headerSize = 4 + 2 + 1 + 8
	maxWrite   = 2 * blockSize // bytes that go into the file at once

	flagStderr = 1 << 0
	flagStart  = 1 << 1 // the payload begins a line of its stream
	flagLost   = 1 << 2 // the payload is the number of bytes that could not be kept, 8 bytes
)

// The limits of a log that names none, and the least ones.
const (
	DefaultSize  = 10 << 20
	DefaultFiles = 3
	MinSize      = 4 * blockSize
)

// Options bounds a log. The zero value is the default.
type Options struct {
	MaxSize  int64 // bytes of one file; 0 is DefaultSize, less than MinSize is MinSize
	MaxFiles int   // the newest included; 0 is DefaultFiles
}

// Log is the log of a container that may still write. Make one with New. Its methods may be called from many goroutines.
type Log struct {
	dir      string
	maxSize  int64
	maxFiles int

	mu      sync.Mutex
	f       *os.File // nil until the first record
	end     position
	begun   bool    // what an earlier log left in dir was looked at
	middle  [2]bool // the stream is within a line
	lost    uint64  // bytes that could not be kept since the last record
	buf     []byte  // of a write
	changed chan struct{}
	closed  bool
}

// position is a place in a log.
type position struct {
	seq int // number of the file; 0 is before the first
	off int64
}

// New returns the log in dir, which goes on where an earlier one ended. It makes dir, but not its parent, with the first
// write.
func New(dir string, o Options) *Log {
	l := &Log{dir: dir, maxSize: o.MaxSize, maxFiles: o.MaxFiles}
	if l.maxSize == 0 {
		l.maxSize = DefaultSize
	}
	l.maxSize = max(l.maxSize, MinSize)
	if l.maxFiles <= 0 {
		l.maxFiles = DefaultFiles
	}
	return l
}

// Write keeps p as written to one of the streams at a time. It never fails: what cannot be kept, for lack of space, is
// counted, and the log has the count in its place. After Close it does nothing.
func (l *Log) Write(stderr bool, at time.Time, p []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for len(p) > 0 && !l.closed {
		n := min(len(p), maxWrite)
		if err := l.write(stderr, at, p[:n]); err != nil {
			l.lost += uint64(n)
			l.middle = [2]bool{} // what comes next is not the rest of what came before
		}
		p = p[n:]
	}
	if l.changed != nil {
		close(l.changed)
		l.changed = nil
	}
}

// Close ends the log: those who follow it read to its end. A second call does nothing.
func (l *Log) Close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return
	}
	if l.lost > 0 {
		_ = l.write(false, time.Now(), nil) // the count, where there is space for that
	}
	l.closed = true
	if l.f != nil {
		l.f.Close() // what it tells was told to a write
	}
	l.begun = true // nothing more is opened
	if l.changed != nil {
		close(l.changed)
		l.changed = nil
	}
}

// write keeps p, at most maxWrite bytes, and before it the count of what was lost.
func (l *Log) write(stderr bool, at time.Time, p []byte) error {
	if err := l.open(int64(len(p))); err != nil {
		return err
	}
	var flags byte
	if stderr {
		flags = flagStderr
	}
	l.buf = l.buf[:0]
	if l.lost > 0 {
		l.append(flagLost|flagStart, at, binary.LittleEndian.AppendUint64(nil, l.lost))
	}
	stream := flags & flagStderr
	start := !l.middle[stream]
	for rest := p; len(rest) > 0; {
		n := min(len(rest), l.room())
		f := flags
		if start {
			f |= flagStart
		}
		l.append(f, at, rest[:n])
		start = rest[n-1] == '\n'
		rest = rest[n:]
	}
	if _, err := l.f.WriteAt(l.buf, l.end.off); err != nil {
		_ = l.f.Truncate(l.end.off) // a reader skips what it leaves
		return fmt.Errorf("write log: %w", err)
	}
	l.end.off += int64(len(l.buf))
	l.middle[stream], l.lost = !start, 0
	return nil
}

// room returns how much payload fits into the block that the next record goes to. It fills one up that has no room.
func (l *Log) room() int {
	left := blockSize - int(l.end.off+int64(len(l.buf)))%blockSize
	if left <= headerSize {
		l.buf = append(l.buf, make([]byte, left)...)
		left = blockSize
	}
	return left - headerSize
}

// append adds a record to buf. It fills the block up where the record does not fit.
func (l *Log) append(flags byte, at time.Time, p []byte) {
	if room := l.room(); room < len(p) {
		l.buf = append(l.buf, make([]byte, room+headerSize)...)
	}
	from := len(l.buf)
	l.buf = append(l.buf, 0, 0, 0, 0)
	l.buf = binary.LittleEndian.AppendUint16(l.buf, uint16(len(p)))
	l.buf = append(l.buf, flags)
	l.buf = binary.LittleEndian.AppendUint64(l.buf, uint64(at.UnixNano()))
	l.buf = append(l.buf, p...)
	binary.LittleEndian.PutUint32(l.buf[from:], crc32.ChecksumIEEE(l.buf[from+4:]))
}

// open makes f the file that a record of n bytes goes to.
func (l *Log) open(n int64) error {
	if err := l.look(); err != nil {
		return err
	}
	if l.f != nil && l.end.off+n+8*headerSize <= l.maxSize {
		return nil
	}
	seq := l.end.seq + 1
	f, err := os.OpenFile(fileName(l.dir, seq), os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("begin a file of the log: %w", err)
	}
	if l.f != nil {
		l.f.Close()
	}
	l.f, l.end = f, position{seq, 0}
	l.prune()
	return nil
}

// look calls begin once it succeeds.
func (l *Log) look() error {
	if l.begun {
		return nil
	}
	err := l.begin()
	l.begun = err == nil
	return err
}

// prune deletes the oldest files.
func (l *Log) prune() {
	list, err := files(l.dir)
	for i := 0; err == nil && i < len(list)-l.maxFiles; i++ {
		_ = os.Remove(fileName(l.dir, list[i])) // the next time
	}
}

// begin looks at what an earlier log has left. A torn record at its end is cut off.
func (l *Log) begin() error {
	if err := os.Mkdir(l.dir, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return fmt.Errorf("make log: %w", err)
	}
	list, err := files(l.dir)
	if err != nil || len(list) == 0 {
		return err
	}
	seq := list[len(list)-1]
	l.end.seq = seq // where it cannot be opened, the next one is begun
	f, err := os.OpenFile(fileName(l.dir, seq), os.O_RDWR, 0)
	if err != nil {
		return nil
	}
	end, err := lastEnd(f)
	if err == nil {
		err = f.Truncate(end)
	}
	if err != nil {
		f.Close()
		return nil
	}
	l.f, l.end.off = f, end
	return nil
}

// lastEnd returns where the last whole record of a file ends.
func lastEnd(f *os.File) (int64, error) {
	st, err := f.Stat()
	if err != nil {
		return 0, err
	}
	from := max(0, st.Size()-1) / blockSize * blockSize
	b := make([]byte, st.Size()-from)
	if _, err := f.ReadAt(b, from); err != nil {
		return 0, err
	}
	for off := 0; ; {
		_, n := parse(b[off:])
		if n == 0 {
			return from + int64(off), nil
		}
		off += n
	}
}

// wait returns the end of the log once it is another than seen, and whether more may come.
func (l *Log) wait(done <-chan struct{}, seen position) (position, bool) {
	for {
		l.mu.Lock()
		end, closed := l.end, l.closed
		if closed || end != seen {
			l.mu.Unlock()
			return end, !closed
		}
		if l.changed == nil {
			l.changed = make(chan struct{})
		}
		changed := l.changed
		l.mu.Unlock()
		select {
		case <-changed:
		case <-done:
			return end, false
		}
	}
}

// snapshot returns the end of the log as it is.
func (l *Log) snapshot() position {
	l.mu.Lock()
	defer l.mu.Unlock()
	_ = l.look() // a write tries again
	return l.end
}

const suffix = ".log"

func fileName(dir string, seq int) string {
	return filepath.Join(dir, fmt.Sprintf("%08d%s", seq, suffix))
}

// files returns the numbers of a log's files, the oldest first. A log that is not there has none.
func files(dir string) ([]int, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list log: %w", err)
	}
	var list []int
	for _, e := range entries {
		digits, ok := strings.CutSuffix(e.Name(), suffix)
		n, err := strconv.ParseUint(digits, 10, 31)
		if ok && err == nil && n > 0 && e.Name() == filepath.Base(fileName(dir, int(n))) {
			list = append(list, int(n))
		}
	}
	slices.Sort(list)
	return list, nil
}

// record is a piece of what a stream has written.
type record struct {
	flags   byte
	at      int64 // nanoseconds since 1970
	payload []byte
}

// parse returns the record at the beginning of b, which ends with its block or before, and its length in the file: 0
// where there is none.
func parse(b []byte) (record, int) {
	if len(b) <= headerSize {
		return record{}, 0
	}
	n := headerSize + int(binary.LittleEndian.Uint16(b[4:]))
	if n == headerSize || n > len(b) || crc32.ChecksumIEEE(b[4:n]) != binary.LittleEndian.Uint32(b) {
		return record{}, 0
	}
	return record{b[6], int64(binary.LittleEndian.Uint64(b[7:])), b[headerSize:n]}, n
}
