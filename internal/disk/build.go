package disk

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"slices"
	"time"

	"github.com/diskfs/go-diskfs/backend"
	"github.com/diskfs/go-diskfs/filesystem/ext4"
)

// layout is counted up when build makes another file system than before.
const layout = 1

// inodeRatio is how many bytes of a disk go with each inode.
const inodeRatio = 16384

// build makes an empty ext4 in memory.
func build(ctx context.Context, size int64) (*packed, error) {
	m := &memory{ctx: ctx, size: size, blocks: make(map[int64]*[blockSize]byte)}
	_, err := ext4.Create(m, size, 0, 0, &ext4.Params{
		InodeRatio: inodeRatio, Checksum: true, VolumeName: "arcbox",
		Features: []ext4.FeatureOpt{
			ext4.WithFeatureDirectoryIndices(true), ext4.WithFeatureLargeInodes(true),
			ext4.WithFeatureLargeSubdirectoryCount(true), ext4.WithFeatureMetadataChecksums(true),
		},
	})
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	if err != nil {
		return nil, fmt.Errorf("make ext4 of %d MiB: %w", size>>20, err)
	}
	return m.pack(), nil
}

const blockSize = 4096

// memory is a disk in memory that keeps only what is not zero. It fails when its context has ended.
type memory struct {
	ctx    context.Context
	size   int64
	pos    int64
	blocks map[int64]*[blockSize]byte // by number
}

var _ backend.WritableFile = (*memory)(nil)
var _ backend.Storage = (*memory)(nil)

var errOutside = errors.New("access outside of the disk")

// each calls f for each part of p that lies in one block.
func (m *memory) each(p []byte, off int64, f func(block int64, at int, part []byte)) error {
	if err := m.ctx.Err(); err != nil {
		return err
	}
	if off < 0 || off > m.size-int64(len(p)) {
		return errOutside
	}
	for len(p) > 0 {
		at := int(off % blockSize)
		n := min(blockSize-at, len(p))
		f(off/blockSize, at, p[:n])
		p, off = p[n:], off+int64(n)
	}
	return nil
}

// WriteAt writes p.
func (m *memory) WriteAt(p []byte, off int64) (int, error) {
	var zero [blockSize]byte
	err := m.each(p, off, func(block int64, at int, part []byte) {
		b := m.blocks[block]
		if b == nil {
			if bytes.Equal(part, zero[:len(part)]) {
				return
			}
			b = new([blockSize]byte)
			m.blocks[block] = b
		}
		copy(b[at:], part)
	})
	if err != nil {
		return 0, err
	}
	return len(p), nil
}

// ReadAt reads what was written, and zeros elsewhere.
func (m *memory) ReadAt(p []byte, off int64) (int, error) {
	err := m.each(p, off, func(block int64, at int, part []byte) {
		clear(part)
		if b := m.blocks[block]; b != nil {
			copy(part, b[at:])
		}
	})
	if err != nil {
		return 0, err
	}
	return len(p), nil
}

// pack returns the content. Neighbouring blocks make one run; blocks of zeros are left out.
func (m *memory) pack() *packed {
	t := &packed{size: m.size}
	next := int64(-1)
	for _, n := range slices.Sorted(maps.Keys(m.blocks)) {
		b := m.blocks[n]
		if *b == [blockSize]byte{} {
			continue
		}
		if n == next {
			r := &t.runs[len(t.runs)-1]
			r.data = append(r.data, b[:]...)
		} else {
			t.runs = append(t.runs, run{n * blockSize, slices.Clone(b[:])})
		}
		next = n + 1
	}
	return t
}

// The rest is what a backend.Storage has besides.

// Read reads from the position on.
func (m *memory) Read(p []byte) (int, error) {
	n := min(int64(len(p)), m.size-m.pos)
	if n <= 0 {
		return 0, io.EOF
	}
	k, err := m.ReadAt(p[:n], m.pos)
	m.pos += int64(k)
	return k, err
}

// Seek sets the position.
func (m *memory) Seek(offset int64, whence int) (int64, error) {
	switch whence {
	case io.SeekCurrent:
		offset += m.pos
	case io.SeekEnd:
		offset += m.size
	}
	if offset < 0 {
		return m.pos, errOutside
	}
	m.pos = offset
	return offset, nil
}

// Close does nothing.
func (m *memory) Close() error { return nil }

// Sys returns that there is no file.
func (m *memory) Sys() (*os.File, error) { return nil, backend.ErrNotSuitable }

// Writable returns the disk itself.
func (m *memory) Writable() (backend.WritableFile, error) { return m, nil }

// Path returns "": the disk has no name.
func (m *memory) Path() string { return "" }

// Stat describes the disk as a regular file.
func (m *memory) Stat() (fs.FileInfo, error) { return memoryInfo{m.size}, nil }

type memoryInfo struct{ size int64 }

func (i memoryInfo) Name() string       { return "disk" }
func (i memoryInfo) Size() int64        { return i.size }
func (i memoryInfo) Mode() fs.FileMode  { return 0o600 }
func (i memoryInfo) ModTime() time.Time { return time.Time{} }
func (i memoryInfo) IsDir() bool        { return false }
func (i memoryInfo) Sys() any           { return nil }
