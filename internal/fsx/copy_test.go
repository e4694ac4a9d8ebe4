package fsx

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestCloneFileIsTheSameAndSparse(t *testing.T) {
	dir := t.TempDir()
	for i, size := range []int{0, 1, zeroChunk, zeroChunk + 1, copyChunk - 1, 3*copyChunk + 5} {
		want := make([]byte, size)
		r := rand.New(rand.NewPCG(1, uint64(i)))
		for range 4 {
			if size > 0 {
				from := r.IntN(size)
				for j := from; j < min(from+zeroChunk/2, size); j++ {
					want[j] = byte(r.Uint32())
				}
			}
		}
		src, dst := filepath.Join(dir, "src"), filepath.Join(dir, "dst")
		require.NoError(t, os.WriteFile(src, want, 0o644))
		require.NoError(t, CloneFile(t.Context(), dst, src))
		got, err := os.ReadFile(dst)
		require.NoError(t, err)
		require.True(t, bytes.Equal(want, got), "size %d", size)
		require.Error(t, CloneFile(t.Context(), dst, src), "it does not replace a file")
		require.NoError(t, os.Remove(dst))
		require.NoError(t, LinkFile(t.Context(), dst, src))
		require.Error(t, LinkFile(t.Context(), dst, src))
		require.NoError(t, os.Remove(dst))
		require.NoError(t, os.Remove(src))
	}
	require.Error(t, LinkFile(t.Context(), filepath.Join(dir, "x"), filepath.Join(dir, "missing")))
}

func TestCopyEndsWithItsContext(t *testing.T) {
	dir := t.TempDir()
	src := filepath.Join(dir, "src")
	require.NoError(t, os.WriteFile(src, make([]byte, copyChunk), 0o600))
	why := errors.New("enough")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(why)
	from, err := os.Open(src)
	require.NoError(t, err)
	defer from.Close()
	to, err := os.Create(filepath.Join(dir, "to"))
	require.NoError(t, err)
	defer to.Close()
	require.ErrorIs(t, CopySparse(ctx, to, from), why)
}

// TestReflinkOrNothing makes a copy that shares data where this file system can, and otherwise leaves nothing.
func TestReflinkOrNothing(t *testing.T) {
	dir := t.TempDir()
	src, dst := filepath.Join(dir, "src"), filepath.Join(dir, "dst")
	want := bytes.Repeat([]byte("x"), copyChunk)
	require.NoError(t, os.WriteFile(src, want, 0o644))
	err := Reflink(dst, src)
	if err != nil {
		require.ErrorIs(t, err, errors.ErrUnsupported)
		require.NoFileExists(t, dst)
	} else {
		got, err := os.ReadFile(dst)
		require.NoError(t, err)
		require.True(t, bytes.Equal(want, got))
		require.ErrorIs(t, Reflink(dst, src), os.ErrExist)
	}
	require.ErrorIs(t, Reflink(filepath.Join(dir, "other"), filepath.Join(dir, "missing")), os.ErrNotExist)
}
