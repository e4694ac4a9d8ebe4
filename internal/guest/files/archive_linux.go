package files

import (
	"archive/tar"
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
)

const (
	paxXattr  = "SCHILY.xattr."
	maxXattrs = 512 << 10 // bytes of a file's attributes: what fits into a header that readers take
	bufSize   = 128 << 10
)

// archive writes files into a tar archive.
type archive struct {
	ctx   context.Context
	tw    *tar.Writer
	whole bool // times are those of whole seconds
	links map[inode]*link
	held  int // bytes of the names in links
	buf   []byte
}

type inode struct{ dev, ino uint64 }

// link is the first name of a file that has several.
type link struct {
	name string
	left uint64 // how many more there are
}

func newArchive(ctx context.Context, w io.Writer) *archive {
	return &archive{ctx: ctx, tw: tar.NewWriter(w), links: make(map[inode]*link), buf: make([]byte, bufSize)}
}

// add writes a file under a name. A socket is passed over. A file whose size changes meanwhile is cut or filled with
// zeros to the size it had.
func (a *archive) add(e *entry, name string) error {
	if err := a.ctx.Err(); err != nil {
		return err
	}
	h := &tar.Header{
		Name: name, Mode: int64(e.st.Mode & 0o7777), Uid: int(e.st.Uid), Gid: int(e.st.Gid),
		ModTime: time.Unix(int64(e.st.Mtim.Sec), int64(e.st.Mtim.Nsec)),
	}
	if a.whole {
		h.ModTime = h.ModTime.Truncate(time.Second)
	} else if e.st.Mtim.Nsec != 0 {
		h.Format = tar.FormatPAX
	}
	if err := a.describe(h, e); err != nil || h.Typeflag == 0 {
		return err
	}
	if err := a.attributes(h, e); err != nil {
		return err
	}
	if h.Typeflag != tar.TypeReg || h.Size == 0 {
		return a.header(h)
	}
	// The descriptor is of a regular file, so opening it does nothing else.
	f, err := os.OpenFile(procPath(e.fd), os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if err != nil {
		return pathError("open", name, err)
	}
	defer f.Close()
	if err := a.header(h); err != nil {
		return err
	}
	return a.content(f, h.Size)
}

// describe sets the type of an entry and what goes with it. A type of 0 is a file that cannot be in an archive.
func (a *archive) describe(h *tar.Header, e *entry) error {
	if first, err := a.link(e, h.Name); err != nil {
		return err
	} else if first != "" {
		h.Typeflag, h.Linkname = tar.TypeLink, first
		return nil
	}
	switch e.kind() {
	case unix.S_IFREG:
		h.Typeflag, h.Size = tar.TypeReg, e.st.Size
	case unix.S_IFDIR:
		h.Typeflag = tar.TypeDir
		h.Name += "/"
	case unix.S_IFLNK:
		text, err := readlink(e.fd, "")
		if err != nil {
			return pathError("read link", h.Name, err)
		}
		h.Typeflag, h.Linkname = tar.TypeSymlink, text
	case unix.S_IFCHR, unix.S_IFBLK:
		h.Typeflag = tar.TypeChar
		if e.kind() == unix.S_IFBLK {
			h.Typeflag = tar.TypeBlock
		}
		h.Devmajor, h.Devminor = int64(unix.Major(e.st.Rdev)), int64(unix.Minor(e.st.Rdev))
	case unix.S_IFIFO:
		h.Typeflag = tar.TypeFifo
	}
	return nil
}

// link returns the name under which a file is in the archive already, or remembers this one.
func (a *archive) link(e *entry, name string) (string, error) {
	if e.st.Nlink < 2 || e.kind() == unix.S_IFDIR || e.kind() == unix.S_IFSOCK {
		return "", nil
	}
	id := inode{uint64(e.st.Dev), e.st.Ino}
	if l := a.links[id]; l != nil {
		if l.left--; l.left == 0 {
			delete(a.links, id)
			a.held -= len(l.name)
		}
		return l.name, nil
	}
	if a.held += len(name); a.held > maxNames {
		return "", fmt.Errorf("copy %.300q: %w: too many files have several names: copy parts of it", name, errs.ErrUnavailable)
	}
	a.links[id] = &link{name: name, left: uint64(e.st.Nlink) - 1}
	return "", nil
}

func (a *archive) header(h *tar.Header) error {
	if err := a.tw.WriteHeader(h); err != nil {
		return fmt.Errorf("write %.300q to the archive: %w", h.Name, err)
	}
	return nil
}

// content writes size bytes.
func (a *archive) content(f *os.File, size int64) error {
	ended := false
	for size > 0 {
		if err := a.ctx.Err(); err != nil {
			return err
		}
		b := a.buf[:min(size, bufSize)]
		n := len(b)
		if !ended {
			var err error
			if n, err = f.Read(b); err == io.EOF {
				ended = true
				clear(a.buf)
				continue
			} else if err != nil {
				return fmt.Errorf("read a file of the container: %w", err)
			}
		}
		if _, err := a.tw.Write(b[:n]); err != nil {
			return fmt.Errorf("write to the archive: %w", err)
		}
		size -= int64(n)
	}
	return nil
}

// attributes adds the extended attributes that mean something elsewhere: capabilities, and the user's own.
func (a *archive) attributes(h *tar.Header, e *entry) error {
	if h.Typeflag != tar.TypeReg && h.Typeflag != tar.TypeDir {
		return nil
	}
	names, err := xattrNames(e.fd)
	if err != nil {
		return pathError("list attributes of", h.Name, err)
	}
	size := 0
	for _, name := range names {
		if !portable(name) || strings.Contains(name, "=") { // an archive cannot hold such a name
			continue
		}
		value, err := xattr(e.fd, name)
		if err == unix.ENODATA {
			continue
		}
		if err != nil {
			return pathError("read attribute of", h.Name, err)
		}
		if size += len(name) + len(value) + 64; size > maxXattrs {
			return fmt.Errorf("copy %.300q: %w: its extended attributes have more than %d bytes", h.Name, errs.ErrUnsupported, maxXattrs)
		}
		if h.PAXRecords == nil {
			h.PAXRecords = make(map[string]string)
		}
		h.PAXRecords[paxXattr+name] = string(value)
		h.Format = tar.FormatPAX
	}
	return nil
}

// portable tells whether an extended attribute is copied: the others are the kernel's or the file system's own.
func portable(name string) bool {
	return name == "security.capability" || strings.HasPrefix(name, "user.")
}

func xattrNames(fd int) ([]string, error) {
	b, err := grow(func(b []byte) (int, error) { return unix.Listxattr(procPath(fd), b) })
	if len(b) == 0 || err != nil {
		return nil, err
	}
	return strings.Split(strings.TrimSuffix(string(b), "\x00"), "\x00"), nil
}

func xattr(fd int, name string) ([]byte, error) {
	return grow(func(b []byte) (int, error) { return unix.Getxattr(procPath(fd), name, b) })
}

// grow reads a value whose size may change between two calls. Where the file system has none it is empty.
func grow(read func([]byte) (int, error)) ([]byte, error) {
	b := make([]byte, 1024)
	for range maxTries {
		n, err := read(b)
		switch {
		case err == nil:
			return b[:n], nil
		case err == unix.ENOTSUP:
			return nil, nil
		case err != unix.ERANGE || len(b) > 64<<10:
			return nil, err
		}
		b = make([]byte, 4*len(b))
	}
	return nil, unix.EAGAIN
}
