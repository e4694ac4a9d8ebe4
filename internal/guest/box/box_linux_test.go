package box

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
	"github.com/arcboxlabs/arcbox-go/internal/guest/engine"
	"github.com/arcboxlabs/arcbox-go/internal/guest/proc"
)

func TestCandidates(t *testing.T) {
	for _, tc := range []struct {
		name string
		env  []string
		want []string
	}{
		{"/bin/x", []string{"PATH=/a"}, []string{"/bin/x"}},
		{"./x", []string{"PATH=/a"}, []string{"./x"}},
		{"x", []string{"PATH=/a:/b/"}, []string{"/a/x", "/b/x"}},
		{"x", []string{"PATH=/old", "PATH=/a::b"}, []string{"/a/x", "./x", "b/x"}},
		{"x", []string{"PATH="}, []string{"./x"}},
		{"x", nil, []string{"./x"}},
		{"", []string{"PATH=/a"}, []string{""}},
	} {
		require.Equal(t, tc.want, candidates(tc.name, tc.env))
	}
	require.Len(t, candidates("x", []string{"PATH=" + strings.Repeat(":", 1<<16)}), maxPathDirs)
}

func TestParseVPD80(t *testing.T) {
	for in, want := range map[string]string{
		"":                           "",
		"\x00\x80\x00":               "",
		"\x00\x80\x00\x05layer":      "layer",
		"\x00\x80\x00\x08layer   ":   "layer",
		"\x00\x80\xff\xfflayer":      "layer",
		"\x00\x83\x00\x05layer":      "",
		"\x00\x80\x00\x02layer":      "la",
		"\x00\x80\x00\x04ab\x00\x00": "ab",
	} {
		require.Equal(t, want, parseVPD80([]byte(in)), "%q", in)
	}
}

func FuzzParseVPD80(f *testing.F) {
	f.Add([]byte("\x00\x80\x00\x05layer"))
	f.Fuzz(func(t *testing.T, in []byte) { require.LessOrEqual(t, len(parseVPD80(in)), len(in)) })
}

func TestCommandErrors(t *testing.T) {
	for errno, want := range map[unix.Errno]int{
		unix.ENOENT: 127, unix.ENOTDIR: 127, unix.ELOOP: 127, unix.ENAMETOOLONG: 127,
		unix.EACCES: 126, unix.ENOEXEC: 126, unix.EPERM: 126, unix.EISDIR: 126, unix.E2BIG: 126,
	} {
		code, err := commandError(&proc.Failure{What: "execute x", Errno: errno, Exec: true})
		require.Equal(t, want, code, errno)
		require.ErrorIs(t, err, errno)
		sentinel := errs.ErrNoCommand
		if code == 126 {
			sentinel = errs.ErrNoExecutable
		}
		require.ErrorIs(t, err, sentinel)
	}
}

func TestReadInStaysInTheRoot(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(dir+"/plain", []byte("inside"), 0o644))
	require.NoError(t, os.WriteFile(dir+"/big", make([]byte, maxRead+10), 0o644))
	require.NoError(t, os.Symlink("/plain", dir+"/absolute"))
	require.NoError(t, os.Symlink("../../../../etc/passwd", dir+"/escape"))
	require.NoError(t, os.Symlink("loop", dir+"/loop"))
	require.NoError(t, unix.Mkfifo(dir+"/fifo", 0o644))
	root, err := unix.Open(dir, unix.O_PATH|unix.O_CLOEXEC, 0)
	require.NoError(t, err)
	defer unix.Close(root)
	for path, want := range map[string]int{
		"plain": 6, "absolute": 6, "escape": 0, "loop": 0, "fifo": 0, "none": 0, "plain/x": 0, ".": 0, "big": maxRead,
	} {
		b, err := readIn(root, path)
		require.NoError(t, err, path)
		require.Len(t, b, want, path)
	}
}

// allows runs the device program as the kernel would.
func allows(t *testing.T, access, kind, major, minor int32) bool {
	p := deviceProgram()
	ctx := []int32{access<<16 | kind, major, minor}
	var r [11]int32
	for pc := 0; pc < len(p); pc++ {
		i := p[pc]
		dst, src := i.regs&0xf, i.regs>>4
		switch i.code {
		case insLoad:
			require.Equal(t, uint8(1), src)
			r[dst] = ctx[i.off/4]
		case insMov:
			r[dst] = i.imm
		case insMov | 0x08:
			r[dst] = r[src]
		case insRsh:
			r[dst] >>= i.imm
		case insAnd:
			r[dst] &= i.imm
		case insJeq:
			if r[dst] == i.imm {
				pc += int(i.off)
			}
		case insJne:
			if r[dst] != i.imm {
				pc += int(i.off)
			}
		case insExit:
			return r[0] == 1
		default:
			t.Fatalf("instruction %#x", i.code)
		}
	}
	t.Fatal("the program does not end")
	return false
}

func TestDeviceProgram(t *testing.T) {
	const block, char, mknod, read, write = 1, 2, 1, 2, 4
	for _, tc := range []struct {
		access, kind, major, minor int32
		want                       bool
	}{
		{read | write, char, 1, 3, true}, {read, char, 1, 5, true}, {read, char, 1, 9, true}, {write, char, 5, 0, true},
		{read, char, 5, 2, true}, {read | write, char, 136, 0, true}, {read, char, 136, 77, true},
		{mknod, block, 8, 0, true}, {mknod, char, 1, 1, true},
		{read, block, 8, 0, false}, {write, block, 8, 0, false}, {read, block, 1, 3, false}, {mknod | read, block, 8, 0, false},
		{read, char, 1, 1, false}, {read, char, 1, 4, false}, {read, char, 5, 1, false}, {read, char, 10, 229, false},
		{read, char, 244, 1, false}, {read, char, 137, 0, false},
	} {
		require.Equal(t, tc.want, allows(t, tc.access, tc.kind, tc.major, tc.minor), "%+v", tc)
	}
}

func TestCloseAllBut(t *testing.T) {
	for _, keep := range [][]int{nil, {3}, {5}, {3, 4, 5}, {9, 4, 4, 7}} {
		p := proc.NewProgram()
		closeAllBut(p, keep)
		require.Positive(t, p.Len())
		p.Close()
	}
}

func TestOptionsOfAllLayersFitIntoAPage(t *testing.T) {
	var dirs []string
	for i := range engine.MaxLayers {
		dirs = append(dirs, filepath.Join(layersDir, strconv.Itoa(1_000_000+i)))
	}
	s := scratch{place: place{dir: filepath.Join(diskContainers, strings.Repeat("x", engine.MaxID))}}
	require.Less(t, len(mountOptions(dirs, s)), 4096)
}
