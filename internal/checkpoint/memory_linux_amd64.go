package checkpoint

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	unused  = unix.MAP_FIXED_NOREPLACE // the memory belongs where nothing is
	private = unix.MAP_PRIVATE | unix.MAP_NORESERVE

	// A process with more memory than this is not saved: to look at its page tables would take long.
	maxMapped = 64 << 30 // bytes
	// The stack of the first thread grows by itself, and has this much room in one that goes on.
	stackSize, stackGap = 8 << 20, 1 << 20 // bytes
)

func (m mapping) prot() uint64 {
	var p uint64
	for _, f := range []struct {
		is   bool
		prot uint64
	}{{m.read, unix.PROT_READ}, {m.write, unix.PROT_WRITE}, {m.exec, unix.PROT_EXEC}} {
		if f.is {
			p |= f.prot
		}
	}
	return p
}

// mappings returns the memory of the process, by address.
func (t *tracer) mappings() ([]mapping, error) {
	text, err := os.ReadFile(t.proc("smaps"))
	if err != nil {
		return nil, err
	}
	all, err := parseMaps(string(text))
	if err != nil {
		return nil, err
	}
	all = slices.DeleteFunc(all, func(m mapping) bool { return m.path == "[vsyscall]" })
	var size uint64
	for i := range all {
		m := &all[i]
		if m.path == "[stack]" && i > 0 {
			m.start = max(min(m.start, m.end-stackSize), min(m.start, all[i-1].end+stackGap))
		}
		size += m.size()
	}
	if size > maxMapped {
		return nil, refused("%d GiB of memory", size>>30)
	}
	return all, nil
}

// spread adds the steps that map everything as it is, without what the process has written. What the kernel has given the
// new process is moved to where it was in the old one.
func (s *script) spread(all []mapping, memory string, memoryFD uint64) error {
	var vdso uint64
	for _, m := range all {
		if m.path == vdsoName {
			vdso = m.start
		}
	}
	open := "" // the file whose descriptor is saved
	for _, m := range all {
		isMemory := m.file() && m.path == memory
		if m.shared && !isMemory || strings.HasSuffix(m.path, " (deleted)") {
			return refused("memory at %x of %s", m.start, m.path)
		}
		switch {
		case m.vdso():
			s.add(0, unix.SYS_MMAP, m.start, m.size(), 0, unused|private|unix.MAP_ANONYMOUS, maxFD)
			s.add(ofVDSO, unix.SYS_MREMAP, m.start-vdso, m.size(), m.size(), unix.MREMAP_MAYMOVE|unix.MREMAP_FIXED, m.start)
		case isMemory:
			s.add(unlessShared, unix.SYS_MMAP, m.start, m.size(), m.prot(), unused|private, memoryFD, m.offset)
			s.add(ifShared, unix.SYS_MMAP, m.start, m.size(), m.prot(), unused|unix.MAP_SHARED, memoryFD, m.offset)
		case !m.file():
			s.add(0, unix.SYS_MMAP, m.start, m.size(), m.prot(), unused|private|unix.MAP_ANONYMOUS, maxFD)
		default:
			if open != m.path {
				if open != "" {
					s.add(savedFirst, unix.SYS_CLOSE)
				}
				open = m.path
				s.openPath(open, unix.O_RDONLY)
			}
			s.add(savedFifth, unix.SYS_MMAP, m.start, m.size(), m.prot(), unused|private, 0, m.offset)
		}
		if m.huge {
			s.add(mayFail, unix.SYS_MADVISE, m.start, m.size(), unix.MADV_HUGEPAGE)
		}
	}
	if open != "" {
		s.add(savedFirst, unix.SYS_CLOSE)
	}
	return nil
}

// run is memory that a process has written.
type run struct {
	start, end uint64
	prot       uint64
	at         uint64 // in the image, from where its memory begins
}

// keptGap is how many pages without content are kept for the sake of fewer runs.
const keptGap = 8

// written finds what the process has written to its mappings.
func (t *tracer) written(all []mapping) ([]run, error) {
	var runs []run
	var at uint64
	for _, m := range all {
		if m.shared || m.vdso() {
			continue
		}
		spans, _, err := presentPages(t.pid, m)
		if err != nil {
			return nil, err
		}
		for _, s := range join(spans, keptGap) {
			runs = append(runs, run{start: s.Start, end: s.End, prot: m.prot(), at: at})
			at += s.End - s.Start
		}
	}
	return runs, nil
}

// presentPages returns the pages of a mapping that a process has: its own, and those of the file behind the mapping.
func presentPages(pid int, m mapping) (own, ofFile []Range, err error) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/pagemap", pid))
	if err != nil {
		return nil, nil, err
	}
	defer f.Close()
	const entry, chunk = 8, 1 << 17
	buf := make([]byte, entry*min(chunk, m.size()/pageSize))
	add := func(spans *[]Range, at uint64) {
		if n := len(*spans); n > 0 && (*spans)[n-1].End == at {
			(*spans)[n-1].End += pageSize
		} else {
			*spans = append(*spans, Range{at, at + pageSize})
		}
	}
	for at := m.start; at < m.end; {
		b := buf[:min(uint64(len(buf)), (m.end-at)/pageSize*entry)]
		if _, err := f.ReadAt(b, int64(at/pageSize*entry)); err != nil {
			return nil, nil, fmt.Errorf("read which pages are there: %w", err)
		}
		for ; len(b) > 0; b, at = b[entry:], at+pageSize {
			const present, swapped, behind = 1 << 63, 1 << 62, 1 << 61
			switch p := binary.LittleEndian.Uint64(b); {
			case p&(present|swapped) == 0:
			case p&behind != 0:
				add(&ofFile, at)
			default:
				add(&own, at)
			}
		}
	}
	return own, ofFile, nil
}

// copyRuns writes what the process has written into the image, from begin on, and returns the end. Pages of zeros become holes.
func (t *tracer) copyRuns(ctx context.Context, w io.WriterAt, runs []run, begin int64) (end int64, err error) {
	buf, zeros := make([]byte, 1<<20), make([]byte, pageSize)
	end = begin
	for _, r := range runs {
		for p := r.start; p < r.end; p += uint64(len(buf)) {
			if ctx.Err() != nil {
				return 0, context.Cause(ctx)
			}
			b := buf[:min(uint64(len(buf)), r.end-p)]
			if _, err := t.mem.ReadAt(b, int64(p)); err != nil {
				return 0, fmt.Errorf("read memory: %w", err)
			}
			for o := 0; o < len(b); o += pageSize {
				if page := b[o : o+pageSize]; !bytes.Equal(page, zeros) {
					if _, err := w.WriteAt(page, begin+int64(r.at+p-r.start)+int64(o)); err != nil {
						return 0, err
					}
				}
			}
		}
		end = begin + int64(r.at+r.end-r.start)
	}
	return end, nil
}
