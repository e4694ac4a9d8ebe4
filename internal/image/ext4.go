package image

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"
	"os"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
	"github.com/opencontainers/go-digest"
)

const blockSize = 4096

var zeroBlock [blockSize]byte

// sparseFile leaves out blocks of zeros that are written beyond what has been written: they are holes then. It is used by
// one goroutine at a time.
type sparseFile struct {
	f   *os.File
	pos int64
	end int64 // bytes before it may have been written
}

// Read reads at the position.
func (s *sparseFile) Read(p []byte) (int, error) {
	n, err := s.f.ReadAt(p, s.pos)
	s.pos += int64(n)
	return n, err
}

// Seek sets the position.
func (s *sparseFile) Seek(offset int64, whence int) (int64, error) {
	switch whence {
	case io.SeekStart:
		s.pos = offset
	case io.SeekCurrent:
		s.pos += offset
	default:
		return s.pos, fmt.Errorf("seek from %d: %w", whence, errs.ErrUnsupported)
	}
	return s.pos, nil
}

// Truncate empties the file.
func (s *sparseFile) Truncate(size int64) error {
	s.pos, s.end = size, size
	return s.f.Truncate(size)
}

// Write writes at the position.
func (s *sparseFile) Write(p []byte) (int, error) {
	written := 0
	for written < len(p) {
		run, zero := s.run(p[written:])
		if !zero {
			if n, err := s.f.WriteAt(p[written:written+run], s.pos); err != nil {
				return written + n, err
			}
		}
		s.pos += int64(run)
		s.end = max(s.end, s.pos)
		written += run
	}
	return written, nil
}

// run returns the length of the blocks at the start of p that are all to be written, or all to be left out.
func (s *sparseFile) run(p []byte) (n int, zero bool) {
	for n < len(p) {
		at := s.pos + int64(n)
		size := min(len(p)-n, int(blockSize-at%blockSize))
		z := at >= s.end && bytes.Equal(p[n:n+size], zeroBlock[:size])
		if n > 0 && z != zero {
			return n, zero
		}
		n, zero = n+size, z
	}
	return n, zero
}

// finish makes the file as long as what was written to it, and repairs what the image writer leaves undone: the unused
// ends of the inode bitmaps have to be set. The volume gets a name and an id, both made from the layer's.
func (s *sparseFile) finish(diffID digest.Digest) error {
	if err := s.f.Truncate(s.end); err != nil {
		return err
	}
	var sb [1024]byte
	if _, err := s.f.ReadAt(sb[:], 1024); err != nil {
		return fmt.Errorf("read super block: %w", err)
	}
	inodes, perGroup := binary.LittleEndian.Uint32(sb[0:]), binary.LittleEndian.Uint32(sb[40:])
	if perGroup == 0 || perGroup > 8*blockSize || perGroup%8 != 0 {
		return fmt.Errorf("super block says %d inodes per group: %w", perGroup, errs.ErrCorrupt)
	}
	used := bytes.Repeat([]byte{0xff}, blockSize-int(perGroup/8))
	for g := range int64(inodes / perGroup) {
		var desc [8]byte
		if _, err := s.f.ReadAt(desc[:], blockSize+32*g); err != nil {
			return fmt.Errorf("read group descriptor: %w", err)
		}
		bitmap := int64(binary.LittleEndian.Uint32(desc[4:])) * blockSize
		if _, err := s.f.WriteAt(used, bitmap+int64(perGroup/8)); err != nil {
			return fmt.Errorf("write inode bitmap: %w", err)
		}
	}
	id := sha256.Sum256([]byte("volume of " + diffID.String()))
	id[6], id[8] = id[6]&0x0f|0x80, id[8]&0x3f|0x80 // a UUID of version 8
	copy(sb[104:120], id[:])
	copy(sb[120:136], serial(diffID))
	if _, err := s.f.WriteAt(sb[:], 1024); err != nil {
		return fmt.Errorf("write super block: %w", err)
	}
	return nil
}
