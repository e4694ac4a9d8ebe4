// Package cpio writes initramfs archives in the kernel's newc format. The same calls give the same bytes: there are no
// times, and inode numbers count up.
package cpio

import (
	"fmt"
	"io"
	"io/fs"
	"path"
	"strings"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
)

// The file types of a record's mode.
const (
	typeDir  = 0o040000
	typeChar = 0o020000
	typeFile = 0o100000
)

const maxFile = 1<<32 - 1 // the format has 32 bits for a size

// Writer writes an archive. Parents are written before their first child, so callers name files only. A Writer is used
// by one goroutine. After an error every call returns it.
type Writer struct {
	w     io.Writer
	pos   int64
	inode uint32
	seen  map[string]bool
	err   error
}

// NewWriter returns a Writer to w. The caller calls Close at the end.
func NewWriter(w io.Writer) *Writer {
	return &Writer{w: w, seen: make(map[string]bool)}
}

// Dir writes a directory with its parents, mode 0755 each. One that is there already is left as it is.
func (c *Writer) Dir(name string) error {
	if err := c.check(name); err != nil {
		return err
	}
	for i := 0; i <= len(name); i++ {
		if i < len(name) && name[i] != '/' {
			continue
		}
		if dir := name[:i]; !c.seen[dir] {
			c.seen[dir] = true
			c.header(dir, typeDir|0o755, 0, 0, 0)
		}
	}
	return c.err
}

// Char writes a character device node with mode 0600.
func (c *Writer) Char(name string, major, minor uint32) error {
	if err := c.parent(name); err != nil {
		return err
	}
	c.header(name, typeChar|0o600, 0, major, minor)
	return c.err
}

// File writes a regular file of exactly size bytes from r.
func (c *Writer) File(name string, perm fs.FileMode, size int64, r io.Reader) error {
	if size < 0 || size > maxFile {
		return c.fail(fmt.Errorf("write %s: %w: %d bytes do not fit in an initramfs", name, errs.ErrInvalid, size))
	}
	if err := c.parent(name); err != nil {
		return err
	}
	c.header(name, typeFile|uint32(perm.Perm()), size, 0, 0)
	if c.err != nil {
		return c.err
	}
	n, err := io.CopyN(c.w, r, size)
	c.pos += n
	if err != nil {
		return c.fail(fmt.Errorf("write %s: %w", name, err))
	}
	c.pad(4)
	return c.err
}

// Close writes the trailer. It does not close the underlying writer.
func (c *Writer) Close() error {
	c.header("TRAILER!!!", 0, 0, 0, 0)
	c.pad(512)
	return c.err
}

func (c *Writer) parent(name string) error {
	if err := c.check(name); err != nil {
		return err
	}
	if c.seen[name] {
		return c.fail(fmt.Errorf("write %s: %w in the initramfs", name, errs.ErrExists))
	}
	c.seen[name] = true
	if dir := path.Dir(name); dir != "." {
		return c.Dir(dir)
	}
	return nil
}

func (c *Writer) check(name string) error {
	if c.err == nil && (!fs.ValidPath(name) || name == "." || strings.ContainsRune(name, 0)) {
		return c.fail(fmt.Errorf("write initramfs: %w name %q", errs.ErrInvalid, name))
	}
	return c.err
}

func (c *Writer) header(name string, mode uint32, size int64, major, minor uint32) {
	c.inode++
	links := 1
	if mode&typeDir != 0 {
		links = 2
	}
	c.write(fmt.Appendf(nil, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%s\x00",
		c.inode, mode, 0, 0, links, 0, size, 0, 0, major, minor, len(name)+1, 0, name))
	c.pad(4)
}

func (c *Writer) pad(align int64) {
	if n := (align - c.pos%align) % align; n > 0 {
		c.write(make([]byte, n))
	}
}

func (c *Writer) write(b []byte) {
	if c.err != nil {
		return
	}
	n, err := c.w.Write(b)
	c.pos += int64(n)
	if err != nil {
		_ = c.fail(fmt.Errorf("write initramfs: %w", err))
	}
}

func (c *Writer) fail(err error) error {
	if c.err == nil {
		c.err = err
	}
	return c.err
}
