package mux

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

// Link is the guest's end of what carries the sessions, for example a virtio-serial port. One goroutine reads and one
// writes at a time.
type Link interface {
	// Read returns io.EOF while the host is away; the link stays usable. Another error is the end of the link. Close
	// makes a Read under way return.
	// Write waits while the host does not take bytes. Close and a write deadline make a Write under way return.
	io.ReadWriteCloser
	// SetWriteDeadline bounds writes, those under way included, and the zero time takes the bound away. It is used to
	// get out of a Write that waits for a host that will not come back.
	SetWriteDeadline(t time.Time) error
	// WaitPeer waits until the host is there, and returns at once where it is. It is called after Read has returned
	// io.EOF. An error other than that of ctx is the end of the link. Close makes it return.
	WaitPeer(ctx context.Context) error
}

// Listener hands the streams that the host opens to those who handle their ports. It is the guest's end. The zero value
// is ready to use.
type Listener struct {
	mu    sync.Mutex
	ports map[uint32]func(net.Conn)
}

// Handle makes fn serve each stream to a port, in a goroutine of its own, from now on. fn closes the stream; one that it
// leaves open is closed when it returns. A nil fn ends the handling of the port.
func (l *Listener) Handle(port uint32, fn func(net.Conn)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ports == nil {
		l.ports = make(map[uint32]func(net.Conn))
	}
	l.ports[port] = fn
}

// Serve runs sessions on link, one after the other, until ctx or the link ends. It owns link and closes it. It returns
// when all handlers have returned, with the error that ended it: never nil, and that of ctx where ctx ended.
func (l *Listener) Serve(ctx context.Context, link Link) error {
	var handlers sync.WaitGroup
	defer handlers.Wait()
	stop := context.AfterFunc(ctx, func() { link.Close() })
	defer func() {
		stop()
		link.Close()
	}()
	r := bufio.NewReaderSize(link, readBuffer)
	for {
		err := l.session(r, link, &handlers)
		if ctx.Err() != nil {
			return fmt.Errorf("serve mux: %w", context.Cause(ctx))
		}
		switch {
		case err == nil:
			continue
		case !errors.Is(err, io.ErrUnexpectedEOF):
			return fmt.Errorf("serve mux: %w", err)
		}
		r.Reset(link) // what is left is half a frame of a host that is gone
		if err := link.WaitPeer(ctx); err != nil {
			return fmt.Errorf("serve mux: wait for the host: %w", err)
		}
	}
}

// session runs one handshake and one session. It returns nil where the host began another session or broke the protocol,
// and io.ErrUnexpectedEOF where the host went away.
func (l *Listener) session(r *bufio.Reader, link Link, handlers *sync.WaitGroup) error {
	if err := guestHandshake(r, link); err != nil {
		return err
	}
	c := newCore(link, func(st *stream) bool { return l.serve(st, handlers) })
	c.run(r, func() {
		if errors.Is(c.cause(), errWrite) {
			link.Close() // the read under way must return
			return
		}
		link.SetWriteDeadline(time.Now())
	})
	if err := c.cause(); !errors.Is(err, ErrProtocol) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return err
	}
	if err := link.SetWriteDeadline(time.Time{}); err != nil {
		return err
	}
	if errors.Is(c.cause(), io.ErrUnexpectedEOF) {
		return io.ErrUnexpectedEOF
	}
	return nil
}

// guestHandshake answers the hello that is the last to come, and returns when its session begins.
func guestHandshake(r *bufio.Reader, w io.Writer) error {
	var asked bool
	var want nonce
	for {
		kind, n, err := scan(r)
		if err != nil {
			return readError(err)
		}
		switch {
		case kind == kindHello && !(asked && n == want):
			asked, want = true, n
			if _, err := w.Write(token(kindAck, n)); err != nil {
				return fmt.Errorf("write to the link: %w", err)
			}
		case kind == kindGo && asked && n == want:
			return take(r)
		}
	}
}

// serve starts the handler of a stream's port, and tells whether there is one.
func (l *Listener) serve(st *stream, handlers *sync.WaitGroup) bool {
	l.mu.Lock()
	fn := l.ports[st.port]
	l.mu.Unlock()
	if fn == nil {
		return false
	}
	handlers.Go(func() {
		defer st.Close()
		fn(st)
	})
	return true
}
