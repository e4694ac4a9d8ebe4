package share

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// TestTreeHammer lets many do everything at once with a few names.
func TestTreeHammer(t *testing.T) {
	path := t.TempDir()
	fs := newTree(t, path, false)
	var wg sync.WaitGroup
	for worker := range 8 {
		wg.Go(func() {
			g := &guest{next: uint64(worker) << 32}
			ask := func(op uint32, node uint64, body ...[]byte) []byte {
				reply := make([]byte, 8192)
				n, _ := fs.handle(g.message(op, node, body...), reply)
				return reply[16:max(n, 16)]
			}
			for i := range 100 {
				name, other := text0("f"+strconv.Itoa(i%3)), text0("f"+strconv.Itoa((i+worker)%3))
				p := ask(opCreate, rootID, u32(uint32(os.O_RDWR), 0o644, 0, 0), name)
				if len(p) < 144 {
					continue
				}
				id, fh := binary.LittleEndian.Uint64(p), binary.LittleEndian.Uint64(p[128:])
				ask(opWrite, id, u64(fh, 0), u32(1, 0), u64(0), u32(0, 0), []byte("x"))
				ask(opRename, rootID, u64(rootID), name, other)
				ask(opSetAttr, id, setting{valid: setMode | setSize | setMtime, mode: 0o600, size: 5}.bytes())
				ask(opLink, rootID, u64(id), name)
				ask(opUnlink, rootID, other)
				ask(opGetAttr, id, make([]byte, 16))
				ask(opRelease, id, u64(fh, 0, 0))
				ask(opForget, id, u64(1<<20))
			}
		})
	}
	wg.Wait()
	v := fs.(*tree)
	require.Empty(t, v.open)
	for id := range v.nodes.byID {
		if id != rootID {
			v.nodes.forget(id, 1<<40)
		}
	}
	require.Len(t, v.nodes.byID, 1)
}

// TestListsAreBounded lists directories where others have used up what may be remembered.
func TestListsAreBounded(t *testing.T) {
	d, path := newDir(t, false)
	v, tr := newValue(os.DirFS(path)), newTree(t, path, false).(*tree)
	for name, of := range map[string]struct {
		fs  backend
		all *budget
	}{"Linux": {newLibrary(d), &d.listed}, "portable": {tr, &tr.listed}, "value": {v, &v.listed}} {
		t.Run(name, func(t *testing.T) {
			g := newGuest(t, of.fs)
			g.names(rootID, opReadDir, 4096)
			require.Zero(t, of.all.used.Load(), "it is closed")
			require.True(t, of.all.take(maxListed-1))
			p, code := g.call(opOpenDir, rootID, u32(0, 0))
			if code == 0 {
				fh := binary.LittleEndian.Uint64(p)
				_, code = g.call(opReadDir, rootID, u64(fh, 0), u32(4096, 0), u64(0), u32(0, 0))
				require.Equal(t, unix.ENFILE, code)
				_, code = g.call(opReleaseDir, rootID, u64(fh, 0, 0))
				require.Zero(t, code)
			} else {
				require.Equal(t, unix.ENFILE, code)
			}
			require.EqualValues(t, maxListed-1, of.all.used.Load())
			of.all.give(maxListed - 1)
			names, _ := g.names(rootID, opReadDirPlus, 4096)
			require.Len(t, names, 5)
		})
	}
}

// TestTreeIsConfinedWhileItChanges swaps a directory for a link that leads out while a guest makes and removes files in it.
func TestTreeIsConfinedWhileItChanges(t *testing.T) {
	outside := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(outside, "secret"), []byte("secret"), 0o600))
	path := filepath.Join(outside, "shared")
	require.NoError(t, os.MkdirAll(filepath.Join(path, "a"), 0o755))
	require.NoError(t, os.Symlink("..", filepath.Join(path, "b")))
	require.NoError(t, os.WriteFile(filepath.Join(path, "a", "secret"), []byte("bait"), 0o600))
	fs := newTree(t, path, false)
	ask := func(g *guest, op uint32, node uint64, body ...[]byte) []byte {
		reply := make([]byte, 8192)
		n, _ := fs.handle(g.message(op, node, body...), reply)
		return reply[16:max(n, 16)]
	}
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				_ = unix.Renameat2(unix.AT_FDCWD, filepath.Join(path, "a"), unix.AT_FDCWD, filepath.Join(path, "b"), unix.RENAME_EXCHANGE)
			}
		}
	})
	defer wg.Wait()
	defer close(stop)
	g, reads := &guest{}, 0
	for round := 0; round < 150 || reads < 10; round++ {
		for _, name := range []string{"a", "b"} {
			p := ask(g, opLookup, rootID, text0(name))
			if len(p) < 128 {
				continue
			}
			dir := binary.LittleEndian.Uint64(p)
			ask(g, opMkdir, dir, u32(0o755, 0), text0("new"))
			ask(g, opRename, dir, u64(dir), text("secret", "stolen"))
			ask(g, opRename, dir, u64(dir), text("stolen", "secret"))
			ask(g, opRmdir, dir, text0("new"))
			p = ask(g, opLookup, dir, text0("secret"))
			if len(p) < 128 {
				continue
			}
			file := binary.LittleEndian.Uint64(p)
			ask(g, opSetAttr, file, setting{valid: setMode, mode: 0o640}.bytes())
			p = ask(g, opOpen, file, u32(0, 0))
			if len(p) < 16 {
				continue
			}
			fh := binary.LittleEndian.Uint64(p)
			require.Equal(t, "bait", string(ask(g, opRead, file, u64(fh, 0), u32(100, 0), u64(0), u32(0, 0))))
			ask(g, opRelease, file, u64(fh, 0, 0))
			reads++
		}
	}
	entries, err := os.ReadDir(outside)
	require.NoError(t, err)
	require.Len(t, entries, 2)
	st, err := os.Stat(filepath.Join(outside, "secret"))
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), st.Mode())
}

// TestHandlesAreBounded opens more files than a guest may.
func TestHandlesAreBounded(t *testing.T) {
	d, path := newDir(t, false)
	tr := newTree(t, path, false).(*tree)
	require.Positive(t, handleLimit())
	require.LessOrEqual(t, handleLimit(), maxHandles)
	d.handles.most, tr.most = 3, 3
	for name, fs := range map[string]backend{"Linux": newLibrary(d), "portable": tr} {
		t.Run(name, func(t *testing.T) {
			g := newGuest(t, fs)
			file, code := g.lookup(rootID, "file")
			require.Zero(t, code)
			var last uint64
			for range 3 {
				last, code = g.open(file, 0)
				require.Zero(t, code)
			}
			_, code = g.open(file, 0)
			require.Equal(t, unix.ENFILE, code)
			_, code = g.call(opOpenDir, rootID, u32(0, 0))
			require.Equal(t, unix.ENFILE, code)
			_, _, code = g.create(rootID, "new-"+name, uint32(os.O_RDWR), 0o600)
			require.Equal(t, unix.ENFILE, code)
			_, code = g.call(opRelease, file, u64(last, 0, 0))
			require.Zero(t, code)
			_, code = g.open(file, 0)
			require.Zero(t, code)
		})
	}
}

// TestTreeHandleThatCloses asks for a file without a name while its last handle is being closed.
func TestTreeHandleThatCloses(t *testing.T) {
	tr := newTree(t, t.TempDir(), false).(*tree)
	g := newGuest(t, tr)
	file, fh, code := g.create(rootID, "file", uint32(os.O_RDWR), 0o600)
	require.Zero(t, code)
	_, code = g.call(opUnlink, rootID, text0("file"))
	require.Zero(t, code)
	require.NoError(t, tr.open[fh].file.Close())
	_, code = g.call(opGetAttr, file, make([]byte, 16))
	require.Equal(t, unix.ENOENT, code)
}
