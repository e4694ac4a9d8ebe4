package fsx

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// reflink makes dst share the data of src, copy on write.
func reflink(dst, src *os.File) error {
	raw, err := dst.SyscallConn()
	if err != nil {
		return err
	}
	var ierr error
	err = raw.Control(func(fd uintptr) { ierr = unix.IoctlFileClone(int(fd), int(src.Fd())) })
	return errors.Join(err, ierr)
}

// nextData returns the first run of data of f at or after a place, which is empty and at the end where there is none.
func nextData(f *os.File, at, size int64) (from, to int64, err error) {
	from, err = f.Seek(at, unix.SEEK_DATA)
	switch {
	case errors.Is(err, unix.ENXIO):
		return size, size, nil
	case errors.Is(err, unix.EINVAL): // the file system does not tell
		return at, size, nil
	case err != nil:
		return 0, 0, err
	}
	to, err = f.Seek(from, unix.SEEK_HOLE)
	return from, min(to, size), err
}
