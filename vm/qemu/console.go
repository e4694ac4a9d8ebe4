package qemu

import (
	"bytes"
	"io"
	"strings"
	"sync"
	"unicode"
	"unicode/utf8"
)

// Bounds of what is kept of a guest's console.
const (
	consoleLines    = 200
	consoleLineSize = 1 << 10 // bytes of one line
	errorLines      = 20      // of them in an error
)

// console keeps the last lines that a guest has written and passes everything on.
type console struct {
	tee io.Writer // may be nil

	mu    sync.Mutex
	lines []string // at most consoleLines, sanitized
	line  []byte   // the unfinished last line, at most consoleLineSize
}

// Write takes output of the guest. It never fails.
func (c *console) Write(p []byte) (int, error) {
	if c.tee != nil {
		c.tee.Write(p)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for rest := p; len(rest) > 0; {
		part, after, ended := bytes.Cut(rest, []byte("\n"))
		c.line = append(c.line, part[:min(len(part), consoleLineSize-len(c.line))]...)
		if ended {
			c.finish()
		}
		rest = after
	}
	return len(p), nil
}

// finish makes the unfinished line one of the lines. c.mu is held.
func (c *console) finish() {
	if s := sanitize(c.line); s != "" {
		if len(c.lines) == consoleLines {
			c.lines = append(c.lines[:0], c.lines[1:]...)
		}
		c.lines = append(c.lines, s)
	}
	c.line = c.line[:0]
}

// tail returns the last n lines, the unfinished one included.
func (c *console) tail(n int) []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	lines := append([]string(nil), c.lines...)
	if s := sanitize(c.line); s != "" {
		lines = append(lines, s)
	}
	return lines[max(0, len(lines)-n):]
}

// panicMark is in the line with which a Linux kernel panics.
const panicMark = "Kernel panic - not syncing"

// panicLine returns the line with which the guest's kernel panicked, "" where it did not.
func (c *console) panicLine() string {
	for _, l := range c.tail(consoleLines + 1) {
		if strings.Contains(l, panicMark) {
			return l
		}
	}
	return ""
}

// lastWords returns the lines that tell best why the guest ended: those up to a kernel's panic, without the trace after
// it, or the last ones.
func (c *console) lastWords() []string {
	lines := c.tail(consoleLines + 1)
	for i, l := range lines {
		if strings.Contains(l, panicMark) {
			lines = lines[:i+1]
			break
		}
	}
	return lines[max(0, len(lines)-errorLines):]
}

// sanitize makes a line fit for logs and terminals: no control characters, no escape sequences, valid UTF-8, no blanks at
// its end.
func sanitize(line []byte) string {
	var b strings.Builder
	for len(line) > 0 {
		if line[0] == 0x1b {
			line = line[escapeLen(line):]
			continue
		}
		r, n := utf8.DecodeRune(line)
		line = line[n:]
		switch {
		case r == '\t':
			b.WriteByte(' ')
		case unicode.IsPrint(r):
			b.WriteRune(r)
		case r == utf8.RuneError:
			b.WriteRune(utf8.RuneError)
		}
	}
	return strings.TrimRight(b.String(), " ")
}

// escapeLen returns the length of the escape sequence with which b begins.
func escapeLen(b []byte) int {
	if len(b) < 2 || b[1] != '[' {
		return min(2, len(b))
	}
	for i := 2; i < len(b); i++ {
		if b[i] >= 0x40 && b[i] <= 0x7e {
			return i + 1
		}
	}
	return len(b)
}

// tailBuffer is a Writer that keeps the last bytes.
type tailBuffer struct {
	limit int

	mu sync.Mutex
	b  []byte
}

// Write keeps the end of p.
func (t *tailBuffer) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.b = append(t.b, p[max(0, len(p)-t.limit):]...)
	if drop := len(t.b) - t.limit; drop > 0 {
		t.b = append(t.b[:0], t.b[drop:]...)
	}
	return len(p), nil
}

func (t *tailBuffer) bytes() []byte {
	t.mu.Lock()
	defer t.mu.Unlock()
	return bytes.Clone(t.b)
}

// String returns what is kept as one sanitized line.
func (t *tailBuffer) String() string {
	var lines []string
	for _, l := range bytes.Split(t.bytes(), []byte("\n")) {
		if s := sanitize(l); s != "" {
			lines = append(lines, s)
		}
	}
	return strings.Join(lines, "; ")
}
