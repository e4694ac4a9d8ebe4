package qemu

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"github.com/mdlayher/vsock"
	"golang.org/x/sys/unix"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
)

const vhostVsock = "/dev/vhost-vsock"

// probeVsock returns why machines cannot be reached over AF_VSOCK, nil where they can.
func probeVsock() error {
	f, err := openVhostVsock()
	if err != nil {
		return err
	}
	return f.Close()
}

func openVhostVsock() (*os.File, error) {
	f, err := os.OpenFile(vhostVsock, os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("transport vsock: %w: %w; use the transport serial, or load the module vhost_vsock", errs.ErrUnsupported, err)
	}
	return f, nil
}

// reserveCID returns a vhost-vsock device with a context ID that no other machine of the host has. It is taken until the
// file is closed, here and in QEMU.
func reserveCID() (*os.File, uint32, error) {
	f, err := openVhostVsock()
	if err != nil {
		return nil, 0, err
	}
	for range 64 {
		var b [4]byte
		rand.Read(b[:])
		// The first ones have a meaning of their own, the last is "any".
		cid := binary.NativeEndian.Uint32(b[:])&0x7fffffff | 0x40000000
		err = setCID(f, cid)
		if err == nil {
			return f, cid, nil
		}
		if !errors.Is(err, unix.EADDRINUSE) {
			break
		}
	}
	f.Close()
	return nil, 0, fmt.Errorf("set the context ID of a machine on AF_VSOCK: %w: %w", errs.ErrUnavailable, err)
}

// dialRetry is how long is waited between two attempts to reach a guest that does not listen yet. AF_VSOCK has no event
// for a guest that begins to listen.
const (
	dialRetry    = 5 * time.Millisecond
	dialRetryMax = 100 * time.Millisecond
)

// dialVsock dials until the guest listens. A guest that has listened once is up, so that from then on a port on which
// nobody listens is an error at once.
func (i *Instance) dialVsock(ctx context.Context, port uint32) (net.Conn, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(i.life.Context(), cancel)()
	for wait := dialRetry; ; wait = min(2*wait, dialRetryMax) {
		c, err := vsock.DialContext(ctx, i.cid, port, nil)
		if err == nil {
			i.vsockUp.Store(true)
			return c, nil
		}
		if i.vsockUp.Load() && errors.Is(err, unix.ECONNRESET) {
			return nil, fmt.Errorf("%w: nothing listens on port %d of the guest: %w", errs.ErrUnavailable, port, err)
		}
		t := time.NewTimer(wait)
		select {
		case <-t.C:
			continue
		case <-ctx.Done():
			t.Stop()
		}
		if i.life.Context().Err() != nil {
			return nil, fmt.Errorf("dial guest port %d: %w", port, i.life.Ended())
		}
		return nil, fmt.Errorf("dial guest port %d: %w: %w", port, context.Cause(ctx), err)
	}
}
