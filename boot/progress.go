package boot

import (
	"io"
	"sync"
)

// reporter hands progress to a function, one report at a time.
type reporter struct {
	mu sync.Mutex
	fn func(Progress)
}

func (r *reporter) report(step Step, done, total int64) {
	if r.fn == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.fn(Progress{Step: step, Done: done, Total: total})
}

// progressReader reports each time another part of a hundredth of the total has been read.
type progressReader struct {
	r     io.Reader
	rep   *reporter
	step  Step
	done  int64
	total int64
	last  int64
}

func (p *progressReader) Read(b []byte) (int, error) {
	n, err := p.r.Read(b)
	p.done += int64(n)
	if p.done-p.last > p.total/100 && p.done < p.total {
		p.last = p.done
		p.rep.report(p.step, p.done, p.total)
	}
	return n, err
}
