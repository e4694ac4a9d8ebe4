// Package deb reads Debian packages: the regular files of their data archive, without unpacking anything to disk.
package deb

import (
	"archive/tar"
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strconv"
	"strings"

	"github.com/arcboxlabs/arcbox-go/boot/internal/codec"
	"github.com/arcboxlabs/arcbox-go/internal/errs"
)

// The bounds of an archive. A kernel package with all its modules has some 7,000 entries and 500 MiB.
const (
	maxEntries = 200_000
	maxBytes   = 4 << 30
)

// VisitFunc is called for each regular file. name is relative, clean, and does not leave its root; r is the content,
// valid during the call, and need not be read. An error ends the walk and is returned as it is.
type VisitFunc func(name string, size int64, r io.Reader) error

// Walk calls visit for each regular file of the package in r, in the order of its data archive. It returns ErrCorrupt for
// bytes that are no package or end early.
func Walk(r io.Reader, visit VisitFunc) error {
	br := bufio.NewReaderSize(r, 256<<10)
	magic := make([]byte, 8)
	if _, err := io.ReadFull(br, magic); err != nil || string(magic) != "!<arch>\n" {
		return corrupt("no ar archive", err)
	}
	for {
		name, size, err := member(br)
		if err != nil {
			return err
		}
		body := io.LimitReader(br, size)
		if strings.HasPrefix(name, "data.tar") {
			return walkData(body, visit)
		}
		if name == "debian-binary" {
			v := make([]byte, 2)
			if _, err := io.ReadFull(body, v); err != nil || string(v) != "2." {
				return corrupt("package format is not 2", err)
			}
		}
		if _, err := io.Copy(io.Discard, body); err != nil {
			return corrupt("skip "+name, err)
		}
		if size%2 == 1 {
			if _, err := br.Discard(1); err != nil {
				return corrupt("no data archive", err)
			}
		}
	}
}

// member reads the header of one ar member: name in 16 bytes, size in decimal at 48, magic at 58.
func member(r io.Reader) (name string, size int64, err error) {
	var h [60]byte
	if _, err := io.ReadFull(r, h[:]); err != nil {
		return "", 0, corrupt("no data archive", err)
	}
	size, err = strconv.ParseInt(strings.TrimRight(string(h[48:58]), " "), 10, 64)
	if err != nil || size < 0 || string(h[58:60]) != "`\n" {
		return "", 0, corrupt("malformed ar header", err)
	}
	return strings.TrimRight(string(h[:16]), " /"), size, nil
}

func walkData(r io.Reader, visit VisitFunc) error {
	br := bufio.NewReaderSize(r, 256<<10)
	head, _ := br.Peek(8)
	z, err := codec.NewReader(br, codec.Detect(head))
	if err != nil {
		return fmt.Errorf("read package: %w", err)
	}
	defer func() { _ = z.Close() }()
	return WalkTar(z, visit)
}

// WalkTar calls visit for each regular file of the tar archive in r, like Walk.
func WalkTar(r io.Reader, visit VisitFunc) error {
	total := int64(0)
	tr := tar.NewReader(r)
	for range maxEntries {
		h, err := tr.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return corrupt("tar", err)
		}
		if h.Typeflag != tar.TypeReg {
			continue
		}
		name := strings.TrimPrefix(h.Name, "./")
		if !fs.ValidPath(name) || name == "." {
			return corrupt(fmt.Sprintf("file name %q leaves the archive", h.Name), nil)
		}
		if total += h.Size; total > maxBytes {
			return corrupt("more than 4 GiB of files", nil)
		}
		body := &tarBody{r: tr}
		if err := visit(name, h.Size, body); err != nil {
			return err
		}
	}
	return corrupt(fmt.Sprintf("more than %d entries", maxEntries), nil)
}

// tarBody marks errors of the archive as corruption, so that visit need not.
type tarBody struct{ r io.Reader }

func (b *tarBody) Read(p []byte) (int, error) {
	n, err := b.r.Read(p)
	if err != nil && err != io.EOF {
		err = corrupt("tar", err)
	}
	return n, err
}

func corrupt(what string, err error) error {
	if err == nil {
		return fmt.Errorf("read package: %w: %s", errs.ErrCorrupt, what)
	}
	if errors.Is(err, errs.ErrCorrupt) {
		return fmt.Errorf("read package: %s: %w", what, err)
	}
	return fmt.Errorf("read package: %w: %s: %w", errs.ErrCorrupt, what, err)
}
