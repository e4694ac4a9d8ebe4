package image

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
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
// ends of the inode bitmaps have to be set. The volume gets a name and an id, both made from the layer's. The writer's
// lost+found becomes what the layer says of it.
func (s *sparseFile) finish(diffID digest.Digest, lost lostState) error {
	if err := s.f.Truncate(s.end); err != nil {
		return err
	}
	v := &volume{f: s.f}
	v.read(v.super[:], 1024)
	perGroup := le.Uint32(v.super[40:])
	if v.err != nil || perGroup == 0 || perGroup > 8*blockSize || perGroup%8 != 0 {
		return fmt.Errorf("super block says %d inodes per group: %w", perGroup, errors.Join(v.err, errs.ErrCorrupt))
	}
	used := bytes.Repeat([]byte{0xff}, blockSize-int(perGroup/8))
	for g := range int64(le.Uint32(v.super[0:]) / perGroup) {
		var desc [8]byte
		v.read(desc[:], blockSize+32*g)
		v.write(used, int64(le.Uint32(desc[4:]))*blockSize+int64(perGroup/8))
	}
	if lost != lostKept {
		v.replaceLostFound(lost == lostHidden)
	}
	id := sha256.Sum256([]byte("volume of " + diffID.String()))
	id[6], id[8] = id[6]&0x0f|0x80, id[8]&0x3f|0x80 // a UUID of version 8
	copy(v.super[104:120], id[:])
	copy(v.super[120:136], serial(diffID))
	v.write(v.super[:], 1024)
	return v.err
}

var le = binary.LittleEndian

// volume edits a finished file system in place. The first error stays and ends all further work.
type volume struct {
	f     *os.File
	super [1024]byte
	err   error
}

func (v *volume) read(p []byte, off int64) {
	if v.err == nil {
		if _, v.err = v.f.ReadAt(p, off); v.err != nil {
			v.err = fmt.Errorf("read file system at %d: %w", off, v.err)
		}
	}
}

func (v *volume) write(p []byte, off int64) {
	if v.err == nil {
		if _, v.err = v.f.WriteAt(p, off); v.err != nil {
			v.err = fmt.Errorf("write file system at %d: %w", off, v.err)
		}
	}
}

const (
	inodeSize    = 256
	rootInode    = 2
	lostInode    = 11
	extentHeader = 40 // of an inode: where its extents begin
)

// firstBlock returns the first block of an inode with extents of its own.
func (v *volume) firstBlock(inode []byte) int64 {
	header := inode[extentHeader:]
	if v.err == nil && (le.Uint16(header) != 0xf30a || le.Uint16(header[2:]) == 0 || le.Uint16(header[6:]) != 0) {
		v.err = fmt.Errorf("inode has no extent: %w", errs.ErrCorrupt)
	}
	return int64(le.Uint32(header[12+8:]))
}

// lostState is what a layer says of lost+found, which the image writer makes in every root.
type lostState uint8

const (
	lostAbsent lostState = iota // nothing: a container should not see one
	lostKept                    // it has one
	lostHidden                  // it hides the one of a lower layer
)

const lostFound = "lost+found"

func lostStateOf(root *node) lostState {
	switch n := root.children[lostFound]; {
	case n == nil:
		return lostAbsent
	case n.ino == nil:
		return lostHidden
	}
	return lostKept
}

// replaceLostFound takes the directory out of the root, or makes a whiteout of it, and frees its block.
func (v *volume) replaceLostFound(whiteout bool) {
	var desc [32]byte
	v.read(desc[:], blockSize)
	table := int64(le.Uint32(desc[8:])) * blockSize
	var root, lost [inodeSize]byte
	v.read(root[:], table+(rootInode-1)*inodeSize)
	v.read(lost[:], table+(lostInode-1)*inodeSize)
	dirBlock, lostBlock := v.firstBlock(root[:])*blockSize, v.firstBlock(lost[:])
	if v.err != nil {
		return
	}
	// "." has 12 bytes, ".." follows, and children are sorted by inode: lost+found, the first, comes third.
	var dir [blockSize]byte
	v.read(dir[:], dirBlock)
	dotdot := dir[12:]
	entry := dir[24:]
	if v.err == nil && (le.Uint16(dotdot[4:]) != 12 || le.Uint32(entry) != lostInode) {
		v.err = fmt.Errorf("root directory does not begin with lost+found: %w", errs.ErrCorrupt)
		return
	}
	clear(lost[:128])
	if whiteout {
		entry[7] = 3                   // a character device
		le.PutUint16(lost[0:], 0x2000) // the same, with number 0:0
		le.PutUint16(lost[26:], 1)     // links
	} else {
		le.PutUint16(dotdot[4:], 12+le.Uint16(entry[4:]))
		clear(entry[:20])
		clear(lost[128:])
		v.clearBit(int64(le.Uint32(desc[4:]))*blockSize, lostInode-1)
		le.PutUint16(desc[14:], le.Uint16(desc[14:])+1)       // free inodes
		le.PutUint32(v.super[16:], le.Uint32(v.super[16:])+1) // the same
	}
	v.write(dir[:], dirBlock)
	v.write(lost[:], table+(lostInode-1)*inodeSize)
	le.PutUint16(root[26:], le.Uint16(root[26:])-1) // links: no ".." of lost+found any more
	v.write(root[:], table+(rootInode-1)*inodeSize)
	le.PutUint16(desc[16:], le.Uint16(desc[16:])-1) // directories
	v.write(desc[:], blockSize)
	le.PutUint32(v.super[0x268:], 0) // inode of lost+found

	group := lostBlock / (8 * blockSize)
	v.read(desc[:], blockSize+32*group)
	v.clearBit(int64(le.Uint32(desc[0:]))*blockSize, lostBlock%(8*blockSize))
	le.PutUint16(desc[12:], le.Uint16(desc[12:])+1) // free blocks
	v.write(desc[:], blockSize+32*group)
	le.PutUint32(v.super[12:], le.Uint32(v.super[12:])+1)
}

func (v *volume) clearBit(bitmap, bit int64) {
	var b [1]byte
	v.read(b[:], bitmap+bit/8)
	b[0] &^= 1 << (bit % 8)
	v.write(b[:], bitmap+bit/8)
}
