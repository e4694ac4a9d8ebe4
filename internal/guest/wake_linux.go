package guest

import (
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/arcboxlabs/arcbox-go/agent/api"
	"github.com/arcboxlabs/arcbox-go/internal/errs"
)

// settle waits for what boots in the background.
func (a *agent) settle(ctx context.Context, _ api.SettleRequest) (api.SettleReply, error) {
	select {
	case <-a.settled:
		return api.SettleReply{}, a.settleErr
	case <-ctx.Done():
		return api.SettleReply{}, ctx.Err()
	}
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
