// Package socket offers sockets of the host, or what a function connects to, to the containers of a guest.
//
// The agent has a Unix socket in the guest, which containers mount. Each connection to it becomes a stream to the host, which
// connects by a function and joins the two.
package socket

import (
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/arcboxlabs/arcbox-go/agent/api"
	"github.com/arcboxlabs/arcbox-go/internal/errs"
	"github.com/arcboxlabs/arcbox-go/internal/splice"
)

// Dial makes the host's side of a connection. Its ctx ends with the socket.
type Dial func(ctx context.Context) (net.Conn, error)

// Agent has the sockets in the guest.
type Agent interface {
	Listen(ctx context.Context, req api.ListenRequest) (io.Closer, error)
	Accept(ctx context.Context, req api.AcceptRequest) (net.Conn, error)
}

// The bounds of one socket.
const (
	acceptors   = 4    // that wait for a connection at a time
	maxConns    = 1024 // that are open; more wait in the guest
	dialTimeout = 30 * time.Second
)

// Set has the sockets of one guest. Make one with NewSet and close it.
type Set struct {
	agent Agent
	log   *slog.Logger

	mu     sync.Mutex
	closed bool
	all    map[*socket]struct{}
	wg     sync.WaitGroup
}

// socket is one socket in the guest.
type socket struct {
	set    *Set
	id     string
	dial   Dial
	ctx    context.Context
	cancel context.CancelFunc
	slots  chan struct{} // has a token for each connection
}

// NewSet returns a set without sockets. A nil log is silent.
func NewSet(a Agent, log *slog.Logger) *Set {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Set{agent: a, log: log, all: make(map[*socket]struct{})}
}

// Add makes a socket in the guest whose connections dial makes on the host, and returns its id there. release closes it and
// all its connections; a second call does nothing. After Close it is ErrClosed.
func (s *Set) Add(ctx context.Context, dial Dial) (id string, release func(), err error) {
	k := &socket{set: s, id: strings.ToLower(rand.Text()), dial: dial, slots: make(chan struct{}, maxConns)}
	k.ctx, k.cancel = context.WithCancel(context.Background())
	if !s.begin(k) {
		k.cancel()
		return "", nil, fmt.Errorf("offer a socket: %w: the machine has ended", errs.ErrClosed)
	}
	l, err := s.agent.Listen(ctx, api.ListenRequest{ID: k.id})
	if err != nil {
		s.end(k)
		return "", nil, err
	}
	go func() { // Close waits for it
		defer s.end(k)
		defer l.Close()
		var conns sync.WaitGroup
		defer conns.Wait()
		var wg sync.WaitGroup
		for range acceptors {
			wg.Go(func() { k.accept(&conns) })
		}
		wg.Wait()
	}()
	return k.id, k.cancel, nil
}

func (s *Set) begin(k *socket) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	s.all[k] = struct{}{}
	s.wg.Add(1)
	return true
}

func (s *Set) end(k *socket) {
	k.cancel()
	s.mu.Lock()
	delete(s.all, k)
	s.mu.Unlock()
	s.wg.Done()
}

// Close closes all sockets and their connections, refuses new ones, and returns when nothing of them is left. It may be
// called again.
func (s *Set) Close() {
	s.mu.Lock()
	s.closed = true
	for k := range s.all {
		k.cancel()
	}
	s.mu.Unlock()
	s.wg.Wait()
}

// accept takes one connection after the other. When the guest has none any more, the socket ends.
func (k *socket) accept(conns *sync.WaitGroup) {
	defer k.cancel()
	for {
		select {
		case k.slots <- struct{}{}:
		case <-k.ctx.Done():
			return
		}
		in, err := k.set.agent.Accept(k.ctx, api.AcceptRequest{ID: k.id})
		if err != nil {
			if k.ctx.Err() == nil {
				k.set.log.Debug("a socket of the host in the guest has ended", "err", err)
			}
			return
		}
		conns.Go(func() {
			defer func() { <-k.slots }()
			k.serve(in)
		})
	}
}

func (k *socket) serve(in net.Conn) {
	ctx, cancel := context.WithTimeout(k.ctx, dialTimeout)
	defer cancel()
	out, err := k.dial(ctx)
	if err == nil && out == nil {
		err = fmt.Errorf("the dial function of the socket returned no connection: %w", errs.ErrInvalid)
	}
	if err != nil {
		k.set.log.Debug("a connection to a socket of the host was not made", "err", err)
		in.Close()
		return
	}
	splice.Join(k.ctx, in, out)
}
