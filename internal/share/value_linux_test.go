package share

import (
	"encoding/binary"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/stretchr/testify/require"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
)

// names lists a directory, with attributes where plus says so, and returns the names and the sizes of the files.
func (g *guest) names(dir uint64, op, size uint32) (list []string, sizes map[string]uint64) {
	g.t.Helper()
	p, code := g.call(opOpenDir, dir, u32(0, 0))
	require.Zero(g.t, code)
	fh, at := binary.LittleEndian.Uint64(p), uint64(0)
	sizes = map[string]uint64{}
	for {
		p, code := g.call(op, dir, u64(fh, at), u32(size, 0), u64(0), u32(0, 0))
		require.Zero(g.t, code)
		require.LessOrEqual(g.t, len(p), int(size))
		if len(p) == 0 {
			break
		}
		for len(p) > 0 {
			entry := p
			if op == opReadDirPlus {
				p = p[128:]
			}
			n := binary.LittleEndian.Uint32(p[16:])
			at = binary.LittleEndian.Uint64(p[8:])
			name := string(p[24 : 24+n])
			list = append(list, name)
			if op == opReadDirPlus {
				sizes[name] = binary.LittleEndian.Uint64(entry[48:])
			}
			p = p[24+(n+7)&^7:]
		}
	}
	_, code = g.call(opReleaseDir, dir, u64(fh, 0, 0))
	require.Zero(g.t, code)
	return list, sizes
}

// read reads a file from an offset on.
func (g *guest) read(file, offset uint64, size uint32) string {
	g.t.Helper()
	p, code := g.call(opOpen, file, u32(0, 0))
	require.Zero(g.t, code)
	fh := binary.LittleEndian.Uint64(p)
	p, code = g.call(opRead, file, u64(fh, offset), u32(size, 0), u64(0), u32(0, 0))
	require.Zero(g.t, code)
	_, code = g.call(opRelease, file, u64(fh, 0, 0))
	require.Zero(g.t, code)
	return string(p)
}

// TestReadOnlyTrees reads the same files as an fs.FS, as a directory by os.Root, which other systems than Linux have, and as
// a directory of Linux.
func TestReadOnlyTrees(t *testing.T) {
	path := t.TempDir()
	files := fstest.MapFS{}
	want := []string{".", ".."}
	for i := range 40 {
		name := strings.Repeat("n", i+1)
		files["dir/"+name] = &fstest.MapFile{Data: []byte(name), Mode: 0o644}
		want = append(want, name)
	}
	files["dir/link"] = &fstest.MapFile{Data: []byte("n"), Mode: fs.ModeSymlink | 0o777}
	want = append(want, "link")
	require.NoError(t, os.CopyFS(path, files))
	root, _, err := openTree(path, true)
	require.NoError(t, err)
	t.Cleanup(root.close)
	d, _, err := openDir(path, true)
	require.NoError(t, err)
	t.Cleanup(d.close)
	for name, fs := range map[string]backend{"fs.FS": newValue(files), "os.Root": root.fs, "Linux": newLibrary(d)} {
		t.Run(name, func(t *testing.T) {
			g := newGuest(t, fs)
			dir, code := g.lookup(rootID, "dir")
			require.Zero(t, code)
			for _, size := range []uint32{400, 4096, 64 << 10} {
				list, _ := g.names(dir, opReadDir, size)
				require.ElementsMatch(t, want, list)
				list, sizes := g.names(dir, opReadDirPlus, size)
				require.ElementsMatch(t, want, list)
				require.Equal(t, uint64(7), sizes["nnnnnnn"])
			}
			file, code := g.lookup(dir, "nnnnn")
			require.Zero(t, code)
			require.Equal(t, "nnn", g.read(file, 2, 100))
			require.Empty(t, g.read(file, 5, 100))
			link, code := g.lookup(dir, "link")
			require.Zero(t, code)
			text, code := g.call(opReadlink, link)
			require.Zero(t, code)
			require.Equal(t, "n", string(text))
			_, code = g.lookup(dir, "none")
			require.EqualValues(t, eNOENT, code)
			_, code = g.call(opMkdir, dir, u32(0o755, 0), text0("new"))
			require.EqualValues(t, eROFS, code)
			_, code = g.call(opOpen, file, u32(1, 0))
			require.EqualValues(t, eROFS, code)
			p, code := g.call(opStatFS, rootID)
			require.Zero(t, code)
			require.Len(t, p, 80)
			p, code = g.call(opGetAttr, file, make([]byte, 16))
			require.Zero(t, code)
			require.Len(t, p, 104)
			require.Equal(t, uint64(5), binary.LittleEndian.Uint64(p[24:]))
			g.in <- g.message(opForget, file, u64(1<<40))
			g.in <- g.message(opBatchForget, 0, u32(1, 0), u64(link, 100))
			_, code = g.call(opGetAttr, link, make([]byte, 16))
			require.EqualValues(t, eSTALE, code)
		})
	}
}

func text0(s string) []byte { return append([]byte(s), 0) }

// TestRootIsConfined looks for a way out of a directory that is shared by os.Root.
func TestRootIsConfined(t *testing.T) {
	_, path := newDir(t, true)
	root, _, err := openTree(path, true)
	require.NoError(t, err)
	t.Cleanup(root.close)
	g := newGuest(t, root.fs)
	for _, name := range []string{"..", ".", "", "../secret", "up/secret"} {
		_, code := g.lookup(rootID, name)
		require.EqualValues(t, eINVAL, code, name)
	}
	link, code := g.lookup(rootID, "up")
	require.Zero(t, code)
	_, code = g.lookup(link, "secret")
	require.NotZero(t, code)
	_, code = g.call(opOpen, link, u32(0, 0))
	require.NotZero(t, code)
	sub, code := g.lookup(rootID, "sub")
	require.Zero(t, code)
	require.NoError(t, os.Remove(filepath.Join(path, "sub")))
	require.NoError(t, os.Symlink("..", filepath.Join(path, "sub")))
	_, code = g.lookup(sub, "secret")
	require.NotZero(t, code, "a directory became a link")
}

// wrong is a file system that keeps no rules.
type wrong struct{ fs.FS }

type wrongFile struct{ fs.File }

func (w wrong) Open(name string) (fs.File, error) {
	f, err := w.FS.Open(name)
	return wrongFile{f}, err
}

func (wrongFile) ReadAt(p []byte, _ int64) (int, error) { return len(p) + 1, nil }
func (wrongFile) Stat() (fs.FileInfo, error)            { panic("no") }

func TestFileSystemThatKeepsNoRules(t *testing.T) {
	g := newGuest(t, newValue(wrong{fstest.MapFS{"f": {Data: []byte("x")}}}))
	_, code := g.lookup(rootID, "f")
	require.EqualValues(t, eIO, code, "it panics")
	p, code := g.call(opOpen, rootID, u32(0, 0))
	require.Zero(t, code)
	_, code = g.call(opRead, rootID, p[:8], u64(0), u32(10, 0), u64(0), u32(0, 0))
	require.EqualValues(t, eIO, code, "it counts wrong")
}

func TestOpenSourceErrors(t *testing.T) {
	for _, path := range []string{filepath.Join(t.TempDir(), "none"), "/proc/self/fd/none"} {
		_, _, err := openSource(Source{Path: path})
		require.True(t, errors.Is(err, errs.ErrInvalid), err)
		_, _, err = openTree(path, true)
		require.Error(t, err)
	}
}
