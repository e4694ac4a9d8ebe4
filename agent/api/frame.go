package api

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"slices"
)

// FrameType says what a frame carries.
type FrameType uint8

// The frames. A stream begins with FrameRequest from the caller and FrameReply or FrameError from the callee; what may
// follow depends on the method.
const (
	FrameRequest FrameType = iota + 1 // JSON: method and body
	FrameReply                        // JSON: the method's reply
	FrameError                        // JSON: errs.Remote; the last frame of a stream
	FrameStdin                        // bytes for the process; an empty one closes its stdin
	FrameStdout                       // bytes of the process
	FrameStderr                       // bytes of the process
	FrameResize                       // JSON: Size
	FrameSignal                       // JSON: string, a signal's name without SIG
	FrameExit                         // JSON: Exit; the last frame of a stream
	FrameEvent                        // JSON: Event
	FrameLog                          // JSON: LogRecord
	FrameFuse                         // a message of the FUSE protocol
	FrameAhead                        // JSON: ReadAhead
	frameEnd
)

// MaxFrame is the largest payload of a frame in bytes. A peer that announces more is cut off.
const MaxFrame = 1 << 20

// ChunkSize is how many bytes of a process's input or output go into one frame at most.
const ChunkSize = 64 << 10

const headerSize = 5 // type, then length in 4 bytes, big endian

// WriteFrame writes one frame with a single call to w.Write.
func WriteFrame(w io.Writer, t FrameType, payload []byte) error {
	_, err := writeFrame(w, nil, t, payload)
	return err
}

// writeFrame is WriteFrame with memory for the frame, which it returns, grown where that was needed.
func writeFrame(w io.Writer, b []byte, t FrameType, payload []byte) ([]byte, error) {
	if len(payload) > MaxFrame {
		return b, fmt.Errorf("write frame %d: %d bytes are more than %d", t, len(payload), MaxFrame)
	}
	b = slices.Grow(b[:0], headerSize+len(payload))
	b = append(b, byte(t))
	b = binary.BigEndian.AppendUint32(b, uint32(len(payload)))
	b = append(b, payload...)
	_, err := w.Write(b)
	return b, err
}

// ReadFrame reads one frame. It returns io.EOF where r ends before a frame and io.ErrUnexpectedEOF where it ends in one.
func ReadFrame(r io.Reader) (FrameType, []byte, error) {
	var h [headerSize]byte
	if _, err := io.ReadFull(r, h[:]); err != nil {
		return 0, nil, err
	}
	t, n := FrameType(h[0]), binary.BigEndian.Uint32(h[1:])
	if t == 0 || t >= frameEnd {
		return 0, nil, fmt.Errorf("read frame: unknown type %d", t)
	}
	if n > MaxFrame {
		return 0, nil, fmt.Errorf("read frame: %d bytes are more than %d", n, MaxFrame)
	}
	p := make([]byte, n)
	if _, err := io.ReadFull(r, p); err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return 0, nil, err
	}
	return t, p, nil
}

func writeJSON(w io.Writer, t FrameType, v any) error {
	p, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode frame: %w", err)
	}
	return WriteFrame(w, t, p)
}
