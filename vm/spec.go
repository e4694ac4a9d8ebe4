package vm

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
)

// The defaults and bounds of a Spec.
const (
	DefaultName   = "arcbox"
	DefaultMemory = 512 << 20 // bytes
	MinMemory     = 64 << 20  // bytes
	MaxCPUs       = 255
	MaxName       = 64 // bytes
	MaxSlot       = 16384
	MaxDiskID     = 20 // bytes: what a SCSI serial number takes
	MaxShareTag   = 35 // bytes: what virtio-fs takes, without the zero after it
	MaxBays       = 16
	MaxBaySize    = 1 << 40 // bytes
)

// Complete returns the Spec with every default filled in, where "" for Arch becomes hostArch. It returns ErrInvalid for
// what no driver can start. It does not look at files. A completed Spec completes to itself.
func (s Spec) Complete(hostArch string) (Spec, error) {
	if s.Name == "" {
		s.Name = DefaultName
	}
	if s.Arch == "" {
		s.Arch = hostArch
	}
	if s.CPUs == 0 {
		s.CPUs = 1
	}
	if s.Memory == 0 {
		s.Memory = DefaultMemory
	}
	s.Memory = (s.Memory + 1<<20 - 1) &^ (1<<20 - 1)
	if err := s.check(); err != nil {
		return Spec{}, fmt.Errorf("machine specification: %w: %w", errs.ErrInvalid, err)
	}
	return s, nil
}

func (s Spec) check() error {
	switch {
	case len(s.Name) > MaxName || !onlyWord(s.Name, "."):
		return fmt.Errorf("name %.80q: use up to %d letters, digits, '-', '_' and '.'", s.Name, MaxName)
	case s.Kernel == "":
		return fmt.Errorf("no kernel")
	case s.CPUs < 1 || s.CPUs > MaxCPUs:
		return fmt.Errorf("%d CPUs: 1 to %d are possible", s.CPUs, MaxCPUs)
	case s.Memory < MinMemory:
		return fmt.Errorf("%d bytes of memory: at least %d are needed", s.Memory, int64(MinMemory))
	case s.State != "" && s.MemoryFile == "":
		return fmt.Errorf("a state without the memory file that belongs to it")
	case s.Forkable && s.ReturnMemory:
		return fmt.Errorf("a machine that can be forked and gives memory back: only one of both is possible")
	case s.OwnMemory && (s.State == "" || s.Forkable):
		return fmt.Errorf("a memory file of the machine's own: it goes with a state, and not with Forkable")
	case s.Forkable && s.State == "" && s.MemoryFile != "":
		return fmt.Errorf("a memory file for a machine that can be forked: its memory is its own")
	case strings.ContainsAny(s.Cmdline, "\x00\n\r"):
		return fmt.Errorf("kernel command line has a line break or zero byte")
	}
	if err := s.checkBays(); err != nil {
		return err
	}
	seen, slots := make(map[string]bool), make(map[int]bool)
	for _, d := range s.Disks {
		if err := d.Check(); err != nil {
			return err
		}
		if seen[d.ID] {
			return fmt.Errorf("disk %q twice", d.ID)
		}
		seen[d.ID] = true
		if d.Slot < 0 || d.Slot > MaxSlot || d.Slot > 0 && slots[d.Slot] {
			return fmt.Errorf("disk %q: slot %d is taken or not from 1 to %d", d.ID, d.Slot, MaxSlot)
		}
		if d.Slot == 0 && s.State != "" {
			return fmt.Errorf("disk %q of a machine that goes on from a saved state: it needs its slot", d.ID)
		}
		if b, ok := s.Bay(d.Slot); ok && b.ReadOnly != d.ReadOnly {
			return fmt.Errorf("disk %q in bay %d: either of them is read-only: choose another slot", d.ID, d.Slot)
		}
		slots[d.Slot] = true
	}
	return s.checkShares()
}

func (s Spec) checkBays() error {
	if len(s.Bays) > MaxBays {
		return fmt.Errorf("%d bays: at most %d are possible", len(s.Bays), MaxBays)
	}
	for i, b := range s.Bays {
		if b.Size <= 0 || b.Size > MaxBaySize || b.Size%bayUnit != 0 {
			return fmt.Errorf("bay %d of %d bytes: use a multiple of %d up to %d", i+1, b.Size, bayUnit, int64(MaxBaySize))
		}
	}
	return nil
}

// bayUnit is what the size of a bay is a multiple of.
const bayUnit = 512

// baySerial is what the serial number of a bay begins with, and that of no disk.
const baySerial = "arcbox-bay-"

// BaySerial returns the serial number by which a guest finds the bay in a slot.
func BaySerial(slot int) string { return baySerial + strconv.Itoa(slot) }

// Bay returns the bay in a slot, where there is one.
func (s Spec) Bay(slot int) (Bay, bool) {
	if slot < 1 || slot > len(s.Bays) {
		return Bay{}, false
	}
	return s.Bays[slot-1], true
}

func (s Spec) checkShares() error {
	seen := make(map[string]bool)
	for _, h := range s.Shares {
		switch {
		case h.Tag == "" || len(h.Tag) > MaxShareTag || !onlyWord(h.Tag, "."):
			return fmt.Errorf("share %.80q: use 1 to %d letters, digits, '-', '_' and '.'", h.Tag, MaxShareTag)
		case h.Path == "" || strings.ContainsRune(h.Path, 0):
			return fmt.Errorf("share %q has no usable path", h.Tag)
		case seen[h.Tag]:
			return fmt.Errorf("share %q twice", h.Tag)
		}
		seen[h.Tag] = true
	}
	return nil
}

// Check returns ErrInvalid for a disk with a bad ID, which that of a bay is too, or without a path. It does not look at the file.
func (d Disk) Check() error {
	if d.ID == "" || len(d.ID) > MaxDiskID || !onlyWord(d.ID, "") {
		return fmt.Errorf("%w: disk ID %.80q: use 1 to %d letters, digits, '-' and '_'", errs.ErrInvalid, d.ID, MaxDiskID)
	}
	if strings.HasPrefix(d.ID, baySerial) {
		return fmt.Errorf("%w: disk ID %q: what begins with %s is the serial number of a bay", errs.ErrInvalid, d.ID, baySerial)
	}
	if d.Path == "" || strings.ContainsRune(d.Path+d.Backing, 0) {
		return fmt.Errorf("%w: disk %q has no usable path", errs.ErrInvalid, d.ID)
	}
	return nil
}

// onlyWord tells whether s has only letters and digits of ASCII, '-', '_' and what more says.
func onlyWord(s, more string) bool {
	for _, r := range s {
		letter := 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9'
		if !letter && r != '-' && r != '_' && !strings.ContainsRune(more, r) {
			return false
		}
	}
	return true
}
