package api

// Dial connects to an address in the network, or a socket among the files, of a running container.
var Dial = StreamMethod[DialRequest]{"dial"}

// DialRequest names the address. The stream is accepted when the connection is made; a container that does not run is
// ErrConflict, and nobody who listens ErrUnavailable. Frames from the host: FrameStdin; from the guest: FrameStdout; an
// empty one ends its direction. Closing the stream closes the connection. Links in a path lead within the container's root;
// what is not there is ErrNotFound.
type DialRequest struct {
	ID      string `json:"id"`
	Network string `json:"network"` // tcp, tcp4, tcp6 or unix
	Address string `json:"address"` // IP address and port; of unix the absolute path of a socket, or '@' and the rest of an abstract name
}
