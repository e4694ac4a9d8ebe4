package guest

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime/debug"
	"strconv"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/arcboxlabs/arcbox-go/agent/api"
	"github.com/arcboxlabs/arcbox-go/internal/errs"
)

// settle waits for what boots in the background, and then until the guest is at rest: what it has begun would go on in each
// machine that goes on from it, when there is most to do. An emulated processor translates code when it runs first.
func (a *agent) settle(ctx context.Context, req api.SettleRequest) (api.SettleReply, error) {
	select {
	case <-a.settled:
	case <-ctx.Done():
		return api.SettleReply{}, ctx.Err()
	}
	if a.settleErr != nil {
		return api.SettleReply{}, a.settleErr
	}
	if err := a.box.Settle(ctx, req.Disks); err != nil {
		return api.SettleReply{}, err
	}
	if !req.Rest {
		return api.SettleReply{}, nil
	}
	debug.FreeOSMemory() // collects garbage too
	return api.SettleReply{}, rest(ctx)
}

// A guest is at rest when its processors have changed their task at most restSwitches times in each of restTimes periods.
// It is given restLimit to come to it. They are more than a second: the kernel tells its parts once a second of network links
// that have changed, and those of the interfaces that are kept ready have.
const (
	restPeriod   = 220 * time.Millisecond
	restTimes    = 5
	restSwitches = 110
	restLimit    = 3 * time.Second
)

// rest waits until the guest is at rest. The kernel tells nobody when its own work is done: it has to be asked.
func rest(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, restLimit)
	defer cancel()
	ticks := time.NewTicker(restPeriod)
	defer ticks.Stop()
	last, err := switches()
	for quiet := 0; err == nil && quiet < restTimes; {
		select {
		case <-ticks.C:
		case <-ctx.Done():
			return nil
		}
		var now uint64
		if now, err = switches(); now-last > restSwitches {
			quiet = 0
		} else {
			quiet++
		}
		last = now
	}
	return err
}

// switches returns how often all processors have changed their task.
func switches() (uint64, error) {
	stat, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, err
	}
	for line := range bytes.Lines(stat) {
		if text, ok := bytes.CutPrefix(line, []byte("ctxt ")); ok {
			return strconv.ParseUint(string(bytes.TrimSpace(text)), 10, 64)
		}
	}
	return 0, errors.New("/proc/stat has no ctxt")
}

// The bounds of the randomness that wakes a guest.
const (
	minEntropy = 32
	maxEntropy = 512
)

// wake makes a guest that goes on from a template one of its own. The randomness comes first: nothing of the guest runs
// between the restore and this call but what its kernel does by itself.
func wake(_ context.Context, req api.WakeRequest) (api.WakeReply, error) {
	if n := len(req.Entropy); n < minEntropy || n > maxEntropy {
		return api.WakeReply{}, fmt.Errorf("wake: %w: %d bytes of entropy: %d to %d are needed", errs.ErrInvalid, n, minEntropy, maxEntropy)
	}
	if err := reseed(req.Entropy); err != nil {
		return api.WakeReply{}, fmt.Errorf("wake: reseed the kernel's random number generator: %w", err)
	}
	if err := forget(); err != nil {
		return api.WakeReply{}, fmt.Errorf("wake: discard the device's random numbers: %w", err)
	}
	if err := setClock(req.Time); err != nil {
		return api.WakeReply{}, fmt.Errorf("wake: set the clock: %w", err)
	}
	return api.WakeReply{}, nil
}

// reseed gives the kernel entropy, credits it, and makes the generator start from it at once. See random(4).
func reseed(entropy []byte) error {
	f, err := os.OpenFile("/dev/urandom", os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	// struct rand_pool_info: entropy in bits, size in bytes, the bytes.
	info := binary.NativeEndian.AppendUint32(nil, uint32(8*len(entropy)))
	info = binary.NativeEndian.AppendUint32(info, uint32(len(entropy)))
	info = append(info, entropy...)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), unix.RNDADDENTROPY, uintptr(unsafe.Pointer(&info[0]))); errno != 0 {
		return errno
	}
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), unix.RNDRESEEDCRNG, 0); errno != 0 {
		return errno
	}
	return nil
}

// forget discards the random numbers that the kernel has from the device already: all that go on from the template have the
// same ones.
func forget() error {
	fd, err := unix.Open("/dev/hwrng", unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err == unix.ENOENT || err == unix.ENODEV {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var b [buffered]byte
	for got := 0; got < len(b); {
		n, err := unix.Read(fd, b[got:])
		switch {
		case err == unix.EINTR:
		case err == unix.EAGAIN || err == unix.ENODEV || n == 0:
			return nil // that was all
		case err != nil:
			return err
		}
		got += max(n, 0)
	}
	return nil
}

// buffered is more than the device's driver and the kernel's layer above it keep, in bytes: a cache line each, which no
// processor has longer than 128.
const buffered = 256

// setClock sets the clock, where the zero time leaves it.
func setClock(t time.Time) error {
	if t.IsZero() {
		return nil
	}
	ts, err := unix.TimeToTimespec(t)
	if err != nil {
		return err
	}
	return unix.ClockSettime(unix.CLOCK_REALTIME, &ts)
}
