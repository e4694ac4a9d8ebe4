package fsx

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
)

// copyChunk is how many bytes are read at once, and zeroChunk is the unit in which zeros are left out.
const (
	copyChunk = 1 << 20
	zeroChunk = 64 << 10
)

// CloneFile makes path, which must not exist, a copy of src with mode 0600: by reflink where the file system can, else by
// CopySparse. It does not sync. After an error there is no file.
func CloneFile(ctx context.Context, path, src string) error {
	return makeFrom(path, src, func(to, from *os.File) error {
		if reflink(to, from) == nil {
			return nil
		}
		return CopySparse(ctx, to, from)
	})
}

// Reflink makes path, which must not exist, a file of mode 0600 that shares the data of src, copy on write. Where the file
// system cannot it is errors.ErrUnsupported. After an error there is no file.
func Reflink(path, src string) error {
	return makeFrom(path, src, func(to, from *os.File) error {
		if err := reflink(to, from); err != nil {
			return fmt.Errorf("reflink: %w: %w", errors.ErrUnsupported, err)
		}
		return nil
	})
}

// makeFrom makes a file from another one. After an error there is none.
func makeFrom(path, src string, fill func(to, from *os.File) error) (err error) {
	from, err := os.Open(src)
	if err != nil {
		return err
	}
	defer from.Close()
	to, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if cerr := to.Close(); err == nil {
			err = cerr
		}
		if err != nil {
			err = errors.Join(err, os.Remove(path))
		}
	}()
	return fill(to, from)
}

// LinkFile makes path another name of src, or a copy where that cannot be, as between two file systems.
func LinkFile(ctx context.Context, path, src string) error {
	if err := os.Link(src, path); err == nil || errors.Is(err, fs.ErrExist) || errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return CloneFile(ctx, path, src)
}

// CopySparse makes dst, which is empty, a copy of src. What is a hole or zeros in src is a hole in dst.
func CopySparse(ctx context.Context, dst, src *os.File) error {
	info, err := src.Stat()
	if err != nil {
		return err
	}
	size := info.Size()
	if err := dst.Truncate(size); err != nil {
		return fmt.Errorf("set the size of a copy: %w", err)
	}
	buf := make([]byte, copyChunk)
	for at := int64(0); at < size; {
		from, to, err := nextData(src, at, size)
		if err != nil {
			return fmt.Errorf("find data to copy: %w", err)
		}
		for ; from < to; from += int64(len(buf)) {
			if err := context.Cause(ctx); err != nil {
				return err
			}
			b := buf[:min(int64(len(buf)), to-from)]
			if _, err := src.ReadAt(b, from); err != nil && !errors.Is(err, io.EOF) {
				return err
			}
			if err := writeData(dst, b, from); err != nil {
				return err
			}
		}
		at = to
	}
	return nil
}

// writeData writes b without what is zeros. Pieces that follow each other are written at once.
func writeData(dst *os.File, b []byte, at int64) error {
	var zeros [zeroChunk]byte
	begin := -1
	for i := 0; ; i += zeroChunk {
		piece := b[min(i, len(b)):min(i+zeroChunk, len(b))]
		if data := len(piece) > 0 && !bytes.Equal(piece, zeros[:len(piece)]); data {
			if begin < 0 {
				begin = i
			}
			continue
		}
		if begin >= 0 {
			if _, err := dst.WriteAt(b[begin:min(i, len(b))], at+int64(begin)); err != nil {
				return err
			}
			begin = -1
		}
		if len(piece) == 0 {
			return nil
		}
	}
}
