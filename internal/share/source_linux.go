package share

import (
	"errors"
	"syscall"
)

// openPath opens a directory or a file of the host. file tells which it is.
func openPath(src Source) (f *served, file bool, err error) {
	d, file, err := openDir(src.Path, src.ReadOnly)
	if err != nil {
		return nil, false, err
	}
	return &served{fs: newLibrary(d), close: d.close}, file, nil
}

// hostError is the number of an error of the host's system in the guest.
func hostError(err error) errno {
	var code syscall.Errno
	if errors.As(err, &code) {
		return errno(code)
	}
	return eIO
}
