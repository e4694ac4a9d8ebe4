package mux

import (
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"sync"
	"time"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
)

// Addr is the address of a stream: a port of the guest.
type Addr uint32

// Network returns "arcbox".
func (a Addr) Network() string { return "arcbox" }

// String returns the port in decimal.
func (a Addr) String() string { return strconv.FormatUint(uint64(a), 10) }

// stream is one stream: a net.Conn with CloseWrite. Close ends both directions; what was written before still arrives,
// and the peer's writes fail with io.ErrClosedPipe from then on.
type stream struct {
	c        *core
	id, port uint32

	mu         sync.Mutex
	rcond      sync.Cond
	wcond      sync.Cond
	buf        ring
	credit     int  // bytes that may be sent
	used       int  // bytes read since the last window frame
	end        byte // frameFin, frameClose or frameRefuse once the peer has sent it
	wclosed    bool
	closed     bool
	rdead      deadline
	wdead      deadline
	gone       chan struct{} // closed once the peer has closed the stream, or the session has ended
	goneSet    bool
	writerBusy bool // a Write is under way: writes of several goroutines do not mix
}

var _ net.Conn = (*stream)(nil)

func newStream(c *core, id, port uint32) *stream {
	s := &stream{c: c, id: id, port: port, credit: Window, gone: make(chan struct{})}
	s.rcond.L, s.wcond.L = &s.mu, &s.mu
	return s
}

// wakeAll makes those who wait look again.
func (s *stream) wakeAll() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.c.cause() != nil {
		s.setGone()
	}
	s.rcond.Broadcast()
	s.wcond.Broadcast()
}

// Gone is closed once the peer has closed the stream, or the session has ended. So one who does not read now, because
// there is no place for what comes, learns that there is nobody any more.
func (s *stream) Gone() <-chan struct{} { return s.gone }

// setGone closes gone. s.mu is held.
func (s *stream) setGone() {
	if !s.goneSet {
		s.goneSet = true
		close(s.gone)
	}
}

// Read reads what the peer has sent. It returns io.EOF after the peer's end, net.ErrClosed after Close, and an error
// that wraps ErrUnavailable where the session has ended before the stream did.
func (s *stream) Read(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		switch {
		case s.closed:
			return 0, s.opError("read", net.ErrClosed)
		case s.rdead.passed():
			return 0, s.opError("read", os.ErrDeadlineExceeded)
		case len(p) == 0:
			return 0, nil
		case s.buf.len() > 0:
			n := s.buf.read(p)
			s.giveCredit(n)
			return n, nil
		case s.end == frameRefuse:
			return 0, s.opError("read", s.refused())
		case s.end != 0:
			return 0, io.EOF
		}
		if err := s.c.cause(); err != nil {
			return 0, s.opError("read", unavailable(err))
		}
		s.rcond.Wait()
	}
}

// giveCredit lets the peer send n bytes more, in steps. s.mu is held.
func (s *stream) giveCredit(n int) {
	s.used += n
	if s.used < Window/4 || s.end != 0 {
		return
	}
	s.c.send(frameWindow, s.id, uint32(s.used))
	s.used = 0
}

// Write sends p. It returns when the last byte is on its way, io.ErrClosedPipe where the peer has closed the stream, and
// net.ErrClosed after Close or CloseWrite.
func (s *stream) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	mine := false
	defer func() {
		if mine {
			s.writerBusy = false
			s.wcond.Broadcast()
		}
	}()
	for sent := 0; ; {
		if err := s.writeError(); err != nil {
			return sent, s.opError("write", err)
		}
		if sent == len(p) {
			return sent, nil
		}
		if !s.writerBusy {
			s.writerBusy, mine = true, true
		}
		if mine && s.credit > 0 {
			n, err := s.c.sendData(s, p[sent:min(len(p), sent+s.credit)])
			sent, s.credit = sent+n, s.credit-n
			if err != nil {
				return sent, s.opError("write", err)
			}
			if n > 0 {
				continue
			}
		}
		if err := s.c.cause(); err != nil {
			return sent, s.opError("write", unavailable(err))
		}
		s.wcond.Wait()
	}
}

func (s *stream) writeError() error {
	switch {
	case s.closed || s.wclosed:
		return net.ErrClosed
	case s.wdead.passed():
		return os.ErrDeadlineExceeded
	case s.end == frameRefuse:
		return s.refused()
	case s.end == frameClose:
		return io.ErrClosedPipe
	}
	return nil
}

func (s *stream) refused() error {
	return fmt.Errorf("%w: nothing listens on port %d of the guest", errs.ErrUnavailable, s.port)
}

// CloseWrite ends the direction to the peer: it reads io.EOF after what was written. A second call does nothing. After
// Close it fails with net.ErrClosed.
func (s *stream) CloseWrite() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return s.opError("close", net.ErrClosed)
	}
	if !s.wclosed {
		s.wclosed = true
		s.c.send(frameFin, s.id, 0)
		s.wcond.Broadcast()
	}
	return nil
}

// Close ends both directions without waiting for the peer. Calls under way fail with net.ErrClosed. A second call does
// nothing. It always returns nil.
func (s *stream) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil
	}
	s.closed = true
	s.buf = ring{}
	s.rdead.stop()
	s.wdead.stop()
	s.c.forget(s)
	if s.end != frameClose && s.end != frameRefuse {
		s.c.send(frameClose, s.id, 0)
	}
	s.rcond.Broadcast()
	s.wcond.Broadcast()
	return nil
}

// gotData takes a payload of the peer.
func (s *stream) gotData(p []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil
	}
	if s.end != 0 {
		return fmt.Errorf("%w: data after the end of stream %d", ErrProtocol, s.id)
	}
	// What was read and not yet given back counts as still here.
	if s.buf.len()+s.used+len(p) > Window {
		return fmt.Errorf("%w: stream %d sent more than its window", ErrProtocol, s.id)
	}
	s.buf.write(p)
	s.rcond.Broadcast()
	return nil
}

// gotWindow takes the peer's permission to send more.
func (s *stream) gotWindow(n uint32) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if n == 0 || int64(s.credit)+int64(n) > Window {
		return fmt.Errorf("%w: window of stream %d too large", ErrProtocol, s.id)
	}
	s.credit += int(n)
	s.wcond.Broadcast()
	return nil
}

// gotEnd takes frameFin, frameClose or frameRefuse.
func (s *stream) gotEnd(kind byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.end == 0 || s.end == frameFin {
		s.end = kind
	}
	if s.end != frameFin {
		s.setGone()
	}
	s.rcond.Broadcast()
	s.wcond.Broadcast()
}

// LocalAddr returns the port the stream was opened to.
func (s *stream) LocalAddr() net.Addr { return Addr(s.port) }

// RemoteAddr returns the port the stream was opened to.
func (s *stream) RemoteAddr() net.Addr { return Addr(s.port) }

// SetDeadline sets both deadlines.
func (s *stream) SetDeadline(t time.Time) error {
	if err := s.SetReadDeadline(t); err != nil {
		return err
	}
	return s.SetWriteDeadline(t)
}

// SetReadDeadline bounds reads, those under way included. The zero time is none.
func (s *stream) SetReadDeadline(t time.Time) error { return s.setDeadline(&s.rdead, &s.rcond, t) }

// SetWriteDeadline bounds writes, those under way included. The zero time is none.
func (s *stream) SetWriteDeadline(t time.Time) error { return s.setDeadline(&s.wdead, &s.wcond, t) }

func (s *stream) setDeadline(d *deadline, c *sync.Cond, t time.Time) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return s.opError("set", net.ErrClosed)
	}
	d.set(t, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		c.Broadcast()
	})
	c.Broadcast()
	return nil
}

// opError is the gate through which the errors of a stream pass. io.EOF stays bare.
func (s *stream) opError(op string, err error) error {
	return &net.OpError{Op: op, Net: Addr(0).Network(), Addr: Addr(s.port), Err: err}
}

// deadline is a point in time with a wake-up. Its owner's lock guards it.
type deadline struct {
	at    time.Time
	timer *time.Timer
}

func (d *deadline) passed() bool { return !d.at.IsZero() && !time.Now().Before(d.at) }

func (d *deadline) set(t time.Time, wake func()) {
	d.stop()
	d.at = t
	if wait := time.Until(t); !t.IsZero() && wait > 0 {
		d.timer = time.AfterFunc(wait, wake)
	}
}

func (d *deadline) stop() {
	if d.timer != nil {
		d.timer.Stop()
		d.timer = nil
	}
}
