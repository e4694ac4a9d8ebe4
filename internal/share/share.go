// Package share serves directories of the host, and file systems that are Go values, to a guest.
//
// The guest's kernel has a FUSE mount, whose messages the agent carries over a stream; this side answers them. The guest
// may be hostile: every message is checked before it is parsed, what it can make the host remember is bounded, and a
// directory is confined to what is below it, whatever links say: by the host's kernel on Linux, by os.Root on macOS.
package share

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"sync"

	"github.com/arcboxlabs/arcbox-go/agent/api"
	"github.com/arcboxlabs/arcbox-go/internal/errs"
)

// Source is what is shared: a directory or a file of the host, or a file system.
type Source struct {
	Path     string // absolute
	ReadOnly bool   // of a path
	FS       fs.FS  // in place of Path; it is read only
}

// served is a file system that can be served once.
type served struct {
	fs    backend
	close func() // may be called again
}

// openSource opens what is shared. file tells that its root is a regular file. A path that cannot be opened is ErrInvalid.
func openSource(src Source) (f *served, file bool, err error) {
	switch fsys := src.FS.(type) {
	case nil:
		f, file, err = openPath(src)
	case Portable:
		f, file, err = openTree(fsys.Path, false)
	default:
		v := newValue(src.FS)
		return &served{v, v.close}, false, nil
	}
	if err != nil && !errors.Is(err, errs.ErrUnsupported) {
		err = fmt.Errorf("%w: %w", errs.ErrInvalid, err)
	}
	if err != nil {
		return nil, false, fmt.Errorf("share %q: %w", src.Path, err)
	}
	return f, file, nil
}

// Portable is a directory or a file of the host that is served as on other systems than Linux, as an fs.FS that a container
// may write. It is for tests of that where there is something better.
type Portable struct {
	fs.FS        // not nil; nothing asks it
	Path  string // absolute
}

// ReadOnly tells whether nobody can write a file system.
func ReadOnly(fsys fs.FS) bool {
	_, writable := fsys.(Portable)
	return !writable
}

// Stream carries messages as frames of kind FrameFuse. Send is called by many goroutines, Recv by one.
type Stream interface {
	Send(api.FrameType, []byte) error
	Recv() (api.FrameType, []byte, error)
	Close() error
}

// Opener opens the stream of a share.
type Opener func(ctx context.Context, req api.ShareRequest) (Stream, error)

// Set has the shares of one guest. Close it.
type Set struct {
	open Opener
	wg   sync.WaitGroup

	mu     sync.Mutex
	closed bool
	byPath map[Source]*share // directories, of which each is there once
	all    map[*share]bool
}

// share is one file system in the guest.
type share struct {
	id     string
	source Source
	ready  chan struct{} // closed when stream or err is set

	// All that follows is under Set.mu; err may be read when ready is closed.
	users  int
	stream Stream
	err    error
}

// NewSet returns a set without shares.
func NewSet(open Opener) *Set {
	return &Set{open: open, byPath: make(map[Source]*share), all: make(map[*share]bool)}
}

// Close ends all shares, after which those who use them get errors, and refuses new ones with ErrClosed. It returns when
// nothing of them is left. It may be called again.
func (s *Set) Close() {
	s.mu.Lock()
	s.closed = true
	for h := range s.all {
		h.end()
	}
	s.mu.Unlock()
	s.wg.Wait()
}

// end ends a share that is served. One that is being made sees that the set is closed. The caller holds Set.mu.
func (h *share) end() {
	if h.stream != nil {
		h.stream.Close()
	}
}

// Add makes a source available in the guest and returns the id of it there. A directory that is there already is not
// served a second time, so that all who use it have one view of it. release gives it back; a second call does nothing. A
// path that cannot be shared is ErrInvalid.
func (s *Set) Add(ctx context.Context, src Source) (id string, release func(), err error) {
	h, first, err := s.take(src)
	if err != nil {
		return "", nil, err
	}
	if first {
		s.start(ctx, h)
	}
	select {
	case <-h.ready:
	case <-ctx.Done():
		s.release(h)
		return "", nil, ctx.Err()
	}
	if h.err != nil {
		s.release(h)
		if !first && ctx.Err() == nil && (errors.Is(h.err, context.Canceled) || errors.Is(h.err, context.DeadlineExceeded)) {
			return s.Add(ctx, src) // he who made it has given up
		}
		return "", nil, h.err
	}
	return h.id, sync.OnceFunc(func() { s.release(h) }), nil
}

// take returns the share of a source with one more user, and whether the caller has to start it.
func (s *Set) take(src Source) (h *share, first bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, false, fmt.Errorf("share: %w: the machine has ended", errs.ErrClosed)
	}
	if src.FS == nil {
		h = s.byPath[src]
	}
	if h == nil {
		h, first = &share{id: strings.ToLower(rand.Text()), source: src, ready: make(chan struct{})}, true
		s.all[h] = true
		if src.FS == nil {
			s.byPath[src] = h
		}
	}
	h.users++
	return h, first, nil
}

// release takes a user from a share, and ends it with the last one.
func (s *Set) release(h *share) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if h.users--; h.users == 0 {
		s.drop(h)
	}
}

// drop ends a share and forgets it. The caller holds mu.
func (s *Set) drop(h *share) {
	h.end()
	delete(s.all, h)
	if h.source.FS == nil && s.byPath[h.source] == h {
		delete(s.byPath, h.source)
	}
}

// start opens the source and the stream, and serves one over the other until it ends.
func (s *Set) start(ctx context.Context, h *share) {
	f, file, err := openSource(h.source)
	var stream Stream
	if err == nil {
		if stream, err = s.open(ctx, api.ShareRequest{ID: h.id, File: file}); err != nil {
			f.close()
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	defer close(h.ready)
	if err == nil && s.closed {
		err = fmt.Errorf("share: %w: the machine has ended", errs.ErrClosed)
		stream.Close()
		f.close()
	}
	if err != nil {
		h.err = err
		s.drop(h)
		return
	}
	h.stream = stream
	s.wg.Go(func() {
		defer f.close()
		serve(f.fs, stream)
		s.mu.Lock()
		defer s.mu.Unlock()
		s.drop(h) // the next who asks gets another one
	})
}
