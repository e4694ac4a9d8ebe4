package qemu

import (
	"bytes"
	"strings"
	"sync"

	"github.com/arcboxlabs/arcbox-go/internal/console"
)

// tailBuffer is a Writer that keeps the last bytes.
type tailBuffer struct {
	limit int

	mu sync.Mutex
	b  []byte
}

// Write keeps the end of p.
func (t *tailBuffer) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.b = append(t.b, p[max(0, len(p)-t.limit):]...)
	if drop := len(t.b) - t.limit; drop > 0 {
		t.b = append(t.b[:0], t.b[drop:]...)
	}
	return len(p), nil
}

func (t *tailBuffer) bytes() []byte {
	t.mu.Lock()
	defer t.mu.Unlock()
	return bytes.Clone(t.b)
}

// String returns what is kept as one sanitized line.
func (t *tailBuffer) String() string {
	var lines []string
	for _, l := range bytes.Split(t.bytes(), []byte("\n")) {
		if s := console.Sanitize(l); s != "" {
			lines = append(lines, s)
		}
	}
	return strings.Join(lines, "; ")
}
