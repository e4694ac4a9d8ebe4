package kmod

import (
	"bytes"
	"debug/elf"
	"fmt"
	"io"
	"strings"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
)

// Info is what a module says about itself.
type Info struct {
	Name    string   // normalised
	Depends []string // modules that must be loaded before, normalised
	Soft    []string // modules or aliases that should be loaded before where they exist, as written
	Aliases []string
	Arch    elf.Machine
}

const maxModinfo = 1 << 20

// ParseInfo reads the .modinfo section of an uncompressed module. It returns ErrCorrupt for bytes that are no module.
func ParseInfo(module []byte) (*Info, error) {
	f, err := elf.NewFile(bytes.NewReader(module))
	if err != nil {
		return nil, fmt.Errorf("%w module: %w", errs.ErrCorrupt, err)
	}
	s := f.Section(".modinfo")
	if s == nil || s.Type == elf.SHT_NOBITS || s.Flags&elf.SHF_COMPRESSED != 0 || s.FileSize > maxModinfo {
		return nil, fmt.Errorf("%w module: no usable .modinfo section", errs.ErrCorrupt)
	}
	b := make([]byte, s.FileSize)
	if _, err := io.ReadFull(io.NewSectionReader(s, 0, int64(s.FileSize)), b); err != nil {
		return nil, fmt.Errorf("%w module: read .modinfo: %w", errs.ErrCorrupt, err)
	}
	info := &Info{Arch: f.Machine}
	for _, field := range strings.Split(string(b), "\x00") {
		key, value, _ := strings.Cut(field, "=")
		info.set(key, value)
	}
	return info, nil
}

func (i *Info) set(key, value string) {
	switch key {
	case "name":
		i.Name = Normal(value)
	case "depends":
		for _, d := range strings.Split(value, ",") {
			if d != "" {
				i.Depends = append(i.Depends, Normal(d))
			}
		}
	case "alias":
		i.Aliases = append(i.Aliases, value)
	case "softdep":
		pre := false
		for _, w := range strings.Fields(value) {
			switch {
			case strings.HasSuffix(w, ":"):
				pre = w == "pre:"
			case pre:
				i.Soft = append(i.Soft, w)
			}
		}
	}
}
