package files

import (
	"archive/tar"
	"context"
	"fmt"
	"io"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
)

const (
	whiteout = ".wh."
	opaque   = ".wh..wh..opq"
)

// Layer is what a container has changed: the upper directory of its overlay, and the image below it.
type Layer struct {
	Upper int // descriptor of the upper directory
	Image int // descriptor of the image's root, as the container would see it unchanged
}

// WriteTar writes the changes as a layer of an OCI image: what was made or changed, with whiteouts for what was deleted.
// Times are of whole seconds. Mount points that the agent made and that nobody used are left out. A file whose name means
// something else in a layer is ErrUnsupported.
func (l Layer) WriteTar(ctx context.Context, w io.Writer) error {
	a := newArchive(ctx, w)
	a.whole = true
	wk := walker{ctx: ctx, dir: l.Upper, visit: func(e *entry) error {
		dir, base := path.Split(e.path)
		switch {
		case e.isWhiteout():
			return a.header(&tar.Header{Typeflag: tar.TypeReg, Name: dir + whiteout + base})
		case strings.HasPrefix(base, whiteout):
			return fmt.Errorf("make a layer: %w: the container has a file %.300q, and such a name means a deletion there: remove it", errs.ErrUnsupported, e.path)
		case l.ours(e):
			return errSkip
		}
		if err := a.add(e, e.path); err != nil || e.kind() != unix.S_IFDIR {
			return err
		}
		if isOpaque(e.fd) {
			return a.header(&tar.Header{Typeflag: tar.TypeReg, Name: e.path + "/" + opaque})
		}
		return nil
	}}
	if err := wk.walk("."); err != nil {
		return err
	}
	if err := a.tw.Close(); err != nil {
		return fmt.Errorf("end the layer: %w", err)
	}
	return nil
}

// isOpaque tells whether a directory hides the one below it.
func isOpaque(fd int) bool {
	v, err := xattr(fd, "trusted.overlay.opaque")
	return err == nil && string(v) == "y"
}

// ours tells whether an entry is a mount point that the agent has made, and empty.
func (l Layer) ours(e *entry) bool {
	switch e.path {
	case "dev", "proc", "sys":
		if e.kind() != unix.S_IFDIR {
			return false
		}
		if names, err := readNames(l.Upper, e.path, maxNames); err != nil || len(names) > 0 {
			return false
		}
	case "etc/hosts", "etc/hostname", "etc/resolv.conf":
		if e.kind() != unix.S_IFREG || e.st.Size > 0 {
			return false
		}
	default:
		return false
	}
	_, ok, err := l.before(e.path)
	return err == nil && !ok
}

// before looks a file up in the image.
func (l Layer) before(name string) (unix.Stat_t, bool, error) {
	e := entry{}
	fd, err := open(l.Image, name, unix.O_PATH|unix.O_NOFOLLOW, below)
	if changed(err) {
		return e.st, false, nil
	}
	if err != nil {
		return e.st, false, pathError("look up in the image", name, err)
	}
	defer unix.Close(fd)
	err = unix.Fstat(fd, &e.st)
	return e.st, err == nil && !e.isWhiteout(), pathError("look up in the image", name, err)
}
