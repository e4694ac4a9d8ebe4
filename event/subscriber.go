package event

import (
	"context"
	"slices"
	"sync"
)

// A subscriber is a bounded queue between the bus and one reader. The publisher pushes and never waits; one goroutine,
// run, moves events to the reader's channel.
//
// That channel has room for everything a subscriber can hold back, so that at the end of the bus the rest moves into it
// without waiting for the reader.
type subscriber struct {
	kinds []Kind
	limit int
	out   chan Event
	wake  chan struct{} // has room for one: something was pushed
	ended chan struct{} // closed by end
	once  sync.Once

	mu    sync.Mutex
	queue []Event
	lost  Event // what was dropped from the front of queue; Dropped is 0 where nothing was
}

func newSubscriber(opts SubscribeOptions) *subscriber {
	limit := opts.Queue
	if limit <= 0 {
		limit = DefaultQueue
	}
	return &subscriber{
		kinds: slices.Clone(opts.Kinds),
		limit: limit,
		// The rest at the end is at most: a Lost for what was taken back, a Lost and an event on their way, a Lost, and
		// the queue.
		out:   make(chan Event, limit+4),
		wake:  make(chan struct{}, 1),
		ended: make(chan struct{}),
	}
}

// push adds an event. A full queue loses its oldest one.
func (s *subscriber) push(e Event) {
	s.mu.Lock()
	if len(s.queue) == s.limit {
		s.lost = merge(s.lost, s.queue[0])
		s.drop(1)
	}
	s.queue = append(s.queue, e)
	s.mu.Unlock()
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// merge counts e, a later event, as lost.
func merge(lost, e Event) Event {
	n := 1
	if e.Kind == Lost {
		n = e.Dropped
	}
	return Event{Seq: e.Seq, Time: e.Time, Kind: Lost, Dropped: lost.Dropped + n}
}

// take removes up to max events from the front of the queue. The Lost that stands before them comes on top, and always
// with an event behind it: a reader can be slow, but never sees only losses.
func (s *subscriber) take(max int) []Event {
	s.mu.Lock()
	defer s.mu.Unlock()
	var got []Event
	if s.lost.Dropped > 0 {
		got = append(got, s.lost)
		s.lost = Event{}
	}
	n := min(max, len(s.queue))
	got = append(got, s.queue[:n]...)
	s.drop(n)
	return got
}

// drop forgets the first n events of the queue. append moves what is left to new memory once in a while, which costs
// less than moving it each time.
func (s *subscriber) drop(n int) {
	clear(s.queue[:n])
	s.queue = s.queue[n:]
}

// end makes run hand over the rest and return.
func (s *subscriber) end() { s.once.Do(func() { close(s.ended) }) }

func (s *subscriber) run(ctx context.Context) {
	defer close(s.out)
	for {
		next := s.take(1)
		if len(next) == 0 {
			select {
			case <-s.wake:
			case <-s.ended:
				s.handOver(nil)
				return
			case <-ctx.Done():
				return
			}
		}
		for i := range next {
			select {
			case s.out <- next[i]:
			case <-s.ended:
				s.handOver(next[i:])
				return
			case <-ctx.Done():
				return
			}
		}
	}
}

// handOver moves the rest, first and then the queue, into the reader's channel. Where it does not fit, the oldest events
// make room for the newest. Nothing is pushed any more.
func (s *subscriber) handOver(first []Event) {
	rest := slices.Concat(first, s.take(s.limit))
	if len(rest) > cap(s.out)-len(s.out) {
		rest = s.makeRoom(rest)
	}
	for _, e := range rest {
		s.out <- e // never blocks: only this goroutine sends, and there is room
	}
}

// makeRoom takes back what the reader has not taken and returns what it is to find instead: the newest events that it
// is owed, up to the limit, behind one Lost for all others.
//
// A reader that reads meanwhile may get an event from between those that were taken back. They cannot be sent any more
// then, or the order would break, and count as lost.
func (s *subscriber) makeRoom(rest []Event) []Event {
	n := len(s.out)
	back := s.drain()
	keep := len(rest)
	if len(back) == n {
		rest = slices.Concat(back, rest)
		keep = s.limit
		back = nil
	}
	var lost Event
	for _, e := range back {
		lost = merge(lost, e)
	}
	for len(rest) > keep {
		lost, rest = merge(lost, rest[0]), rest[1:]
	}
	if lost.Dropped == 0 {
		return rest
	}
	return slices.Insert(rest, 0, lost)
}

// drain takes everything out of the reader's channel.
func (s *subscriber) drain() (back []Event) {
	for {
		select {
		case e := <-s.out:
			back = append(back, e)
		default:
			return back
		}
	}
}
