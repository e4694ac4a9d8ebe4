package main

import (
	"bytes"
	"errors"
	"io"
	"sync"
)

// console is the shell's stdin. One goroutine reads it, and what it reads goes to the shell or to the process that has
// the console for now: a Read of a file cannot be taken back when the process ends.
type console struct {
	chunks chan []byte // closed at the end of the input
	rest   []byte      // read and not used; it belongs to whoever has the console
}

// maxLine is how long a line of the shell may be in bytes.
const maxLine = 64 << 10

var errLineTooLong = errors.New("the line is too long")

// newConsole reads r until its end, for at most one chunk more than is asked for.
func newConsole(r io.Reader) *console {
	c := &console{chunks: make(chan []byte)}
	go func() {
		defer close(c.chunks)
		for {
			buf := make([]byte, 4096)
			n, err := r.Read(buf)
			if n > 0 {
				c.chunks <- buf[:n]
			}
			if err != nil {
				return
			}
		}
	}()
	return c
}

// fill gets more input. It returns io.EOF at the end and errInterrupted when done is closed first.
func (c *console) fill(done <-chan struct{}) error {
	if len(c.rest) > 0 {
		return nil
	}
	select {
	case chunk, ok := <-c.chunks:
		if !ok {
			return io.EOF
		}
		c.rest = chunk
		return nil
	case <-done:
		return errInterrupted
	}
}

var errInterrupted = errors.New("interrupted")

// line reads a line, without its end. The last one needs none.
func (c *console) line(done <-chan struct{}) (string, error) {
	var line []byte
	tooLong := false
	for {
		switch err := c.fill(done); {
		case err == io.EOF && len(line) > 0 && !tooLong:
			return string(line), nil
		case err != nil:
			return "", err
		}
		part, rest, ended := bytes.Cut(c.rest, []byte{'\n'})
		c.rest = rest
		if tooLong = tooLong || len(line)+len(part) > maxLine; !tooLong {
			line = append(line, part...)
		}
		switch {
		case ended && tooLong:
			return "", errLineTooLong
		case ended:
			return string(bytes.TrimSuffix(line, []byte{'\r'})), nil
		}
	}
}

// lease gives the console to a process until the lease is closed.
func (c *console) lease() *lease { return &lease{c: c, done: make(chan struct{})} }

type lease struct {
	c    *console
	mu   sync.Mutex // held by Read
	done chan struct{}
	once sync.Once
}

// Read reads what comes. After close it is io.EOF, and nothing is taken from the console.
func (l *lease) Read(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	select {
	case <-l.done:
		return 0, io.EOF
	default:
	}
	if err := l.c.fill(l.done); err != nil {
		return 0, io.EOF
	}
	select {
	case <-l.done: // what came meanwhile is for the next
		return 0, io.EOF
	default:
	}
	n := copy(p, l.c.rest)
	l.c.rest = l.c.rest[n:]
	return n, nil
}

// close takes the console back. A Read in progress has ended then.
func (l *lease) close() {
	l.once.Do(func() { close(l.done) })
	l.mu.Lock()
	defer l.mu.Unlock()
}
