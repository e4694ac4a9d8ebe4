package checkpoint

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
)

// execute runs a script, and returns what it has written and how it has ended.
func execute(t *testing.T, s *script, mode Mode) (out string, status int) {
	t.Helper()
	code, err := loaderText()
	require.NoError(t, err)
	b, err := s.program(code)
	require.NoError(t, err)
	require.Zero(t, len(b)%pageSize)
	path := filepath.Join(t.TempDir(), "program")
	require.NoError(t, os.WriteFile(path, b, 0o700))
	var text bytes.Buffer
	cmd := exec.Command(path, Args("a name that is too long", mode)...)
	cmd.Stdout, cmd.Env = &text, []string{"A=1", "B=2"}
	err = cmd.Run()
	if _, ok := err.(*exec.ExitError); !ok {
		require.NoError(t, err)
	}
	return text.String(), cmd.ProcessState.ExitCode()
}

func newScript() *script { return &script{base: 2 << 20} }

// say adds a step that writes a text.
func (s *script) say(flags uint64, text string) {
	s.add(flags, unix.SYS_WRITE, 1, s.text(text), uint64(len(text)))
}

func (s *script) exit(code uint64) { s.add(0, unix.SYS_EXIT_GROUP, code) }

func TestLoaderRunsSteps(t *testing.T) {
	s := newScript()
	s.say(0, "one ")
	room := s.leave(3)
	s.say(unlessShared, "private ")
	s.say(ifShared, "shared ")
	s.say(ifEager, "eager ")
	s.add(mayFail, unix.SYS_CLOSE, 99)
	s.add(saves, unix.SYS_DUP, 1)
	s.add(savedFirst, unix.SYS_WRITE, 0, s.text("dup"), 3)
	s.exit(5)
	for want, mode := range map[string]Mode{
		"one private dup": {}, "one shared dup": {Shared: true}, "one private eager dup": {Eager: true}, "one shared eager dup": {Shared: true, Eager: true},
	} {
		out, status := execute(t, s, mode)
		require.Equal(t, want, out)
		require.Equal(t, 5, status)
	}

	at := s.text("in the room ")
	s.steps[room] = step{nr: unix.SYS_WRITE, args: [6]uint64{1, at, 12}}
	s.steps[room+1] = step{flags: jumps, child: uint64(room + 3)}
	out, _ := execute(t, s, Mode{})
	require.Equal(t, "one in the room private dup", out)
}

func TestLoaderMapsSavedFile(t *testing.T) {
	s := newScript()
	path := filepath.Join(t.TempDir(), "file")
	require.NoError(t, os.WriteFile(path, []byte("content"), 0o600))
	const at = 64 << 20
	s.openPath(path, unix.O_RDONLY)
	s.add(savedFifth, unix.SYS_MMAP, at, pageSize, unix.PROT_READ, unused|private)
	s.add(0, unix.SYS_WRITE, 1, at, 7)
	s.exit(0)
	out, status := execute(t, s, Mode{})
	require.Equal(t, "content", out)
	require.Zero(t, status)
}

func TestLoaderNamesTheProcessAndStoresResults(t *testing.T) {
	s := newScript()
	const at = 64 << 20
	s.add(0, unix.SYS_MMAP, at, pageSize, unix.PROT_READ|unix.PROT_WRITE, unused|private|unix.MAP_ANONYMOUS, maxFD)
	s.add(named, unix.SYS_PRCTL, unix.PR_SET_NAME)
	s.add(0, unix.SYS_PRCTL, unix.PR_GET_NAME, at)
	s.add(0, unix.SYS_GETUID).store = at + 16
	s.add(0, unix.SYS_WRITE, 1, at, 20)
	s.exit(0)
	out, _ := execute(t, s, Mode{})
	uid := os.Getuid()
	require.Equal(t, "a name that is \x00"+string([]byte{byte(uid), byte(uid >> 8), byte(uid >> 16), byte(uid >> 24)}), out)
}

func TestLoaderMakesThreads(t *testing.T) {
	const sharing = unix.CLONE_VM | unix.CLONE_FS | unix.CLONE_FILES | unix.CLONE_SIGHAND | unix.CLONE_THREAD
	s := newScript()
	s.say(0, "first")
	s.exit(3)
	s.threads = append(s.threads, s.steps)
	s.steps = nil
	s.add(forks, unix.SYS_CLONE, sharing)
	s.add(mayFail, unix.SYS_PAUSE) // the thread ends the process
	out, status := execute(t, s, Mode{})
	require.Equal(t, "first", out)
	require.Equal(t, 3, status)
}

// A place that is taken is the one failure after which another try may succeed.
func TestLoaderFails(t *testing.T) {
	for name, tc := range map[string]struct {
		add  func(*script)
		want int
	}{
		"collision": {func(s *script) {
			s.add(0, unix.SYS_MMAP, s.base, pageSize, 0, unused|private|unix.MAP_ANONYMOUS, maxFD)
		}, Collision},
		"bad number": {func(s *script) { s.add(0, unix.SYS_CLOSE, 99) }, int(unix.EBADF)},
		"no call":    {func(s *script) { s.add(0, 5000) }, int(unix.ENOSYS)},
	} {
		t.Run(name, func(t *testing.T) {
			s := newScript()
			s.say(0, "x")
			tc.add(s)
			s.say(0, "y")
			out, status := execute(t, s, Mode{})
			require.Equal(t, "x", out)
			require.Equal(t, tc.want, status)
		})
	}
}

func TestLoaderIsTooLong(t *testing.T) {
	_, err := newScript().program(make([]byte, dataAt))
	require.ErrorIs(t, err, errs.ErrUnsupported)
}

func FuzzTrailer(f *testing.F) {
	var image memoryFile
	require.NoError(f, (&trailer{Boot: "b", Files: []identity{{Path: "/x"}}, Writable: []Range{{0, pageSize}}, RoomSize: minRoom}).append(&image, 0))
	f.Add([]byte(image))
	f.Fuzz(func(t *testing.T, b []byte) {
		tr, err := readTrailer(bytes.NewReader(b), int64(len(b)))
		if err != nil {
			require.ErrorIs(t, err, errs.ErrCorrupt)
			return
		}
		require.LessOrEqual(t, tr.RoomAt+int64(tr.RoomSize)*stepSize, int64(len(b)))
	})
}

// memoryFile is what was written at its end.
type memoryFile []byte

func (m *memoryFile) WriteAt(p []byte, _ int64) (int, error) {
	*m = append(*m, p...)
	return len(p), nil
}
