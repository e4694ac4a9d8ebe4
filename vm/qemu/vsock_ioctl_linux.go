package qemu

import (
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// vhostVsockSetGuestCID is VHOST_VSOCK_SET_GUEST_CID of linux/vhost.h: _IOW(0xAF, 0x60, __u64).
const vhostVsockSetGuestCID = 0x4008af60

func setCID(f *os.File, cid uint32) error {
	v := uint64(cid)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), vhostVsockSetGuestCID, uintptr(unsafe.Pointer(&v))); errno != 0 {
		return errno
	}
	return nil
}
