package image

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/arcboxlabs/arcbox-go/internal/image/imagetest"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

var rootTar = flag.String("root-tar", "", "also compare the layer image of this uncompressed root `archive` with what GNU tar makes of it")

// TestLayerIsWhatGNUTarExtracts mounts layer images and compares them file by file. It needs root.
func TestLayerIsWhatGNUTarExtracts(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("mounting and making devices need root")
	}
	compare(t, torture(t))
	if *rootTar != "" {
		data, err := os.ReadFile(*rootTar)
		require.NoError(t, err)
		compare(t, data)
	}
}

func compare(t *testing.T, tarball []byte) {
	path, err := convertTar(t, tarball, Limits{})
	require.NoError(t, err)
	requireClean(t, path)
	mounted, extracted := t.TempDir(), t.TempDir()
	out, err := exec.Command("mount", "-o", "loop,ro", path, mounted).CombinedOutput()
	if err != nil && *rootTar == "" {
		t.Skipf("loop devices cannot be mounted here: %s", out)
	}
	require.NoError(t, err, string(out))
	defer func() { require.NoError(t, exec.Command("umount", mounted).Run()) }()
	cmd := exec.Command("tar", "-xpf", "-", "-C", extracted, "--numeric-owner", "--xattrs", "--xattrs-include=*")
	cmd.Stdin = bytes.NewReader(tarball)
	out, err = cmd.CombinedOutput()
	require.NoError(t, err, string(out))
	want, got := describeTree(t, extracted), describeTree(t, mounted)
	for name, w := range want {
		require.Equal(t, w, got[name], name)
	}
	for name := range got {
		require.Contains(t, want, name)
	}
	t.Logf("%d files are the same", len(want))
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
		desc := fmt.Sprintf("%o %d:%d nlink %d rdev %d mtime %d.%09d", st.Mode, st.Uid, st.Gid, st.Nlink, st.Rdev, st.Mtim.Sec, st.Mtim.Nsec)
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
