package fsx

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func names(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	var out []string
	for _, e := range entries {
		out = append(out, e.Name())
	}
	return out
}

func TestWriteFileReplacesContentAndMode(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, strings.Repeat("n", 255))
	require.NoError(t, WriteFile(path, []byte("one"), 0o600))
	require.NoError(t, WriteFile(path, []byte("two"), 0o644))
	data, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Equal(t, "two", string(data))
	info, err := os.Stat(path)
	require.NoError(t, err)
	require.Equal(t, fs.FileMode(0o644), info.Mode())
	require.Len(t, names(t, dir), 1)
}

func TestWriteFileErrorLeavesNothing(t *testing.T) {
	dir := t.TempDir()
	target := filepath.Join(dir, "target")
	require.NoError(t, os.Mkdir(target, 0o700))
	require.NoError(t, os.WriteFile(filepath.Join(target, "full"), nil, 0o600))
	require.Error(t, WriteFile(target, []byte("x"), 0o600), "a directory cannot be replaced")
	require.Equal(t, []string{"target"}, names(t, dir))
	require.ErrorIs(t, WriteFile(filepath.Join(dir, "missing", "f"), nil, 0o600), fs.ErrNotExist)
}

func TestReplace(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "f")
	require.ErrorIs(t, Sync(path), fs.ErrNotExist)
	for _, text := range []string{"one", "two"} {
		require.NoError(t, Replace(path, []byte(text), 0o640))
		data, err := os.ReadFile(path)
		require.NoError(t, err)
		require.Equal(t, text, string(data))
	}
	require.NoError(t, Sync(path))
	info, err := os.Stat(path)
	require.NoError(t, err)
	require.Equal(t, fs.FileMode(0o640), info.Mode())
	require.NoError(t, os.Mkdir(filepath.Join(dir, "d"), 0o700))
	require.Error(t, Replace(filepath.Join(dir, "d"), nil, 0o600))
	require.Equal(t, []string{"d", "f"}, names(t, dir))
}

func TestFileIsInvisibleUntilCommit(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "f")
	f, err := Create(path, 0o600)
	require.NoError(t, err)
	_, err = f.WriteString("x")
	require.NoError(t, err)
	require.NoFileExists(t, path)
	require.NoError(t, f.Commit())
	require.FileExists(t, path)
	require.ErrorIs(t, f.Commit(), fs.ErrClosed)
	require.NoError(t, f.Close(), "close after commit does nothing")
	require.FileExists(t, path)

	g, err := Create(path, 0o600)
	require.NoError(t, err)
	require.NoError(t, g.Close())
	require.NoError(t, g.Close())
	require.ErrorIs(t, g.Commit(), fs.ErrClosed)
	require.Equal(t, []string{"f"}, names(t, dir))
}

func TestSweepTempKeepsWhatIsNotItsOwn(t *testing.T) {
	dir := t.TempDir()
	f, err := Create(filepath.Join(dir, "a"), 0o600)
	require.NoError(t, err)
	defer func() { _ = f.Close() }()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "keep"), nil, 0o600))
	require.NoError(t, SweepTemp(dir, time.Now().Add(-time.Hour)))
	require.Len(t, names(t, dir), 2, "a young file stays")
	require.NoError(t, SweepTemp(dir, time.Now().Add(time.Hour)))
	require.Equal(t, []string{"keep"}, names(t, dir))
	require.NoError(t, SweepTemp(filepath.Join(dir, "missing"), time.Now()))
}

func TestReadRegular(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	_, err := ReadRegular(path, 4)
	require.ErrorIs(t, err, fs.ErrNotExist)
	require.NoError(t, os.WriteFile(path, []byte("123456"), 0o600))
	for max, want := range map[int64]string{4: "12345", 5: "123456", 6: "123456", 100: "123456"} {
		b, err := ReadRegular(path, max)
		require.NoError(t, err)
		require.Equal(t, want, string(b))
	}
	_, err = ReadRegular(filepath.Dir(path), 4)
	require.ErrorIs(t, err, errs.ErrCorrupt)
}
