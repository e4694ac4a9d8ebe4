package api

// The methods of sockets that the host offers to containers.
var (
	Listen = StreamMethod[ListenRequest]{"listen"}
	Accept = StreamMethod[AcceptRequest]{"accept"}
)

// ListenRequest makes a Unix socket under an ID, by which a Mount of kind MountShare names it. The stream is accepted when
// that can be mounted into containers; nothing follows. When it ends, whoever connects is refused; the connections that were
// accepted go on.
type ListenRequest struct {
	ID string `json:"id"` // in the form of a container's
}

// AcceptRequest waits for a connection to a socket of Listen. The stream is accepted when there is one, and carries it then
// with the frames of Dial. When both directions have ended, or the process in the container has closed it, the stream ends.
// One that is not there, or not any more, is ErrNotFound.
type AcceptRequest struct {
	ID string `json:"id"` // of the ListenRequest
}
