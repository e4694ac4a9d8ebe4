package event

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// count returns how many events those that a reader saw stand for.
func count(events []Event) (total int) {
	for _, e := range events {
		if e.Kind == Lost {
			total += e.Dropped
		} else {
			total++
		}
	}
	return total
}

// account checks the order of what a reader saw and returns how many events it stands for.
func account(t *testing.T, events []Event) (total int) {
	t.Helper()
	last, lostBefore := uint64(0), false
	for _, e := range events {
		require.Greater(t, e.Seq, last)
		last = e.Seq
		require.False(t, e.Time.IsZero())
		if e.Kind == Lost {
			require.False(t, lostBefore, "two Lost in a row")
			require.Positive(t, e.Dropped)
			lostBefore = true
			total += e.Dropped
			require.EqualValues(t, total, e.Seq, "Lost is not in the place of what it stands for")
			continue
		}
		lostBefore = false
		total++
		require.EqualValues(t, total, e.Seq, "an event is missing without a Lost in its place")
	}
	return total
}

func collect(ch <-chan Event) (all []Event) {
	for e := range ch {
		all = append(all, e)
	}
	return all
}

func TestEverySubscriberGetsEveryEventInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var b Bus
		a, c := b.Subscribe(t.Context(), SubscribeOptions{}), b.Subscribe(t.Context(), SubscribeOptions{})
		start := time.Now()
		b.Publish(Event{Kind: ContainerCreated, ID: "x", Attributes: map[string]string{"k": "v"}})
		time.Sleep(time.Minute)
		given := start.Add(time.Hour)
		b.Publish(Event{Kind: ContainerStarted, ID: "x", Time: given})
		b.Close()
		want := []Event{
			{Seq: 1, Time: start, Kind: ContainerCreated, ID: "x", Attributes: map[string]string{"k": "v"}},
			{Seq: 2, Time: given, Kind: ContainerStarted, ID: "x"},
		}
		require.Equal(t, want, collect(a))
		require.Equal(t, want, collect(c))
	})
}

func TestAttributesAreEachReadersOwn(t *testing.T) {
	var b Bus
	x, y := b.Subscribe(t.Context(), SubscribeOptions{}), b.Subscribe(t.Context(), SubscribeOptions{})
	attrs := map[string]string{"k": "v"}
	b.Publish(Event{Kind: ContainerExited, Attributes: attrs})
	attrs["k"] = "changed by the publisher"
	(<-x).Attributes["k"] = "changed by a reader"
	require.Equal(t, "v", (<-y).Attributes["k"])
	b.Close()
}

func TestFilterByKind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var b Bus
		kinds := []Kind{MachineReady, MachineCrashed}
		ch := b.Subscribe(t.Context(), SubscribeOptions{Kinds: kinds})
		kinds[0] = ContainerCreated // the caller's slice is its own again
		for _, k := range []Kind{ContainerCreated, MachineReady, ImagePulled, MachineCrashed, MachineStopped} {
			b.Publish(Event{Kind: k})
		}
		b.Close()
		got := collect(ch)
		require.Len(t, got, 2)
		require.Equal(t, MachineReady, got[0].Kind)
		require.EqualValues(t, 2, got[0].Seq)
		require.Equal(t, MachineCrashed, got[1].Kind)
		require.EqualValues(t, 4, got[1].Seq)
	})
}

func TestLostCountsOnlyWantedKinds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var b Bus
		ch := b.Subscribe(t.Context(), SubscribeOptions{Kinds: []Kind{MachineReady}, Queue: 2})
		for range 100 {
			b.Publish(Event{Kind: MachineReady})
			b.Publish(Event{Kind: ImagePulled})
			synctest.Wait()
		}
		b.Close()
		got := collect(ch)
		require.Equal(t, 100, count(got))
		require.Equal(t, Lost, got[0].Kind)
		require.Len(t, got, 3)
	})
}

// A reader that stops reading finds one Lost where the gap is, however the publisher and the end of the bus fall.
func TestSlowReaderFindsOneLostInPlace(t *testing.T) {
	for _, published := range []int{1, 4, 8, 9, 12, 13, 14, 20, 1000} {
		for _, readFirst := range []int{0, 1, 3} {
			t.Run(fmt.Sprintf("%d published, %d read first", published, readFirst), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					var b Bus
					ch := b.Subscribe(t.Context(), SubscribeOptions{Queue: 4})
					var got []Event
					for i := range published {
						b.Publish(Event{Kind: ContainerCreated})
						synctest.Wait()
						if i < readFirst {
							got = append(got, <-ch)
						}
					}
					b.Close()
					got = append(got, collect(ch)...)
					require.Equal(t, published, account(t, got))
					lost := 0
					for _, e := range got {
						if e.Kind == Lost {
							lost++
						}
					}
					require.LessOrEqual(t, lost, 1)
					if published == 1000 {
						require.Equal(t, 1, lost)
						require.EqualValues(t, 1000, got[len(got)-1].Seq, "the newest events are kept")
					}
				})
			})
		}
	}
}

// The reader learns of the loss as soon as it reads on, without another event being published.
func TestLostIsSeenWithoutAnotherEvent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var b Bus
		ctx, cancel := context.WithCancel(t.Context())
		ch := b.Subscribe(ctx, SubscribeOptions{Queue: 2})
		for range 50 {
			b.Publish(Event{Kind: ContainerCreated})
			synctest.Wait()
		}
		var got []Event
		for len(got) == 0 || got[len(got)-1].Seq != 50 {
			got = append(got, <-ch)
			synctest.Wait()
		}
		require.Equal(t, 50, account(t, got))
		cancel()
		_, open := <-ch
		require.False(t, open)
		b.Close()
	})
}

// A publisher that is faster than the reader does not leave it with losses alone.
func TestSlowReaderStillSeesEvents(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var b Bus
		ch := b.Subscribe(t.Context(), SubscribeOptions{Queue: 1})
		var got []Event
		for range 200 {
			for range 10 {
				b.Publish(Event{Kind: ContainerCreated})
				synctest.Wait()
			}
			got = append(got, <-ch)
			synctest.Wait()
		}
		b.Close()
		account(t, got)
		seen := 0
		for _, e := range got {
			if e.Kind != Lost {
				seen++
			}
		}
		require.GreaterOrEqual(t, seen, 100)
	})
}

func TestChannelClosesWithContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var b Bus
		ctx, cancel := context.WithCancel(t.Context())
		idle := b.Subscribe(ctx, SubscribeOptions{})
		full := b.Subscribe(ctx, SubscribeOptions{Queue: 1, Kinds: []Kind{ImagePulled}})
		for range 20 {
			b.Publish(Event{Kind: ImagePulled})
			<-idle
		}
		cancel()
		synctest.Wait()
		_, open := <-idle
		require.False(t, open)
		collect(full) // ends
		b.mu.Lock()
		require.Empty(t, b.subs)
		b.mu.Unlock()
		b.Publish(Event{Kind: ImagePulled})
		b.Close()
	})
}

func TestClosedBus(t *testing.T) {
	var b Bus
	b.Close()
	b.Publish(Event{Kind: ImagePulled})
	_, open := <-b.Subscribe(t.Context(), SubscribeOptions{})
	require.False(t, open)
	b.Close()
}

// Publishers, readers of every speed, subscribers that come and go, and Close, all at once.
func TestHammer(t *testing.T) {
	const publishers, each = 8, 400
	var b Bus
	var all sync.WaitGroup
	var published atomic.Int64
	for i := range 12 {
		ch := b.Subscribe(t.Context(), SubscribeOptions{Queue: 1 + i*3})
		all.Go(func() {
			var got []Event
			for e := range ch {
				if len(got) > 0 && e.Kind != Lost && e.Seq <= got[len(got)-1].Seq {
					t.Errorf("event %d after %d", e.Seq, got[len(got)-1].Seq)
				}
				got = append(got, e)
				if i%3 == 0 && rand.IntN(4) == 0 {
					<-time.After(time.Microsecond)
				}
			}
			if n := count(got); int64(n) != published.Load() {
				t.Errorf("accounted for %d of %d", n, published.Load())
			}
		})
	}
	var publishing sync.WaitGroup
	for range publishers {
		publishing.Go(func() {
			for range each {
				b.Publish(Event{Kind: ContainerCreated, Attributes: map[string]string{"a": "b"}})
				published.Add(1)
			}
		})
	}
	for range 4 {
		all.Go(func() {
			for range 100 {
				ctx, cancel := context.WithCancel(t.Context())
				ch := b.Subscribe(ctx, SubscribeOptions{Queue: 2})
				select {
				case <-ch:
				case <-time.After(time.Millisecond):
				}
				cancel()
				collect(ch)
			}
		})
	}
	publishing.Wait()
	for range 3 {
		all.Go(b.Close)
	}
	all.Wait()
}

func BenchmarkPublish(bm *testing.B) {
	for _, readers := range []int{0, 1, 16} {
		bm.Run(fmt.Sprintf("readers=%d", readers), func(bm *testing.B) {
			var b Bus
			var wg sync.WaitGroup
			for range readers {
				ch := b.Subscribe(bm.Context(), SubscribeOptions{})
				wg.Go(func() { collect(ch) })
			}
			for bm.Loop() {
				b.Publish(Event{Kind: ContainerCreated})
			}
			b.Close()
			wg.Wait()
		})
	}
}
