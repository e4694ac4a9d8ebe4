package logs

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"time"
)

// MaxLine is how many bytes of a line are handed on at once.
const MaxLine = 16 << 10

// Query says what of a log is read.
type Query struct {
	Stdout, Stderr bool
	Since, Until   time.Time // both included; the zero time is no bound
	Tail           int       // only the last lines of those that the rest of the query selects; 0 is all, less is none
	Follow         bool      // go on until the log is closed
}

// Line is a line of a log, or a piece of one that is longer than MaxLine.
type Line struct {
	At     time.Time // when its first byte came
	Stderr bool
	Text   []byte // with its newline where it has one; valid until the next line
	Lost   uint64 // bytes that could not be kept at this place; Text is empty then
}

// Read hands the lines of the log in dir to emit, in the order in which they ended. live is the log where its container
// is there, else nil. What is damaged is skipped, and so is what is deleted because the log grows faster than emit
// takes it. What is left of each stream without a newline is handed on last; with Tail that is only what was written near
// the end. Read returns when the log is read, when ctx has ended,
// with its error, or with the first error of emit.
func Read(ctx context.Context, dir string, live *Log, q Query, emit func(Line) error) error {
	if q.Follow && live != nil && !q.Until.IsZero() {
		bounded, cancel := context.WithDeadline(ctx, q.Until)
		defer cancel()
		err := read(bounded, dir, live, q, emit)
		if ctx.Err() == nil && errors.Is(err, context.DeadlineExceeded) {
			return nil
		}
		return err
	}
	return read(ctx, dir, live, q, emit)
}

func read(ctx context.Context, dir string, live *Log, q Query, emit func(Line) error) error {
	end, err := endOf(dir, live)
	if err != nil {
		return err
	}
	begin, skip, err := findTail(ctx, dir, q, end)
	if err != nil {
		return err
	}
	r := newReader(dir, q, begin)
	defer r.close()
	deliver := func(l Line) error {
		if skip > 0 {
			skip--
			return nil
		}
		return emit(l)
	}
	for more := true; ; {
		if err := r.read(ctx, end, deliver); err != nil {
			return err
		}
		if !q.Follow || live == nil || !more {
			break
		}
		end, more = live.wait(ctx.Done(), end)
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	return r.flush(deliver)
}

// endOf returns where the log ends now.
func endOf(dir string, live *Log) (position, error) {
	if live != nil {
		if end := live.snapshot(); end != (position{}) {
			return end, nil
		}
	}
	list, err := files(dir)
	if err != nil || len(list) == 0 {
		return position{}, err
	}
	seq := list[len(list)-1]
	st, err := os.Stat(fileName(dir, seq))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return position{}, fmt.Errorf("look at log: %w", err)
	}
	if err != nil {
		return position{seq, 0}, nil
	}
	return position{seq, st.Size()}, nil
}

// findTail returns where to begin to read, and how many lines to skip from there. It looks at more and more blocks before
// the end, until they have as many lines as the query wants, all of them from their beginning.
func findTail(ctx context.Context, dir string, q Query, end position) (begin position, skip int, err error) {
	switch {
	case q.Tail == 0:
		return position{}, 0, nil
	case q.Tail < 0:
		return end, 0, nil
	}
	for blocks := int64(2); ; blocks *= 4 {
		begin, err := back(dir, end, blocks)
		if err != nil {
			return begin, 0, err
		}
		lines, lastCut := 0, -1
		r := newReader(dir, q, begin)
		r.cut = func() { lastCut = lines }
		count := func(Line) error { lines++; return nil }
		if err = r.read(ctx, end, count); err == nil {
			err = r.flush(count)
		}
		r.close()
		skip := max(0, lines-q.Tail)
		if err != nil || begin == (position{}) || lines >= q.Tail && lastCut < skip {
			return begin, skip, err
		}
	}
}

// back returns the place that is some blocks before end, the zero position where the log has fewer.
func back(dir string, end position, blocks int64) (position, error) {
	list, err := files(dir)
	if err != nil {
		return position{}, err
	}
	for i := len(list) - 1; i >= 0; i-- {
		size := end.off
		if list[i] > end.seq {
			continue
		}
		if list[i] < end.seq {
			st, err := os.Stat(fileName(dir, list[i]))
			if err != nil {
				continue
			}
			size = st.Size()
		}
		n := (size + blockSize - 1) / blockSize
		if blocks < n {
			return position{list[i], (n - blocks) * blockSize}, nil
		}
		blocks -= n
	}
	return position{}, nil
}

// reader reads a log from a place on and makes lines of it.
type reader struct {
	dir   string
	q     Query
	at    position
	f     *os.File // the file of at, nil where it is not open
	block []byte
	lines [2]pending
	cut   func() // called before a line whose beginning is not there, where it is set
}

// pending is the beginning of a line.
type pending struct {
	text []byte
	at   int64
	seen bool // there was a record of the stream
	cut  bool // the beginning of the line is not there
}

func newReader(dir string, q Query, from position) *reader {
	return &reader{dir: dir, q: q, at: from, block: make([]byte, blockSize)}
}

func (r *reader) close() {
	if r.f != nil {
		r.f.Close()
		r.f = nil
	}
}

// read reads up to end.
func (r *reader) read(ctx context.Context, end position, emit func(Line) error) error {
	for r.at.seq < end.seq || r.at.seq == end.seq && r.at.off < end.off {
		if err := ctx.Err(); err != nil {
			return err
		}
		if r.f == nil {
			ok, err := r.open(end.seq)
			if err != nil || !ok {
				return err
			}
		}
		limit := end.off
		if r.at.seq < end.seq {
			st, err := r.f.Stat()
			if err != nil {
				return fmt.Errorf("look at log: %w", err)
			}
			limit = st.Size()
		}
		if r.at.off < limit {
			if err := r.readBlock(limit, emit); err != nil {
				return err
			}
		} else if r.at.seq < end.seq {
			r.close()
			r.at = position{r.at.seq + 1, 0}
		}
	}
	return nil
}

// open opens the file at the place, or where it was deleted the next one. It returns false where there is none up to the
// last.
func (r *reader) open(last int) (bool, error) {
	list, err := files(r.dir)
	if err != nil {
		return false, err
	}
	for _, seq := range list {
		if seq < r.at.seq || seq > last {
			continue
		}
		f, err := os.Open(fileName(r.dir, seq))
		if errors.Is(err, os.ErrNotExist) {
			continue // deleted just now
		}
		if err != nil {
			return false, fmt.Errorf("open log: %w", err)
		}
		if seq != r.at.seq {
			r.at = position{seq, 0}
		}
		r.f = f
		return true, nil
	}
	return false, nil
}

// readBlock reads from the place to the end of its block, or to limit.
func (r *reader) readBlock(limit int64, emit func(Line) error) error {
	to := min(limit, (r.at.off/blockSize+1)*blockSize)
	b := r.block[:to-r.at.off]
	n, err := r.f.ReadAt(b, r.at.off)
	if err != nil && err != io.EOF {
		return fmt.Errorf("read log: %w", err)
	}
	r.at.off = to
	for b = b[:n]; ; {
		rec, n := parse(b)
		if n == 0 {
			return nil // the rest is damaged, or nothing
		}
		if err := r.add(rec, emit); err != nil {
			return err
		}
		b = b[n:]
	}
}

// add makes lines of a record.
func (r *reader) add(rec record, emit func(Line) error) error {
	if rec.flags&flagLost != 0 {
		if len(rec.payload) != 8 || !r.selects(rec.at) {
			return nil
		}
		return emit(Line{At: time.Unix(0, rec.at).UTC(), Lost: binary.LittleEndian.Uint64(rec.payload)})
	}
	stderr := rec.flags&flagStderr != 0
	if stderr && !r.q.Stderr || !stderr && !r.q.Stdout {
		return nil
	}
	l := &r.lines[rec.flags&flagStderr]
	start := rec.flags&flagStart != 0
	if start && len(l.text) > 0 { // what was between them is lost
		if err := r.line(l, stderr, nil, emit); err != nil {
			return err
		}
	}
	l.cut = l.cut || !start && !l.seen
	l.seen = true
	for p := rec.payload; len(p) > 0; {
		if len(l.text) == 0 {
			l.at = rec.at
		}
		n := min(len(p), MaxLine-len(l.text))
		if i := bytes.IndexByte(p[:n], '\n'); i >= 0 {
			n = i + 1
		} else if n == len(p) && len(l.text)+n < MaxLine {
			l.text = append(l.text, p...)
			return nil
		}
		if err := r.line(l, stderr, p[:n], emit); err != nil {
			return err
		}
		p = p[n:]
	}
	return nil
}

// line hands on what is pending and p.
func (r *reader) line(l *pending, stderr bool, p []byte, emit func(Line) error) error {
	text := p
	if len(l.text) > 0 {
		text = append(l.text, p...)
	}
	l.text = l.text[:0]
	cut := l.cut
	l.cut = false
	if !r.selects(l.at) {
		return nil
	}
	if cut && r.cut != nil {
		r.cut()
	}
	return emit(Line{At: time.Unix(0, l.at).UTC(), Stderr: stderr, Text: text})
}

func (r *reader) selects(at int64) bool {
	t := time.Unix(0, at)
	return (r.q.Since.IsZero() || !t.Before(r.q.Since)) && (r.q.Until.IsZero() || !t.After(r.q.Until))
}

// flush hands on lines that have no end.
func (r *reader) flush(emit func(Line) error) error {
	for i := range r.lines {
		if l := &r.lines[i]; len(l.text) > 0 {
			if err := r.line(l, i == flagStderr, nil, emit); err != nil {
				return err
			}
		}
	}
	return nil
}
