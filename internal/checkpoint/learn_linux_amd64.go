package checkpoint

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Look tells which memory a process that has gone on from an image has used so far.
func Look(pid int) (u Used, err error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		return u, fmt.Errorf("look at what process %d uses: %w", pid, err)
	}
	maps, err := parseMaps(string(text))
	if err != nil {
		return u, fmt.Errorf("look at what process %d uses: %w", pid, err)
	}
	for _, m := range maps {
		if m.shared || m.vdso() || !m.read || m.path == "[stack]" || m.path == "[vsyscall]" {
			continue
		}
		own, ofFile, err := presentPages(pid, m)
		if err != nil {
			return u, fmt.Errorf("look at what process %d uses: %w", pid, err)
		}
		u.read = append(u.read, ofFile...)
		if m.write {
			u.written = append(u.written, own...)
		}
	}
	return u, nil
}

// Preload lets those who go on from an image have the memory that others have used from the start: those with Mode.Eager what
// eager tells, the others what lazy tells. To get each page when it is first used costs a process several times as much, most of all where many
// threads run. A second call replaces what the first has said. No process may be going on from the image: that is ETXTBSY.
func Preload(path string, lazy, eager Used) error {
	f, t, err := openImage(path, os.O_RDWR)
	if err != nil {
		return fmt.Errorf("preload memory: %w", err)
	}
	defer f.Close()
	half := t.RoomSize / 2
	for _, part := range []struct {
		at    int
		steps []step
	}{
		{0, t.load(lazy, []step{{flags: ifEager | jumps, child: t.step(half)}}, half)},
		{half, t.load(eager, nil, half)},
	} {
		var b []byte
		for _, st := range part.steps {
			b = st.append(b)
		}
		if _, err := f.WriteAt(b, t.RoomAt+int64(part.at)*stepSize); err != nil {
			return fmt.Errorf("preload memory: %w", err)
		}
	}
	return nil
}

// load adds up to room steps that load used memory and lead on to what follows.
func (t *trailer) load(u Used, steps []step, room int) []step {
	add := func(advice uint64, used, of []Range, room int) {
		parts := within(used, of)
		for gap := uint64(1); len(parts) > room; gap *= 2 {
			if gap > 1<<32 { // not even one for each mapping
				return
			}
			parts = within(join(used, gap), of)
		}
		for _, r := range parts {
			steps = append(steps, step{flags: mayFail, nr: unix.SYS_MADVISE, args: [6]uint64{r.Start, r.End - r.Start, advice}})
		}
	}
	room-- // for the last step
	add(unix.MADV_POPULATE_READ, u.read, t.Readable, room/2)
	add(unix.MADV_POPULATE_WRITE, u.written, t.Writable, room-len(steps))
	return append(steps, step{flags: jumps, child: t.step(t.RoomSize)})
}
