package share

import (
	"bytes"
	"encoding/binary"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// parseDirent reads an entry as getdents64(2) writes it: inode, offset, length, type, name with a zero byte. size is 0 for
// what is none.
func parseDirent(b []byte) (e fuse.DirEntry, size int) {
	const head = 19
	if len(b) < head {
		return e, 0
	}
	size = int(binary.NativeEndian.Uint16(b[16:]))
	if size < head || size > len(b) {
		return e, 0
	}
	name, _, _ := bytes.Cut(b[head:size], []byte{0})
	return fuse.DirEntry{Ino: binary.NativeEndian.Uint64(b), Mode: uint32(b[18]) << 12, Name: string(name)}, size
}
