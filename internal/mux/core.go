package mux

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
)

// Window is how many bytes of a stream one side may send before the other has read them.
const Window = 512 << 10

// A frame is a header of one byte kind, three bytes zero, four bytes stream id and four bytes argument, big endian, and
// for frameData as many bytes of payload as the argument says.
const (
	headerSize = 12
	maxPayload = 32 << 10 // the size of the buffers of io.Copy, so that each makes one frame
	maxFrame   = headerSize + maxPayload
	readBuffer = 64 << 10
	outLimit   = 256 << 10 // bytes that wait for the link before writers wait
)

const (
	frameOpen   = 1 + iota // argument: port; by the host only
	frameData              // argument: length
	frameWindow            // argument: how many more bytes may be sent
	frameFin               // the sender will send no more
	frameClose             // the sender will send no more and throws away what comes
	frameRefuse            // the guest has nobody on the port
)

// ErrProtocol is what the error of a session wraps that ended because the peer broke the protocol.
var ErrProtocol = errors.New("protocol error of the peer")

// errWrite is what an error of the link's Write is wrapped in. It is the end of the link.
var errWrite = errors.New("write to the link")

// core is a session: what both ends share. Locks are taken in the order stream.mu, core.mu.
type core struct {
	link   io.Writer
	accept func(*stream) bool // serves a stream that the peer has opened; nil: the peer must not open any
	dead   chan struct{}      // closed when the session has ended
	wake   chan struct{}      // capacity 1: out has something

	mu      sync.Mutex
	streams map[uint32]*stream
	last    uint32 // highest stream id so far
	out     []byte // frames that wait for the link
	waiters map[*stream]struct{}
	err     error // why the session has ended
}

func newCore(link io.Writer, accept func(*stream) bool) *core {
	return &core{
		link: link, accept: accept,
		dead: make(chan struct{}), wake: make(chan struct{}, 1),
		streams: make(map[uint32]*stream), waiters: make(map[*stream]struct{}),
	}
}

// run reads and writes frames until the session ends. It calls unblock, which must make pending calls on the link
// return, as soon as the session has ended, and returns when nothing of the session uses the link any more.
func (c *core) run(r *bufio.Reader, unblock func()) {
	var wg sync.WaitGroup
	wg.Go(func() { c.fail(c.writeLoop()) })
	wg.Go(func() { <-c.dead; unblock() })
	c.fail(c.readLoop(r))
	wg.Wait()
}

// fail ends the session. The first call decides why.
func (c *core) fail(err error) {
	c.mu.Lock()
	if c.err != nil {
		c.mu.Unlock()
		return
	}
	c.err = err
	streams := c.streams
	c.streams, c.waiters, c.out = nil, nil, nil
	close(c.dead)
	c.mu.Unlock()
	for _, st := range streams {
		st.wakeAll()
	}
}

// cause returns why the session has ended, nil while it lives.
func (c *core) cause() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// open makes a stream to a port of the peer.
func (c *core) open(port uint32) (*stream, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return nil, unavailable(c.err)
	}
	if c.last+1 == 0 {
		return nil, fmt.Errorf("%w: the session has used up its stream numbers; connect again", errs.ErrUnavailable)
	}
	c.last++
	st := newStream(c, c.last, port)
	c.streams[st.id] = st
	c.queue(frameOpen, st.id, port, nil)
	return st, nil
}

// unavailable makes the error that users of a dead session see from why it died.
func unavailable(cause error) error {
	if errors.Is(cause, errs.ErrClosed) || errors.Is(cause, errs.ErrUnavailable) {
		return cause
	}
	return fmt.Errorf("%w: the session with the guest has ended: %w", errs.ErrUnavailable, cause)
}

// queue appends a frame to what waits for the link. c.mu is held.
func (c *core) queue(kind byte, id, arg uint32, payload []byte) {
	if c.err != nil {
		return
	}
	var h [headerSize]byte
	h[0] = kind
	binary.BigEndian.PutUint32(h[4:], id)
	binary.BigEndian.PutUint32(h[8:], arg)
	c.out = append(append(c.out, h[:]...), payload...)
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// send queues a frame without payload.
func (c *core) send(kind byte, id, arg uint32) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.queue(kind, id, arg, nil)
}

// sendData queues payload, or as much of it as fits into one frame, where there is room, and returns how much it took.
// Where there is no room it takes nothing, and st is woken when there is.
func (c *core) sendData(st *stream, payload []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return 0, unavailable(c.err)
	}
	if len(c.out) >= outLimit {
		c.waiters[st] = struct{}{}
		return 0, nil
	}
	n := min(len(payload), maxPayload)
	c.queue(frameData, st.id, uint32(n), payload[:n])
	return n, nil
}

// forget removes a stream that this side has closed.
func (c *core) forget(st *stream) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.streams, st.id)
	delete(c.waiters, st)
}

func (c *core) writeLoop() error {
	var spare []byte
	for {
		select {
		case <-c.dead:
			return nil
		case <-c.wake:
		}
		c.mu.Lock()
		if c.err != nil {
			c.mu.Unlock()
			return nil
		}
		b, waiters := c.out, c.waiters
		c.out, c.waiters = spare[:0], make(map[*stream]struct{})
		c.mu.Unlock()
		for st := range waiters {
			st.wakeAll()
		}
		if _, err := c.link.Write(b); err != nil {
			return fmt.Errorf("%w: %w", errWrite, err)
		}
		spare = b
	}
}

func (c *core) readLoop(r *bufio.Reader) error {
	for {
		// A header is only looked at until it is known to be one: if it is a token, the next handshake finds it whole.
		h, err := r.Peek(headerSize)
		if err != nil {
			return readError(err)
		}
		kind, id, arg := h[0], binary.BigEndian.Uint32(h[4:]), binary.BigEndian.Uint32(h[8:])
		if kind < frameOpen || kind > frameRefuse || h[1]|h[2]|h[3] != 0 || id == 0 {
			return fmt.Errorf("%w: not a frame", ErrProtocol)
		}
		if kind == frameData && (arg == 0 || arg > maxPayload) {
			return fmt.Errorf("%w: frame of %d bytes", ErrProtocol, arg)
		}
		r.Discard(headerSize)
		var payload []byte
		if kind == frameData {
			if payload, err = r.Peek(int(arg)); err != nil {
				return readError(err)
			}
		}
		if err := c.handle(kind, id, arg, payload); err != nil {
			return err
		}
		r.Discard(len(payload))
	}
}

// readError is the error of the link's Read. Its end is io.ErrUnexpectedEOF: for a stream's user, io.EOF is the good end
// of a stream.
func readError(err error) error {
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("read from the link: %w", err)
}

// handle does what a frame says. A frame for a stream that this side has closed is dropped.
func (c *core) handle(kind byte, id, arg uint32, payload []byte) error {
	if kind == frameOpen {
		return c.opened(id, arg)
	}
	c.mu.Lock()
	st, known := c.streams[id], id <= c.last
	c.mu.Unlock()
	if !known {
		return fmt.Errorf("%w: frame for stream %d, which was never opened", ErrProtocol, id)
	}
	if st == nil {
		return nil
	}
	switch kind {
	case frameData:
		return st.gotData(payload)
	case frameWindow:
		return st.gotWindow(arg)
	default:
		st.gotEnd(kind)
		return nil
	}
}

// opened takes a stream that the peer has opened.
func (c *core) opened(id, port uint32) error {
	if c.accept == nil {
		return fmt.Errorf("%w: it opened a stream", ErrProtocol)
	}
	c.mu.Lock()
	if c.err != nil || id <= c.last {
		c.mu.Unlock()
		return fmt.Errorf("%w: stream %d opened twice", ErrProtocol, id)
	}
	c.last = id
	st := newStream(c, id, port)
	c.streams[id] = st
	c.mu.Unlock()
	if !c.accept(st) {
		c.forget(st)
		c.send(frameRefuse, id, 0)
	}
	return nil
}
