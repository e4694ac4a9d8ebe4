// Package console keeps what matters of a guest's console: its last lines, fit for logs and terminals, and the one with
// which its kernel panicked.
package console

import (
	"bytes"
	"io"
	"regexp"
	"strings"
	"sync"
	"unicode"
	"unicode/utf8"
)

// Bounds of what is kept of a guest's console.
const (
	MaxLines   = 200
	lineSize   = 1 << 10 // bytes of one line
	errorLines = 20      // of them in an error
)

// Log is a Writer that keeps the last lines of what a guest writes and passes everything on. The zero value is ready to
// use; its fields are set before the first Write.
type Log struct {
	Tee     io.Writer // gets everything as it is; nil is nobody
	OnPanic func()    // called when the guest's kernel says that it panicked, from Write; nil is nobody

	mu    sync.Mutex
	lines []string // at most MaxLines, sanitized
	line  []byte   // the unfinished last line, at most lineSize
}

// Write takes output of the guest. It never fails.
func (c *Log) Write(p []byte) (int, error) {
	if c.Tee != nil {
		c.Tee.Write(p)
	}
	if c.take(p) && c.OnPanic != nil {
		c.OnPanic()
	}
	return len(p), nil
}

// take keeps the lines of p and tells whether one of them is a panic.
func (c *Log) take(p []byte) (panicked bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for rest := p; len(rest) > 0; {
		part, after, ended := bytes.Cut(rest, []byte("\n"))
		c.line = append(c.line, part[:min(len(part), lineSize-len(c.line))]...)
		if ended {
			panicked = panicked || fromPanic.Match(c.line)
			c.finish()
		}
		rest = after
	}
	return panicked
}

// finish makes the unfinished line one of the lines. c.mu is held.
func (c *Log) finish() {
	if s := Sanitize(c.line); s != "" {
		if len(c.lines) == MaxLines {
			c.lines = append(c.lines[:0], c.lines[1:]...)
		}
		c.lines = append(c.lines, s)
	}
	c.line = c.line[:0]
}

// Tail returns the last n lines, the unfinished one included.
func (c *Log) Tail(n int) []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	lines := append([]string(nil), c.lines...)
	if s := Sanitize(c.line); s != "" {
		lines = append(lines, s)
	}
	return lines[max(0, len(lines)-n):]
}

// fromPanic matches the line as a kernel writes it, with or without its time, and not what quotes it.
var fromPanic = regexp.MustCompile(`^(\[[^\]]*\] ?)*` + panicMark)

// panicMark is in the line with which a Linux kernel panics.
const panicMark = "Kernel panic - not syncing"

// PanicLine returns the line with which the guest's kernel panicked, "" where it did not.
func (c *Log) PanicLine() string {
	for _, l := range c.Tail(MaxLines + 1) {
		if strings.Contains(l, panicMark) {
			return l
		}
	}
	return ""
}

// LastWords returns the lines that tell best why the guest ended: those up to a kernel's panic, without the trace after
// it, or the last ones.
func (c *Log) LastWords() []string {
	lines := c.Tail(MaxLines + 1)
	for i, l := range lines {
		if strings.Contains(l, panicMark) {
			lines = lines[:i+1]
			break
		}
	}
	return lines[max(0, len(lines)-errorLines):]
}

// Sanitize makes a line fit for logs and terminals: no control characters, no escape sequences, valid UTF-8, no blanks at
// its end.
func Sanitize(line []byte) string {
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
