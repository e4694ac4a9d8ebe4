package checkpoint

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
)

// Save saves a process, a child of this one that the caller does not wait for by wait4 or waitid meanwhile, as an image at path, which
// it makes. The process stands still for a while and then goes on. Where it does not come to rest, ctx ends the wait. What
// it has that cannot be saved, and a host that does not let it be traced, are ErrUnsupported. After an error there is no
// image.
func Save(ctx context.Context, pid int, path string, spec Spec) error {
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // which traces the process
		defer runtime.UnlockOSThread()
		result <- save(ctx, pid, path, spec)
	}()
	if err := <-result; err != nil {
		return fmt.Errorf("save process %d: %w", pid, err)
	}
	return nil
}

func save(ctx context.Context, pid int, path string, spec Spec) (err error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o700)
	if err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, f.Close())
		if err != nil {
			err = errors.Join(err, os.Remove(path))
		}
	}()
	t, err := settle(ctx, pid)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, t.detach()) }()
	p, err := t.examine()
	if err != nil {
		return err
	}
	return p.write(ctx, t, f, spec)
}

// settlePause is the time between two looks whether a process is at rest: nothing tells when the threads of another process wait.
const settlePause = 2 * time.Millisecond

// settle stops a process when all its threads wait for something.
func settle(ctx context.Context, pid int) (*tracer, error) {
	pause := time.NewTicker(settlePause)
	defer pause.Stop()
	for {
		t, err := attach(pid)
		busy := ""
		if err == nil {
			busy, err = t.busy()
		}
		if err == nil && busy == "" {
			return t, nil
		}
		if err = errors.Join(err, t.detach()); err != nil {
			return nil, err
		}
		select {
		case <-pause.C:
		case <-ctx.Done():
			return nil, fmt.Errorf("wait until it is at rest: %w: %s", context.Cause(ctx), busy)
		}
	}
}

// process is what a stopped process consists of.
type process struct {
	maps    []mapping
	threads []thread
	fds     []descriptor
	actions [signals][4]uint64 // for each signal, from 1 on
	runs    []run
}

const signals = 64

func (t *tracer) examine() (p process, err error) {
	if p.maps, err = t.mappings(); err != nil {
		return p, err
	}
	if err := t.findGate(p.maps); err != nil {
		return p, err
	}
	if p.fds, err = t.descriptors(); err != nil {
		return p, err
	}
	if timers, err := os.ReadFile(t.proc("timers")); err == nil && len(timers) > 0 {
		return p, refused("a timer")
	}
	for _, tid := range t.tids {
		th, err := t.thread(tid)
		if err != nil {
			return p, fmt.Errorf("thread %d: %w", tid, err)
		}
		p.threads = append(p.threads, th)
	}
	for i := range p.actions {
		b, err := t.ask(t.tids[0], 32, unix.SYS_RT_SIGACTION, func(at uint64) []uint64 { return []uint64{uint64(i + 1), 0, at, 8} })
		if err != nil {
			return p, fmt.Errorf("read the action of signal %d: %w", i+1, err)
		}
		copy(p.actions[i][:], words(b))
	}
	p.runs, err = t.written(p.maps)
	return p, err
}

// findGate finds an instruction of the process that makes a system call: the vDSO has one.
func (t *tracer) findGate(maps []mapping) error {
	for _, m := range maps {
		if m.path != vdsoName {
			continue
		}
		b := make([]byte, m.size())
		if _, err := t.mem.ReadAt(b, int64(m.start)); err != nil {
			return fmt.Errorf("read the vDSO: %w", err)
		}
		if i := bytes.Index(b, []byte{0x0f, 0x05}); i >= 0 {
			t.gate = m.start + uint64(i)
			return nil
		}
	}
	return fmt.Errorf("find a system call in the vDSO: %w", errs.ErrUnsupported)
}

// write writes the image.
func (p *process) write(ctx context.Context, t *tracer, f *os.File, spec Spec) error {
	// Where memory is in the image depends on how long the script is, and that does not depend on where it is.
	s, _, err := p.script(spec, 0)
	if err != nil {
		return err
	}
	code, err := loaderText()
	if err != nil {
		return err
	}
	program, err := s.program(code)
	if err != nil {
		return err
	}
	begin := int64(len(program))
	s, room, err := p.script(spec, begin)
	if err != nil {
		return err
	}
	if program, err = s.program(code); err != nil {
		return err
	}
	if _, err := f.WriteAt(program, 0); err != nil {
		return err
	}
	end, err := t.copyRuns(ctx, f, p.runs, begin)
	if err != nil {
		return err
	}
	tr := trailer{RoomAddr: s.stepAddr(room), RoomAt: int64(s.stepAddr(room) - s.base), RoomSize: roomSize}
	if tr.Boot, err = bootID(); err != nil {
		return err
	}
	for _, m := range p.maps {
		if m.vdso() || !m.read {
			continue
		}
		tr.Readable = append(tr.Readable, Range{m.start, m.end})
		if m.write {
			tr.Writable = append(tr.Writable, Range{m.start, m.end})
		}
		if m.file() && m.path != spec.Memory && (len(tr.Files) == 0 || tr.Files[len(tr.Files)-1].Path != m.path) {
			id, err := identify(m.path)
			if err != nil {
				return err
			}
			tr.Files = append(tr.Files, id)
		}
	}
	return tr.append(f, end)
}

// script makes the script of a process whose memory is in the image from begin on. It returns the room in it for steps that
// load memory early.
func (p *process) script(spec Spec, begin int64) (s *script, room int, err error) {
	s = &script{base: freeSpan(p.maps, maxScript)}
	given := uint64(spec.Given)
	image := uint64(max(p.fds[len(p.fds)-1].fd+1, spec.Given+2))
	memory := image + 1
	s.add(0, unix.SYS_CLOSE_RANGE, given+2, maxFD, 0)
	s.add(0, unix.SYS_FCNTL, given, unix.F_DUPFD_CLOEXEC, image)
	if spec.Memory != "" {
		s.add(0, unix.SYS_FCNTL, given+1, unix.F_DUPFD_CLOEXEC, memory)
	}
	s.add(0, unix.SYS_CLOSE_RANGE, given, given+1, 0)
	if err := s.spread(p.maps, spec.Memory, memory); err != nil {
		return nil, 0, err
	}
	for _, r := range p.runs {
		s.add(0, unix.SYS_MMAP, r.start, r.end-r.start, r.prot, unix.MAP_FIXED|private, image, uint64(begin)+r.at)
	}
	room = s.leave(roomSize)
	if err := s.reopen(p.fds, spec.Given, spec.Memory, memory); err != nil {
		return nil, 0, err
	}
	for i, a := range p.actions {
		if a != ([4]uint64{}) {
			s.add(0, unix.SYS_RT_SIGACTION, uint64(i+1), s.words(a[:]...), 0, 8)
		}
	}
	s.add(0, unix.SYS_CLOSE_RANGE, image, memory, 0)
	s.add(named, unix.SYS_PRCTL, unix.PR_SET_NAME)
	s.confine(spec.Filter)
	return s, room, s.resume(p.threads)
}

const (
	maxFD     = 1<<32 - 1
	maxScript = 16 << 20 // bytes
	roomSize  = 8192     // steps
)

// confine adds the steps that install seccomp filters, which threads that are made later have too: the package's own, and
// another one where there is one.
func (s *script) confine(filter []byte) {
	const setModeFilter = 1
	s.add(0, unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1)
	for _, f := range [][]byte{keepPages(), filter} {
		if len(f) > 0 {
			s.add(0, unix.SYS_SECCOMP, setModeFilter, 0, s.words(uint64(len(f)/8), s.put(f, 8)))
		}
	}
}

// keepPages is a filter that refuses to drop pages: a program expects zeros in their place, and would find what is in the
// image. The advice is not known then, as on systems that have none, and programs do without or map memory anew.
func keepPages() []byte {
	const load, equal, give = 0x20, 0x15, 0x06 // of BPF: load a word, jump if equal, return
	const number, audit, advice = 0, 4, 32     // in struct seccomp_data
	const allow, refuse = 0x7fff0000, 0x00050000 | uint32(unix.EINVAL)
	const dontNeedLocked = 24
	var b []byte
	for _, i := range []struct {
		code       uint16
		yes, other uint8 // instructions to skip
		k          uint32
	}{
		{load, 0, 0, audit},
		{equal, 0, 5, unix.AUDIT_ARCH_X86_64},
		{load, 0, 0, number},
		{equal, 0, 3, unix.SYS_MADVISE},
		{load, 0, 0, advice},
		{equal, 2, 0, unix.MADV_DONTNEED},
		{equal, 1, 0, dontNeedLocked},
		{give, 0, 0, allow},
		{give, 0, 0, refuse},
	} {
		b = binary.LittleEndian.AppendUint16(b, i.code)
		b = binary.LittleEndian.AppendUint32(append(b, i.yes, i.other), i.k)
	}
	return b
}

// bootID returns what is another one after each start of the kernel.
func bootID() (string, error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(b)), err
}

func identify(path string) (identity, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return identity{}, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	return identity{path, st.Dev, st.Ino, st.Size, st.Mtim.Nano()}, nil
}

// Check tells whether processes can go on from an image: nil, or ErrUnsupported where it was made before the host was
// started, or a file that the process had mapped has changed since. A file that is no image is ErrCorrupt.
func Check(path string) error {
	f, t, err := openImage(path, os.O_RDONLY)
	if err != nil {
		return fmt.Errorf("go on: %w", err)
	}
	defer f.Close()
	boot, err := bootID()
	if err != nil {
		return fmt.Errorf("go on from %s: %w", path, err)
	}
	if boot != t.Boot {
		return fmt.Errorf("go on from %s: %w: the host was started anew since it was made", path, errs.ErrUnsupported)
	}
	for _, was := range t.Files {
		if is, err := identify(was.Path); err != nil || is != was {
			return fmt.Errorf("go on from %s: %w: %s is not what it was", path, errs.ErrUnsupported, was.Path)
		}
	}
	return nil
}
