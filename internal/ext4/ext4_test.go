package ext4

import (
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// script fills a file system: a directory of several blocks, a file with a hole, links of both kinds, a device and
// extended attributes inside and outside of the inode.
func script() string {
	var b strings.Builder
	b.WriteString("mkdir d\nwrite SRC d/f\nsymlink short d/f\nsymlink long " + strings.Repeat("x/", 100) + "\nmknod null c 1 3\nmknod pipe p\n")
	b.WriteString("ea_set d user.a b\nea_set d/f user.big " + strings.Repeat("v", 900) + "\nset_inode_field d/f uid 70001\n")
	b.WriteString("cd d\n")
	for i := range 200 {
		b.WriteString("mknod " + strings.Repeat("n", i+1) + " p\n")
	}
	return b.String()
}

// volume makes a file system with the host's tools.
func volume(t testing.TB) []byte {
	t.Helper()
	dir := t.TempDir()
	path, src := filepath.Join(dir, "fs"), filepath.Join(dir, "src")
	f, err := os.Create(src)
	require.NoError(t, err)
	for i := range 6 {
		_, err := f.WriteAt(bytes.Repeat([]byte{byte('a' + i)}, 4096), int64(i)*12288)
		require.NoError(t, err)
	}
	require.NoError(t, f.Close())
	mkfs := exec.Command("/sbin/mke2fs", "-q", "-t", "ext4", "-b", "4096", "-I", "256", "-O", "^has_journal,^metadata_csum,^resize_inode", path, "4M")
	out, err := mkfs.CombinedOutput()
	require.NoError(t, err, string(out))
	cmd := exec.Command("/sbin/debugfs", "-w", "-f", "-", path)
	cmd.Stdin = strings.NewReader(strings.ReplaceAll(script(), "SRC", src))
	out, err = cmd.CombinedOutput()
	require.NoError(t, err, string(out))
	data, err := os.ReadFile(path)
	require.NoError(t, err)
	return data
}

func lookup(t *testing.T, v *Volume, path string) *Inode {
	t.Helper()
	n, err := v.Root()
	require.NoError(t, err)
	for p := range strings.SplitSeq(path, "/") {
		n, err = v.Lookup(n, p)
		require.NoError(t, err, path)
	}
	return n
}

func TestReadsWhatOthersWrite(t *testing.T) {
	v, err := Open(bytes.NewReader(volume(t)))
	require.NoError(t, err)
	n := lookup(t, v, "d/f")
	require.Equal(t, []any{uint16(TypeFile), uint32(70001), uint16(1), int64(5*12288 + 4096)}, []any{n.Type(), n.UID, n.Links, n.Size})
	r, err := v.File(n)
	require.NoError(t, err)
	data, err := io.ReadAll(r)
	require.NoError(t, err)
	for i := range 6 {
		require.Equal(t, bytes.Repeat([]byte{byte('a' + i)}, 4096), data[i*12288:][:4096])
		if i < 5 {
			require.Equal(t, make([]byte, 8192), data[i*12288+4096:][:8192])
		}
	}
	attrs, err := v.Attrs(n)
	require.NoError(t, err)
	require.Equal(t, map[string]string{"user.big": strings.Repeat("v", 900)}, attrs)
	attrs, err = v.Attrs(lookup(t, v, "d"))
	require.NoError(t, err)
	require.Equal(t, map[string]string{"user.a": "b"}, attrs)
	for name, want := range map[string]string{"short": "d/f", "long": strings.Repeat("x/", 100)} {
		got, err := v.Link(lookup(t, v, name))
		require.NoError(t, err)
		require.Equal(t, want, got)
	}
	n = lookup(t, v, "null")
	require.Equal(t, []uint32{1, 3}, []uint32{n.Major, n.Minor})
	require.False(t, n.Whiteout())
	require.Equal(t, uint16(TypeFifo), lookup(t, v, "d/"+strings.Repeat("n", 200)).Type())
	_, err = v.Lookup(n, "x")
	require.ErrorIs(t, err, errs.ErrInvalid)
	_, err = v.Lookup(lookup(t, v, "d"), "none")
	require.ErrorIs(t, err, errs.ErrNotFound)
}

func TestOpenRefuses(t *testing.T) {
	_, err := Open(bytes.NewReader(nil))
	require.ErrorIs(t, err, errs.ErrCorrupt)
	_, err = Open(bytes.NewReader(make([]byte, 4096)))
	require.ErrorIs(t, err, errs.ErrCorrupt)
	data := volume(t)
	data[1024+97] |= 0x80 // inline data
	_, err = Open(bytes.NewReader(data))
	require.ErrorIs(t, err, errs.ErrUnsupported)
}

// FuzzVolume changes bytes of a file system: whatever is read of it, the reader neither panics nor hangs.
func FuzzVolume(f *testing.F) {
	good := volume(f)
	f.Add([]byte{})
	f.Add([]byte{4, 0x18, 0xff, 0x10, 0x00, 0})
	f.Fuzz(func(t *testing.T, changes []byte) {
		data := bytes.Clone(good)
		for ; len(changes) >= 4; changes = changes[4:] {
			// Most of the metadata is in the first blocks.
			at := int(changes[0])<<16 | int(changes[1])<<8 | int(changes[2])
			data[at%len(data)] ^= changes[3]
			data[at%(16*4096)] ^= changes[3]
		}
		v, err := Open(bytes.NewReader(data))
		if err != nil {
			return
		}
		left := 2000
		var walk func(n *Inode, depth int)
		walk = func(n *Inode, depth int) {
			_, _ = v.Attrs(n)
			_, _ = v.Link(n)
			if r, err := v.File(n); err == nil && n.Type() == TypeFile {
				_, err := io.CopyN(io.Discard, r, 1<<20)
				if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, errs.ErrCorrupt) {
					t.Fatal(err)
				}
			}
			if n.Type() != TypeDir || depth > 5 {
				return
			}
			_ = v.ReadDir(n, func(_ string, number uint32) bool {
				if child, err := v.Inode(number); err == nil && left > 0 {
					walk(child, depth+1)
				}
				left--
				return left > 0
			})
		}
		if root, err := v.Root(); err == nil {
			walk(root, 0)
		}
	})
}
