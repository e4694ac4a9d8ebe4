package mux

// ring is a queue of bytes that grows to what it holds. The zero value is empty.
type ring struct {
	b    []byte // len(b) is 0 or a power of two
	r, n int
}

const ringMin = 4 << 10

func (q *ring) len() int { return q.n }

func (q *ring) write(p []byte) {
	if q.n+len(p) > len(q.b) {
		q.grow(q.n + len(p))
	}
	w := (q.r + q.n) & (len(q.b) - 1)
	c := copy(q.b[w:], p)
	copy(q.b, p[c:])
	q.n += len(p)
}

func (q *ring) grow(need int) {
	size := max(len(q.b), ringMin)
	for size < need {
		size *= 2
	}
	b := make([]byte, size)
	q.copyTo(b)
	q.b, q.r = b, 0
}

// copyTo copies the first bytes of the queue to p.
func (q *ring) copyTo(p []byte) int {
	p = p[:min(len(p), q.n)]
	if len(p) == 0 {
		return 0
	}
	c := copy(p, q.b[q.r:])
	copy(p[c:], q.b)
	return len(p)
}

func (q *ring) read(p []byte) int {
	n := q.copyTo(p)
	if q.n -= n; q.n == 0 {
		q.r = 0
	} else {
		q.r = (q.r + n) & (len(q.b) - 1)
	}
	return n
}
