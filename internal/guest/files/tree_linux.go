package files

import (
	"context"
	"io"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// OpenIn opens what a path means below root, as a descriptor that only names it. Links are followed and lead within root.
// What is not there is ErrNotFound.
func OpenIn(root int, name string) (int, error) {
	fd, err := open(root, name, unix.O_PATH, inRoot)
	if err != nil {
		return -1, pathError("open", name, err)
	}
	return fd, nil
}

// IsEmpty tells whether there is nothing in a directory.
func IsEmpty(dir int) (bool, error) {
	fd, err := open(dir, ".", unix.O_RDONLY|unix.O_DIRECTORY, below)
	if err != nil {
		return false, pathError("open", ".", err)
	}
	defer unix.Close(fd)
	buf := make([]byte, 4096)
	for {
		n, err := unix.Getdents(fd, buf)
		if err != nil || n <= 0 {
			return err == nil, err
		}
		if _, _, names := unix.ParseDirent(buf[:n], 1, nil); len(names) > 0 {
			return false, nil
		}
	}
}

// CopyTree copies a directory into another one: what is in it, and its own owner, mode, time and attributes.
func CopyTree(ctx context.Context, from, to int) error {
	src, err := OpenWhole(from)
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := OpenTarget(to, "/")
	if err != nil {
		return err
	}
	defer dst.Close()
	r, w := io.Pipe()
	var wg sync.WaitGroup
	var readErr error
	wg.Go(func() {
		readErr = src.WriteTar(ctx, w)
		w.CloseWithError(readErr)
	})
	writeErr := dst.Unpack(ctx, r, Options{KeepOwner: true})
	r.CloseWithError(writeErr)
	wg.Wait()
	if readErr != nil {
		return readErr
	}
	if writeErr != nil {
		return writeErr
	}
	return copyOwn(from, to)
}

// copyOwn gives a directory what another one has of its own.
func copyOwn(from, to int) error {
	var st unix.Stat_t
	if err := unix.Fstat(from, &st); err != nil {
		return pathError("stat", ".", err)
	}
	names, err := xattrNames(from)
	if err != nil {
		return pathError("list attributes of", ".", err)
	}
	for _, name := range names {
		if !strings.HasPrefix(name, "user.") {
			continue
		}
		value, err := xattr(from, name)
		if err != nil {
			return pathError("read attribute of", ".", err)
		}
		if err := unix.Setxattr(procPath(to), name, value, 0); err != nil && err != unix.ENOTSUP {
			return pathError("write attribute of", ".", err)
		}
	}
	if err := unix.Fchownat(to, "", int(st.Uid), int(st.Gid), unix.AT_EMPTY_PATH); err != nil {
		return pathError("change the owner of", ".", err)
	}
	if err := unix.Chmod(procPath(to), st.Mode&0o7777); err != nil {
		return pathError("change the mode of", ".", err)
	}
	ts := []unix.Timespec{st.Atim, st.Mtim}
	return pathError("change the time of", ".", unix.UtimesNanoAt(unix.AT_FDCWD, procPath(to), ts, 0))
}

// Usage is how much there is in a directory.
type Usage struct {
	Bytes int64 // on the disk
	Files int64 // without the directory itself; a file with several names counts once for each
}

// Measure adds up what is in a directory. A tree that cannot be walked with bounded memory is ErrUnavailable.
func Measure(ctx context.Context, dir int) (u Usage, err error) {
	w := &walker{ctx: ctx, dir: dir, visit: func(e *entry) error {
		size := e.st.Blocks * 512
		if e.kind() != unix.S_IFDIR && e.st.Nlink > 1 {
			size /= int64(e.st.Nlink) // the other names have the rest
		}
		u.Files++
		u.Bytes += size
		return nil
	}}
	return u, w.walk(".")
}
