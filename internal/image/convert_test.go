package image

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
	"github.com/arcboxlabs/arcbox-go/internal/ext4"
	"github.com/arcboxlabs/arcbox-go/internal/image/imagetest"
	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"
)

type (
	entry = imagetest.Entry
	file  = imagetest.File
)

func dir(name string) entry { return entry{Name: name, File: file{Type: tar.TypeDir, Mode: 0o755}} }
func reg(name, data string) entry {
	return entry{Name: name, File: file{Mode: 0o644, Data: []byte(data)}}
}
func sym(name, to string) entry {
	return entry{Name: name, File: file{Type: tar.TypeSymlink, Link: to}}
}
func hard(name, to string) entry { return entry{Name: name, File: file{Type: tar.TypeLink, Link: to}} }

// convertTar makes a layer image of an archive, as the store does.
func convertTar(t testing.TB, tarball []byte, l Limits) (path string, err error) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "layer.ext4")
	f, err := os.Create(path)
	require.NoError(t, err)
	defer func() { _ = f.Close() }()
	w := &sparseFile{f: f}
	again := func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(tarball)), nil }
	want := digest.FromBytes(tarball)
	lost, err := convert(t.Context(), bytes.NewReader(tarball), again, want, l.withDefaults(), w)
	if err != nil {
		return "", err
	}
	return path, w.finish(want, lost)
}

// requireClean has e2fsck look at an image.
func requireClean(t testing.TB, path string) {
	t.Helper()
	out, err := exec.Command("/sbin/e2fsck", "-fn", path).CombinedOutput()
	require.NoError(t, err, string(out))
}

// listExt4 returns the names below the root, each with its type and what tells the content: a file's bytes, a link's
// target, and how many names it has.
func listExt4(t testing.TB, path string) map[string]string {
	t.Helper()
	out := map[string]string{}
	walkExt4(t, path, func(name string, v *ext4.Volume, n *ext4.Inode) {
		switch n.Type() {
		case ext4.TypeDir:
			out[name] = fmt.Sprintf("dir %04o", n.Mode&^ext4.TypeMask)
			if attrs, err := v.Attrs(n); err != nil || attrs[overlayOpaque] == "y" {
				require.NoError(t, err)
				out[name] += " opaque"
			}
		case ext4.TypeFile:
			r, err := v.File(n)
			require.NoError(t, err)
			data, err := io.ReadAll(r)
			require.NoError(t, err)
			out[name] = "file " + string(data)
		case ext4.TypeSymlink:
			target, err := v.Link(n)
			require.NoError(t, err)
			out[name] = "link " + target
		case ext4.TypeChar:
			out[name] = "device"
		default:
			out[name] = fmt.Sprintf("mode %06o", n.Mode)
		}
		if n.Links == 2 && n.Type() != ext4.TypeDir {
			out[name] += " x2"
		}
	})
	delete(out, "")
	return out
}

// walkExt4 calls do for every name of a layer image, with "" for the root.
func walkExt4(t testing.TB, path string, do func(name string, v *ext4.Volume, n *ext4.Inode)) {
	t.Helper()
	f, err := os.Open(path)
	require.NoError(t, err)
	defer func() { _ = f.Close() }()
	v, err := ext4.Open(f)
	require.NoError(t, err)
	var walk func(at string, n *ext4.Inode)
	walk = func(at string, n *ext4.Inode) {
		do(at, v, n)
		if n.Type() != ext4.TypeDir {
			return
		}
		require.NoError(t, v.ReadDir(n, func(name string, number uint32) bool {
			child, err := v.Inode(number)
			require.NoError(t, err)
			walk(strings.TrimPrefix(at+"/"+name, "/"), child)
			return true
		}))
	}
	root, err := v.Root()
	require.NoError(t, err)
	walk("", root)
}

func TestLayerHoldsWhatAnExtractionWouldMake(t *testing.T) {
	const d755 = "dir 0755"
	for name, c := range map[string]struct {
		entries []entry
		want    map[string]string
	}{
		"nothing": {nil, map[string]string{}},
		"plain": {[]entry{dir("."), dir("./a/"), reg("./a/f", "x"), sym("a/s", "f"), hard("a/h", "a/f")},
			map[string]string{"a": d755, "a/f": "file x x2", "a/s": "link f", "a/h": "file x x2"}},
		"no parents":           {[]entry{reg("a/b/c", "x")}, map[string]string{"a": d755, "a/b": d755, "a/b/c": "file x"}},
		"absolute":             {[]entry{reg("/a", "x"), hard("b", "/a")}, map[string]string{"a": "file x x2", "b": "file x x2"}},
		"dots inside":          {[]entry{dir("a"), reg("a/../b", "x"), reg("./a/./c", "y")}, map[string]string{"a": d755, "a/c": "file y", "b": "file x"}},
		"file twice":           {[]entry{reg("a", "old"), reg("a", "new")}, map[string]string{"a": "file new"}},
		"link keeps old":       {[]entry{reg("a", "old"), hard("b", "a"), reg("a", "new")}, map[string]string{"a": "file new", "b": "file old"}},
		"dir twice":            {[]entry{dir("a"), reg("a/f", "x"), {Name: "a", File: file{Type: tar.TypeDir, Mode: 0o700}}}, map[string]string{"a": "dir 0700", "a/f": "file x"}},
		"dir after content":    {[]entry{reg("a/f", "x"), {Name: "a", File: file{Type: tar.TypeDir, Mode: 0o700}}}, map[string]string{"a": "dir 0700", "a/f": "file x"}},
		"dir becomes file":     {[]entry{dir("a"), reg("a/f", "x"), reg("a", "y")}, map[string]string{"a": "file y"}},
		"file becomes dir":     {[]entry{reg("a", "y"), dir("a"), reg("a/f", "x")}, map[string]string{"a": d755, "a/f": "file x"}},
		"link becomes dir":     {[]entry{sym("a", "b"), dir("a"), reg("a/f", "x")}, map[string]string{"a": d755, "a/f": "file x"}},
		"link in the way":      {[]entry{dir("usr/lib"), sym("lib", "usr/lib"), reg("lib/f", "x")}, map[string]string{"usr": d755, "usr/lib": d755, "lib": "link usr/lib", "usr/lib/f": "file x"}},
		"link to nothing":      {[]entry{sym("lib", "/usr/lib"), reg("lib/f", "x")}, map[string]string{"usr": d755, "usr/lib": d755, "lib": "link /usr/lib", "usr/lib/f": "file x"}},
		"link out":             {[]entry{sym("l", "../../../etc"), reg("l/f", "x")}, map[string]string{"l": "link ../../../etc", "etc": d755, "etc/f": "file x"}},
		"hard link before":     {[]entry{hard("b", "a"), reg("a", "x")}, map[string]string{"a": "file x x2", "b": "file x x2"}},
		"hard link over":       {[]entry{reg("a", "x"), reg("b", "y"), hard("b", "a")}, map[string]string{"a": "file x x2", "b": "file x x2"}},
		"hard link to itself":  {[]entry{reg("a", "x"), hard("a", "a")}, map[string]string{"a": "file x"}},
		"hard link of symlink": {[]entry{sym("s", "t"), hard("h", "s")}, map[string]string{"s": "link t x2", "h": "link t x2"}},
		"hard link through":    {[]entry{reg("d/a", "x"), sym("s", "d"), hard("b", "s/a")}, map[string]string{"d": d755, "d/a": "file x x2", "s": "link d", "b": "file x x2"}},
		"whiteout":             {[]entry{dir("d"), reg("d/.wh.gone", "")}, map[string]string{"d": d755, "d/gone": "device"}},
		"whiteout then file":   {[]entry{reg(".wh.a", ""), reg("a", "x")}, map[string]string{"a": "file x"}},
		"file then whiteout":   {[]entry{reg("a", "x"), reg(".wh.a", "")}, map[string]string{"a": "file x"}},
		"whiteout then dir":    {[]entry{reg(".wh.a", ""), dir("a"), reg("a/f", "x")}, map[string]string{"a": d755 + " opaque", "a/f": "file x"}},
		"whiteout, dir implied": {[]entry{reg(".wh.a", ""), reg("a/f", "x")},
			map[string]string{"a": d755 + " opaque", "a/f": "file x"}},
		"opaque":              {[]entry{dir("d"), reg("d/f", "x"), reg("d/.wh..wh..opq", "")}, map[string]string{"d": d755 + " opaque", "d/f": "file x"}},
		"opaque first":        {[]entry{reg("d/.wh..wh..opq", ""), dir("d"), reg("d/f", "x")}, map[string]string{"d": d755 + " opaque", "d/f": "file x"}},
		"aufs files":          {[]entry{dir(".wh..wh.plnk"), reg(".wh..wh.aufs", "x"), reg("a", "x")}, map[string]string{"a": "file x"}},
		"lost+found":          {[]entry{{Name: "lost+found", File: file{Type: tar.TypeDir, Mode: 0o750}}}, map[string]string{"lost+found": "dir 0750"}},
		"lost+found gone":     {[]entry{reg(".wh.lost+found", "")}, map[string]string{"lost+found": "device"}},
		"lost+found gone too": {[]entry{reg("a", "1"), reg("a", "2"), reg(".wh.lost+found", "")}, map[string]string{"a": "file 2", "lost+found": "device"}},
		"types": {[]entry{
			{Name: "c", File: file{Type: tar.TypeChar, Mode: 0o600, Major: 5, Minor: 1}},
			{Name: "b", File: file{Type: tar.TypeBlock, Mode: 0o600, Major: 4095, Minor: 1<<20 - 1}},
			{Name: "p", File: file{Type: tar.TypeFifo, Mode: 0o600}},
			{Name: "suid", File: file{Mode: 0o4755}},
		}, map[string]string{"c": "device", "b": "mode 060600", "p": "mode 010600", "suid": "file "}},
		"long name": {[]entry{reg(strings.Repeat("n", 255), "x")}, map[string]string{strings.Repeat("n", 255): "file x"}},
	} {
		t.Run(name, func(t *testing.T) {
			path, err := convertTar(t, imagetest.Tar(t, c.entries...), Limits{})
			require.NoError(t, err)
			requireClean(t, path)
			require.Equal(t, c.want, listExt4(t, path))
		})
	}
}

func TestLayerRefused(t *testing.T) {
	long := strings.Repeat("d/", 2100)
	for name, c := range map[string]struct {
		entries []entry
		limits  Limits
	}{
		"leads out":              {entries: []entry{reg("../a", "x")}},
		"leads out later":        {entries: []entry{reg("a/../../b", "x")}},
		"hard link out":          {entries: []entry{hard("a", "../../etc/passwd")}},
		"hard link to nothing":   {entries: []entry{reg("a", "x"), hard("b", "c")}},
		"hard link to directory": {entries: []entry{dir("d"), hard("b", "d")}},
		"hard link to root":      {entries: []entry{hard("b", ".")}},
		"links in a circle":      {entries: []entry{sym("a", "b"), sym("b", "a"), reg("a/f", "x")}},
		"link to itself":         {entries: []entry{sym("a", "a"), reg("a/f", "x")}},
		"below a file":           {entries: []entry{reg("a", "x"), reg("a/b", "y")}},
		"empty link":             {entries: []entry{sym("a", "")}},
		"root is a file":         {entries: []entry{reg(".", "x")}},
		"root is a link":         {entries: []entry{sym(".", "x")}},
		"name too long":          {entries: []entry{reg(strings.Repeat("n", 256), "x")}},
		"path too long":          {entries: []entry{reg(long+"f", "x")}},
		"path too long by links": {entries: []entry{sym("l", strings.Repeat("e/", 1500)), reg("l/"+strings.Repeat("f/", 1500)+"g", "x")}},
		"whiteout of parent":     {entries: []entry{dir("a"), reg("a/.wh...", "")}},
		"whiteout of itself":     {entries: []entry{dir("a"), reg("a/.wh..", "")}},
		"owner":                  {entries: []entry{{Name: "a", File: file{Uid: 1<<32 - 1}}}},
		"device":                 {entries: []entry{{Name: "a", File: file{Type: tar.TypeChar, Major: 4096}}}},
		"too many":               {entries: []entry{reg("a", ""), reg("b", ""), reg("c", "")}, limits: Limits{LayerEntries: 2}},
		"too many implied":       {entries: []entry{reg("a/b/c/d/e", "")}, limits: Limits{LayerEntries: 4}},
		"too many of one":        {entries: []entry{reg("a", ""), reg("a", ""), reg("a", ""), reg("a", ""), reg("a", "")}, limits: Limits{LayerEntries: 1}},
		"too large":              {entries: []entry{reg("a", "12345"), reg("b", "123456")}, limits: Limits{LayerSize: 10}},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := convertTar(t, imagetest.Tar(t, c.entries...), c.limits)
			require.ErrorIs(t, err, errs.ErrInvalid)
		})
	}
}

// TestLayerOfAHugeSparseFile is one of 1 KiB that says it holds 1 TiB.
func TestLayerOfAHugeSparseFile(t *testing.T) {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	require.NoError(t, w.WriteHeader(&tar.Header{Format: tar.FormatGNU, Name: "a", Size: 1 << 40}))
	_, err := convertTar(t, buf.Bytes(), Limits{})
	require.ErrorIs(t, err, errs.ErrInvalid)
}

func TestLayerZipBomb(t *testing.T) {
	bomb := imagetest.Gzip(make([]byte, 64<<20)).Blob // zeros are the end of an archive
	want := digest.FromBytes(make([]byte, 64<<20))
	f, err := os.Create(filepath.Join(t.TempDir(), "f"))
	require.NoError(t, err)
	defer func() { _ = f.Close() }()
	l := Limits{LayerSize: 1 << 20, LayerEntries: 10}.withDefaults()
	_, err = convert(t.Context(), bytes.NewReader(bomb), nil, want, l, &sparseFile{f: f})
	require.ErrorIs(t, err, errs.ErrInvalid)
}

func TestLayerTimesAndAttributes(t *testing.T) {
	acl := binary.LittleEndian.AppendUint32(nil, 2)
	for _, e := range [][3]uint32{{0x01, 7, 0xffffffff}, {0x02, 6, 1000}, {0x04, 5, 0xffffffff}, {0x10, 7, 0xffffffff}, {0x20, 4, 0xffffffff}} {
		acl = binary.LittleEndian.AppendUint16(acl, uint16(e[0]))
		acl = binary.LittleEndian.AppendUint16(acl, uint16(e[1]))
		acl = binary.LittleEndian.AppendUint32(acl, e[2])
	}
	path, err := convertTar(t, imagetest.Tar(t,
		entry{Name: "old", File: file{ModTime: time.Unix(-1e9, 0)}},
		entry{Name: "late", File: file{ModTime: time.Unix(1<<40, 0)}},
		entry{Name: "fine", File: file{ModTime: time.Unix(1e9, 123456789)}},
		entry{Name: "x", File: file{Xattrs: map[string]string{
			"user.a": "1", "user.": "no name", "trusted.overlay.redirect": "/etc", "user.overlay.opaque": "y",
			"system.posix_acl_access": string(acl), "system.nfs4_acl": "?", "security.capability": "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00",
		}}},
		entry{Name: "bad", File: file{Xattrs: map[string]string{"system.posix_acl_access": "rubbish", "system.posix_acl_default": string(acl)}}},
	), Limits{})
	require.NoError(t, err)
	requireClean(t, path)
	stat := func(name string) string {
		out, err := exec.Command("/sbin/debugfs", "-R", "stat "+name, path).Output()
		require.NoError(t, err)
		return string(out)
	}
	require.Contains(t, stat("old"), "mtime: 0x00000000:00000000")
	require.Contains(t, stat("late"), "mtime: 0x7fffffff:00000003")
	require.Contains(t, stat("fine"), fmt.Sprintf("mtime: 0x%08x:%08x", 1000000000, 123456789<<2))
	x := stat("x")
	for _, has := range []string{"user.a", "security.capability", "system.posix_acl_access"} {
		require.Contains(t, x, has)
	}
	for _, not := range []string{"overlay", "nfs4"} {
		require.NotContains(t, x, not)
	}
	require.NotContains(t, stat("bad"), "acl")
}

func TestConvertObeysContext(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(io.ErrClosedPipe)
	f, err := os.Create(filepath.Join(t.TempDir(), "f"))
	require.NoError(t, err)
	defer func() { _ = f.Close() }()
	_, err = convert(ctx, bytes.NewReader(nil), nil, "", Limits{}.withDefaults(), &sparseFile{f: f})
	require.ErrorIs(t, err, io.ErrClosedPipe)
}

func TestSparseFileIsTheSameAsAPlainOne(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "f"))
	require.NoError(t, err)
	defer func() { _ = f.Close() }()
	s := &sparseFile{f: f}
	var want []byte
	data := append(append(noise(1, 10_000), make([]byte, 50_000)...), noise(2, 5000)...)
	for _, off := range []int64{0, 3, 4096, 60_000, 10, 200_000} {
		_, err := s.Seek(off, io.SeekStart)
		require.NoError(t, err)
		n, err := s.Write(data)
		require.NoError(t, err)
		require.Equal(t, len(data), n)
		if need := int(off) + len(data); need > len(want) {
			want = append(want, make([]byte, need-len(want))...)
		}
		copy(want[off:], data)
	}
	require.NoError(t, f.Truncate(s.end))
	got, err := os.ReadFile(f.Name())
	require.NoError(t, err)
	require.True(t, bytes.Equal(want, got))
}

func FuzzConvert(f *testing.F) {
	f.Add(imagetest.Tar(f, dir("a"), reg("a/b", "x"), hard("c", "a/b"), sym("s", "a"), reg("s/d", "y"), reg(".wh.z", ""), reg("a/.wh..wh..opq", "")))
	f.Add(imagetest.Tar(f, reg("a", "1"), hard("b", "a"), reg("a", "2"), dir("b")))
	f.Add(imagetest.Gzip(imagetest.Tar(f, entry{Name: "x", File: file{Xattrs: map[string]string{"user.a": "1"}}})).Blob)
	f.Fuzz(func(t *testing.T, data []byte) {
		path := filepath.Join(t.TempDir(), "f")
		out, err := os.Create(path)
		require.NoError(t, err)
		defer func() { _ = out.Close() }()
		w := &sparseFile{f: out}
		l := Limits{LayerSize: 1 << 20, LayerEntries: 1000}.withDefaults()
		again := func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(data)), nil }
		want := digest.FromBytes(data)
		if c, err := openContent(t.Context(), bytes.NewReader(data), l); err == nil {
			if plain, err := io.ReadAll(io.LimitReader(c.body, 1<<22)); err == nil {
				want = digest.FromBytes(plain)
			}
		}
		lost, err := convert(t.Context(), bytes.NewReader(data), again, want, l, w)
		if err != nil {
			require.NotEmpty(t, errs.Code(err), "%v", err)
			require.NotContains(t, err.Error(), "panic")
			return
		}
		require.NoError(t, w.finish(want, lost))
	})
}
