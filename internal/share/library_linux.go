package share

import (
	"log/slog"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// library lets go-fuse parse the messages for a directory of the host. It has the structures of the system that it is built
// for, so it is of use on Linux only.
type library struct {
	*dir
	ps *fuse.ProtocolServer
}

var _ backend = library{}

func newLibrary(d *dir) library {
	return library{d, fuse.NewProtocolServer(d, &fuse.MountOptions{
		MaxWrite: maxWrite, MaxReadAhead: maxWrite, MaxBackground: maxInFlight, DisableSplice: true, Logger: slog.NewLogLogger(slog.DiscardHandler, slog.LevelInfo),
		EnableLocks:       true,
		ExtraCapabilities: fuse.CAP_ASYNC_DIO | killPriv,
		PanicHandler:      func(any) fuse.Status { return fuse.EIO },
	})}
}

func (l library) handle(msg, out []byte) (int, bool) {
	n, st := l.ps.HandleRequest([][]byte{msg}, [][]byte{out})
	return n, st == fuse.OK
}
