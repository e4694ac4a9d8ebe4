package disk

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
)

// packed is the content of a disk that is mostly holes.
type packed struct {
	size int64
	runs []run // by offset, without overlap
}

// run is a piece of a disk that is not a hole.
type run struct {
	offset int64
	data   []byte
}

// A packed disk as a file: the magic, the size, then for each run its offset, its length and its bytes, and at the end a
// CRC-32C of all before it. Numbers are 8 bytes, little endian.
const (
	packedMagic = "arcboxd1"
	numberSize  = 8
	sumSize     = crc32.Size
)

func (t *packed) encode() []byte {
	b := append([]byte(nil), packedMagic...)
	b = binary.LittleEndian.AppendUint64(b, uint64(t.size))
	for _, r := range t.runs {
		b = binary.LittleEndian.AppendUint64(b, uint64(r.offset))
		b = binary.LittleEndian.AppendUint64(b, uint64(len(r.data)))
		b = append(b, r.data...)
	}
	return binary.LittleEndian.AppendUint32(b, crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)))
}

// decode is the reverse of encode. The runs are parts of b. Anything else than what encode returns is ErrCorrupt.
func decode(b []byte) (*packed, error) {
	const head = len(packedMagic) + numberSize
	if len(b) < head+sumSize || string(b[:len(packedMagic)]) != packedMagic {
		return nil, fmt.Errorf("%w template: no packed disk", errs.ErrCorrupt)
	}
	b, sum := b[:len(b)-sumSize], b[len(b)-sumSize:]
	if crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)) != binary.LittleEndian.Uint32(sum) {
		return nil, fmt.Errorf("%w template: the checksum is wrong", errs.ErrCorrupt)
	}
	t := &packed{size: int64(binary.LittleEndian.Uint64(b[len(packedMagic):]))}
	end := int64(0) // of the run before
	for b = b[head:]; len(b) > 0; {
		if len(b) < 2*numberSize {
			return nil, fmt.Errorf("%w template: a run is cut off", errs.ErrCorrupt)
		}
		offset, n := int64(binary.LittleEndian.Uint64(b)), binary.LittleEndian.Uint64(b[numberSize:])
		b = b[2*numberSize:]
		if n > uint64(len(b)) || offset < end || offset > t.size-int64(n) {
			return nil, fmt.Errorf("%w template: a run is out of bounds", errs.ErrCorrupt)
		}
		t.runs = append(t.runs, run{offset, b[:n]})
		b, end = b[n:], offset+int64(n)
	}
	return t, nil
}
