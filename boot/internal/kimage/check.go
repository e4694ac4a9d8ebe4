package kimage

import (
	"debug/elf"
	"encoding/binary"
	"fmt"
	"io"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
)

// Check tells whether r holds a plain kernel of arch that a hypervisor can start: for amd64 an ELF file for x86-64 with a
// PVH entry point, for arm64 an Image. It returns ErrInvalid where not.
func Check(r io.ReaderAt, arch string) error {
	switch arch {
	case "amd64":
		return checkPVH(r)
	case "arm64":
		head := make([]byte, imageHeader)
		if n, err := r.ReadAt(head, 0); (err != nil && err != io.EOF) || !isImage(head[:n]) {
			return fmt.Errorf("check kernel: %w: no arm64 Image", errs.ErrInvalid)
		}
		return nil
	}
	return fmt.Errorf("check kernel: architecture %q: %w", arch, errs.ErrUnsupported)
}

const imageHeader = 64

// isImage looks for the magic of an arm64 Image, by Documentation/arm64/booting.rst of the kernel.
func isImage(b []byte) bool {
	return len(b) >= imageHeader && string(b[56:60]) == "ARM\x64"
}

func checkPVH(r io.ReaderAt) error {
	f, err := elf.NewFile(r)
	if err != nil {
		return fmt.Errorf("check kernel: %w: no ELF file: %w", errs.ErrInvalid, err)
	}
	if f.Class != elf.ELFCLASS64 || f.Machine != elf.EM_X86_64 {
		return fmt.Errorf("check kernel: %w: an ELF file for %s, not for x86-64", errs.ErrInvalid, f.Machine)
	}
	for _, p := range f.Progs {
		if p.Type == elf.PT_NOTE && hasPVHNote(p) {
			return nil
		}
	}
	return fmt.Errorf("check kernel: %w: it has no PVH entry point; build it with CONFIG_PVH=y", errs.ErrInvalid)
}

const (
	maxNotes   = 1 << 20
	notePVH    = 18 // XEN_ELFNOTE_PHYS32_ENTRY
	noteHeader = 12
)

func hasPVHNote(p *elf.Prog) bool {
	if p.Filesz > maxNotes {
		return false
	}
	b := make([]byte, p.Filesz)
	if _, err := p.ReadAt(b, 0); err != nil && err != io.EOF {
		return false
	}
	for len(b) >= noteHeader {
		namesz := uint64(binary.LittleEndian.Uint32(b))
		descsz := uint64(binary.LittleEndian.Uint32(b[4:]))
		kind := binary.LittleEndian.Uint32(b[8:])
		b = b[noteHeader:]
		next := align4(namesz) + align4(descsz)
		if next > uint64(len(b)) {
			return false
		}
		if kind == notePVH && string(b[:namesz]) == "Xen\x00" {
			return true
		}
		b = b[next:]
	}
	return false
}

func align4(n uint64) uint64 { return (n + 3) &^ 3 }
