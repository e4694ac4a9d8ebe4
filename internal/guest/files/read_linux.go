package files

import (
	"context"
	"fmt"
	"io"
	"path"

	"golang.org/x/sys/unix"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
)

// Source is a file or a directory to read. Open one with OpenSource and close it with Close.
type Source struct {
	fd   int
	name string // in the archive; "" leaves the entry itself out
}

// OpenSource opens what name means below root, as "docker cp" has it: a link at the end is not followed; with a slash
// behind it, it is, and must be a directory; with "/." the archive has the contents without the directory's name. What is
// not there is ErrNotFound, a file that the kernel makes up, as in /proc, ErrUnsupported.
func OpenSource(root int, name string) (*Source, error) {
	p, err := parse(name)
	if err != nil {
		return nil, err
	}
	fd, err := p.open(root)
	if err != nil {
		return nil, err
	}
	s := &Source{fd: fd, name: p.name}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		s.Close()
		return nil, pathError("stat", name, err)
	}
	switch kind := st.Mode & unix.S_IFMT; {
	case kind == unix.S_IFSOCK:
		err = fmt.Errorf("copy %.300q: %w: an archive cannot hold a socket", name, errs.ErrUnsupported)
	case kind != unix.S_IFLNK && pseudo(fd):
		err = fmt.Errorf("copy %.300q: %w: the kernel makes it up when it is read: read it in the container", name, errs.ErrUnsupported)
	}
	if err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

// OpenWhole opens a whole root. Its archive has no entry for the root itself.
func OpenWhole(root int) (*Source, error) {
	fd, err := open(root, "/", unix.O_PATH|unix.O_DIRECTORY, inRoot)
	if err != nil {
		return nil, pathError("open", "/", err)
	}
	return &Source{fd: fd}, nil
}

// Close closes the source.
func (s *Source) Close() { unix.Close(s.fd) }

// WriteTar writes the archive to w: names in order, hard links kept, times with their fractions, the attributes user.*
// and security.capability, devices and pipes; sockets are passed over, as is what vanishes meanwhile. Of file systems of
// the kernel, such as /proc, only the directory is there.
func (s *Source) WriteTar(ctx context.Context, w io.Writer) error {
	a := newArchive(ctx, w)
	e := entry{fd: s.fd}
	if err := unix.Fstat(s.fd, &e.st); err != nil {
		return pathError("stat", s.name, err)
	}
	if s.name != "" {
		if err := a.add(&e, s.name); err != nil {
			return err
		}
	}
	if e.kind() == unix.S_IFDIR && !pseudo(s.fd) {
		wk := walker{ctx: ctx, dir: s.fd, visit: func(e *entry) error { return a.add(e, s.under(e.path)) }}
		if err := wk.walk("."); err != nil {
			return err
		}
	}
	if err := a.tw.Close(); err != nil {
		return fmt.Errorf("end the archive: %w", err)
	}
	return nil
}

// under returns the name of an entry in the archive.
func (s *Source) under(name string) string {
	if s.name == "." {
		return "./" + name
	}
	return path.Join(s.name, name)
}
