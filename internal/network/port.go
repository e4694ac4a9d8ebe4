package network

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
)

// The bounds of what waits for a machine to be read. What is more is dropped.
const (
	queueFrames = 1024
	queueBytes  = 8 << 20
	writeBatch  = 64 // frames in one write
)

// Port is where the NIC of a machine is plugged in.
type Port struct {
	m      *Manager
	conn   net.Conn
	packet bool // a message is a frame; otherwise it is a stream of frames after their lengths
	queue  chan []byte
	queued atomic.Int64 // bytes
	lost   atomic.Int64 // frames
	done   chan struct{}
	once   sync.Once
	wg     sync.WaitGroup
}

// Attach plugs in a NIC. conn carries Ethernet frames with VLAN tags, both ways: as a stream each after its length in four
// bytes, big endian, or, where the connection has messages (unixgram), one in each. The Port owns conn. Close the Port; the
// end of conn ends it too.
func (m *Manager) Attach(conn net.Conn) (*Port, error) {
	p := &Port{
		m: m, conn: conn, packet: conn.LocalAddr().Network() == "unixgram",
		queue: make(chan []byte, queueFrames), done: make(chan struct{}),
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		conn.Close()
		return nil, fmt.Errorf("attach a machine: %w", errs.ErrClosed)
	}
	m.ports[p] = struct{}{}
	p.wg.Go(p.read)
	p.wg.Go(p.write)
	return p, nil
}

// Close unplugs the NIC and returns when nothing of the Port runs any more. A second call does nothing. It returns nil.
func (p *Port) Close() error {
	p.stop()
	p.wg.Wait()
	p.m.mu.Lock()
	defer p.m.mu.Unlock()
	delete(p.m.ports, p)
	return nil
}

// Lost tells how many frames were dropped because the machine did not read them in time.
func (p *Port) Lost() int64 { return p.lost.Load() }

func (p *Port) stop() {
	p.once.Do(func() {
		close(p.done)
		p.conn.Close()
	})
}

// read takes the machine's frames until the connection ends.
func (p *Port) read() {
	defer p.stop()
	buf := make([]byte, maxFrame)
	next := func() (int, error) { return p.conn.Read(buf) }
	if !p.packet {
		r := bufio.NewReaderSize(p.conn, 256<<10)
		next = func() (int, error) { return readFrame(r, buf) }
	}
	for {
		n, err := next()
		if err != nil {
			if !errors.Is(err, io.EOF) && !errors.Is(err, net.ErrClosed) {
				p.m.log.Debug("read the frames of a machine", "err", err)
			}
			return
		}
		if f, vlan, ok := untag(buf[:n]); ok {
			if s := p.m.segment(vlan); s != nil {
				s.fromPort(p, f)
			}
		}
	}
}

// readFrame reads a frame after its length. A frame that is longer than any can be is skipped; n is 0 then.
func readFrame(r *bufio.Reader, buf []byte) (n int, err error) {
	var head [prefixLen]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, err
	}
	n = int(binary.BigEndian.Uint32(head[:]))
	if n > len(buf) {
		const sane = 1 << 20
		if n > sane {
			return 0, fmt.Errorf("a frame of %d bytes: %w", n, errs.ErrCorrupt)
		}
		_, err := r.Discard(n)
		return 0, err
	}
	_, err = io.ReadFull(r, buf[:n])
	return n, err
}

// send queues a frame for the machine, or drops it. It takes the packet.
func (p *Port) send(pkt packet, vlan uint16) {
	b := pkt.tag(vlan)
	if p.queued.Add(int64(len(b))) <= queueBytes {
		select {
		case p.queue <- b:
			return
		default:
		}
	}
	p.queued.Add(-int64(len(b)))
	p.lost.Add(1)
	p.m.buffers.put(pkt)
}

// write hands the queue to the machine.
func (p *Port) write() {
	defer p.stop()
	var batch [][]byte
	for {
		select {
		case b := <-p.queue:
			batch = append(batch[:0], b)
		case <-p.done:
			return
		}
		for more := true; more && len(batch) < writeBatch; {
			select {
			case b := <-p.queue:
				batch = append(batch, b)
			default:
				more = false
			}
		}
		err := p.writeAll(batch)
		for _, b := range batch {
			p.queued.Add(-int64(len(b)))
			p.m.buffers.put(packet{b})
		}
		if err != nil {
			return
		}
	}
}

func (p *Port) writeAll(batch [][]byte) error {
	if !p.packet {
		bufs := append(net.Buffers(nil), batch...)
		_, err := bufs.WriteTo(p.conn)
		return err
	}
	for _, b := range batch {
		if _, err := p.conn.Write(b[prefixLen:]); errors.Is(err, net.ErrClosed) {
			return err // others are those of one message, such as a full buffer
		}
	}
	return nil
}
