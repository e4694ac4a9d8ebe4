package network

import (
	"container/heap"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
)

// Outside stands for the host, and all that is reached through it, in a Fault.
const Outside = "@outside"

// Fault is what is wrong between two members of a network, both ways. Where several fit a pair, the last one holds.
type Fault struct {
	A, B      string        // id or name of a container, an alias of it, or Outside; "" is all
	Latency   time.Duration // added each way
	Jitter    time.Duration // at most added to Latency, at random; the order of the packets stays
	Loss      float64       // share of packets that are lost, 0 to 1
	Bandwidth int64         // bytes in a second, each way; 0 is no limit
	Partition bool          // nothing comes through
	Reset     bool          // TCP connections are reset
}

func (f Fault) validate() error {
	const most = time.Hour
	switch {
	case f.Latency < 0 || f.Latency > most || f.Jitter < 0 || f.Jitter > most:
		return fmt.Errorf("%w fault: latency %s, jitter %s: use 0 to %s", errs.ErrInvalid, f.Latency, f.Jitter, most)
	case !(f.Loss >= 0 && f.Loss <= 1):
		return fmt.Errorf("%w fault: loss %v: use 0 to 1", errs.ErrInvalid, f.Loss)
	case f.Bandwidth < 0 || f.Bandwidth > 1<<40:
		return fmt.Errorf("%w fault: bandwidth %d: it is in bytes in a second; use 0 for no limit", errs.ErrInvalid, f.Bandwidth)
	}
	return nil
}

// maxDelayed is how much waits on the lines of a network, in bytes. What is more is lost.
const maxDelayed = 32 << 20

// lines are the connections between members where the network has faults. They hold back what is late.
type lines struct {
	seg    *segment
	faults []Fault
	done   chan struct{}
	wake   chan struct{} // has room for one
	wg     sync.WaitGroup

	mu     sync.Mutex
	late   queue
	bytes  int
	serial uint64
	busy   map[pair]time.Time // until when the line is, by direction
}

// pair is a direction; the gateway is the zero mac.
type pair struct{ from, to mac }

// delayed is a frame that is held back.
type delayed struct {
	at       time.Time
	serial   uint64
	from, to *member
	pkt      packet
}

type queue []delayed

func (q queue) Len() int { return len(q) }
func (q queue) Less(i, j int) bool {
	return q[i].at.Before(q[j].at) || q[i].at.Equal(q[j].at) && q[i].serial < q[j].serial
}
func (q queue) Swap(i, j int) { q[i], q[j] = q[j], q[i] }
func (q *queue) Push(x any)   { *q = append(*q, x.(delayed)) }
func (q *queue) Pop() any {
	old := *q
	x := old[len(old)-1]
	old[len(old)-1] = delayed{}
	*q = old[:len(old)-1]
	return x
}

func newLines(seg *segment, faults []Fault) *lines {
	l := &lines{
		seg: seg, faults: faults, done: make(chan struct{}), wake: make(chan struct{}, 1), busy: make(map[pair]time.Time),
	}
	l.wg.Go(l.run)
	return l
}

// close drops what is held back.
func (l *lines) close() {
	close(l.done)
	l.wg.Wait()
}

// fits tells whether a fault's name means a member.
func (m *member) fits(name string) bool {
	if name == "" {
		return true
	}
	if m == nil || name == Outside {
		return m == nil && name == Outside
	}
	if m.owner.ID == name {
		return true
	}
	for _, n := range m.names {
		if n == normal(name) {
			return true
		}
	}
	return false
}

// between returns the fault between two members, nil for none.
func (l *lines) between(a, b *member) *Fault {
	for i := len(l.faults) - 1; i >= 0; i-- {
		f := &l.faults[i]
		if a.fits(f.A) && b.fits(f.B) || a.fits(f.B) && b.fits(f.A) {
			return f
		}
	}
	return nil
}

func pairOf(from, to *member) (p pair) {
	if from != nil {
		p.from = from.mac
	}
	if to != nil {
		p.to = to.mac
	}
	return p
}

// admit tells whether a frame passes at once. One that is late is copied and delivered then.
func (l *lines) admit(from, to *member, f frame) bool {
	fault := l.between(from, to)
	switch {
	case fault == nil:
		return true
	case fault.Partition, fault.Loss > 0 && rand.Float64() < fault.Loss:
		return false
	case fault.Reset:
		if r := resetFor(f); r != nil {
			l.answer(from, r)
			return false
		}
	}
	if fault.Latency == 0 && fault.Jitter == 0 && fault.Bandwidth == 0 {
		return true
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.bytes+len(f) > maxDelayed {
		return false
	}
	p, now := pairOf(from, to), time.Now()
	at := now
	if b := l.busy[p]; b.After(at) {
		at = b
	}
	if fault.Bandwidth > 0 {
		const longest = time.Second // that the line's queue holds
		if at.Sub(now) > longest {
			return false
		}
		at = at.Add(time.Duration(float64(len(f)) / float64(fault.Bandwidth) * float64(time.Second)))
		l.busy[p] = at
	}
	at = at.Add(fault.Latency)
	if fault.Jitter > 0 {
		at = at.Add(rand.N(fault.Jitter))
		if fault.Bandwidth == 0 { // the order stays
			if b := l.busy[p]; b.After(at) {
				at = b
			}
			l.busy[p] = at
		}
	}
	l.serial++
	l.bytes += len(f)
	heap.Push(&l.late, delayed{at, l.serial, from, to, l.seg.buffers.copyOf(f)})
	select {
	case l.wake <- struct{}{}:
	default:
	}
	return false
}

// answer sends a frame back to a member, nil for the gateway.
func (l *lines) answer(to *member, f frame) {
	if to == nil {
		l.seg.link.receive(f)
		return
	}
	to.port.send(l.seg.buffers.copyOf(f), l.seg.vlan)
}

// run delivers what is late.
func (l *lines) run() {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		l.mu.Lock()
		var due []delayed
		now := time.Now()
		for len(l.late) > 0 && !l.late[0].at.After(now) {
			d := heap.Pop(&l.late).(delayed)
			l.bytes -= len(d.pkt.frame())
			due = append(due, d)
		}
		next := time.Hour
		if len(l.late) > 0 {
			next = l.late[0].at.Sub(now)
		}
		l.mu.Unlock()
		for _, d := range due {
			l.seg.deliver(l.seg.table.Load(), d.from, d.to, d.pkt.frame())
			l.seg.buffers.put(d.pkt)
		}
		timer.Reset(next)
		select {
		case <-timer.C:
		case <-l.wake:
		case <-l.done:
			return
		}
	}
}

// resetFor returns the segment that resets the TCP connection of a frame, for its sender, or nil where it is none.
func resetFor(f frame) frame {
	b := f.body()
	var head, total int
	switch f.kind() {
	case typeIPv4:
		head, total = int(b[0]&15)*4, int(binary.BigEndian.Uint16(b[2:4]))
		if b[9] != 6 || head < 20 {
			return nil
		}
	case typeIPv6:
		head, total = 40, 40+int(binary.BigEndian.Uint16(b[4:6]))
		if b[6] != 6 {
			return nil
		}
	default:
		return nil
	}
	if total < head+20 || total > len(b) {
		return nil
	}
	t := b[head:total]
	const (
		flagFIN, flagSYN, flagRST, flagACK = 1, 2, 4, 16
	)
	if t[13]&flagRST != 0 {
		return nil
	}
	r := make(frame, headerLen+head+20)
	copy(r, f[6:12])
	copy(r[6:], f[:6])
	r.setKind(int(f.kind()))
	ip := r.body()
	copy(ip, b[:head])
	out := ip[head:]
	copy(out[0:2], t[2:4])
	copy(out[2:4], t[0:2])
	out[12], out[13] = 5<<4, flagRST
	if t[13]&flagACK != 0 {
		copy(out[4:8], t[8:12])
	} else {
		n := uint32(len(t) - int(t[12]>>4)*4)
		n += uint32(t[13]&flagSYN>>1) + uint32(t[13]&flagFIN)
		binary.BigEndian.PutUint32(out[8:], binary.BigEndian.Uint32(t[4:])+n)
		out[13] |= flagACK
	}
	pseudo := uint32(20 + 6)
	if f.kind() == typeIPv4 {
		copy(ip[12:16], b[16:20])
		copy(ip[16:20], b[12:16])
		binary.BigEndian.PutUint16(ip[2:], uint16(head+20))
		setSum(ip[:head], 10, 0)
		pseudo = sum(ip[12:20], pseudo)
	} else {
		copy(ip[8:24], b[24:40])
		copy(ip[24:40], b[8:24])
		binary.BigEndian.PutUint16(ip[4:], 20)
		pseudo = sum(ip[8:40], pseudo)
	}
	setSum(out, 16, pseudo)
	return r
}
