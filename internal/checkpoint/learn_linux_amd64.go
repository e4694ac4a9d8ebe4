package checkpoint

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Written returns which parts of its memory a process that has gone on from an image has written so far.
func Written(pid int) ([]Range, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		return nil, fmt.Errorf("look at what was written: %w", err)
	}
	maps, err := parseMaps(string(text))
	if err != nil {
		return nil, fmt.Errorf("look at what was written: %w", err)
	}
	var all []Range
	for _, m := range maps {
		if m.shared || !m.write || m.path == "[stack]" {
			continue
		}
		spans, err := writtenPages(pid, m)
		if err != nil {
			return nil, fmt.Errorf("look at what was written: %w", err)
		}
		all = append(all, spans...)
	}
	return all, nil
}

// Preload lets those who go on from an image have what Written has returned of another one from the start. To get each page
// when it is first written costs a process several times as much, most of all where many threads run. A second call replaces
// what the first has said. No process may be going on from the image: that is ETXTBSY.
func Preload(path string, written []Range) error {
	f, t, err := openImage(path, os.O_RDWR)
	if err != nil {
		return fmt.Errorf("preload memory: %w", err)
	}
	defer f.Close()
	parts := within(written, t.Writable)
	for gap := uint64(1); len(parts) >= t.RoomSize; gap *= 2 { // the last step leads on
		if gap > 1<<32 { // not even one for each mapping
			parts = nil
			break
		}
		parts = within(join(written, gap), t.Writable)
	}
	s := &script{}
	for _, r := range parts {
		s.add(mayFail, unix.SYS_MADVISE, r.Start, r.End-r.Start, unix.MADV_POPULATE_WRITE)
	}
	var b []byte
	for _, st := range s.steps {
		b = st.append(b)
	}
	end := step{flags: jumps, child: t.RoomAddr + uint64(t.RoomSize)*stepSize}
	if _, err := f.WriteAt(end.append(b), t.RoomAt); err != nil {
		return fmt.Errorf("preload memory: %w", err)
	}
	return nil
}
