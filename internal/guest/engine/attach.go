package engine

import (
	"encoding/json"

	"github.com/arcboxlabs/arcbox-go/agent/api"
)

// session is a stream that is connected to the stdio of a process.
type session struct {
	io    *stdio
	stdin bool                      // the stream feeds stdin
	kill  func(signal string) error // sends a signal to the process
}

// frame handles a frame that the host sends. It returns false for one that breaks the protocol.
// A signal or a new size waits behind input that the process does not read once maxInput bytes of it are queued.
func (s session) frame(kind api.FrameType, p []byte) bool {
	switch kind {
	case api.FrameStdin:
		if !s.stdin || s.io.input == nil {
			break
		}
		if len(p) == 0 {
			s.io.input.end()
		} else {
			s.io.input.write(p)
		}
	case api.FrameResize:
		var size api.Size
		if json.Unmarshal(p, &size) == nil && s.io.ends.Resize != nil {
			_ = s.io.ends.Resize(size) // the terminal may be gone already
		}
	case api.FrameSignal:
		var name string
		if json.Unmarshal(p, &name) == nil {
			_ = s.kill(name) // the process may have ended already
		}
	default:
		return false
	}
	return true
}

// send sends what sub gets until the process has ended or sub is closed. It tells whether the stream has had the exit.
func (s *subscriber) send(st *api.Stream) (bool, error) {
	for {
		f, ok := s.next()
		if !ok {
			break
		}
		if err := st.Send(f.kind, f.data); err != nil {
			return false, err
		}
	}
	exit, ok := s.exit()
	if !ok {
		return false, nil
	}
	return true, st.SendJSON(api.FrameExit, exit)
}
