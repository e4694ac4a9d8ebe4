package engine

import (
	"encoding/json"

	"github.com/arcboxlabs/arcbox-go/agent/api"
)

// input handles the frames that the host sends on an attached stream, until the stream ends or breaks the protocol.
// A signal or a new size waits behind input that the process does not read once maxInput bytes of it are queued.
func (c *container) input(req api.AttachRequest, st *api.Stream) {
	for {
		kind, p, err := st.Recv()
		if err != nil {
			return
		}
		switch kind {
		case api.FrameStdin:
			if !req.Stdin || c.io.input == nil {
				continue
			}
			if len(p) == 0 {
				c.io.input.end()
			} else {
				c.io.input.write(p)
			}
		case api.FrameResize:
			var size api.Size
			if json.Unmarshal(p, &size) == nil && c.io.ends.Resize != nil {
				_ = c.io.ends.Resize(size) // the terminal may be gone already
			}
		case api.FrameSignal:
			var name string
			if json.Unmarshal(p, &name) == nil {
				_ = c.kill(name) // the process may have ended already
			}
		default:
			return
		}
	}
}
