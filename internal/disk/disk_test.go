package disk

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
	"github.com/arcboxlabs/arcbox-go/internal/needs"
)

// check lets e2fsck look at a disk.
func check(t *testing.T, path string) {
	t.Helper()
	out, err := exec.Command(needs.Program(t, "e2fsck"), "-fn", path).CombinedOutput()
	require.NoError(t, err, string(out))
}

// TestDisksAreClean makes disks of several sizes. Making the template of the default one takes half a minute under the
// race detector, so it is kept where the tests with machines keep theirs; the others are made anew.
func TestDisksAreClean(t *testing.T) {
	t.Parallel()
	kept, err := os.UserCacheDir()
	require.NoError(t, err)
	for _, size := range []int64{0, MinSize, MinSize + 1, 1 << 30, 9<<30 + 7<<20} { // what takes longest begins first
		t.Run(strconv.FormatInt(size, 10), func(t *testing.T) {
			t.Parallel()
			cache := t.TempDir()
			if size == 0 {
				cache = filepath.Join(kept, "arcbox-test", "boot", "disks")
			}
			path := filepath.Join(t.TempDir(), "disk")
			require.NoError(t, Create(t.Context(), cache, path, size, Options{}))
			want, err := Round(size)
			require.NoError(t, err)
			st, err := os.Stat(path)
			require.NoError(t, err)
			require.Equal(t, want, st.Size())
			require.Equal(t, fs.FileMode(0o600), st.Mode())
			require.Less(t, allocated(st), int64(8<<20), "the file is sparse")
			check(t, path)
		})
	}
}

func TestTemporaryDiskIsTheSame(t *testing.T) {
	t.Parallel()
	cache, dir := t.TempDir(), t.TempDir()
	a, b := filepath.Join(dir, "a"), filepath.Join(dir, "b")
	require.NoError(t, Create(t.Context(), cache, a, MinSize, Options{}))
	require.NoError(t, Create(t.Context(), cache, b, MinSize, Options{Temporary: true}))
	one, err := os.ReadFile(a)
	require.NoError(t, err)
	two, err := os.ReadFile(b)
	require.NoError(t, err)
	require.True(t, string(one) == string(two))
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Len(t, entries, 2, "no temporary file is left")
}

func TestCreateRefuses(t *testing.T) {
	cache, dir := t.TempDir(), t.TempDir()
	for _, size := range []int64{-1, 1, MinSize - 1, MaxSize + 1} {
		require.ErrorIs(t, Create(t.Context(), cache, filepath.Join(dir, "disk"), size, Options{}), errs.ErrInvalid)
	}
	path := filepath.Join(dir, "taken")
	require.NoError(t, os.WriteFile(path, []byte("mine"), 0o600))
	require.ErrorIs(t, Create(t.Context(), cache, path, MinSize, Options{}), errs.ErrExists)
	b, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Equal(t, "mine", string(b))
	require.ErrorIs(t, Create(t.Context(), cache, filepath.Join(dir, "none", "disk"), MinSize, Options{}), fs.ErrNotExist)
}

func TestCreateObeysContext(t *testing.T) {
	cache, path := t.TempDir(), filepath.Join(t.TempDir(), "disk")
	why := errors.New("the user left")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(why)
	require.ErrorIs(t, Create(ctx, cache, path, 0, Options{}), why)
	require.NoError(t, Create(t.Context(), cache, path, MinSize, Options{}))
	require.NoError(t, os.Remove(path))
	require.ErrorIs(t, Create(ctx, cache, path, MinSize, Options{}), why, "with a template too")
	_, err := build(ctx, MinSize)
	require.ErrorIs(t, err, why)
	entries, err := os.ReadDir(filepath.Dir(path))
	require.NoError(t, err)
	require.Empty(t, entries)
}

// TestDamagedTemplateIsMadeAgain damages the template in several ways.
func TestDamagedTemplateIsMadeAgain(t *testing.T) {
	t.Parallel()
	cache := t.TempDir()
	first := filepath.Join(t.TempDir(), "disk")
	require.NoError(t, Create(t.Context(), cache, first, MinSize, Options{}))
	templates, err := filepath.Glob(filepath.Join(cache, "ext4-*"))
	require.NoError(t, err)
	require.Len(t, templates, 1)
	good, err := os.ReadFile(templates[0])
	require.NoError(t, err)
	other := &packed{size: MinSize + Unit}
	flipped := append([]byte(nil), good...)
	flipped[len(flipped)/2] ^= 1
	for name, bad := range map[string][]byte{
		"empty": nil, "cut": good[:len(good)/2], "flipped": flipped, "of another size": other.encode(),
	} {
		t.Run(name, func(t *testing.T) {
			require.NoError(t, os.WriteFile(templates[0], bad, 0o600))
			path := filepath.Join(t.TempDir(), "disk")
			require.NoError(t, Create(t.Context(), cache, path, MinSize, Options{}))
			check(t, path)
			_, err := readTemplate(templates[0], MinSize)
			require.NoError(t, err)
		})
	}
}

func TestManyCreateAtOnce(t *testing.T) {
	t.Parallel()
	cache, dir := t.TempDir(), t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(cache, ".tmp-left"), nil, 0o600))
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			size := int64(MinSize + i%2*Unit)
			if err := Create(t.Context(), cache, filepath.Join(dir, string(rune('a'+i))), size, Options{}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	entries, err := os.ReadDir(cache)
	require.NoError(t, err)
	require.Len(t, entries, 3, "two templates and the lock")
	for i := range 8 {
		check(t, filepath.Join(dir, string(rune('a'+i))))
	}
}

func TestDecodeRefuses(t *testing.T) {
	bad := func(size int64, runs ...run) []byte { return (&packed{size, runs}).encode() }
	for name, b := range map[string][]byte{
		"empty":         nil,
		"magic":         []byte("something else that is long enough"),
		"outside":       bad(4, run{2, []byte("abc")}),
		"negative":      bad(4, run{-1, []byte("a")}),
		"overlap":       bad(9, run{0, []byte("abc")}, run{2, []byte("d")}),
		"negative size": bad(-1, run{0, []byte("a")}),
	} {
		_, err := decode(b)
		require.ErrorIs(t, err, errs.ErrCorrupt, name)
	}
	in := &packed{9, []run{{0, []byte("abc")}, {4, []byte("d")}}}
	out, err := decode(in.encode())
	require.NoError(t, err)
	require.Equal(t, in, out)
}

func BenchmarkBuild(b *testing.B) {
	for b.Loop() {
		if _, err := build(b.Context(), DefaultSize); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkCreate(b *testing.B) {
	cache, path := b.TempDir(), filepath.Join(b.TempDir(), "disk")
	for name, opts := range map[string]Options{"kept": {}, "temporary": {Temporary: true}} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				if err := Create(b.Context(), cache, path, 0, opts); err != nil {
					b.Fatal(err)
				}
				b.StopTimer()
				if err := os.Remove(path); err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
			}
		})
	}
}
