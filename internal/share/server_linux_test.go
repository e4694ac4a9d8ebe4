package share

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/fstest"

	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/arcboxlabs/arcbox-go/agent/api"
	"github.com/arcboxlabs/arcbox-go/internal/needs"
)

// ownerTest makes the test binary run one test as another user.
const ownerTest = "share-owner-test"

func TestMain(m *testing.M) {
	if len(os.Args) > 2 && os.Args[1] == ownerTest {
		if err := chownAsUser(os.Args[2]); err != nil {
			os.Stderr.WriteString(err.Error())
			os.Exit(1)
		}
		return
	}
	if len(os.Args) > 2 && os.Args[1] == treeTest {
		if err := treeAsUser(os.Args[2], os.Stdout); err != nil {
			os.Stderr.WriteString(err.Error())
			os.Exit(1)
		}
		return
	}
	goleak.VerifyTestMain(m)
}

// guest speaks the protocol with a server, one request at a time.
type guest struct {
	t      testing.TB
	in     chan []byte
	out    chan []byte
	closed chan struct{}
	once   sync.Once
	next   uint64
	ahead  chan api.ReadAhead
}

func (g *guest) Send(kind api.FrameType, p []byte) error {
	if kind == api.FrameAhead {
		var a api.ReadAhead
		if err := json.Unmarshal(p, &a); err != nil {
			return err
		}
		select {
		case g.ahead <- a:
		default:
		}
		return nil
	}
	select {
	case g.out <- bytes.Clone(p):
		return nil
	case <-g.closed:
		return io.ErrClosedPipe
	}
}

func (g *guest) Recv() (api.FrameType, []byte, error) {
	select {
	case p := <-g.in:
		return api.FrameFuse, p, nil
	case <-g.closed:
		return 0, nil, io.EOF
	}
}

func (g *guest) Close() error {
	g.once.Do(func() { close(g.closed) })
	return nil
}

// newGuest returns a guest that has greeted the server.
func newGuest(t testing.TB, fs backend) *guest {
	g := &guest{t: t, in: make(chan []byte), out: make(chan []byte), closed: make(chan struct{}), ahead: make(chan api.ReadAhead, 10)}
	done := make(chan struct{})
	go func() {
		defer close(done)
		serve(fs, g)
	}()
	t.Cleanup(func() {
		g.Close()
		<-done
	})
	_, errno := g.call(opInit, 0, u32(7, 38, 128<<10, 0xffffffff))
	require.Zero(t, errno)
	return g
}

func u32(list ...uint32) (b []byte) {
	for _, v := range list {
		b = binary.LittleEndian.AppendUint32(b, v)
	}
	return b
}

func u64(list ...uint64) (b []byte) {
	for _, v := range list {
		b = binary.LittleEndian.AppendUint64(b, v)
	}
	return b
}

func text(list ...string) []byte { return []byte(strings.Join(list, "\x00") + "\x00") }

// message makes a request.
func (g *guest) message(op uint32, node uint64, body ...[]byte) []byte {
	g.next++
	b := append(u32(0, op), u64(g.next, node)...)
	b = append(b, u32(0, 0, 1, 0)...)
	b = append(b, bytes.Join(body, nil)...)
	binary.LittleEndian.PutUint32(b, uint32(len(b)))
	return b
}

// call sends a request and returns the reply.
func (g *guest) call(op uint32, node uint64, body ...[]byte) ([]byte, syscall.Errno) {
	g.t.Helper()
	g.in <- g.message(op, node, body...)
	p := <-g.out
	require.GreaterOrEqual(g.t, len(p), 16)
	require.Equal(g.t, g.next, binary.LittleEndian.Uint64(p[8:]))
	return p[16:], syscall.Errno(-int32(binary.LittleEndian.Uint32(p[4:])))
}

// lookup returns the number of a file.
func (g *guest) lookup(node uint64, name string) (uint64, syscall.Errno) {
	g.t.Helper()
	p, errno := g.call(1, node, text(name))
	if errno != 0 {
		return 0, errno
	}
	if id := binary.LittleEndian.Uint64(p); id != 0 {
		return id, 0
	}
	return 0, unix.ENOENT
}

func newDir(t testing.TB, readOnly bool) (*dir, string) {
	path := filepath.Join(t.TempDir(), "shared")
	require.NoError(t, os.MkdirAll(filepath.Join(path, "sub"), 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(path, "file"), []byte("content"), 0o644))
	require.NoError(t, os.WriteFile(filepath.Join(path, "..", "secret"), []byte("secret"), 0o644))
	require.NoError(t, os.Symlink("..", filepath.Join(path, "up")))
	d, file, err := openDir(path, readOnly)
	require.NoError(t, err)
	require.False(t, file)
	t.Cleanup(d.close)
	return d, path
}

// onHosts runs a test with what serves directories on Linux, and with what does on other systems.
func onHosts(t *testing.T, readOnly bool, test func(t *testing.T, g *guest, path string)) {
	t.Run("Linux", func(t *testing.T) {
		d, path := newDir(t, readOnly)
		test(t, newGuest(t, newLibrary(d)), path)
	})
	t.Run("portable", func(t *testing.T) {
		_, path := newDir(t, readOnly)
		test(t, newGuest(t, newTree(t, path, readOnly)), path)
	})
}

func newTree(t testing.TB, path string, readOnly bool) backend {
	f, _, err := openTree(path, readOnly)
	require.NoError(t, err)
	t.Cleanup(f.close)
	return f.fs
}

func TestConfined(t *testing.T) { onHosts(t, false, testConfined) }

func testConfined(t *testing.T, g *guest, path string) {
	for _, name := range []string{"..", ".", "", "../secret", "up/secret", "sub/../../secret"} {
		_, errno := g.lookup(rootID, name)
		require.Equal(t, unix.EINVAL, errno, name)
	}
	link, errno := g.lookup(rootID, "up")
	require.Zero(t, errno)
	_, errno = g.lookup(link, "secret")
	require.Equal(t, unix.ENOTDIR, errno, "a link is a text")
	p, errno := g.call(5, link)
	require.Zero(t, errno)
	require.Equal(t, "..", string(p))

	// A directory that the guest knows is replaced by a link to the outside.
	sub, errno := g.lookup(rootID, "sub")
	require.Zero(t, errno)
	require.NoError(t, os.Remove(filepath.Join(path, "sub")))
	require.NoError(t, os.Symlink("..", filepath.Join(path, "sub")))
	_, errno = g.lookup(sub, "secret")
	require.Equal(t, unix.ESTALE, errno)
	_, errno = g.call(12, sub, u64(rootID), text("secret", "stolen"))
	require.Equal(t, unix.ESTALE, errno)
	for _, op := range []uint32{9, 10, 11, 35} { // mkdir, unlink, rmdir, create with a path
		_, errno = g.call(op, rootID, make([]byte, map[uint32]int{9: 8, 35: 16}[op]), text("../new"))
		require.Equal(t, unix.EINVAL, errno)
	}
	_, errno = g.call(8, rootID, u32(unix.S_IFCHR|0o666, 0x103, 0, 0), text("null"))
	require.Equal(t, unix.EPERM, errno, "no devices")
	require.NoFileExists(t, filepath.Join(path, "..", "new"))
	require.FileExists(t, filepath.Join(path, "..", "secret"))
}

// TestReadAhead looks at the files of a directory one by one.
func TestReadAhead(t *testing.T) {
	path := t.TempDir()
	files := fstest.MapFS{}
	require.NoError(t, os.MkdirAll(filepath.Join(path, "a", "b"), 0o755))
	for i := range 20 {
		require.NoError(t, os.WriteFile(filepath.Join(path, "a", "b", strconv.Itoa(i)), nil, 0o644))
		files["a/b/"+strconv.Itoa(i)] = &fstest.MapFile{}
	}
	d, _, err := openDir(path, true)
	require.NoError(t, err)
	t.Cleanup(d.close)
	root, _, err := openTree(path, true)
	require.NoError(t, err)
	t.Cleanup(root.close)
	for _, fs := range []backend{newLibrary(d), newValue(files), root.fs} {
		g := newGuest(t, fs)
		a, errno := g.lookup(rootID, "a")
		require.Zero(t, errno)
		b, errno := g.lookup(a, "b")
		require.Zero(t, errno)
		for i := range 5 {
			_, errno = g.lookup(b, strconv.Itoa(i))
			require.Zero(t, errno)
			g.lookup(b, "none")
			g.call(3, b, make([]byte, 16))
		}
		require.Equal(t, api.ReadAhead{Path: "a/b", Entries: firstAhead}, <-g.ahead)
		require.Empty(t, g.ahead)
	}
}

func TestUnknownNumbersAreErrors(t *testing.T) { onHosts(t, false, testUnknownNumbers) }

func testUnknownNumbers(t *testing.T, g *guest, _ string) {
	file, errno := g.lookup(rootID, "file")
	require.Zero(t, errno)
	_, errno = g.call(3, 12345, make([]byte, 16))
	require.Equal(t, unix.ESTALE, errno)
	read := append(u64(99, 0), append(u32(100, 0), make([]byte, 16)...)...)
	_, errno = g.call(15, file, read)
	require.Equal(t, unix.EBADF, errno)
	_, errno = g.call(28, rootID, read)
	require.Equal(t, unix.EBADF, errno)
	_, errno = g.call(14, rootID, u32(unix.O_RDWR, 0))
	require.Equal(t, unix.EPERM, errno, "a directory is not opened as a file")

	p, errno := g.call(14, file, u32(unix.O_RDONLY, 0))
	require.Zero(t, errno)
	fh := binary.LittleEndian.Uint64(p)
	binary.LittleEndian.PutUint64(read, fh)
	p, errno = g.call(15, file, read)
	require.Zero(t, errno)
	require.Equal(t, "content", string(p))
	write := append(u64(fh, 0), append(u32(3, 0), make([]byte, 16)...)...)
	_, errno = g.call(opWrite, file, write, []byte("abc"))
	require.Equal(t, unix.EBADF, errno, "it is open for reading")
	_, errno = g.call(opWrite, file, write, []byte("abcdef"))
	require.Equal(t, unix.EINVAL, errno, "longer than it says")
	huge := bytes.Clone(read)
	binary.LittleEndian.PutUint32(huge[16:], 1<<31)
	_, errno = g.call(15, file, huge)
	require.Equal(t, unix.EINVAL, errno)

	g.in <- g.message(opForget, file, u64(1<<63))
	_, errno = g.call(15, file, read)
	require.Zero(t, errno, "it is open still")
	_, errno = g.call(18, file, u64(fh), make([]byte, 16))
	require.Zero(t, errno)
	_, errno = g.call(3, file, make([]byte, 16))
	require.Equal(t, unix.ESTALE, errno)
	_, errno = g.call(4000, file)
	require.Equal(t, unix.ENOSYS, errno)
	_, errno = g.call(40, file, make([]byte, 24))
	require.Equal(t, unix.ENOSYS, errno, "files are not polled")
}

func TestReadOnlyIsKeptByTheHost(t *testing.T) { onHosts(t, true, testReadOnly) }

func testReadOnly(t *testing.T, g *guest, path string) {
	file, errno := g.lookup(rootID, "file")
	require.Zero(t, errno)
	for op, body := range map[uint32][]byte{
		4: make([]byte, 88), 6: text("a", "b"), 8: append(u32(unix.S_IFREG|0o644, 0, 0, 0), text("a")...), 9: append(make([]byte, 8), text("a")...),
		10: text("file"), 11: text("sub"), 12: append(u64(rootID), text("file", "b")...), 13: append(u64(file), text("b")...),
		21: append(u32(1, 0), text("user.a", "v")...), 24: text("user.a"), 35: append(make([]byte, 16), text("a")...),
	} {
		_, errno := g.call(op, rootID, body)
		require.Equal(t, unix.EROFS, errno, op)
	}
	_, errno = g.call(14, file, u32(unix.O_RDWR, 0))
	require.Equal(t, unix.EROFS, errno)
	_, errno = g.call(14, file, u32(unix.O_TRUNC, 0))
	require.Equal(t, unix.EROFS, errno)
	b, err := os.ReadFile(filepath.Join(path, "file"))
	require.NoError(t, err)
	require.Equal(t, "content", string(b))
}

// TestOwnersWithoutRoot changes owners as a user who may not.
func TestOwnersWithoutRoot(t *testing.T) { asAnotherUser(t, ownerTest) }

// asAnotherUser has the test binary run a test of a directory with a file of root and a directory of its own, as a user who
// is not root, and returns what it printed.
func asAnotherUser(t *testing.T, test string) string {
	t.Helper()
	needs.Root(t, "becoming another user")
	path, err := os.MkdirTemp("", "share-test")
	require.NoError(t, err)
	defer os.RemoveAll(path)
	exe := filepath.Join(path, "exe")
	b, err := os.ReadFile("/proc/self/exe")
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(exe, b, 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(path, "of-root"), nil, 0o644))
	require.NoError(t, os.Chmod(path, 0o755))
	require.NoError(t, os.Mkdir(filepath.Join(path, "dir"), 0o755))
	require.NoError(t, os.Chown(filepath.Join(path, "dir"), 12345, 12345))
	cmd := exec.CommandContext(t.Context(), exe, test, path)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 12345, Gid: 12345}}
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, string(out))
	return strings.TrimSpace(string(out))
}

// chownAsUser changes the owner of a file on a share, and looks at it from a new one.
func chownAsUser(path string) error {
	var found []fuse.Owner
	for round := range 2 {
		d, _, err := openDir(path, false)
		if err != nil {
			return err
		}
		defer d.close()
		var entry, file fuse.EntryOut
		if st := d.Lookup(nil, &fuse.InHeader{NodeId: rootID}, "of-root", &entry); st != fuse.OK {
			return errors.New("lookup: " + st.String())
		}
		found = append(found, entry.Owner)
		if st := d.Lookup(nil, &fuse.InHeader{NodeId: rootID}, "dir", &entry); st != fuse.OK {
			return errors.New("lookup: " + st.String())
		}
		if round == 0 {
			in := &fuse.MknodIn{InHeader: fuse.InHeader{NodeId: entry.NodeId}, Mode: unix.S_IFREG | 0o640}
			in.Owner = fuse.Owner{Uid: 7, Gid: 8}
			if st := d.Mknod(nil, in, "file", &file); st != fuse.OK {
				return errors.New("mknod: " + st.String())
			}
			set := &fuse.SetAttrIn{}
			set.NodeId, set.Valid, set.Owner = entry.NodeId, fuse.FATTR_GID, fuse.Owner{Gid: 70}
			var out fuse.AttrOut
			if st := d.SetAttr(nil, set, &out); st != fuse.OK {
				return errors.New("setattr: " + st.String())
			}
			found = append(found, out.Owner)
			if n, st := d.ListXAttr(nil, &fuse.InHeader{NodeId: file.NodeId}, nil); n != 0 || st != fuse.OK {
				return errors.New("the owner is to be seen")
			}
			continue
		}
		found = append(found, entry.Owner)
		if st := d.Lookup(nil, &fuse.InHeader{NodeId: entry.NodeId}, "file", &file); st != fuse.OK {
			return errors.New("lookup: " + st.String())
		}
		found = append(found, file.Owner)
	}
	want := []fuse.Owner{{Uid: nobody, Gid: nobody}, {Uid: 0, Gid: 70}, {Uid: nobody, Gid: nobody}, {Uid: 0, Gid: 70}, {Uid: 7, Gid: 8}}
	for i := range want {
		if found[i] != want[i] {
			return errors.New("owners are not those that were given")
		}
	}
	return nil
}

// FuzzServe gives a server two messages of a guest that keeps no rules. There is nothing outside that it may change.
func FuzzServe(f *testing.F) {
	g := &guest{}
	for host := range byte(3) {
		f.Add(g.message(1, 1, text("file")), g.message(14, 2, u32(2, 0)), host)
		f.Add(g.message(27, 1, u32(0, 0)), g.message(44, 1, u64(1, 0), u32(4096, 0), u64(0), u32(0, 0)), host)
		f.Add(g.message(12, 1, u64(1), text("file", "sub")), g.message(45, 1, u64(1), u64(2), text("sub", "file")), host)
		f.Add(g.message(35, 1, u32(0x42, 0o644, 0, 0), text("x")), g.message(16, 2, u64(1, 5), u32(3, 0), u64(0, 0), []byte("abc")), host)
		f.Add(g.message(42, 1, u32(1, 0), u64(1, 1)), g.message(47, 2, make([]byte, 56)), host)
		f.Add(g.message(21, 1, u32(1, 0), text("user.a", "v")), g.message(4, 1, make([]byte, 88)), host)
		f.Add(g.message(14, 1, u32(0, 0)), g.message(15, 1, u64(2, 0), u32(100, 0), u64(0), u32(0, 0)), host)
		f.Add(g.message(27, 1, u32(0, 0)), g.message(44, 1, u64(2, 0), u32(300, 0), u64(0), u32(0, 0)), host)
		f.Add(g.message(opInit, 0, u32(7, 38, 0, 0xffffffff)), g.message(36, 0, u64(1)), host)
		f.Add(g.message(13, 1, u64(2), text("x")), g.message(6, 1, text("x", "../..")), host)
		f.Add(g.message(9, 1, u32(0o755, 0), text("x")), g.message(11, 1, text("sub")), host)
		f.Add(g.message(8, 1, u32(0o100644, 0, 0, 0), text("x")), g.message(10, 1, text("file")), host)
	}
	f.Fuzz(func(t *testing.T, a, b []byte, host byte) {
		var fs backend
		if host%3 > 0 {
			d, path := newDir(t, false)
			if fs = newLibrary(d); host%3 == 2 {
				fs = newTree(t, path, false)
			}
			defer func() {
				b, err := os.ReadFile(filepath.Join(path, "..", "secret"))
				require.NoError(t, err)
				require.Equal(t, "secret", string(b))
				entries, err := os.ReadDir(filepath.Join(path, ".."))
				require.NoError(t, err)
				require.Len(t, entries, 2)
			}()
		} else {
			fs = newValue(fstest.MapFS{"file": {Data: []byte("content")}, "sub/x": {}})
		}
		s := &guest{t: t, in: make(chan []byte), out: make(chan []byte), closed: make(chan struct{})}
		var wg sync.WaitGroup
		wg.Go(func() { serve(fs, s) })
		wg.Go(func() {
			for {
				select {
				case <-s.out:
				case <-s.closed:
					return
				}
			}
		})
		for _, p := range [][]byte{a, b} {
			for range 2 {
				select {
				case s.in <- p:
				case <-s.closed:
				}
			}
		}
		s.Close()
		wg.Wait()
	})
}
