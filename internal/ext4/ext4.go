// Package ext4 reads ext4 file systems: those of layer images, on the host, where nothing is mounted. It reads what a
// layer image can have, which is no journal, no encryption and no directory index that hides names, and refuses the rest.
//
// The content is not trusted: every number is checked before it is used, and what does not fit is ErrCorrupt.
package ext4

import (
	"encoding/binary"
	"fmt"
	"io"
	"time"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
)

// The types of inodes, in Inode.Mode.
const (
	TypeMask    = 0xf000
	TypeFifo    = 0x1000
	TypeChar    = 0x2000
	TypeDir     = 0x4000
	TypeBlock   = 0x6000
	TypeFile    = 0x8000
	TypeSymlink = 0xa000
)

const (
	rootInode   = 2
	superOffset = 1024
	superSize   = 1024
	superMagic  = 0xef53

	featureFiletype = 0x2
	featureExtents  = 0x40
	feature64Bit    = 0x80
	featureFlexBG   = 0x200
	featureSumSeed  = 0x2000
	featuresKnown   = featureFiletype | featureExtents | feature64Bit | featureFlexBG | featureSumSeed

	flagExtents = 0x80000

	minInodeSize = 256
	maxInodeSize = 4096
)

var le = binary.LittleEndian

// Volume is an open file system. Its methods may be called from many goroutines.
type Volume struct {
	r         io.ReaderAt
	blockSize int64
	blocks    int64
	inodes    uint32
	perGroup  uint32 // inodes
	inodeSize int64
	descSize  int64
	descs     int64 // offset of the group descriptors
}

// Open reads the super block of the file system in r. What is no ext4 is ErrCorrupt, one with features that are not known
// ErrUnsupported. r is used as long as the Volume is.
func Open(r io.ReaderAt) (*Volume, error) {
	var sb [superSize]byte
	if _, err := r.ReadAt(sb[:], superOffset); err != nil {
		return nil, fmt.Errorf("read super block: %w", noEOF(err))
	}
	if le.Uint16(sb[56:]) != superMagic {
		return nil, fmt.Errorf("super block has no magic number: %w", errs.ErrCorrupt)
	}
	features := le.Uint32(sb[96:])
	if features&^featuresKnown != 0 || features&featureFiletype == 0 {
		return nil, fmt.Errorf("ext4 with features %#x: %w", features, errs.ErrUnsupported)
	}
	shift := le.Uint32(sb[24:])
	if shift > 6 {
		return nil, fmt.Errorf("blocks of 2^%d KiB: %w", shift, errs.ErrCorrupt)
	}
	v := &Volume{
		r: r, blockSize: 1024 << shift, blocks: int64(le.Uint32(sb[4:])), inodes: le.Uint32(sb[0:]),
		perGroup: le.Uint32(sb[40:]), inodeSize: int64(le.Uint16(sb[88:])), descSize: 32,
	}
	if features&feature64Bit != 0 {
		v.descSize = int64(le.Uint16(sb[254:]))
		v.blocks |= int64(le.Uint32(sb[0x150:])) << 32
	}
	v.descs = (int64(le.Uint32(sb[20:])) + 1) * v.blockSize
	bad := v.perGroup == 0 || v.inodeSize < minInodeSize || v.inodeSize > maxInodeSize || v.inodeSize&(v.inodeSize-1) != 0 ||
		v.descSize < 32 || v.descSize > 1024 || v.blocks <= 0 || v.blocks > 1<<46
	if bad {
		return nil, fmt.Errorf("super block has sizes that cannot be: %w", errs.ErrCorrupt)
	}
	return v, nil
}

// noEOF makes of the end of a file what it is here: the file system is cut off.
func noEOF(err error) error {
	if err == io.EOF || err == io.ErrUnexpectedEOF {
		return fmt.Errorf("file system is cut off: %w", errs.ErrCorrupt)
	}
	return err
}

// Inode is an object of the file system.
type Inode struct {
	Number   uint32
	Mode     uint16 // type and permissions, as Linux has them
	UID, GID uint32
	Links    uint16
	Size     int64 // of a file's content or a link's target
	ModTime  time.Time
	Major    uint32 // of a device
	Minor    uint32

	flags uint32
	acl   int64 // block of extended attributes; 0 is none
	raw   []byte
}

// Type is one of the types.
func (n *Inode) Type() uint16 { return n.Mode & TypeMask }

// Whiteout tells whether the inode is what overlayfs takes for a name that is not there.
func (n *Inode) Whiteout() bool { return n.Type() == TypeChar && n.Major == 0 && n.Minor == 0 }

// Root returns the root directory.
func (v *Volume) Root() (*Inode, error) { return v.inode(rootInode) }

func (v *Volume) inode(number uint32) (*Inode, error) {
	if number == 0 || number > v.inodes {
		return nil, fmt.Errorf("inode %d of %d: %w", number, v.inodes, errs.ErrCorrupt)
	}
	group, index := int64((number-1)/v.perGroup), int64((number-1)%v.perGroup)
	desc := make([]byte, v.descSize)
	if _, err := v.r.ReadAt(desc, v.descs+group*v.descSize); err != nil {
		return nil, fmt.Errorf("read group %d: %w", group, noEOF(err))
	}
	table := int64(le.Uint32(desc[8:]))
	if v.descSize >= 64 {
		table |= int64(le.Uint32(desc[0x28:])) << 32
	}
	if table <= 0 || table >= v.blocks {
		return nil, fmt.Errorf("inode table of group %d is at block %d: %w", group, table, errs.ErrCorrupt)
	}
	raw := make([]byte, v.inodeSize)
	if _, err := v.r.ReadAt(raw, table*v.blockSize+index*v.inodeSize); err != nil {
		return nil, fmt.Errorf("read inode %d: %w", number, noEOF(err))
	}
	n := &Inode{
		Number: number, Mode: le.Uint16(raw[0:]), Links: le.Uint16(raw[26:]),
		UID: uint32(le.Uint16(raw[2:])) | uint32(le.Uint16(raw[120:]))<<16,
		GID: uint32(le.Uint16(raw[24:])) | uint32(le.Uint16(raw[122:]))<<16,
		// Sizes are signed everywhere in Linux; one with the top bit set does not survive the next line.
		Size:  int64(uint64(le.Uint32(raw[4:])) | uint64(le.Uint32(raw[108:]))<<32),
		flags: le.Uint32(raw[32:]), acl: int64(le.Uint32(raw[104:])) | int64(le.Uint16(raw[118:]))<<32, raw: raw,
	}
	if n.Size < 0 {
		return nil, fmt.Errorf("inode %d has a size of %d bytes: %w", number, n.Size, errs.ErrCorrupt)
	}
	n.ModTime = n.time(16, 136)
	n.device()
	return n, nil
}

// extra is the length of the inode's part behind the first 128 bytes.
func (n *Inode) extra() int { return min(int(le.Uint16(n.raw[128:])), len(n.raw)-128) }

func (n *Inode) time(at, extra int) time.Time {
	sec := int64(int32(le.Uint32(n.raw[at:])))
	if extra+4 > 128+n.extra() {
		return time.Unix(sec, 0)
	}
	e := le.Uint32(n.raw[extra:])
	return time.Unix(sec+int64(e&3)<<32, int64(e>>2))
}

func (n *Inode) device() {
	if t := n.Type(); t != TypeChar && t != TypeBlock {
		return
	}
	if old := le.Uint32(n.raw[40:]); old != 0 {
		n.Major, n.Minor = old>>8&0xff, old&0xff
		return
	}
	d := le.Uint32(n.raw[44:])
	n.Major, n.Minor = d>>8&0xfff, d&0xff|d>>12&0xfff00
}
