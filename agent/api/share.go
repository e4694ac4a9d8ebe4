package api

// Share mounts a file system that the host serves.
var Share = StreamMethod[ShareRequest]{"share"}

// ShareRequest mounts a file system under an ID, by which a Mount names it. The stream is accepted when that can be
// mounted into containers. Frames both ways: FrameFuse, one message of the FUSE protocol each, from the guest the requests
// of its kernel and from the host the replies. FrameAhead from the host is advice. When the stream ends, whoever uses the file system gets errors.
type ShareRequest struct {
	ID   string `json:"id"`             // in the form of a container's
	File bool   `json:"file,omitempty"` // the root is a regular file
}

// ReadAhead advises the guest to read a directory of a share, by which its kernel learns of many files at once, since
// somebody asks for them one by one. What cannot be read is left.
type ReadAhead struct {
	Path    string `json:"path"`    // relative to the share's root
	Entries int    `json:"entries"` // how many at most
}
