package engine

import "sync"

// input feeds the stdin of a process from a bounded queue, in a goroutine of its own, so that a process that does not
// read holds up only those who write to it.
type input struct {
	ends Stdio
	done chan struct{} // the goroutine has ended

	mu     sync.Mutex
	change sync.Cond
	queue  [][]byte
	queued int
	eof    bool // no more will come
	closed bool // the process has ended or does not read any more
}

func newInput(ends Stdio) *input {
	in := &input{ends: ends, done: make(chan struct{})}
	in.change.L = &in.mu
	go in.run()
	return in
}

// write queues p, which must not be changed afterwards. It waits while the queue is full. What is written after the end
// of input, or to a process that has ended, is dropped.
func (in *input) write(p []byte) {
	in.mu.Lock()
	defer in.mu.Unlock()
	for in.queued >= maxInput && !in.closed {
		in.change.Wait()
	}
	if in.closed || in.eof {
		return
	}
	in.queue = append(in.queue, p)
	in.queued += len(p) + frameCost
	in.change.Broadcast()
}

// end closes the process's stdin once what is queued was written. A terminal stays open for further writes: the end of
// input is typed on it.
func (in *input) end() {
	if in.ends.EOF != nil {
		in.write(nil)
		return
	}
	in.mu.Lock()
	defer in.mu.Unlock()
	in.eof = true
	in.change.Broadcast()
}

// close ends the goroutine and closes the process's stdin. A second call waits too.
func (in *input) close() {
	in.mu.Lock()
	in.closed = true
	in.change.Broadcast()
	in.mu.Unlock()
	_ = in.ends.Stdin.Close() // a write under way returns
	<-in.done
}

func (in *input) run() {
	defer close(in.done)
	for {
		p, ok := in.next()
		if !ok {
			break
		}
		var err error
		if len(p) == 0 && in.ends.EOF != nil {
			err = in.ends.EOF()
		} else {
			_, err = in.ends.Stdin.Write(p)
		}
		if err != nil {
			break
		}
	}
	_ = in.ends.Stdin.Close()
	in.mu.Lock()
	defer in.mu.Unlock()
	in.closed, in.queue = true, nil
	in.change.Broadcast()
}

func (in *input) next() ([]byte, bool) {
	in.mu.Lock()
	defer in.mu.Unlock()
	for len(in.queue) == 0 && !in.eof && !in.closed {
		in.change.Wait()
	}
	if in.closed || len(in.queue) == 0 {
		return nil, false
	}
	p := in.queue[0]
	in.queue = in.queue[1:]
	in.queued -= len(p) + frameCost
	in.change.Broadcast()
	return p, true
}
