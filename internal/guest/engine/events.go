package engine

import (
	"context"
	"fmt"
	"sync"

	"github.com/arcboxlabs/arcbox-go/agent/api"
	"github.com/arcboxlabs/arcbox-go/internal/errs"
)

// The bounds of the event streams.
const (
	maxSubscribers = 64
	maxEvents      = 1024 // that wait for one subscriber
)

// broker hands events to subscribers. Publishing never waits: a subscriber with a full queue finds one event of kind
// lost in place of those it missed.
type broker struct {
	mu   sync.Mutex
	subs map[*subscription]struct{}
}

type subscription struct {
	b     *broker
	wake  chan struct{} // has a token while the queue may have events
	queue []api.Event
}

func (b *broker) subscribe() (*subscription, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.subs) >= maxSubscribers {
		return nil, fmt.Errorf("subscribe to events: %w: %d streams are open already: close some", errs.ErrUnavailable, len(b.subs))
	}
	if b.subs == nil {
		b.subs = make(map[*subscription]struct{})
	}
	s := &subscription{b: b, wake: make(chan struct{}, 1)}
	b.subs[s] = struct{}{}
	return s, nil
}

func (b *broker) publish(e api.Event) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for s := range b.subs {
		n := len(s.queue)
		switch {
		case n < maxEvents:
			s.queue = append(s.queue, e)
		case s.queue[n-1].Kind == api.EventLost:
			s.queue[n-1].Dropped++
		default:
			s.queue[n-1] = api.Event{Kind: api.EventLost, Dropped: 2, At: e.At}
		}
		select {
		case s.wake <- struct{}{}:
		default:
		}
	}
}

// take returns what has gathered, and waits for it until ctx ends.
func (s *subscription) take(ctx context.Context) ([]api.Event, error) {
	for {
		select {
		case <-s.wake:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		s.b.mu.Lock()
		events := s.queue
		s.queue = nil
		s.b.mu.Unlock()
		if len(events) > 0 {
			return events, nil
		}
	}
}

func (s *subscription) close() {
	s.b.mu.Lock()
	defer s.b.mu.Unlock()
	delete(s.b.subs, s)
}

func (b *broker) serve(ctx context.Context, _ api.EventsRequest, st *api.Stream, accept func() error) error {
	s, err := b.subscribe()
	if err != nil {
		return err
	}
	defer s.close()
	if err := accept(); err != nil {
		return err
	}
	ctx = st.CloseRead(ctx)
	for {
		events, err := s.take(ctx)
		if err != nil {
			return nil // the host has gone
		}
		for _, e := range events {
			if err := st.SendJSON(api.FrameEvent, e); err != nil {
				return err
			}
		}
	}
}
