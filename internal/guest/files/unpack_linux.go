package files

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
)

// Options tunes Unpack.
type Options struct {
	NoOverwrite bool // a directory is not replaced by a file, nor a file by a directory
	KeepOwner   bool // owners are those of the archive, not root
}

// Target is a directory to write into. Open one with OpenTarget and close it with Close.
type Target struct {
	root int
	dir  string // from root, cleaned

	parent     int // descriptor of the directory written to last, or -1
	parentName string
	times      []dirTime
	held       int // bytes of the names in times
	buf        []byte
}

// dirTime is the time of a directory, set when nothing is written into it any more.
type dirTime struct {
	path string
	at   time.Time
}

// OpenTarget opens a directory below root, links followed. root must stay open. What is not there is ErrNotFound, what is
// no directory ErrInvalid.
func OpenTarget(root int, name string) (*Target, error) {
	p, err := parse(name)
	if err != nil {
		return nil, err
	}
	fd, err := open(root, p.String(), unix.O_PATH|unix.O_DIRECTORY, inRoot)
	if err != nil {
		return nil, pathError("open directory", name, err)
	}
	defer unix.Close(fd)
	if pseudo(fd) {
		return nil, fmt.Errorf("write into %.300q in the container: %w: it is the kernel's", name, errs.ErrUnsupported)
	}
	return &Target{root: root, dir: p.String(), parent: -1, buf: make([]byte, bufSize)}, nil
}

// Close closes the target.
func (t *Target) Close() { t.forget() }

func (t *Target) forget() {
	if t.parent >= 0 {
		unix.Close(t.parent)
	}
	t.parent = -1
}

// Unpack writes an archive into the directory. Directories that are there are kept, with the archive's mode; anything
// else in an entry's place is replaced, whole directories too unless NoOverwrite is set. Missing parents are made. Links
// in the container and in the archive lead within the container's root, as they do for its processes. Names that the
// layers of an image use for deletions are plain names here.
//
// A bad archive is ErrInvalid, one that ends too early ErrCorrupt, a full disk ErrUnavailable. After an error what came
// before it is there, and the file that was being written is not.
func (t *Target) Unpack(ctx context.Context, r io.Reader, o Options) error {
	in := &input{ctx: ctx, r: r}
	tr := tar.NewReader(in)
	for {
		h, err := tr.Next()
		if err == io.EOF {
			break
		}
		if err == nil {
			err = t.entry(tr, h, o)
		}
		if err != nil {
			return in.explain(err)
		}
	}
	if in.total > 0 && in.zeros < 512 {
		return fmt.Errorf("unpack: %w: the archive has no end", errs.ErrCorrupt)
	}
	t.setTimes()
	_, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{in}, t.buf)
	return err
}

// input is the archive as it comes. It remembers its own error, and how many zeros came last.
type input struct {
	ctx   context.Context
	r     io.Reader
	err   error
	total int64
	zeros int64
}

func (in *input) Read(p []byte) (int, error) {
	if err := in.ctx.Err(); err != nil {
		in.err = err
		return 0, err
	}
	n, err := in.r.Read(p)
	in.total += int64(n)
	if rest := bytes.TrimRight(p[:n], "\x00"); len(rest) > 0 {
		in.zeros = int64(n - len(rest))
	} else {
		in.zeros += int64(n)
	}
	if err != nil && err != io.EOF {
		in.err = err
	}
	return n, err
}

// explain says what an error of the archive means. What the target refuses stands for itself.
func (in *input) explain(err error) error {
	var ours *targetError
	switch {
	case in.err != nil:
		return fmt.Errorf("read the archive: %w", in.err)
	case errors.As(err, &ours):
		return ours.err
	case errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, io.EOF):
		return fmt.Errorf("unpack: %w: the archive ends too early: %w", errs.ErrCorrupt, err)
	}
	return fmt.Errorf("unpack: %w archive: %w", errs.ErrInvalid, err)
}

// targetError is an error that is not of the archive's form.
type targetError struct{ err error }

func (e *targetError) Error() string { return e.err.Error() }

// entry unpacks one entry.
func (t *Target) entry(tr *tar.Reader, h *tar.Header, o Options) error {
	if h.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	name, err := entryName(h.Name)
	if err != nil {
		return &targetError{err}
	}
	if name == "." {
		return nil // the directory itself is the container's
	}
	f, err := newFile(h, o)
	if err != nil {
		return &targetError{err}
	}
	if h.Typeflag == tar.TypeLink {
		if f.link, err = entryName(h.Linkname); err != nil {
			return &targetError{err}
		}
		if f.link == name {
			return nil
		}
	}
	dir, base := path.Split(name)
	at, err := t.openParent(strings.TrimSuffix(dir, "/"))
	if err != nil {
		return &targetError{pathError("make directory for", name, err)}
	}
	err = t.put(tr, at, base, name, f, o)
	var ours *targetError
	if errno := unix.Errno(0); errors.As(err, &errno) && !errors.As(err, &ours) {
		return &targetError{pathError("write", name, err)}
	}
	return err
}

// entryName cleans a name of an archive, which may not lead out of the directory.
func entryName(name string) (string, error) {
	clean := path.Clean(strings.TrimLeft(name, "/"))
	if clean == ".." || strings.HasPrefix(clean, "../") || strings.IndexByte(clean, 0) >= 0 || len(clean) >= unix.PathMax {
		return "", fmt.Errorf("unpack %.300q: %w name: it leads out of the directory, or no file can have it", name, errs.ErrInvalid)
	}
	return clean, nil
}

// openParent opens a directory below the target, and makes it where it does not exist.
func (t *Target) openParent(name string) (int, error) {
	if t.parent >= 0 && t.parentName == name {
		return t.parent, nil
	}
	t.forget()
	fd, err := t.openDir(name)
	if err == unix.ENOENT && name != "" {
		dir, base := path.Split(name)
		var up int
		if up, err = t.openParent(strings.TrimSuffix(dir, "/")); err != nil {
			return -1, err
		}
		if err = unix.Mkdirat(up, base, 0o755); err != nil && err != unix.EEXIST {
			return -1, err
		}
		t.forget()
		if fd, err = t.openDir(name); err == unix.ENOENT {
			err = unix.ELOOP // a link to nowhere
		}
	}
	if err != nil {
		return -1, err
	}
	t.parent, t.parentName = fd, name
	return fd, nil
}

func (t *Target) openDir(name string) (int, error) {
	return open(t.root, path.Join(t.dir, name), unix.O_PATH|unix.O_DIRECTORY, inRoot)
}

// setTimes sets the times of directories. One that has changed its place since keeps the time of the copy.
func (t *Target) setTimes() {
	for _, d := range t.times {
		if fd, err := t.openDir(d.path); err == nil {
			_ = setTime(fd, d.at)
			unix.Close(fd)
		}
	}
}
