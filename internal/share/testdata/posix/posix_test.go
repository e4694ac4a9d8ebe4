// Package posix asks a file system, from inside a container, what POSIX asks of one.
package posix

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/hanwen/go-fuse/v2/posixtest"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

var dir = flag.String("dir", "", "directory to test in")

func TestPosix(t *testing.T) {
	require.NotEmpty(t, *dir, "-dir")
	for name, test := range posixtest.All {
		t.Run(name, func(t *testing.T) { in(t, func(d string) { test(t, d) }) })
	}
	for name, test := range map[string]func(*testing.T, string){
		"SharedMemory": sharedMemory, "Flock": flock, "Sparse": sparse, "UnlinkedFile": unlinkedFile, "RenameFlags": renameFlags,
		"LongNames": longNames, "DeepTree": deepTree, "SetGroupOfDirectory": setGroup, "PermissionsOfOthers": permissions, "Times": times,
	} {
		t.Run(name, func(t *testing.T) { in(t, func(d string) { test(t, d) }) })
	}
}

// in makes an empty directory for a test.
func in(t *testing.T, test func(string)) {
	d, err := os.MkdirTemp(*dir, "t")
	require.NoError(t, err)
	require.NoError(t, os.Chmod(d, 0o755))
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(d)) }) // also where the test is skipped
	test(d)
}

func sharedMemory(t *testing.T, d string) {
	f, err := os.Create(filepath.Join(d, "f"))
	require.NoError(t, err)
	defer f.Close()
	require.NoError(t, f.Truncate(8192))
	m, err := unix.Mmap(int(f.Fd()), 0, 8192, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	require.NoError(t, err)
	other, err := unix.Mmap(int(f.Fd()), 0, 8192, unix.PROT_READ, unix.MAP_SHARED)
	require.NoError(t, err)
	copy(m[4000:], "over the edge of a page")
	require.Equal(t, m, other)
	require.NoError(t, unix.Msync(m, unix.MS_SYNC))
	b, err := os.ReadFile(f.Name())
	require.NoError(t, err)
	require.True(t, bytes.Equal(m, b))
	require.NoError(t, unix.Munmap(m))
	require.NoError(t, unix.Munmap(other))
}

func flock(t *testing.T, d string) {
	a, err := os.Create(filepath.Join(d, "f"))
	require.NoError(t, err)
	defer a.Close()
	b, err := os.Open(a.Name())
	require.NoError(t, err)
	defer b.Close()
	require.NoError(t, unix.Flock(int(a.Fd()), unix.LOCK_EX))
	require.ErrorIs(t, unix.Flock(int(b.Fd()), unix.LOCK_SH|unix.LOCK_NB), unix.EWOULDBLOCK)
	require.NoError(t, unix.Flock(int(a.Fd()), unix.LOCK_UN))
	require.NoError(t, unix.Flock(int(b.Fd()), unix.LOCK_SH|unix.LOCK_NB))
}

func sparse(t *testing.T, d string) {
	f, err := os.Create(filepath.Join(d, "f"))
	require.NoError(t, err)
	defer f.Close()
	const far = 5 << 30
	_, err = f.WriteAt([]byte("end"), far)
	require.NoError(t, err)
	var st unix.Stat_t
	require.NoError(t, unix.Fstat(int(f.Fd()), &st))
	require.Equal(t, int64(far+3), st.Size)
	require.Less(t, st.Blocks*512, int64(1<<20))
	off, err := unix.Seek(int(f.Fd()), 0, unix.SEEK_DATA)
	require.NoError(t, err)
	require.Positive(t, off)
	require.NoError(t, unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, far, 3))
	b := make([]byte, 3)
	_, err = f.ReadAt(b, far)
	require.NoError(t, err)
	require.Equal(t, []byte{0, 0, 0}, b)
}

func unlinkedFile(t *testing.T, d string) {
	f, err := os.Create(filepath.Join(d, "f"))
	require.NoError(t, err)
	defer f.Close()
	require.NoError(t, os.Remove(f.Name()))
	_, err = f.WriteString("still there")
	require.NoError(t, err)
	require.NoError(t, f.Truncate(5))
	require.NoError(t, f.Chmod(0o600))
	b := make([]byte, 5)
	_, err = f.ReadAt(b, 0)
	require.NoError(t, err)
	require.Equal(t, "still", string(b))
	st, err := f.Stat()
	require.NoError(t, err)
	require.Zero(t, st.Sys().(*syscall.Stat_t).Nlink)
}

func renameFlags(t *testing.T, d string) {
	a, b := filepath.Join(d, "a"), filepath.Join(d, "b")
	require.NoError(t, os.WriteFile(a, []byte("a"), 0o644))
	require.NoError(t, os.Mkdir(b, 0o755))
	require.ErrorIs(t, unix.Renameat2(unix.AT_FDCWD, a, unix.AT_FDCWD, b, unix.RENAME_NOREPLACE), unix.EEXIST)
	require.NoError(t, unix.Renameat2(unix.AT_FDCWD, a, unix.AT_FDCWD, b, unix.RENAME_EXCHANGE))
	text, err := os.ReadFile(b)
	require.NoError(t, err)
	require.Equal(t, "a", string(text))
	require.DirExists(t, a)
	require.ErrorIs(t, os.Rename(a, filepath.Join(a, "in")), unix.EINVAL)
	require.NoError(t, os.Rename(b, filepath.Join(a, "in")))
	require.ErrorIs(t, unix.Rmdir(a), unix.ENOTEMPTY)
}

func longNames(t *testing.T, d string) {
	long := filepath.Join(d, string(bytes.Repeat([]byte("x"), 255)))
	require.NoError(t, os.WriteFile(long, nil, 0o644))
	require.ErrorIs(t, os.WriteFile(long+"x", nil, 0o644), unix.ENAMETOOLONG)
	odd := filepath.Join(d, "a\nb\xff\x01 c")
	require.NoError(t, os.WriteFile(odd, nil, 0o644))
	entries, err := os.ReadDir(d)
	require.NoError(t, err)
	require.Len(t, entries, 2)
	require.NoError(t, os.Symlink(string(bytes.Repeat([]byte("y"), 4000)), filepath.Join(d, "link")))
	text, err := os.Readlink(filepath.Join(d, "link"))
	require.NoError(t, err)
	require.Len(t, text, 4000)
}

func deepTree(t *testing.T, d string) {
	p := d
	for range 12 {
		p = filepath.Join(p, "sub")
	}
	require.NoError(t, os.MkdirAll(p, 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(p, "f"), []byte("deep"), 0o644))
	require.NoError(t, os.Rename(filepath.Join(d, "sub"), filepath.Join(d, "top")))
	b, err := os.ReadFile(filepath.Join(d, "top", p[len(d)+len("/sub/"):], "f"))
	require.NoError(t, err)
	require.Equal(t, "deep", string(b))
}

func setGroup(t *testing.T, d string) {
	require.NoError(t, os.Chown(d, 0, 77))
	require.NoError(t, unix.Chmod(d, 0o2755))
	require.NoError(t, os.Mkdir(filepath.Join(d, "sub"), 0o755))
	var st unix.Stat_t
	require.NoError(t, unix.Stat(filepath.Join(d, "sub"), &st))
	require.Equal(t, uint32(77), st.Gid)
	require.Equal(t, uint32(0o2755), st.Mode&0o7777)
}

// permissions looks at files as another user.
func permissions(t *testing.T, d string) {
	closed := filepath.Join(d, "closed")
	require.NoError(t, os.WriteFile(closed, nil, 0o600))
	own := filepath.Join(d, "own")
	require.NoError(t, os.Mkdir(own, 0o755))
	require.NoError(t, os.Chown(own, 1000, 1000))
	done := make(chan error, 1)
	go func() { // the user is one of a thread, which ends with this
		done <- asUser(closed, own)
	}()
	require.NoError(t, <-done)
	var st unix.Stat_t
	require.NoError(t, unix.Stat(filepath.Join(own, "f"), &st))
	require.Equal(t, uint32(1000), st.Uid)
}

func times(t *testing.T, d string) {
	f := filepath.Join(d, "f")
	require.NoError(t, os.WriteFile(f, nil, 0o644))
	at := []unix.Timespec{{Sec: 1, Nsec: 2}, {Sec: 1 << 33, Nsec: 999999999}}
	require.NoError(t, unix.UtimesNanoAt(unix.AT_FDCWD, f, at, 0))
	var st unix.Stat_t
	require.NoError(t, unix.Stat(f, &st))
	require.Equal(t, at, []unix.Timespec{st.Atim, st.Mtim})
	require.NoError(t, os.WriteFile(f, []byte("x"), 0o644))
	require.NoError(t, unix.Stat(f, &st))
	require.Less(t, st.Mtim.Sec, at[1].Sec)
}
