package checkpoint

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
)

// trailer is what an image says of itself, as JSON at its end.
type trailer struct {
	Boot     string     `json:"boot"`  // of the host's kernel
	Files    []identity `json:"files"` // that the process had mapped
	Readable []Range    `json:"readable"`
	Writable []Range    `json:"writable"`
	// Room is for steps that load memory early: where it is in the file, at which address it will be, and how many there are.
	RoomAt   int64  `json:"room_at"`
	RoomAddr uint64 `json:"room_addr"`
	RoomSize int    `json:"room_size"`
}

// identity tells that a file is the one it was.
type identity struct {
	Path   string `json:"path"`
	Device uint64 `json:"device"`
	Inode  uint64 `json:"inode"`
	Size   int64  `json:"size"`
	Time   int64  `json:"time"` // of modification, in ns
}

const (
	trailerMagic = "arcbox checkpoint 1"
	maxTrailer   = 1 << 20 // bytes
	minRoom      = 4       // steps
	maxRoom      = 1 << 16 // steps
)

// step returns the address of a step of the room.
func (t *trailer) step(index int) uint64 { return t.RoomAddr + uint64(index)*stepSize }

// append adds the trailer to what is in the file up to end.
func (t *trailer) append(f io.WriterAt, end int64) error {
	b, err := json.Marshal(t)
	if err != nil {
		return err
	}
	b = binary.LittleEndian.AppendUint32(b, uint32(len(b)))
	_, err = f.WriteAt(append(b, trailerMagic...), end)
	return err
}

// readTrailer reads what an image of a size says of itself. What is no image is ErrCorrupt.
func readTrailer(r io.ReaderAt, size int64) (*trailer, error) {
	const tail = 4 + int64(len(trailerMagic))
	b := make([]byte, tail)
	if _, err := r.ReadAt(b, size-tail); err != nil || string(b[4:]) != trailerMagic {
		return nil, fmt.Errorf("%w: it is no image of a process", errs.ErrCorrupt)
	}
	length := int64(binary.LittleEndian.Uint32(b))
	if length > min(maxTrailer, size-tail) {
		return nil, fmt.Errorf("%w: its description has %d bytes", errs.ErrCorrupt, length)
	}
	b = make([]byte, length)
	if _, err := r.ReadAt(b, size-tail-length); err != nil {
		return nil, err
	}
	t := &trailer{}
	if err := json.Unmarshal(b, t); err != nil {
		return nil, fmt.Errorf("%w: %w", errs.ErrCorrupt, err)
	}
	if t.RoomSize < minRoom || t.RoomSize > maxRoom || t.RoomAt < 0 || t.RoomAt > size-int64(t.RoomSize)*stepSize {
		return nil, fmt.Errorf("%w: its description is wrong", errs.ErrCorrupt)
	}
	return t, nil
}

// openImage opens an image and reads what it says of itself.
func openImage(path string, flags int) (*os.File, *trailer, error) {
	f, err := os.OpenFile(path, flags, 0)
	if err != nil {
		return nil, nil, err
	}
	info, err := f.Stat()
	if err == nil {
		var t *trailer
		if t, err = readTrailer(f, info.Size()); err == nil {
			return f, t, nil
		}
	}
	return nil, nil, errors.Join(fmt.Errorf("%s: %w", path, err), f.Close())
}
