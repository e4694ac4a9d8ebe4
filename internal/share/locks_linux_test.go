package share

import (
	"encoding/binary"
	"math"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// lockFile opens a file in a guest and returns what sets a lock on it there, for an owner, with an operation.
func lockFile(t *testing.T, g *guest, name string, flock uint32) func(op uint32, owner uint64, kind uint32) []byte {
	id, errno := g.lookup(rootID, name)
	require.Zero(t, errno)
	p, errno := g.call(14, id, u32(unix.O_RDWR, 0))
	require.Zero(t, errno)
	fh := binary.LittleEndian.Uint64(p)
	return func(op uint32, owner uint64, kind uint32) []byte {
		return g.message(op, id, u64(fh, owner, 0, math.MaxInt64), u32(kind, 0, flock, 0))
	}
}

// errnoOf sends a message and returns the error of the next reply.
func (g *guest) errnoOf(msg []byte) syscall.Errno {
	g.in <- msg
	return syscall.Errno(-int32(binary.LittleEndian.Uint32((<-g.out)[4:])))
}

// onHost locks and unlocks as a process of the host does.
func onHost(t *testing.T, path string, flock bool) func(kind uint32) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	require.NoError(t, err)
	t.Cleanup(func() { f.Close() })
	return func(kind uint32) error {
		if flock {
			return unix.Flock(int(f.Fd()), map[uint32]int{unix.F_RDLCK: unix.LOCK_SH, unix.F_WRLCK: unix.LOCK_EX, unix.F_UNLCK: unix.LOCK_UN}[kind]|unix.LOCK_NB)
		}
		return unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: int16(kind)})
	}
}

func TestLocksHoldOnBothSides(t *testing.T) {
	for name, flock := range map[string]uint32{"fcntl": 0, "flock": 1} {
		t.Run(name, func(t *testing.T) {
			d, path := newDir(t, false)
			g := newGuest(t, newLibrary(d))
			lock := lockFile(t, g, "file", flock)
			host := onHost(t, filepath.Join(path, "file"), flock == 1)

			require.Zero(t, g.errnoOf(lock(32, 1, unix.F_WRLCK)))
			require.Zero(t, g.errnoOf(lock(32, 1, unix.F_WRLCK)), "he has it")
			require.Equal(t, unix.EAGAIN, g.errnoOf(lock(32, 2, unix.F_RDLCK)), "another process of the guest")
			require.Equal(t, unix.EAGAIN, host(unix.F_RDLCK))
			require.Zero(t, g.errnoOf(lock(32, 1, unix.F_RDLCK)))
			require.Zero(t, g.errnoOf(lock(32, 2, unix.F_RDLCK)))
			require.NoError(t, host(unix.F_RDLCK), "who read lock together")
			require.Equal(t, unix.EAGAIN, g.errnoOf(lock(32, 2, unix.F_WRLCK)))
			require.Zero(t, g.errnoOf(lock(32, 2, unix.F_UNLCK)))
			require.Zero(t, g.errnoOf(lock(32, 1, unix.F_UNLCK)))
			require.NoError(t, host(unix.F_WRLCK))
			require.Equal(t, unix.EAGAIN, g.errnoOf(lock(32, 1, unix.F_RDLCK)))

			waiting := lock(opSetLkWait, 1, unix.F_WRLCK)
			g.in <- waiting
			require.Equal(t, unix.EINTR, g.interrupted(waiting))
			g.in <- lock(opSetLkWait, 1, unix.F_WRLCK)
			require.NoError(t, host(unix.F_UNLCK))
			require.Zero(t, binary.LittleEndian.Uint32((<-g.out)[4:]), "the host has given it up")

			g.in <- lock(opSetLkWait, 2, unix.F_WRLCK)
			require.Zero(t, g.errnoOf(lock(32, 1, unix.F_UNLCK)))
			require.Zero(t, binary.LittleEndian.Uint32((<-g.out)[4:]), "the other process has given it up")
			g.in <- lock(opSetLkWait, 1, unix.F_WRLCK) // and is there still when the share ends
		})
	}
}

// interrupted interrupts a request until that has come to where it waits, and returns its error.
func (g *guest) interrupted(msg []byte) syscall.Errno {
	unique := binary.LittleEndian.Uint64(msg[8:])
	g.in <- g.message(opInterrupt, 0, u64(unique))
	for {
		p := <-g.out
		errno := syscall.Errno(-int32(binary.LittleEndian.Uint32(p[4:])))
		if binary.LittleEndian.Uint64(p[8:]) == unique {
			return errno
		}
		require.Equal(g.t, unix.EAGAIN, errno, "it is not there yet, as the guest's kernel knows")
		g.in <- g.message(opInterrupt, 0, u64(unique))
	}
}

func TestLocksEnd(t *testing.T) {
	d, path := newDir(t, false)
	g := newGuest(t, newLibrary(d))
	host := onHost(t, filepath.Join(path, "file"), false)
	whole := onHost(t, filepath.Join(path, "file"), true)
	lock, flock := lockFile(t, g, "file", 0), lockFile(t, g, "file", 1)
	require.Zero(t, g.errnoOf(lock(32, 1, unix.F_WRLCK)))
	require.Zero(t, g.errnoOf(flock(32, 7, unix.F_WRLCK)))
	id, _ := g.lookup(rootID, "file")
	_, errno := g.call(25, id, u64(2, 0, 1)) // flush: owner 1 closes the file
	require.Zero(t, errno)
	require.NoError(t, host(unix.F_WRLCK))
	require.Error(t, whole(unix.F_WRLCK))
	_, errno = g.call(18, id, u64(2), make([]byte, 16))
	require.Zero(t, errno)
	require.NoError(t, whole(unix.F_WRLCK))

	for _, bad := range []func(b []byte){
		func(b []byte) { binary.LittleEndian.PutUint64(b[56:], 1<<63) },                               // it begins before the file
		func(b []byte) { binary.LittleEndian.PutUint64(b[56:], math.MaxInt64); b[64] = 0; b[71] = 0 }, // and ends before it begins
		func(b []byte) { b[72] = 77 },
	} {
		msg := lock(32, 3, unix.F_RDLCK)
		bad(msg)
		require.Equal(t, unix.EINVAL, g.errnoOf(msg))
	}
}
