package qemu

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
)

// maxQMPLine is the longest line QEMU may send, in bytes.
const maxQMPLine = 1 << 20

// qmpEvent is something QEMU tells by itself.
type qmpEvent struct {
	Name string
	Data json.RawMessage
}

// qmpError is the answer of QEMU that a command failed.
type qmpError struct {
	Command string `json:"-"`
	Class   string `json:"class"`
	Desc    string `json:"desc"`
}

// Error returns what QEMU said.
func (e *qmpError) Error() string { return fmt.Sprintf("QEMU command %s: %s", e.Command, e.Desc) }

// qmpMessage is a line from QEMU: greeting, answer or event.
type qmpMessage struct {
	QMP *struct {
		Version struct {
			QEMU struct{ Major, Minor, Micro int }
		}
	}
	Return json.RawMessage `json:"return"`
	Error  *qmpError       `json:"error"`
	ID     uint64          `json:"id"`
	Event  string          `json:"event"`
	Data   json.RawMessage `json:"data"`
}

// qmp is a client of QEMU's control socket. Commands may be executed from many goroutines.
type qmp struct {
	conn    net.Conn
	onEvent func(qmpEvent) // called by the reader, must not wait
	version Version
	done    chan struct{} // closed when the reader has ended; err is set then
	err     error
	write   chan struct{} // a lock of capacity 1 that a context can give up on

	mu      sync.Mutex
	lastID  uint64
	pending map[uint64]chan qmpMessage
}

// newQMP takes conn over. It reads the greeting, and returns when QEMU takes commands; one that was greeted by another does so
// at once. Where it returns an error, conn is closed. Events go to onEvent from then on.
func newQMP(ctx context.Context, conn net.Conn, greets bool, onEvent func(qmpEvent)) (*qmp, error) {
	q := &qmp{
		conn: conn, onEvent: onEvent, done: make(chan struct{}),
		write: make(chan struct{}, 1), pending: make(map[uint64]chan qmpMessage),
	}
	r := bufio.NewReaderSize(conn, 16<<10)
	if !greets {
		go q.read(r)
		return q, nil
	}
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	err := q.greet(r)
	if !stop() {
		return nil, fmt.Errorf("greeting of QEMU: %w", context.Cause(ctx))
	}
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("greeting of QEMU: %w", err)
	}
	go q.read(r)
	if err := q.execute(ctx, "qmp_capabilities", nil, nil); err != nil {
		q.close()
		return nil, err
	}
	return q, nil
}

func (q *qmp) greet(r *bufio.Reader) error {
	m, err := readMessage(r)
	if err != nil {
		return err
	}
	if m.QMP == nil {
		return fmt.Errorf("%w: not a QMP greeting", errs.ErrUnavailable)
	}
	v := m.QMP.Version.QEMU
	q.version = Version{v.Major, v.Minor, v.Micro}
	return nil
}

// readMessage reads a line of bounded length and decodes it.
func readMessage(r *bufio.Reader) (qmpMessage, error) {
	var m qmpMessage
	var line []byte
	for {
		part, err := r.ReadSlice('\n')
		if len(line)+len(part) > maxQMPLine {
			return m, fmt.Errorf("QEMU sent a line of more than %d bytes", maxQMPLine)
		}
		line = append(line, part...)
		if errors.Is(err, bufio.ErrBufferFull) {
			continue
		}
		if err != nil {
			return m, err
		}
		break
	}
	if err := json.Unmarshal(line, &m); err != nil {
		return m, fmt.Errorf("decode what QEMU sent: %w", err)
	}
	return m, nil
}

// read hands out answers and events until the socket ends.
func (q *qmp) read(r *bufio.Reader) {
	defer close(q.done)
	defer q.conn.Close()
	for {
		m, err := readMessage(r)
		if errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed) {
			q.err = fmt.Errorf("%w: QEMU has closed its control socket", errs.ErrUnavailable)
			return
		}
		if err != nil {
			q.err = fmt.Errorf("%w: %w", errs.ErrUnavailable, err)
			return
		}
		if m.Event != "" {
			q.onEvent(qmpEvent{m.Event, m.Data})
			continue
		}
		q.mu.Lock()
		answer := q.pending[m.ID]
		delete(q.pending, m.ID)
		q.mu.Unlock()
		if answer != nil {
			answer <- m
		}
	}
}

// execute runs a command and decodes its answer into result, where result is not nil. A command that QEMU refuses is a
// *qmpError. When ctx ends, QEMU may still do the command.
func (q *qmp) execute(ctx context.Context, command string, args, result any) error {
	return q.executeWith(ctx, nil, command, args, result)
}

// executeWith is execute with a file that QEMU gets with the command.
func (q *qmp) executeWith(ctx context.Context, file *os.File, command string, args, result any) error {
	q.mu.Lock()
	q.lastID++
	id, answer := q.lastID, make(chan qmpMessage, 1)
	q.pending[id] = answer
	q.mu.Unlock()
	defer func() {
		q.mu.Lock()
		defer q.mu.Unlock()
		delete(q.pending, id)
	}()
	line, err := json.Marshal(struct {
		Execute   string `json:"execute"`
		Arguments any    `json:"arguments,omitempty"`
		ID        uint64 `json:"id"`
	}{command, args, id})
	if err != nil {
		return fmt.Errorf("QEMU command %s: encode: %w", command, err)
	}
	if err := q.send(ctx, append(line, '\n'), file); err != nil {
		return fmt.Errorf("QEMU command %s: %w", command, err)
	}
	select {
	case m := <-answer:
		return m.result(command, result)
	case <-q.done:
		return fmt.Errorf("QEMU command %s: %w", command, q.err)
	case <-ctx.Done():
		return fmt.Errorf("QEMU command %s: %w", command, context.Cause(ctx))
	}
}

// result is what an answer says.
func (m qmpMessage) result(command string, into any) error {
	if m.Error != nil {
		m.Error.Command = command
		return m.Error
	}
	if into == nil {
		return nil
	}
	if err := json.Unmarshal(m.Return, into); err != nil {
		return fmt.Errorf("QEMU command %s: decode answer: %w", command, err)
	}
	return nil
}

// send writes a line. Half a line makes the socket useless, so a ctx that ends in the middle of one closes it.
func (q *qmp) send(ctx context.Context, line []byte, file *os.File) error {
	select {
	case q.write <- struct{}{}:
	case <-q.done:
		return q.err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	defer func() { <-q.write }()
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	ended := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(ended)
		q.conn.SetWriteDeadline(time.Now())
	})
	n, err := writeWith(q.conn, line, file)
	if !stop() {
		<-ended
		q.conn.SetWriteDeadline(time.Time{})
		if err != nil {
			if n > 0 {
				q.conn.Close()
			}
			return context.Cause(ctx)
		}
	}
	if err != nil {
		return fmt.Errorf("%w: %w", errs.ErrUnavailable, err)
	}
	return nil
}

// close closes the socket and waits for the reader.
func (q *qmp) close() {
	q.conn.Close()
	<-q.done
}
