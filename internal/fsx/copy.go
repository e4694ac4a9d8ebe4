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
	if err := dst.Truncate(info.Size()); err != nil {
		return fmt.Errorf("set the size of a copy: %w", err)
	}
	return ReadSparse(ctx, src, func(b []byte, at int64) error {
		_, err := dst.WriteAt(b, at)
		return err
	})
}

// ReadSparse calls do with what of a file is not zeros, from its begin to its end: with pieces that begin at multiples of
// 64 KiB, and of which no such part is only zeros. What of them is a hole makes no difference.
func ReadSparse(ctx context.Context, f *os.File, do func(b []byte, at int64) error) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	size := info.Size()
	buf := make([]byte, copyChunk)
	for at := int64(0); at < size; {
		from, to, err := nextData(f, at, size)
		if err != nil {
			return fmt.Errorf("find data in %s: %w", f.Name(), err)
		}
		from = max(at, from&^(zeroChunk-1))
		to = min(size, (to+zeroChunk-1)&^(zeroChunk-1))
		for ; from < to; from += int64(len(buf)) {
			if err := context.Cause(ctx); err != nil {
				return err
			}
			b := buf[:min(int64(len(buf)), to-from)]
			if _, err := f.ReadAt(b, from); err != nil && !errors.Is(err, io.EOF) {
				return err
			}
			if err := eachData(b, from, do); err != nil {
				return err
			}
		}
		at = to
	}
	return nil
}

// eachData calls do with b without what is zeros. Pieces that follow each other are one.
func eachData(b []byte, at int64, do func(b []byte, at int64) error) error {
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
			if err := do(b[begin:min(i, len(b))], at+int64(begin)); err != nil {
				return err
			}
			begin = -1
		}
		if len(piece) == 0 {
			return nil
		}
	}
}

// SparseUnit is the unit, in bytes, in which ReadSparse leaves out zeros.
const SparseUnit = zeroChunk
