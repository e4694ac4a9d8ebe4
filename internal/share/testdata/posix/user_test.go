package posix

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"

	"golang.org/x/sys/unix"
)

// asUser tries as user 1000 to read a file that is not its own and to write into a directory that is.
func asUser(closed, own string) error {
	runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, 1000, 1000, 1000); errno != 0 {
		return errno
	}
	if _, err := unix.Open(closed, unix.O_RDONLY, 0); err != unix.EACCES {
		return fmt.Errorf("open a file of another user: %w", err)
	}
	if err := unix.Mkdir(filepath.Join(filepath.Dir(closed), "new"), 0o755); err != unix.EACCES {
		return fmt.Errorf("make a directory in that of another user: %w", err)
	}
	return os.WriteFile(filepath.Join(own, "f"), nil, 0o644)
}
