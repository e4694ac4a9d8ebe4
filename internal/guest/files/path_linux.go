package files

import (
	"errors"
	"fmt"
	"path"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
)

const (
	// inRoot is for paths that the host names: links are followed, with the container's root as the root.
	inRoot = unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS
	// below is for paths that a walk has found: there is no link in them, or they have changed since.
	below = unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS
	// maxTries bounds how often a path is resolved again that was renamed meanwhile.
	maxTries = 1000
)

// open opens a path below the directory dir. resolve is inRoot or below.
func open(dir int, name string, flags int, resolve uint64) (int, error) {
	how := unix.OpenHow{Flags: uint64(flags) | unix.O_CLOEXEC, Resolve: resolve}
	var err error
	for range maxTries {
		var fd int
		fd, err = unix.Openat2(dir, name, &how)
		if err != unix.EAGAIN && err != unix.EINTR {
			return fd, err
		}
	}
	return -1, err
}

// openName opens what has a name in a directory, without following it where it is a link.
func openName(dir int, name string) (int, error) {
	return open(dir, name, unix.O_PATH|unix.O_NOFOLLOW, unix.RESOLVE_BENEATH|unix.RESOLVE_NO_MAGICLINKS)
}

// procPath is a path of the agent that means the file of a descriptor, whatever it is.
func procPath(fd int) string { return "/proc/self/fd/" + strconv.Itoa(fd) }

// place is a path of the host's as Docker reads it. It is cleaned before links are looked at.
type place struct {
	dir  string // absolute; followed where it has links
	base string // in dir, not followed; "" is dir itself
	name string // in an archive; "." for the contents alone
}

func parse(p string) (place, error) {
	if p == "" || len(p) >= unix.PathMax || strings.IndexByte(p, 0) >= 0 {
		return place{}, fmt.Errorf("path %.100q: %w: want one of 1 to %d bytes without a zero byte", p, errs.ErrInvalid, unix.PathMax-1)
	}
	clean := path.Clean("/" + p)
	base := path.Base(clean)
	switch last := p[strings.LastIndexByte(p, '/')+1:]; {
	case clean == "/" || last == ".":
		return place{dir: clean, name: "."}, nil
	case last == "":
		return place{dir: clean, name: base}, nil
	}
	return place{dir: path.Dir(clean), base: base, name: base}, nil
}

func (p place) String() string { return path.Join(p.dir, p.base) }

// open opens the file of a place.
func (p place) open(root int) (int, error) {
	dir, err := open(root, p.dir, unix.O_PATH|unix.O_DIRECTORY, inRoot)
	if err != nil {
		return -1, pathError("open", p.String(), err)
	}
	if p.base == "" {
		return dir, nil
	}
	defer unix.Close(dir)
	fd, err := openName(dir, p.base)
	if err != nil {
		return -1, pathError("open", p.String(), err)
	}
	return fd, nil
}

// changed tells whether an error means that a file which was there is no more, or something else has come in its place.
func changed(err error) bool {
	switch err {
	case unix.ENOENT, unix.ENOTDIR, unix.ELOOP, unix.EXDEV, unix.ESTALE:
		return true
	}
	return false
}

// pathError is the gate of the kernel's errors. It returns nil for nil.
func pathError(what, name string, err error) error {
	if err == nil {
		return nil
	}
	fix := func(kind error, text string) error {
		return fmt.Errorf("%s %.300q in the container: %w: %s (%w)", what, name, kind, text, err)
	}
	switch {
	case errors.Is(err, unix.ENOENT):
		return fix(errs.ErrNotFound, "there is no such file")
	case errors.Is(err, unix.ENOTDIR):
		return fix(errs.ErrInvalid, "a part of the path is no directory")
	case errors.Is(err, unix.ELOOP), errors.Is(err, unix.EXDEV):
		return fix(errs.ErrInvalid, "its links lead nowhere, or to another file system")
	case errors.Is(err, unix.ENAMETOOLONG), errors.Is(err, unix.EFBIG), errors.Is(err, unix.EINVAL):
		return fix(errs.ErrInvalid, "the file system does not take it")
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		return fix(errs.ErrUnavailable, "the disk is full: remove what is not needed, or give the machine more")
	case errors.Is(err, unix.EROFS):
		return fix(errs.ErrConflict, "it is read-only")
	case errors.Is(err, unix.EBUSY):
		return fix(errs.ErrInUse, "something is mounted there")
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EEXIST), errors.Is(err, unix.EISDIR), errors.Is(err, unix.ENOTEMPTY):
		return fix(errs.ErrConflict, "the container has something else there, or protects it")
	case errors.Is(err, unix.EAGAIN):
		return fix(errs.ErrConflict, "the container renames its directories all the time: try again")
	}
	return fmt.Errorf("%s %.300q in the container: %w", what, name, err)
}
