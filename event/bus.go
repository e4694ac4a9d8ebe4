package event

import (
	"context"
	"maps"
	"slices"
	"sync"
	"time"
)

// DefaultQueue is how many events a subscriber may be behind unless it says otherwise.
const DefaultQueue = 256

// Bus copies each event to every subscriber. The zero Bus is ready to use; a Bus must not be copied. All methods may be
// called from many goroutines.
type Bus struct {
	mu     sync.Mutex
	seq    uint64
	subs   map[*subscriber]struct{}
	closed bool
	wg     sync.WaitGroup // one per subscriber
}

// SubscribeOptions tunes a subscription. The zero value subscribes to everything.
type SubscribeOptions struct {
	Kinds []Kind // only these; none is all. Lost is never filtered
	Queue int    // how many events the reader may at least be behind before it loses the oldest; 0 and less is DefaultQueue
}

// Publish sends e to every subscriber that asked for its kind and returns without waiting for any. It sets Seq, and
// Time where that is zero. The caller may change e.Attributes afterwards. On a closed bus it does nothing.
func (b *Bus) Publish(e Event) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return
	}
	b.seq++
	e.Seq = b.seq
	if e.Time.IsZero() {
		e.Time = time.Now()
	}
	for s := range b.subs {
		if len(s.kinds) > 0 && !slices.Contains(s.kinds, e.Kind) {
			continue
		}
		own := e
		own.Attributes = maps.Clone(e.Attributes)
		s.push(own)
	}
}

// Subscribe returns the events that are published from now on, in order. The channel is closed when ctx ends or the bus
// closes; on a closed bus it is closed at once. When the bus closes, the events that wait for the reader stay readable.
// A subscription whose ctx never ends lives as long as the bus, read or not.
func (b *Bus) Subscribe(ctx context.Context, opts SubscribeOptions) <-chan Event {
	s := newSubscriber(opts)
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		close(s.out)
		return s.out
	}
	if b.subs == nil {
		b.subs = make(map[*subscriber]struct{})
	}
	b.subs[s] = struct{}{}
	b.wg.Go(func() {
		s.run(ctx)
		b.mu.Lock()
		delete(b.subs, s)
		b.mu.Unlock()
	})
	return s.out
}

// Close closes the channels of all subscribers and returns when the bus runs nothing any more. It does not wait for
// readers. A second call waits too.
func (b *Bus) Close() {
	b.mu.Lock()
	b.closed = true
	for s := range b.subs {
		s.end()
	}
	b.mu.Unlock()
	b.wg.Wait()
}
