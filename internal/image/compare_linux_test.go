package image

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
	"github.com/arcboxlabs/arcbox-go/internal/ext4"
	"github.com/arcboxlabs/arcbox-go/internal/image/imagetest"
	"github.com/arcboxlabs/arcbox-go/internal/needs"
)

var rootTar = flag.String("root-tar", "", "also compare the layer image of this uncompressed root `archive` with what GNU tar makes of it")

// TestLayerIsWhatGNUTarExtracts compares layer images file by file with what GNU tar makes of the same archive. It needs
// root for owners, devices and attributes.
func TestLayerIsWhatGNUTarExtracts(t *testing.T) {
	needs.Root(t, "extracting owners, devices and attributes")
	t.Run("torture", func(t *testing.T) { compare(t, torture(t)) })
	t.Run("names twice", func(t *testing.T) { compare(t, twice(t)) })
	t.Run("Debian packages", func(t *testing.T) {
		img, err := imagetest.Programs(t)
		require.NoError(t, err)
		compare(t, img.Layers[1].Tar)
	})
	if *rootTar != "" {
		data, err := os.ReadFile(*rootTar)
		require.NoError(t, err)
		compare(t, data)
	}
	tree := sparseTree(t)
	want := describeTree(t, tree)
	for _, format := range [][]string{
		{"--format=gnu"}, {"--format=gnu", "--sparse"}, {"--format=oldgnu", "--sparse"}, {"--format=posix"},
		{"--format=posix", "--sparse", "--sparse-version=0.0"}, {"--format=posix", "--sparse", "--sparse-version=0.1"},
		{"--format=posix", "--sparse", "--sparse-version=1.0"},
	} {
		t.Run(strings.Join(format, " "), func(t *testing.T) {
			cmd := exec.Command("tar", append(format, "--numeric-owner", "-C", tree, "-cf", "-", ".")...)
			tarball, err := cmd.Output()
			require.NoError(t, err)
			path, err := convertTar(t, tarball, Limits{})
			require.NoError(t, err)
			requireClean(t, path)
			exact := slices.Contains(format, "--format=posix")
			requireSame(t, want, describeLayer(t, path), exact)
		})
	}
}

var huge = flag.Bool("huge", false, "also convert a layer of 17 GiB, which takes a minute or two")

// TestLayerAbove16GiB has a sparse file that is larger than what one layer may hold by default.
func TestLayerAbove16GiB(t *testing.T) {
	dir := t.TempDir()
	f, err := os.Create(filepath.Join(dir, "a"))
	require.NoError(t, err)
	_, err = f.WriteAt([]byte("the end"), 17<<30)
	require.NoError(t, err)
	require.NoError(t, f.Close())
	require.NoError(t, os.WriteFile(filepath.Join(dir, "b"), []byte("behind it"), 0o600))
	tarball, err := exec.Command("tar", "--format=posix", "--sparse", "-C", dir, "-cf", "-", "a", "b").Output()
	require.NoError(t, err)
	_, err = convertTar(t, tarball, Limits{})
	require.ErrorIs(t, err, errs.ErrInvalid)
	require.ErrorContains(t, err, "raise the limit")
	if !*huge {
		return
	}
	path, err := convertTar(t, tarball, Limits{LayerSize: 20 << 30})
	require.NoError(t, err)
	requireClean(t, path)
	walkExt4(t, path, func(name string, v *ext4.Volume, n *ext4.Inode) {
		if name == "a" {
			require.Equal(t, int64(17<<30+7), n.Size)
		}
		if n.Type() == ext4.TypeFile {
			r, err := v.File(n)
			require.NoError(t, err)
			tail := make([]byte, 7)
			_, err = io.CopyN(io.Discard, r, n.Size-7)
			require.NoError(t, err)
			_, err = io.ReadFull(r, tail)
			require.NoError(t, err)
			require.Equal(t, map[string]string{"a": "the end", "b": "hind it"}[name], string(tail))
		}
	})
}

// compare converts an archive and has GNU tar extract it.
func compare(t *testing.T, tarball []byte) {
	path, err := convertTar(t, tarball, Limits{})
	require.NoError(t, err)
	requireClean(t, path)
	extracted, start := t.TempDir(), time.Now().Truncate(time.Second)
	cmd := exec.Command("tar", "-xpf", "-", "-C", extracted, "--numeric-owner", "--delay-directory-restore", "--xattrs", "--xattrs-include=*")
	cmd.Stdin = bytes.NewReader(tarball)
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, string(out))
	want := describeTree(t, extracted)
	for name, w := range want {
		// A directory that no entry names gets the time of the extraction there, and always the same one here.
		if info, err := os.Lstat(filepath.Join(extracted, name)); err == nil && info.IsDir() && !info.ModTime().Before(start) {
			want[name] = modTime.ReplaceAllString(w, "mtime 0.000000000")
		}
	}
	requireSame(t, want, describeLayer(t, path), true)
}

var modTime = regexp.MustCompile(`mtime (-?\d+)\.\d+`)

// requireSame compares two trees. Parts of seconds are in archives of some formats only.
func requireSame(t *testing.T, want, got map[string]string, parts bool) {
	t.Helper()
	cut := func(s string) string { return s }
	if !parts {
		cut = func(s string) string { return modTime.ReplaceAllString(s, "mtime $1") }
	}
	for name, w := range want {
		require.Equal(t, cut(w), cut(got[name]), "%q", name)
	}
	for name := range got {
		require.Contains(t, want, name)
	}
	t.Logf("%d files are the same", len(want))
}

// sparseTree makes files with holes, and what else older formats have their own way for.
func sparseTree(t *testing.T) string {
	dir := t.TempDir()
	at := time.Unix(1_500_000_000, 987_654_321)
	for name, data := range map[string]map[int64]int{ // length of what is written, by offset
		"hole-first": {1 << 20: 5000}, "hole-last": {0: 5000, 4<<20 - 1: 1}, "empty": {}, "small": {0: 17},
		"many": {}, strings.Repeat("n", 255): {0: 3, 1 << 20: 4096, 2 << 20: 1},
	} {
		if name == "many" {
			for i := range int64(200) { // more than one header of the old format holds
				data[i*16384] = 4096
			}
		}
		f, err := os.Create(filepath.Join(dir, name))
		require.NoError(t, err)
		for off, n := range data {
			_, err := f.WriteAt(noise(uint64(off), n), off)
			require.NoError(t, err)
		}
		require.NoError(t, f.Close())
		require.NoError(t, os.Chtimes(f.Name(), at, at))
	}
	f, err := os.Create(filepath.Join(dir, "only-a-hole"))
	require.NoError(t, err)
	require.NoError(t, f.Truncate(6<<20))
	require.NoError(t, f.Close())
	deep := filepath.Join(dir, strings.Repeat(strings.Repeat("d", 120)+"/", 5))
	require.NoError(t, os.MkdirAll(deep, 0o755))
	require.NoError(t, os.Symlink(strings.Repeat("t", 300), filepath.Join(deep, "link")))
	require.NoError(t, os.Link(filepath.Join(dir, "small"), filepath.Join(deep, "hard")))
	require.NoError(t, os.Chown(filepath.Join(dir, "small"), 1<<30, 1<<22))
	return dir
}

// twice has names that later entries take from earlier ones, as layers made by appending have them.
func twice(t *testing.T) []byte {
	sub := func(name string, f file) entry { return entry{Name: name, File: f} }
	return imagetest.Tar(t,
		entry{Name: ".", File: file{Type: tar.TypeDir, Mode: 0o755}},
		reg("a", "first"), hard("h", "a"), reg("a", "second"), sub("a", file{Mode: 0o600, Data: []byte("third"), Uid: 3}),
		sub("d", file{Type: tar.TypeDir, Mode: 0o755}), reg("d/x", "x"),
		sub("d", file{Type: tar.TypeDir, Mode: 0o700, Uid: 9, ModTime: time.Unix(9, 0), Xattrs: map[string]string{"user.k": "v"}}),
		sym("l", "a"), reg("l", "no link any more"), reg("f", ""), sym("f", "d"), hard("h2", "h"),
		reg("s", "1"), sub("s", file{Type: tar.TypeFifo, Mode: 0o600}), dir("e"), reg("e/./y", "y"), reg("/abs", "abs"),
	)
}

// torture has every kind of file, with what is at the edge of what archives hold.
func torture(t *testing.T) []byte {
	long := strings.Repeat("n", 255)
	deep := strings.Repeat("dir/", 300) + "f"
	at := time.Unix(1_600_000_000, 123_456_789)
	entries := []entry{
		{Name: ".", File: file{Type: tar.TypeDir, Mode: 0o755}},
		{Name: long, File: file{Mode: 0o4755, Data: []byte("x"), ModTime: at}},
		{Name: "\xff\xfe bad utf-8\n", File: file{Mode: 0o600}},
		{Name: "sticky", File: file{Type: tar.TypeDir, Mode: 0o3777, Uid: 1 << 20, Gid: 1 << 31}},
		{Name: "sticky/" + long, File: file{Mode: 0o444, Uid: 1<<32 - 2}},
		{Name: "link", File: file{Type: tar.TypeSymlink, Mode: 0o777, Link: strings.Repeat("t", 59)}},
		{Name: "longlink", File: file{Type: tar.TypeSymlink, Mode: 0o777, Link: strings.Repeat("t", 4000)}},
		{Name: "hard", File: file{Type: tar.TypeLink, Link: long}},
		{Name: "hardlink-of-link", File: file{Type: tar.TypeLink, Link: "link"}},
		{Name: "null", File: file{Type: tar.TypeChar, Mode: 0o666, Major: 1, Minor: 3}},
		{Name: "block", File: file{Type: tar.TypeBlock, Mode: 0o660, Major: 259, Minor: 1_000_000}},
		{Name: "fifo", File: file{Type: tar.TypeFifo, Mode: 0o640}},
		{Name: "attrs", File: file{Xattrs: map[string]string{"user.one": "1", "user.long": strings.Repeat("v", 3000), "trusted.two": "\x00\x01", "security.three": "3"}}},
		{Name: "acl", File: file{Mode: 0o755, Xattrs: map[string]string{"system.posix_acl_access": "\x02\x00\x00\x00\x01\x00\x07\x00\xff\xff\xff\xff\x02\x00\x05\x00\x09\x00\x00\x00\x04\x00\x05\x00\xff\xff\xff\xff\x10\x00\x05\x00\xff\xff\xff\xff\x20\x00\x05\x00\xff\xff\xff\xff"}}},
		{Name: "zeros", File: file{Data: make([]byte, 1<<20)}},
		{Name: "noise", File: file{Data: noise(5, 1<<20+17)}},
	}
	for d := "dir"; len(d) < len(deep)-1; d += "/dir" {
		entries = append(entries, entry{Name: d, File: file{Type: tar.TypeDir, Mode: 0o750}})
	}
	entries = append(entries, entry{Name: deep, File: file{Data: []byte("deep")}})
	for i := range 500 {
		entries = append(entries, reg(fmt.Sprintf("many/%d", i), fmt.Sprint(i)))
	}
	return imagetest.Tar(t, append(entries, entry{Name: "many", File: file{Type: tar.TypeDir, Mode: 0o755}})...)
}

func describeTree(t *testing.T, root string) map[string]string {
	out := map[string]string{}
	require.NoError(t, filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		if d.IsDir() {
			st.Nlink = 0 // what it is depends on the host's file system
		}
		desc := describeInode(st.Mode, st.Uid, st.Gid, uint64(st.Nlink), unix.Major(st.Rdev), unix.Minor(st.Rdev), time.Unix(st.Mtim.Unix()))
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			desc += fmt.Sprintf(" %d %x", len(data), sha256.Sum256(data))
		case unix.S_IFLNK:
			to, err := os.Readlink(path)
			if err != nil {
				return err
			}
			desc += " " + to
		}
		rel, err := filepath.Rel(root, path)
		out[rel] = desc + xattrs(t, path)
		return err
	}))
	return out
}

func describeInode(mode, uid, gid uint32, links uint64, major, minor uint32, mtime time.Time) string {
	return fmt.Sprintf("%o %d:%d nlink %d rdev %d:%d mtime %d.%09d", mode, uid, gid, links, major, minor, mtime.Unix(), mtime.Nanosecond())
}

// describeLayer is describeTree of a layer image.
func describeLayer(t *testing.T, path string) map[string]string {
	out := map[string]string{}
	walkExt4(t, path, func(name string, v *ext4.Volume, n *ext4.Inode) {
		links := uint64(n.Links)
		if n.Type() == ext4.TypeDir {
			links = 0
		}
		desc := describeInode(uint32(n.Mode), n.UID, n.GID, links, n.Major, n.Minor, n.ModTime)
		switch n.Type() {
		case ext4.TypeFile:
			r, err := v.File(n)
			require.NoError(t, err)
			h := sha256.New()
			size, err := io.Copy(h, r)
			require.NoError(t, err)
			desc += fmt.Sprintf(" %d %x", size, h.Sum(nil))
		case ext4.TypeSymlink:
			to, err := v.Link(n)
			require.NoError(t, err)
			desc += " " + to
		}
		attrs, err := v.Attrs(n)
		require.NoError(t, err)
		for _, k := range slices.Sorted(maps.Keys(attrs)) {
			value := attrs[k]
			if strings.HasPrefix(k, "system.") {
				value = xattrACL(value)
			}
			desc += fmt.Sprintf(" %s=%x", k, value)
		}
		if name == "" {
			name = "."
		}
		out[name] = desc
	})
	return out
}

func xattrs(t *testing.T, path string) string {
	buf := make([]byte, 64<<10)
	n, err := unix.Llistxattr(path, buf)
	require.NoError(t, err, path)
	names := strings.Split(strings.Trim(string(buf[:n]), "\x00"), "\x00")
	slices.Sort(names)
	var out strings.Builder
	for _, name := range names {
		if name == "" {
			continue
		}
		n, err := unix.Lgetxattr(path, name, buf)
		require.NoError(t, err, "%s of %s", name, path)
		fmt.Fprintf(&out, " %s=%x", name, buf[:n])
	}
	return out.String()
}
