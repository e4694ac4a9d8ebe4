package share

import (
	"math"
	"sync"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

const (
	// maxLockers bounds those who hold locks on files of a share.
	maxLockers = 1 << 14
	// lockWait and lockWaitMax are how long one waits before it tries to get a lock again that a process of the host may
	// have: the host's kernel tells nobody when it is free, but for a thread that cannot be interrupted.
	lockWait    = 5 * time.Millisecond
	lockWaitMax = 100 * time.Millisecond
)

// locks are those that a guest has on files of the host, where they hold against processes of the host too. Each who locks
// has a descriptor of its own: locks of fcntl(2) are those of open files (F_OFD_SETLK), so they hold against each other as
// between processes. The zero value is ready. Its methods may be called from many goroutines.
type locks struct {
	mu     sync.Mutex
	closed bool
	fds    map[locker]held
	freed  chan struct{} // closed when a lock is given up
}

// locker is who locks: a process for fcntl(2), an open file for flock(2).
type locker struct {
	n     *node
	owner uint64
	flock bool
}

// held is what a locker has: a descriptor, and the handle by which it has locked last.
type held struct {
	fd int
	fh uint64
}

// begin makes what the zero value does not have. The caller holds mu.
func (t *locks) begin() {
	if t.fds == nil {
		t.fds, t.freed = make(map[locker]held), make(chan struct{})
	}
}

// close gives all locks up and sends those away who wait.
func (t *locks) close() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.begin()
	t.closed = true
	t.wake()
	for _, h := range t.fds {
		unix.Close(h.fd)
	}
	clear(t.fds)
}

// drop gives up what a locker has.
func (t *locks) drop(l locker) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.dropLocked(l)
}

// release gives up what was locked by a handle that is closed.
func (t *locks) release(fh uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for l, h := range t.fds {
		if h.fh == fh {
			t.dropLocked(l)
		}
	}
}

// dropLocked is drop. The caller holds mu.
func (t *locks) dropLocked(l locker) {
	if h, ok := t.fds[l]; ok {
		unix.Close(h.fd)
		delete(t.fds, l)
		t.wake()
	}
}

// wake lets those try again who wait. The caller holds mu.
func (t *locks) wake() {
	close(t.freed)
	t.freed = make(chan struct{})
}

// set sets a lock, or takes it away. It is EAGAIN where somebody else has it; freed is closed when that may have changed.
// open opens the file anew.
func (t *locks) set(l locker, fh uint64, lk fuse.FileLock, open func() (int, error)) (freed <-chan struct{}, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.begin()
	if t.closed {
		return nil, unix.EIO
	}
	h, ok := t.fds[l]
	fd := h.fd
	switch {
	case !ok && lk.Typ == unix.F_UNLCK:
		return nil, nil
	case !ok && len(t.fds) >= maxLockers:
		return nil, unix.ENOLCK
	case !ok:
		if fd, err = open(); err != nil {
			return nil, err
		}
	}
	err = apply(fd, l.flock, lk)
	switch {
	case err != nil && !ok:
		unix.Close(fd)
	case err == nil:
		t.fds[l] = held{fd, fh}
	}
	if err == nil && lk.Typ != unix.F_WRLCK { // it was given up, or is for readers now
		t.wake()
	}
	if err == unix.EACCES || err == unix.EWOULDBLOCK {
		err = unix.EAGAIN
	}
	return t.freed, err
}

func apply(fd int, flock bool, lk fuse.FileLock) error {
	if flock {
		how := map[uint32]int{unix.F_RDLCK: unix.LOCK_SH, unix.F_WRLCK: unix.LOCK_EX, unix.F_UNLCK: unix.LOCK_UN}[lk.Typ]
		return retry(func() error { return unix.Flock(fd, how|unix.LOCK_NB) })
	}
	r, err := region(lk)
	if err != nil {
		return err
	}
	return retry(func() error { return unix.FcntlFlock(uintptr(fd), unix.F_OFD_SETLK, &r) })
}

// region is what a lock is of. In the protocol its last byte is in it.
func region(lk fuse.FileLock) (unix.Flock_t, error) {
	if lk.Start > math.MaxInt64 || lk.End < lk.Start || lk.Typ > unix.F_UNLCK {
		return unix.Flock_t{}, unix.EINVAL
	}
	r := unix.Flock_t{Type: int16(lk.Typ), Start: int64(lk.Start)}
	if lk.End < math.MaxInt64 { // otherwise to the end of the file, wherever that will be
		r.Len = int64(lk.End-lk.Start) + 1
	}
	return r, nil
}

// wait sets a lock as soon as nobody else has it, until cancel is closed.
func (t *locks) wait(cancel <-chan struct{}, l locker, fh uint64, lk fuse.FileLock, open func() (int, error)) error {
	for pause := lockWait; ; pause = min(2*pause, lockWaitMax) {
		freed, err := t.set(l, fh, lk, open)
		if err != unix.EAGAIN {
			return err
		}
		timer := time.NewTimer(pause)
		select {
		case <-freed:
		case <-timer.C:
		case <-cancel:
			err = unix.EINTR
		}
		timer.Stop()
		if err != unix.EAGAIN {
			return err
		}
	}
}

// get tells who is in the way of a lock; a Typ of F_UNLCK is nobody.
func (t *locks) get(l locker, lk fuse.FileLock, open func() (int, error)) (fuse.FileLock, error) {
	r, err := region(lk)
	if err != nil {
		return lk, err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	h, ok := t.fds[l]
	fd := h.fd
	if !ok {
		if fd, err = open(); err != nil {
			return lk, err
		}
		defer unix.Close(fd)
	}
	if err := retry(func() error { return unix.FcntlFlock(uintptr(fd), unix.F_OFD_GETLK, &r) }); err != nil {
		return lk, err
	}
	out := fuse.FileLock{Typ: uint32(uint16(r.Type)), Start: uint64(r.Start), End: math.MaxInt64}
	if r.Len > 0 {
		out.End = uint64(r.Start + r.Len - 1)
	}
	return out, nil
}

// lock calls fn with who locks, and with what opens the file anew.
func (d *dir) lock(in *fuse.LkIn, fn func(l locker, open func() (int, error)) error) fuse.Status {
	n, err := d.nodes.get(in.NodeId)
	if err != nil {
		return status(err)
	}
	h, err := d.handles.get(in.Fh, n)
	if err != nil {
		return status(err)
	}
	if n.is.kind != unix.S_IFREG && in.LkFlags&fuse.LK_FLOCK == 0 {
		return fuse.EINVAL
	}
	return status(fn(locker{n, in.Owner, in.LkFlags&fuse.LK_FLOCK != 0}, func() (fd int, err error) {
		err = h.do(func(at int) error {
			fd, err = d.reopen(at, n.is.kind == unix.S_IFREG)
			return err
		})
		return fd, err
	}))
}

// reopen opens a file anew, to write where that is possible, which locks against readers need.
func (d *dir) reopen(at int, regular bool) (int, error) {
	flags := unix.O_NONBLOCK | unix.O_NOCTTY | unix.O_CLOEXEC
	if regular && !d.readOnly {
		if fd, err := unix.Open(procPath(at), unix.O_RDWR|flags, 0); err == nil {
			return fd, nil
		}
	}
	fd, err := unix.Open(procPath(at), unix.O_RDONLY|flags, 0)
	if err != nil && regular && !d.readOnly {
		return unix.Open(procPath(at), unix.O_WRONLY|flags, 0)
	}
	return fd, err
}

// GetLk implements fuse.RawFileSystem.
func (d *dir) GetLk(_ <-chan struct{}, in *fuse.LkIn, out *fuse.LkOut) fuse.Status {
	return d.lock(in, func(l locker, open func() (int, error)) (err error) {
		out.Lk, err = d.locks.get(l, in.Lk, open)
		return err
	})
}

// SetLk implements fuse.RawFileSystem.
func (d *dir) SetLk(_ <-chan struct{}, in *fuse.LkIn) fuse.Status {
	return d.lock(in, func(l locker, open func() (int, error)) error {
		_, err := d.locks.set(l, in.Fh, in.Lk, open)
		return err
	})
}

// SetLkw implements fuse.RawFileSystem.
func (d *dir) SetLkw(cancel <-chan struct{}, in *fuse.LkIn) fuse.Status {
	return d.lock(in, func(l locker, open func() (int, error)) error { return d.locks.wait(cancel, l, in.Fh, in.Lk, open) })
}
