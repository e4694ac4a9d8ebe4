package disk

import (
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
)

// TestCheckFindsShortFiles cuts disks short, and has files that are none.
func TestCheckFindsShortFiles(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	require.ErrorIs(t, Check(filepath.Join(dir, "none")), fs.ErrNotExist)
	path := filepath.Join(dir, "disk")
	require.NoError(t, Create(t.Context(), t.TempDir(), path, MinSize, Options{}))
	require.NoError(t, Check(path))
	require.NoError(t, os.Truncate(path, MinSize+1))
	require.NoError(t, Check(path), "what is behind it does no harm")
	for _, size := range []int64{MinSize - 1, 1 << 20, superblockAt + superblockLen, superblockAt, 0} {
		require.NoError(t, os.Truncate(path, size))
		require.ErrorIs(t, Check(path), errs.ErrCorrupt)
	}
	require.NoError(t, os.WriteFile(path, make([]byte, 4096), 0o600))
	require.NoError(t, Check(path), "it has no file system: the guest says so")
}

// TestSizeOfAnything reads superblocks that were made up.
func TestSizeOfAnything(t *testing.T) {
	t.Parallel()
	r := rand.New(rand.NewPCG(1, 2))
	b := make([]byte, superblockLen)
	for range 1000 {
		for i := range b {
			b[i] = byte(r.Uint32())
		}
		b[magicAt], b[magicAt+1] = 0x53, 0xef
		b[blockSizeAt+1], b[blockSizeAt+2], b[blockSizeAt+3] = 0, 0, 0
		sizeOf(b)
	}
	b = make([]byte, superblockLen)
	b[magicAt], b[magicAt+1], b[blocksLowAt], b[blocksHighAt], b[blockSizeAt] = 0x53, 0xef, 3, 1, 2
	require.EqualValues(t, 3<<12, sizeOf(b))
	b[incompatibleAt] = has64Bit
	require.EqualValues(t, (1<<32+3)<<12, sizeOf(b))
	b[blockSizeAt] = maxBlockShift + 1
	require.Zero(t, sizeOf(b))
}
