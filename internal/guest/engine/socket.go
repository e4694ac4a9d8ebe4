package engine

import (
	"context"
	"fmt"
	"net"
	"sync"

	"github.com/arcboxlabs/arcbox-go/agent/api"
	"github.com/arcboxlabs/arcbox-go/internal/errs"
)

// Listener is a Backend that makes Unix sockets which containers can mount by an id. Closing the listener takes the socket
// away. The id was checked; one that is taken is ErrExists.
type Listener interface {
	Listen(ctx context.Context, id string) (net.Listener, error)
}

// sockets has the sockets of the host in the guest.
type sockets struct {
	mu   sync.Mutex
	byID map[string]*socket
}

// socket hands the connections of a listener to those who ask for one.
type socket struct {
	conns chan net.Conn
	done  chan struct{} // closed when there are no more
}

func (s *sockets) add(id string) (*socket, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.byID[id] != nil {
		return nil, fmt.Errorf("socket %s: %w", id, errs.ErrExists)
	}
	if s.byID == nil {
		s.byID = make(map[string]*socket)
	}
	k := &socket{conns: make(chan net.Conn), done: make(chan struct{})}
	s.byID[id] = k
	return k, nil
}

func (s *sockets) get(id string) (*socket, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if k := s.byID[id]; k != nil {
		return k, nil
	}
	return nil, fmt.Errorf("socket %.150q: %w", id, errs.ErrNotFound)
}

func (s *sockets) remove(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.byID, id)
}

// listen makes a socket that is there until the host ends the stream.
func (e *Engine) listen(ctx context.Context, req api.ListenRequest, st *api.Stream, accept func() error) error {
	if err := checkID("socket", req.ID); err != nil {
		return err
	}
	b, ok := e.backend.(Listener)
	if !ok {
		return fmt.Errorf("listen: %w", errs.ErrUnsupported)
	}
	ctx, end, ok := e.bulk.begin(ctx)
	if !ok {
		return fmt.Errorf("listen: %w: the guest is powering off", errs.ErrClosed)
	}
	defer end()
	k, err := e.sockets.add(req.ID)
	if err != nil {
		return err
	}
	defer e.sockets.remove(req.ID)
	l, err := b.Listen(ctx, req.ID)
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	defer l.Close()
	ctx = st.CloseRead(ctx)
	wg.Go(func() { k.run(ctx, l) })
	if err := accept(); err != nil {
		return err
	}
	select {
	case <-ctx.Done():
	case <-k.done: // nobody can connect any more: the host learns it
	}
	return nil
}

// run accepts one connection after the other, each when the one before has been taken: the rest waits in the kernel.
func (k *socket) run(ctx context.Context, l net.Listener) {
	defer close(k.done)
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		select {
		case k.conns <- c:
		case <-ctx.Done():
			c.Close()
			return
		}
	}
}

// accept waits for a connection to a socket, and carries it in the stream.
func (e *Engine) accept(ctx context.Context, req api.AcceptRequest, st *api.Stream, accept func() error) error {
	k, err := e.sockets.get(req.ID)
	if err != nil {
		return err
	}
	var t tunnel
	defer t.close()
	ctx = st.HandleFrames(ctx, t.frame)
	select {
	case c := <-k.conns:
		t.set(c)
	case <-k.done:
		return fmt.Errorf("socket %s: %w: it is closed", req.ID, errs.ErrNotFound)
	case <-ctx.Done():
		return ctx.Err()
	}
	if err := accept(); err != nil {
		return err
	}
	return t.run(ctx, st)
}
