package vmlife

import "sync"

// Group is goroutines that work for a machine, for whose end the machine's end waits. The zero value is ready to use.
type Group struct {
	mu     sync.Mutex
	closed bool
	wg     sync.WaitGroup
}

// Go runs f in a goroutine. After Close it does nothing and returns false.
func (g *Group) Go(f func()) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return false
	}
	g.wg.Go(f)
	return true
}

// Close lets no more goroutines in. A second call does nothing.
func (g *Group) Close() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.closed = true
}

// Wait waits for the goroutines. It follows Close: a Go at the same time might be missed.
func (g *Group) Wait() { g.wg.Wait() }
