package checkpoint

import (
	"fmt"
	"strings"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
)

// mapping is a part of a process's memory as /proc/PID/smaps describes it.
type mapping struct {
	start, end                uint64
	read, write, exec, shared bool
	huge                      bool // large pages were asked for
	offset                    uint64
	inode                     uint64
	path                      string // or a name in brackets
}

func (m mapping) size() uint64 { return m.end - m.start }

// vdso tells that the kernel gives each process such a mapping, with code and data of its own.
func (m mapping) vdso() bool { return strings.HasPrefix(m.path, "[vvar") || m.path == vdsoName }

// file tells that a file is behind the memory.
func (m mapping) file() bool { return m.inode != 0 && !m.vdso() }

const vdsoName = "[vdso]"

// parseMaps reads /proc/PID/smaps or /proc/PID/maps.
func parseMaps(text string) ([]mapping, error) {
	var all []mapping
	for line := range strings.Lines(text) {
		line = strings.TrimSuffix(line, "\n")
		if key, value, ok := strings.Cut(line, ":"); ok && !strings.ContainsAny(key, " -") {
			if key == "VmFlags" && len(all) > 0 {
				all[len(all)-1].huge = strings.Contains(value+" ", " hg ")
			}
			continue
		}
		m, err := parseMapping(line)
		if err != nil {
			return nil, err
		}
		if n := len(all); n > 0 && m.start < all[n-1].end {
			return nil, fmt.Errorf("map of memory %.200q: %w: it is not in order", line, errs.ErrInvalid)
		}
		all = append(all, m)
	}
	return all, nil
}

func parseMapping(line string) (m mapping, err error) {
	var perms string
	var major, minor uint32
	_, err = fmt.Sscanf(line, "%x-%x %s %x %x:%x %d", &m.start, &m.end, &perms, &m.offset, &major, &minor, &m.inode)
	if err != nil || len(perms) != 4 || m.start >= m.end || (m.start|m.end|m.offset)%pageSize != 0 {
		return m, fmt.Errorf("map of memory %.200q: %w", line, errs.ErrInvalid)
	}
	m.read, m.write, m.exec, m.shared = perms[0] == 'r', perms[1] == 'w', perms[2] == 'x', perms[3] == 's'
	if fields := strings.SplitN(line, " ", 6); len(fields) == 6 {
		m.path = strings.TrimLeft(fields[5], " ")
	}
	return m, nil
}

// freeSpan returns an address from which on a process has no mapping for size bytes. It is a low one, where kernels put
// nothing by themselves.
func freeSpan(all []mapping, size uint64) uint64 {
	const lowest, align = 2 << 20, 2 << 20
	at := uint64(lowest)
	for _, m := range all {
		if at+size <= m.start {
			break
		}
		at = max(at, (m.end+align-1)&^(align-1))
	}
	return at
}

// Range is a part of a process's memory, in whole pages.
type Range struct {
	Start uint64 `json:"start"`
	End   uint64 `json:"end"`
}

// join returns spans, which are in order, as fewer ones: those with at most gap pages between them become one.
func join(spans []Range, gap uint64) []Range {
	var out []Range
	for _, s := range spans {
		if n := len(out); n > 0 && s.Start-out[n-1].End <= gap*pageSize {
			out[n-1].End = s.End
		} else {
			out = append(out, s)
		}
	}
	return out
}

// within returns the parts of spans that lie in others. Both are in order.
func within(spans, others []Range) []Range {
	var out []Range
	for _, o := range others {
		for _, s := range spans {
			if from, to := max(s.Start, o.Start), min(s.End, o.End); from < to {
				out = append(out, Range{from, to})
			}
		}
	}
	return out
}
