package share

import (
	"errors"
	"syscall"
)

// openPath opens a directory or a file of the host. file tells which it is.
func openPath(src Source) (f *served, file bool, err error) { return openTree(src.Path, src.ReadOnly) }

// hostError is the number of an error of the host's system in the guest.
func hostError(err error) errno {
	var code syscall.Errno
	if errors.As(err, &code) {
		return fromDarwin(int(code))
	}
	return eIO
}
