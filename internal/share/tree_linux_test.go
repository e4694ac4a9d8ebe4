package share

import (
	"encoding/binary"
	"errors"
	"io"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// setting is a change of attributes.
type setting struct {
	valid                uint32
	fh, size             uint64
	atime, mtime         uint64
	atimensec, mtimensec uint32
	mode, uid, gid       uint32
}

func (s setting) bytes() []byte {
	b := append(u32(s.valid, 0), u64(s.fh, s.size, 0, s.atime, s.mtime, 0)...)
	return append(b, u32(s.atimensec, s.mtimensec, 0, s.mode, 0, s.uid, s.gid, 0)...)
}

// open opens a file and returns the handle.
func (g *guest) open(file uint64, flags uint32) (uint64, syscall.Errno) {
	p, code := g.call(opOpen, file, u32(flags, 0))
	if code != 0 {
		return 0, code
	}
	return binary.LittleEndian.Uint64(p), 0
}

func (g *guest) readAt(file, fh, offset uint64, size uint32) (string, syscall.Errno) {
	p, code := g.call(opRead, file, u64(fh, offset), u32(size, 0), u64(0), u32(0, 0))
	return string(p), code
}

func (g *guest) write(file, fh, offset uint64, data string) syscall.Errno {
	p, code := g.call(opWrite, file, u64(fh, offset), u32(uint32(len(data)), 0), u64(0), u32(0, 0), []byte(data))
	if code == 0 {
		require.EqualValues(g.t, len(data), binary.LittleEndian.Uint32(p))
	}
	return code
}

// create makes a file and returns its number and a handle.
func (g *guest) create(dir uint64, name string, flags, mode uint32) (id, fh uint64, code syscall.Errno) {
	p, code := g.call(opCreate, dir, u32(flags, mode, 0, 0), text0(name))
	if code != 0 {
		return 0, 0, code
	}
	require.Len(g.t, p, 144)
	return binary.LittleEndian.Uint64(p), binary.LittleEndian.Uint64(p[128:]), 0
}

// made is the number of a file that a call has made.
func (g *guest) made(op uint32, dir uint64, body ...[]byte) uint64 {
	g.t.Helper()
	p, code := g.call(op, dir, body...)
	require.Zero(g.t, code)
	require.Len(g.t, p, 128)
	return binary.LittleEndian.Uint64(p)
}

// onTree returns a guest that writes to an empty directory.
func onTree(t *testing.T) (*guest, string) {
	path := t.TempDir()
	return newGuest(t, newTree(t, path, false)), path
}

func TestTreeWrites(t *testing.T) {
	g, path := onTree(t)
	sub := g.made(opMkdir, rootID, u32(0o1770, 0), text0("sub"))
	file, fh, code := g.create(sub, "file", uint32(os.O_RDWR), 0o4640)
	require.Zero(t, code)
	require.Zero(t, g.write(file, fh, 3, "content"))
	got, code := g.readAt(file, fh, 0, 100)
	require.Zero(t, code)
	require.Equal(t, "\x00\x00\x00content", got)
	for _, op := range []uint32{opFsync, opFlush} {
		_, code = g.call(op, file, u64(fh, 0, 0))
		require.Zero(t, code)
	}
	g.made(opMknod, rootID, u32(syscall.S_IFREG|0o600, 0, 0, 0), text0("node"))
	link := g.made(opSymlink, rootID, text0("soft"), text0("sub/file"))
	p, code := g.call(opReadlink, link)
	require.Zero(t, code)
	require.Equal(t, "sub/file", string(p))
	require.Equal(t, file, g.made(opLink, rootID, u64(file), text0("hard")))
	_, code = g.call(opRename, rootID, u64(sub), text("node", "moved"))
	require.Zero(t, code)
	_, code = g.call(opRename2, sub, u64(rootID), u32(1, 0), text("moved", "hard"))
	require.Equal(t, unix.EEXIST, code)
	_, code = g.call(opRename2, sub, u64(rootID), u32(2, 0), text("moved", "hard"))
	require.Equal(t, unix.EINVAL, code)
	_, code = g.call(opRename2, sub, u64(rootID), u32(1, 0), text("moved", "free"))
	require.Zero(t, code)
	_, code = g.call(opUnlink, rootID, text0("free"))
	require.Zero(t, code)
	for op, name := range map[uint32]string{opRmdir: "sub", opUnlink: "none"} {
		_, code = g.call(op, rootID, text0(name))
		require.Equal(t, map[uint32]syscall.Errno{opRmdir: unix.ENOTEMPTY, opUnlink: unix.ENOENT}[op], code)
	}
	names, _ := g.names(rootID, opReadDirPlus, 4096)
	require.ElementsMatch(t, []string{".", "..", "sub", "soft", "hard"}, names)

	st, err := os.Lstat(filepath.Join(path, "hard"))
	require.NoError(t, err)
	require.Equal(t, fs.FileMode(0o640), st.Mode(), "without the bit that changes the user")
	st, err = os.Lstat(filepath.Join(path, "sub"))
	require.NoError(t, err)
	require.Equal(t, fs.ModeDir|fs.ModeSticky|0o770, st.Mode())
}

func TestTreeSetsAttributes(t *testing.T) {
	g, path := onTree(t)
	file, fh, code := g.create(rootID, "file", uint32(os.O_WRONLY), 0o600)
	require.Zero(t, code)
	set := func(id uint64, s setting) syscall.Errno {
		_, code := g.call(opSetAttr, id, s.bytes())
		return code
	}
	require.Zero(t, set(file, setting{valid: setMode | setSize | setAtime | setMtime, size: 10, mode: 0o7444, atime: 5, mtime: 1e9, mtimensec: 7}))
	st, err := os.Stat(filepath.Join(path, "file"))
	require.NoError(t, err)
	require.Equal(t, fs.FileMode(0o444|fs.ModeSticky), st.Mode())
	require.EqualValues(t, 10, st.Size())
	require.Equal(t, time.Unix(1e9, 7), st.ModTime())
	require.Zero(t, set(file, setting{valid: setSize | setFH, size: 3, fh: fh}))
	require.Zero(t, set(file, setting{valid: setMtime | setMtimeNow}))
	require.Zero(t, set(rootID, setting{valid: setMode | setMtime, mode: 0o711, mtime: 77}))
	st, err = os.Stat(path)
	require.NoError(t, err)
	require.Equal(t, fs.ModeDir|0o711, st.Mode())
	require.EqualValues(t, 77, st.ModTime().Unix())
	st, err = os.Stat(filepath.Join(path, "file"))
	require.NoError(t, err)
	require.EqualValues(t, 3, st.Size())
	require.WithinDuration(t, time.Now(), st.ModTime(), time.Minute)
	for name, bad := range map[string]setting{
		"size": {valid: setSize, size: 1 << 63}, "seconds": {valid: setMtime, mtime: 1 << 62}, "nanoseconds": {valid: setAtime, atimensec: math.MaxUint32},
	} {
		require.NotZero(t, set(file, bad), name)
	}
	require.Equal(t, unix.EINVAL, set(rootID, setting{valid: setSize}))
	link := g.made(opSymlink, rootID, text0("soft"), text0("/etc/passwd"))
	require.Equal(t, unix.EOPNOTSUPP, set(link, setting{valid: setMode, mode: 0o777}))
	require.Zero(t, set(link, setting{valid: setMtime, mtime: 1}), "and nothing is changed")
}

// TestTreeUnlinkedFile goes on with a file that has no name any more.
func TestTreeUnlinkedFile(t *testing.T) {
	g, _ := onTree(t)
	file, fh, code := g.create(rootID, "file", uint32(os.O_RDWR), 0o600)
	require.Zero(t, code)
	_, code = g.call(opUnlink, rootID, text0("file"))
	require.Zero(t, code)
	require.Zero(t, g.write(file, fh, 0, "content"))
	p, code := g.call(opSetAttr, file, setting{valid: setMode | setSize | setMtime, size: 4, mode: 0o644, mtime: 1e9}.bytes())
	require.Zero(t, code)
	require.EqualValues(t, 4, binary.LittleEndian.Uint64(p[24:]))
	p, code = g.call(opGetAttr, file, make([]byte, 16))
	require.Zero(t, code)
	require.EqualValues(t, 1e9, binary.LittleEndian.Uint64(p[48:]))
	got, code := g.readAt(file, fh, 0, 100)
	require.Zero(t, code)
	require.Equal(t, "cont", got)
	_, code = g.call(opRelease, file, u64(fh, 0, 0))
	require.Zero(t, code)
	_, code = g.call(opGetAttr, file, make([]byte, 16))
	require.Equal(t, unix.ENOENT, code)
	_, code = g.readAt(file, fh, 0, 1)
	require.Equal(t, unix.EBADF, code)
}

// TestTreeOfOneFile shares a file, whose directory is not to be seen.
func TestTreeOfOneFile(t *testing.T) {
	_, path := newDir(t, false)
	f, file, err := openTree(filepath.Join(path, "file"), false)
	require.NoError(t, err)
	require.True(t, file)
	t.Cleanup(f.close)
	g := newGuest(t, f.fs)
	for _, name := range []string{"file", "sub", "secret"} {
		_, code := g.lookup(rootID, name)
		require.Equal(t, unix.ENOTDIR, code)
	}
	_, _, code := g.create(rootID, "new", 2, 0o600)
	require.Equal(t, unix.ENOTDIR, code)
	_, code = g.call(opUnlink, rootID, text0("file"))
	require.Equal(t, unix.ENOTDIR, code)
	fh, code := g.open(rootID, uint32(os.O_RDWR))
	require.Zero(t, code)
	require.Zero(t, g.write(rootID, fh, 0, "CON"))
	require.NoError(t, os.WriteFile(filepath.Join(path, "new"), []byte("another"), 0o644))
	require.NoError(t, os.Rename(filepath.Join(path, "new"), filepath.Join(path, "file")))
	require.Equal(t, "another", g.read(rootID, 0, 100), "as editors save a file")
	got, code := g.readAt(rootID, fh, 0, 100)
	require.Zero(t, code)
	require.Equal(t, "CONtent", got)
	require.NoError(t, os.Remove(filepath.Join(path, "file")))
	require.NoError(t, os.Symlink("../secret", filepath.Join(path, "file")))
	_, code = g.open(rootID, 0)
	require.Equal(t, unix.ESTALE, code)
}

// TestTreeMeetsOtherFiles finds files of the host that are no files, or have become others.
func TestTreeMeetsOtherFiles(t *testing.T) {
	g, path := onTree(t)
	require.NoError(t, unix.Mkfifo(filepath.Join(path, "pipe"), 0o644))
	require.NoError(t, os.Symlink("../secret", filepath.Join(path, "link")))
	pipe, code := g.lookup(rootID, "pipe")
	require.Zero(t, code)
	_, code = g.open(pipe, 0)
	require.Equal(t, unix.EPERM, code)
	for _, name := range []string{"pipe", "link"} {
		_, _, code = g.create(rootID, name, uint32(os.O_RDWR), 0o600)
		require.Equal(t, unix.EPERM, code, name)
	}
	_, _, code = g.create(rootID, "link", uint32(os.O_RDWR|os.O_EXCL), 0o600)
	require.Equal(t, unix.EEXIST, code)
	for _, kind := range []uint32{syscall.S_IFIFO, syscall.S_IFCHR, syscall.S_IFSOCK, 0} {
		_, code = g.call(opMknod, rootID, u32(kind|0o666, 0x103, 0, 0), text0("special"))
		require.Equal(t, unix.EPERM, code)
	}
	file, fh, code := g.create(rootID, "file", uint32(os.O_RDWR), 0o600)
	require.Zero(t, code)
	require.Equal(t, unix.EFBIG, g.write(file, fh, 1<<63-1, "x"))
	require.Equal(t, unix.EFBIG, g.write(file, fh, 1<<63, "x"))
	_, code = g.readAt(file, fh, 1<<63, 1)
	require.Equal(t, unix.EINVAL, code)
	_, code = g.readAt(rootID, fh, 0, 1)
	require.Equal(t, unix.EBADF, code, "a handle of another file")
	_, code = g.open(file, 3)
	require.Equal(t, unix.EINVAL, code)
	for _, op := range []uint32{opGetXAttr, opLseek, opFallocate, opGetLk, opSetLk, opSetLkWait} {
		_, code = g.call(op, file, make([]byte, 56))
		require.Equal(t, unix.ENOSYS, code, "the guest's kernel does without")
	}
	require.NoError(t, os.RemoveAll(path))
	_, _, code = g.create(rootID, "new", uint32(os.O_RDWR), 0o600)
	require.Equal(t, unix.EIO, code, "the directory has gone")
}

// TestTreeWithoutRoot changes owners as a user who may not.
func TestTreeWithoutRoot(t *testing.T) {
	require.Equal(t, "65534:65534 0:0 3:4 3:70", asAnotherUser(t, treeTest))
}

// treeTest makes the test binary change owners as another user.
const treeTest = "share-tree-test"

// treeAsUser tells whose files are on a share: one of root, one of the user, one that was made, one that was changed.
func treeAsUser(path string, out io.Writer) error {
	f, _, err := openTree(path, false)
	if err != nil {
		return err
	}
	defer f.close()
	g := &guest{}
	var errs []error
	ask := func(op uint32, node uint64, body ...[]byte) []byte {
		msg, reply := g.message(op, node, body...), make([]byte, 1024)
		binary.LittleEndian.PutUint32(msg[24:], 3)
		binary.LittleEndian.PutUint32(msg[28:], 4)
		n, _ := f.fs.handle(msg, reply)
		if code := binary.LittleEndian.Uint32(reply[4:]); code != 0 {
			errs = append(errs, errno(-int32(code)))
			return make([]byte, 512)
		}
		return reply[16:n]
	}
	tell := func(p []byte) {
		io.WriteString(out, strconv.Itoa(int(binary.LittleEndian.Uint32(p[68:])))+":"+strconv.Itoa(int(binary.LittleEndian.Uint32(p[72:])))+" ")
	}
	tell(ask(opLookup, rootID, text0("of-root"))[40:])
	dir := ask(opLookup, rootID, text0("dir"))
	tell(dir[40:])
	made := ask(opMknod, binary.LittleEndian.Uint64(dir), u32(syscall.S_IFREG|0o640, 0, 0, 0), text0("file"))
	tell(made[40:])
	tell(ask(opSetAttr, binary.LittleEndian.Uint64(made), setting{valid: setGID, gid: 70}.bytes())[16:])
	return errors.Join(errs...)
}
