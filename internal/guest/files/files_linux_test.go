package files

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
)

// openRoot makes a root beside a canary that nobody may change.
func openRoot(t testing.TB) (root int, dir string) {
	top := t.TempDir()
	canary := filepath.Join(top, "canary")
	require.NoError(t, os.Mkdir(canary, 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(canary, "file"), []byte("alive"), 0o600))
	dir = filepath.Join(top, "root")
	require.NoError(t, os.Mkdir(dir, 0o755))
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	require.NoError(t, err)
	t.Cleanup(func() {
		unix.Close(fd)
		checkCanary(t, top)
	})
	return fd, dir
}

func checkCanary(t testing.TB, top string) {
	names, err := os.ReadDir(top)
	require.NoError(t, err)
	require.Len(t, names, 2, "something was made outside the root")
	names, err = os.ReadDir(filepath.Join(top, "canary"))
	require.NoError(t, err)
	require.Len(t, names, 1, "something was made outside the root")
	b, err := os.ReadFile(filepath.Join(top, "canary", "file"))
	require.NoError(t, err)
	require.Equal(t, "alive", string(b))
	st, err := os.Stat(filepath.Join(top, "canary", "file"))
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), st.Mode())
	require.EqualValues(t, 1, st.Sys().(*syscall.Stat_t).Nlink)
}

func read(t testing.TB, root int, name string) []byte {
	src, err := OpenSource(root, name)
	require.NoError(t, err)
	defer src.Close()
	var b bytes.Buffer
	require.NoError(t, src.WriteTar(context.Background(), &b))
	return b.Bytes()
}

func names(t testing.TB, archive []byte) (list []string) {
	tr := tar.NewReader(bytes.NewReader(archive))
	for {
		h, err := tr.Next()
		if err == io.EOF {
			return list
		}
		require.NoError(t, err)
		list = append(list, h.Name)
	}
}

func makeTar(t testing.TB, headers ...tar.Header) *bytes.Buffer {
	var b bytes.Buffer
	tw := tar.NewWriter(&b)
	for _, h := range headers {
		body := h.Uname // stands for the content here
		h.Uname = ""
		if h.Typeflag == tar.TypeReg {
			h.Size = int64(len(body))
		}
		require.NoError(t, tw.WriteHeader(&h))
		_, err := io.WriteString(tw, body)
		require.NoError(t, err)
	}
	require.NoError(t, tw.Close())
	return &b
}

func unpack(root int, dir string, r io.Reader, o Options) error {
	target, err := OpenTarget(root, dir)
	if err != nil {
		return err
	}
	defer target.Close()
	return target.Unpack(context.Background(), r, o)
}

// TestRoundTrip copies a tree out and in again, with GNU tar as the judge of both.
func TestRoundTrip(t *testing.T) {
	root, dir := openRoot(t)
	script := `cd "$1" && mkdir -p tree/a/b 'tree/with space' tree/sticky && chmod 1777 tree/sticky && cd tree
		seq 100000 > a/numbers; ln a/numbers a/b/again; ln -s numbers a/link; ln -s /etc/nowhere dangling; ln -s ../../../../canary out
		mkfifo pipe; mknod null c 1 3; mknod disk b 8 1; : > empty; truncate -s 3M sparse; printf x | dd of=sparse bs=1 seek=1048576 conv=notrunc status=none
		chmod 4755 empty; chown 1000:2000 a/numbers; chown -h 33:44 a/link; touch -d '1960-01-02 03:04:05.123456789' a/numbers
		touch -d '2262-01-02 03:04:05.5' 'with space'; touch -h -d '2001-01-01' dangling
		touch "$(printf 'new\nline')" $'\xff\xfe' "$(printf 'l%.0s' $(seq 255))"; touch -d '2020-02-02 02:02:02.2' a`
	out, err := exec.Command("bash", "-c", script, "-", dir).CombinedOutput()
	require.NoError(t, err, string(out))
	require.NoError(t, unix.Setxattr(filepath.Join(dir, "tree/empty"), "security.capability", fileCap, 0))
	if err := unix.Setxattr(filepath.Join(dir, "tree/a"), "user.note", []byte("of\x00mine"), 0); err != unix.ENOTSUP {
		require.NoError(t, err)
		require.NoError(t, unix.Setxattr(filepath.Join(dir, "tree/a"), "user.a=b", []byte("x"), 0))
	}
	ours := read(t, root, "/tree")
	gnu := exec.Command("tar", "--compare", "--xattrs", "-C", dir, "-f", "-")
	gnu.Stdin = bytes.NewReader(ours)
	out, err = gnu.CombinedOutput()
	require.NoError(t, err, "tar finds a difference: %s", out)

	require.NoError(t, os.Mkdir(filepath.Join(dir, "copy"), 0o755))
	require.NoError(t, unpack(root, "copy", bytes.NewReader(ours), Options{KeepOwner: true}))
	require.NoError(t, unix.Removexattr(filepath.Join(dir, "tree/a"), "user.a=b"))
	require.Equal(t, gnuTar(t, dir), gnuTar(t, filepath.Join(dir, "copy")), "GNU tar sees another tree")
	var st unix.Stat_t
	require.NoError(t, unix.Stat(filepath.Join(dir, "copy/tree/sparse"), &st))
	require.Less(t, st.Blocks*512, int64(1<<20), "holes are kept")

	// And what GNU tar writes is read.
	require.NoError(t, os.Mkdir(filepath.Join(dir, "copy2"), 0o755))
	full, err := exec.Command("tar", "--format=gnu", "--sparse", "-C", dir, "-c", "tree").Output()
	require.NoError(t, err)
	require.NoError(t, unpack(root, "copy2", bytes.NewReader(full), Options{KeepOwner: true}))
	out, err = exec.Command("diff", "-r", "--no-dereference", filepath.Join(dir, "tree/a"), filepath.Join(dir, "copy2/tree/a")).CombinedOutput()
	require.NoError(t, err, string(out))
}

var fileCap = []byte("\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00")

// gnuTar is the tree as GNU tar has it, byte by byte.
func gnuTar(t *testing.T, dir string) []byte {
	out, err := exec.Command("tar", "--sort=name", "--format=posix", "--xattrs", "--numeric-owner",
		"--pax-option=delete=atime,delete=ctime,exthdr.name=%d/x/%f", "-C", dir, "-c", "tree").Output()
	require.NoError(t, err)
	return out
}

func TestNamesOfArchives(t *testing.T) {
	root, dir := openRoot(t)
	require.NoError(t, os.MkdirAll(filepath.Join(dir, "real/sub"), 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "real/f"), []byte("x"), 0o644))
	require.NoError(t, os.Symlink("/real", filepath.Join(dir, "link")))
	require.NoError(t, os.Symlink("../../canary", filepath.Join(dir, "out")))
	l, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	require.NoError(t, err)
	defer unix.Close(l)
	require.NoError(t, unix.Bind(l, &unix.SockaddrUnix{Name: filepath.Join(dir, "real/s")}))
	for _, c := range []struct {
		path string
		want []string
	}{
		{"/real", []string{"real/", "real/f", "real/sub/"}},
		{"real/", []string{"real/", "real/f", "real/sub/"}},
		{"/real/.", []string{"./", "./f", "./sub/"}},
		{"/link", []string{"link"}},
		{"/link/", []string{"link/", "link/f", "link/sub/"}},
		{"/link/.", []string{"./", "./f", "./sub/"}},
		{"/link/f", []string{"f"}},
		{"/real/sub/../f", []string{"f"}},
		{"../../real/f", []string{"f"}},
	} {
		require.Equal(t, c.want, names(t, read(t, root, c.path)), c.path)
	}
	for path, want := range map[string]error{
		"/none": errs.ErrNotFound, "/real/f/": errs.ErrInvalid, "": errs.ErrInvalid, "a\x00b": errs.ErrInvalid,
		"/out/": errs.ErrNotFound, "/out/file": errs.ErrNotFound, "/real/s": errs.ErrUnsupported,
		strings.Repeat("a/", 3000): errs.ErrInvalid, strings.Repeat("a", 300): errs.ErrInvalid,
	} {
		_, err := OpenSource(root, path)
		require.ErrorIs(t, err, want, path)
	}
	src, err := OpenWhole(root)
	require.NoError(t, err)
	defer src.Close()
	var b bytes.Buffer
	require.NoError(t, src.WriteTar(context.Background(), &b))
	require.Equal(t, []string{"link", "out", "real/", "real/f", "real/sub/"}, names(t, b.Bytes()))
}

func TestStat(t *testing.T) {
	root, dir := openRoot(t)
	require.NoError(t, os.MkdirAll(filepath.Join(dir, "a/b"), 0o755))
	require.NoError(t, os.Chmod(filepath.Join(dir, "a/b"), 0o755|os.ModeSticky|os.ModeSetgid))
	require.NoError(t, os.Symlink("../a/b", filepath.Join(dir, "a/l")))
	require.NoError(t, os.Symlink("../../../../canary", filepath.Join(dir, "a/out")))
	require.NoError(t, os.Symlink("loop", filepath.Join(dir, "loop")))
	st, err := Stat(root, "/a/b")
	require.NoError(t, err)
	require.Equal(t, "b", st.Name)
	require.Equal(t, os.ModeDir|os.ModeSticky|os.ModeSetgid|0o755, st.Mode)
	for name, want := range map[string]string{"/a/l": "/a/b", "/a/out": "/canary", "/loop": "/loop"} {
		st, err := Stat(root, name)
		require.NoError(t, err)
		require.Equal(t, want, st.Link, name)
		require.Equal(t, os.ModeSymlink|0o777, st.Mode)
	}
	st, err = Stat(root, "/a/l/")
	require.NoError(t, err)
	require.True(t, st.Mode.IsDir())
	st, err = Stat(root, "/")
	require.NoError(t, err)
	require.Equal(t, "/", st.Name)
	_, err = Stat(root, "/loop/x")
	require.ErrorIs(t, err, errs.ErrInvalid)
}

func TestUnpack(t *testing.T) {
	at := time.Date(2020, 1, 2, 3, 4, 5, 0, time.UTC)
	file := func(name, body string) tar.Header {
		return tar.Header{Typeflag: tar.TypeReg, Name: name, Uname: body, Mode: 0o644, Uid: 7, Gid: 8, ModTime: at}
	}
	link := func(kind byte, name, to string) tar.Header {
		return tar.Header{Typeflag: kind, Name: name, Linkname: to, Mode: 0o777}
	}
	folder := func(name string) tar.Header {
		return tar.Header{Typeflag: tar.TypeDir, Name: name + "/", Mode: 0o750, ModTime: at}
	}
	for _, c := range []struct {
		name    string
		headers []tar.Header
		o       Options
		want    error
		check   func(dir string) error
	}{
		{"parents are made", []tar.Header{file("x/y/z", "1")}, Options{}, nil, same("d/x/y/z", "1")},
		{"leading slash", []tar.Header{file("/x", "1")}, Options{}, nil, same("d/x", "1")},
		{"dots inside", []tar.Header{file("x/../y", "1")}, Options{}, nil, same("d/y", "1")},
		{"dots out", []tar.Header{file("../y", "1")}, Options{}, errs.ErrInvalid, nil},
		{"dots out later", []tar.Header{file("a/../../y", "1")}, Options{}, errs.ErrInvalid, nil},
		{"through a link of the container", []tar.Header{file("in/f", "1")}, Options{}, nil, same("else/f", "1")},
		{"through a link out", []tar.Header{file("out/f", "1")}, Options{}, errs.ErrInvalid, nil},
		{"a link replaced", []tar.Header{file("in", "1")}, Options{}, nil, same("d/in", "1")},
		{"own link out", []tar.Header{link(tar.TypeSymlink, "l", "/../../canary"), file("l/f", "1")}, Options{}, errs.ErrInvalid, nil},
		{"own link in", []tar.Header{link(tar.TypeSymlink, "l", "/else"), file("l/f", "1")}, Options{}, nil, same("else/f", "1")},
		{"hard link", []tar.Header{file("f", "1"), link(tar.TypeLink, "g", "f")}, Options{}, nil, same("d/g", "1")},
		{"hard link to itself", []tar.Header{file("f", "1"), link(tar.TypeLink, "f", "./f")}, Options{}, nil, same("d/f", "1")},
		{"hard link out", []tar.Header{link(tar.TypeLink, "g", "../../canary/file")}, Options{}, errs.ErrInvalid, nil},
		{"hard link through a link out", []tar.Header{link(tar.TypeLink, "g", "out/file")}, Options{}, errs.ErrInvalid, nil},
		{"hard link to nothing", []tar.Header{link(tar.TypeLink, "g", "none")}, Options{}, errs.ErrInvalid, nil},
		{"directory by file", []tar.Header{file("full", "1")}, Options{}, nil, same("d/full", "1")},
		{"directory by file refused", []tar.Header{file("full", "1")}, Options{NoOverwrite: true}, errs.ErrConflict, nil},
		{"file by directory", []tar.Header{folder("old")}, Options{}, nil, isDir("d/old")},
		{"file by directory refused", []tar.Header{folder("old")}, Options{NoOverwrite: true}, errs.ErrConflict, nil},
		{"directory kept", []tar.Header{folder("full")}, Options{NoOverwrite: true}, nil, same("d/full/deep/f", "old")},
		{"whiteouts are files", []tar.Header{file(".wh.full", "")}, Options{}, nil, same("d/full/deep/f", "old")},
		{"the directory itself", []tar.Header{folder("./.")}, Options{}, nil, isDir("d")},
		{"whiteout device", []tar.Header{{Typeflag: tar.TypeChar, Name: "w"}}, Options{}, errs.ErrInvalid, nil},
		{"unknown type", []tar.Header{{Typeflag: 'Z', Name: "w"}}, Options{}, errs.ErrInvalid, nil},
		{"owner root", []tar.Header{file("f", "")}, Options{}, nil, owner("d/f", 0, 0)},
		{"owner kept", []tar.Header{file("f", "")}, Options{KeepOwner: true}, nil, owner("d/f", 7, 8)},
		{"owner impossible", []tar.Header{{Typeflag: tar.TypeReg, Name: "f", Uid: 1 << 32}}, Options{KeepOwner: true}, errs.ErrInvalid, nil},
		{"long name", []tar.Header{file(strings.Repeat("n", 256), "")}, Options{}, errs.ErrInvalid, nil},
		{"long path", []tar.Header{file(strings.Repeat("n/", 3000)+"f", "")}, Options{}, errs.ErrInvalid, nil},
		{"file as parent", []tar.Header{file("old/f", "")}, Options{}, errs.ErrInvalid, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			root, dir := openRoot(t)
			require.NoError(t, os.MkdirAll(filepath.Join(dir, "d/full/deep"), 0o755))
			require.NoError(t, os.Mkdir(filepath.Join(dir, "else"), 0o755))
			require.NoError(t, os.WriteFile(filepath.Join(dir, "d/full/deep/f"), []byte("old"), 0o644))
			require.NoError(t, os.WriteFile(filepath.Join(dir, "d/old"), []byte("old"), 0o644))
			require.NoError(t, os.Symlink("/else", filepath.Join(dir, "d/in")))
			require.NoError(t, os.Symlink("/../../canary", filepath.Join(dir, "d/out")))
			err := unpack(root, "/d", makeTar(t, c.headers...), c.o)
			if c.want != nil {
				require.ErrorIs(t, err, c.want)
				return
			}
			require.NoError(t, err)
			require.NoError(t, c.check(dir))
		})
	}
}

func same(name, want string) func(string) error {
	return func(dir string) error {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err == nil && string(b) != want {
			err = fmt.Errorf("%s has %q", name, b)
		}
		return err
	}
}

func isDir(name string) func(string) error {
	return func(dir string) error {
		st, err := os.Lstat(filepath.Join(dir, name))
		if err == nil && !st.IsDir() {
			err = fmt.Errorf("%s is no directory", name)
		}
		return err
	}
}

func owner(name string, uid, gid uint32) func(string) error {
	return func(dir string) error {
		var st unix.Stat_t
		err := unix.Lstat(filepath.Join(dir, name), &st)
		if err == nil && (st.Uid != uid || st.Gid != gid) {
			err = fmt.Errorf("%s is of %d:%d", name, st.Uid, st.Gid)
		}
		return err
	}
}

func TestArchiveCutAnywhere(t *testing.T) {
	root, dir := openRoot(t)
	whole := makeTar(t, tar.Header{Typeflag: tar.TypeReg, Name: "a", Uname: strings.Repeat("a", 700)},
		tar.Header{Typeflag: tar.TypeReg, Name: strings.Repeat("b", 200), Uname: "b"}).Bytes()
	for n := 1; n < len(whole)-1024; n += 7 {
		err := unpack(root, "/", bytes.NewReader(whole[:n]), Options{})
		require.ErrorIs(t, err, errs.ErrCorrupt, n)
	}
	require.NoError(t, unpack(root, "/", bytes.NewReader(nil), Options{}))
	require.NoError(t, os.RemoveAll(filepath.Join(dir, "a")))
	require.ErrorIs(t, unpack(root, "/", bytes.NewReader(whole[:1000]), Options{}), errs.ErrCorrupt)
	require.NoFileExists(t, filepath.Join(dir, "a"), "half a file")
	require.ErrorIs(t, unpack(root, "/", strings.NewReader(strings.Repeat("no archive", 200)), Options{}), errs.ErrInvalid)
}
