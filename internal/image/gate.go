package image

import "context"

// manyEntries is how many entries a layer may have before its conversion takes more memory than its share: about a
// kilobyte for each, as garbage comes on top.
const manyEntries = 12_000

// gate lets one conversion of a layer with many entries go on at a time, in one open Store. The others wait in the middle,
// and what they read from waits too.
type gate chan struct{}

func newGate() gate { return make(gate, 1) }

// enter waits for its turn. A nil gate is open. leave must be called once it has returned nil.
func (g gate) enter(ctx context.Context) error {
	if g == nil {
		return nil
	}
	select {
	case g <- struct{}{}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (g gate) leave() {
	if g != nil {
		<-g
	}
}

// pass makes a filter wait at the gate when it has read many entries. The function it returns ends what it began.
func (g gate) pass(ctx context.Context, f *filter, src *source) (end func()) {
	entered := false
	f.many = func() error {
		if entered {
			return nil
		}
		err := g.enter(ctx)
		entered = err == nil
		src.err = err // not the layer's fault
		return err
	}
	return func() {
		if entered {
			g.leave()
		}
	}
}
