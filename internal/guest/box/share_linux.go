package box

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/arcboxlabs/arcbox-go/agent/api"
	"github.com/arcboxlabs/arcbox-go/internal/errs"
	"github.com/arcboxlabs/arcbox-go/internal/guest/engine"
)

// sharesDir is where the shares are mounted.
const sharesDir = "/run/s"

const (
	// maxShares bounds the shares of a guest.
	maxShares = 1024
	// maxMessage is the longest message of the kernel: what it writes at once, and what goes before that.
	maxMessage = 256<<10 + 4096
)

var _ engine.Sharer = (*Box)(nil)

// shares has the shares that are mounted.
type shares struct {
	load func(module string) error // of what is loaded when it is first needed

	mu   sync.Mutex
	byID map[string]*shareMount
}

// shareMount is a share that is mounted, or a socket. fd names its root; it is -1 while the share is being mounted.
type shareMount struct {
	fd   int
	file bool
}

// OnDemand tells how to load a module that the kernel has not loaded yet. It is called before Ready.
func (b *Box) OnDemand(load func(module string) error) { b.shares.load = load }

// add takes an id.
func (s *shares) add(id string, file bool) (*shareMount, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.byID[id] != nil:
		return nil, fmt.Errorf("share %s: %w", id, errs.ErrExists)
	case len(s.byID) >= maxShares:
		return nil, fmt.Errorf("share %s: %w: there are %d shares", id, errs.ErrUnavailable, len(s.byID))
	}
	if s.byID == nil {
		s.byID = make(map[string]*shareMount)
	}
	m := &shareMount{fd: -1, file: file}
	s.byID[id] = m
	return m, nil
}

// set says what the mounts of a share are of.
func (s *shares) set(m *shareMount, fd int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	m.fd = fd
}

// remove lets go of a share.
func (s *shares) remove(id string, m *shareMount) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.byID, id)
	if m.fd >= 0 {
		unix.Close(m.fd)
	}
}

// mount returns a mount of a share that is attached nowhere. The agent must not look into the share: it would wait for
// itself.
func (s *shares) mount(m api.Mount) (mounted, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	have := s.byID[m.Source]
	if have == nil || have.fd < 0 {
		return mounted{}, fmt.Errorf("share %s: %w", m.Source, errs.ErrNotFound)
	}
	fd, err := cloneMount(have.fd, m.ReadOnly)
	if err != nil {
		return mounted{}, err
	}
	return mounted{fd, m.Target, !have.file}, nil
}

// Share implements engine.Sharer.
func (b *Box) Share(ctx context.Context, req api.ShareRequest, accept func() (engine.Messages, error)) error {
	select {
	case <-b.ready:
	case <-ctx.Done():
		return ctx.Err()
	}
	if b.err != nil {
		return b.err
	}
	m, err := b.shares.add(req.ID, req.File)
	if err != nil {
		return err
	}
	defer b.shares.remove(req.ID, m)
	at := filepath.Join(sharesDir, req.ID)
	kernel, err := b.shares.attach(at, req.File)
	if err != nil {
		return err
	}
	defer os.Remove(at)
	defer unix.Unmount(at, unix.MNT_DETACH)
	defer kernel.Close() // whoever uses the share gets errors from now on
	fd, err := unix.Open(at, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open the share: %w", err)
	}
	b.shares.set(m, fd)
	peer, err := accept()
	if err != nil {
		return err
	}
	return pump(kernel, peer, func(advice <-chan api.ReadAhead) {
		neverPoll(at, req.File)
		for a := range advice {
			readAhead(fd, a)
		}
	})
}

// attach mounts a share and returns the kernel's end of it.
func (s *shares) attach(at string, file bool) (_ *os.File, err error) {
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if errors.Is(err, unix.ENOENT) && s.load != nil {
		if err := s.load("fuse"); err != nil {
			return nil, err
		}
		fd, err = unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	}
	if err != nil {
		return nil, fmt.Errorf("open /dev/fuse: %w: the guest's kernel has no FUSE: %w", errs.ErrUnsupported, err)
	}
	defer func() {
		if err != nil {
			unix.Close(fd)
		}
	}()
	if err := os.MkdirAll(sharesDir, 0o700); err != nil {
		return nil, fmt.Errorf("mount the share: %w", err)
	}
	mode := unix.S_IFDIR
	if file {
		mode = unix.S_IFREG
		err = os.WriteFile(at, nil, 0o600)
	} else {
		err = os.Mkdir(at, 0o700)
	}
	if err != nil {
		return nil, fmt.Errorf("mount the share: %w", err)
	}
	opts := fmt.Sprintf("fd=%d,rootmode=%o,user_id=0,group_id=0,allow_other,default_permissions", fd, mode)
	if err := unix.Mount("arcbox", at, "fuse", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOATIME, opts); err != nil {
		os.Remove(at)
		return nil, fmt.Errorf("mount the share: %w", err)
	}
	// It does not block, so the runtime polls it, which it must not do before it belongs to a mount.
	return os.NewFile(uintptr(fd), "/dev/fuse"), nil
}

// pump carries messages between the kernel and the host until one of the two ends. follow is called at the side once
// messages are carried, with the advice that the host gives meanwhile.
func pump(kernel *os.File, peer engine.Messages, follow func(<-chan api.ReadAhead)) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	advice := make(chan api.ReadAhead, 8)
	defer close(advice)
	defer kernel.Close() // ends the reading, and what follow waits for
	wg.Go(func() { follow(advice) })
	wg.Go(func() {
		defer peer.Close()
		b := make([]byte, maxMessage)
		for {
			n, err := kernel.Read(b)
			if errors.Is(err, unix.EINTR) || errors.Is(err, unix.ENOENT) { // the request was taken back
				continue
			}
			if err != nil || peer.Send(b[:n]) != nil {
				return
			}
		}
	})
	for {
		kind, msg, err := peer.Recv()
		if err != nil {
			return nil
		}
		if kind == api.FrameAhead {
			var a api.ReadAhead
			if json.Unmarshal(msg, &a) == nil {
				select {
				case advice <- a:
				default: // there is too much of it
				}
			}
			continue
		}
		// A reply that nobody waits for any more is ENOENT, a bad one EINVAL: the next one may be right.
		if _, err := kernel.Write(msg); errors.Is(err, os.ErrClosed) || errors.Is(err, unix.ENODEV) {
			return nil
		}
	}
}

// readAhead reads a directory of the share for what the kernel learns by it: the attributes of the files. root names the
// share's root.
func readAhead(root int, a api.ReadAhead) {
	how := unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_XDEV,
	}
	fd, err := unix.Openat2(root, a.Path, &how)
	if err != nil {
		return
	}
	defer unix.Close(fd)
	buf := make([]byte, 32<<10)
	for left := a.Entries; left > 0; {
		n, err := unix.Getdents(fd, buf)
		if err != nil || n <= 0 {
			return
		}
		for b := buf[:n]; len(b) > 18; left-- {
			size := int(binary.NativeEndian.Uint16(b[16:]))
			b = b[min(len(b), max(size, 19)):]
		}
	}
}

// pollName is a name in the root of a share that the host's library answers for.
const pollName = ".go-fuse-epoll-hack"

// neverPoll makes the kernel ask the host once whether a file can be polled. The answer is that this is not known here, so
// it does not ask again. Were the agent to open a file of the share first, its runtime would poll it with no thread left
// to carry the question.
func neverPoll(at string, file bool) {
	if !file {
		at = filepath.Join(at, pollName)
	}
	fd, err := unix.Open(at, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return
	}
	defer unix.Close(fd)
	_, _ = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
}
