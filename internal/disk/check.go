package disk

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
)

// Where an ext4 has what tells its size, in the superblock, which begins at superblockAt.
const (
	superblockAt  = 1024
	superblockLen = 1024

	blocksLowAt    = 0x04
	blockSizeAt    = 0x18 // as a power of two, less 10
	magicAt        = 0x38
	incompatibleAt = 0x60
	blocksHighAt   = 0x150

	magicExt4     = 0xef53
	has64Bit      = 0x80 // in incompatibleAt: blocksHighAt counts
	maxBlockShift = 6    // 64 KiB
	maxBlocksHigh = 0xffff
)

// Check returns ErrCorrupt for a disk whose file is shorter than the file system in it. What has none it leaves to the guest.
func Check(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("check disk: %w", err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return fmt.Errorf("check disk: %w", err)
	}
	b := make([]byte, superblockLen)
	if _, err := f.ReadAt(b, superblockAt); err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("check disk: %w", err)
	}
	if want := sizeOf(b); st.Size() < max(want, superblockAt+superblockLen) {
		return fmt.Errorf("disk %s: %w: the file has %d bytes of %d: restore it, or remove it", path, errs.ErrCorrupt, st.Size(), want)
	}
	return nil
}

// sizeOf returns the bytes that a file system with the superblock takes, 0 where it is none.
func sizeOf(superblock []byte) int64 {
	le := binary.LittleEndian
	shift := le.Uint32(superblock[blockSizeAt:])
	if le.Uint16(superblock[magicAt:]) != magicExt4 || shift > maxBlockShift {
		return 0
	}
	blocks := int64(le.Uint32(superblock[blocksLowAt:]))
	if le.Uint32(superblock[incompatibleAt:])&has64Bit != 0 {
		blocks |= int64(le.Uint32(superblock[blocksHighAt:])&maxBlocksHigh) << 32
	}
	return blocks << (10 + shift)
}
