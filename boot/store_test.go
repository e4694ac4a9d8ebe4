package boot

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
)

func testStore(t *testing.T) *store {
	t.Helper()
	s, err := openStore(filepath.Join(t.TempDir(), "boot"), slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	return s
}

// filler returns a buildFunc that writes one file and counts its calls.
func filler(calls *atomic.Int32, content string) buildFunc {
	return func(_ context.Context, dir string) (any, error) {
		calls.Add(1)
		return map[string]string{"about": content}, os.WriteFile(filepath.Join(dir, "file"), []byte(content), 0o600)
	}
}

// leftovers returns the names of unfinished entries below the store.
func leftovers(t *testing.T, dir string) []string {
	t.Helper()
	var out []string
	require.NoError(t, filepath.WalkDir(dir, func(p string, d os.DirEntry, err error) error {
		if err == nil && strings.HasPrefix(d.Name(), ".tmp-") {
			out = append(out, p)
		}
		return err
	}))
	return out
}

func TestEntryIsBuiltOnce(t *testing.T) {
	s := testStore(t)
	_, err := s.find(t.Context(), kindAgent, "k")
	require.ErrorIs(t, err, errs.ErrNotFound)
	var calls atomic.Int32
	for range 3 {
		e, err := s.obtain(t.Context(), kindAgent, "k", filler(&calls, "hello"))
		require.NoError(t, err)
		require.FileExists(t, e.path("file"))
		require.Equal(t, "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824", e.sum("file"))
		require.JSONEq(t, `{"about":"hello"}`, string(e.rec.Meta))
		require.Empty(t, e.sum("other"))
	}
	require.EqualValues(t, 1, calls.Load())
	info, err := os.Stat(s.dir)
	require.NoError(t, err)
	require.EqualValues(t, 0o700, info.Mode().Perm())
}

func TestManyWhoWantAnEntryBuildItOnce(t *testing.T) {
	s := testStore(t)
	var calls atomic.Int32
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			_, err := s.obtain(t.Context(), kindAgent, "k", filler(&calls, "x"))
			if err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	require.EqualValues(t, 1, calls.Load())
}

func TestDamagedEntryIsBuiltAgain(t *testing.T) {
	for name, damage := range map[string]func(dir string) error{
		"truncated":         func(d string) error { return os.Truncate(filepath.Join(d, "file"), 2) },
		"other content":     func(d string) error { return os.WriteFile(filepath.Join(d, "file"), []byte("HELLO"), 0o600) },
		"missing":           func(d string) error { return os.Remove(filepath.Join(d, "file")) },
		"no record":         func(d string) error { return os.Remove(filepath.Join(d, recordName)) },
		"record is no JSON": func(d string) error { return os.WriteFile(filepath.Join(d, recordName), []byte("{"), 0o600) },
		"record leaves": func(d string) error {
			return os.WriteFile(filepath.Join(d, recordName), []byte(`{"files":[{"name":"../x"}]}`), 0o600)
		},
		"a link": func(d string) error {
			return errors.Join(os.Remove(filepath.Join(d, "file")), os.Symlink("/etc/passwd", filepath.Join(d, "file")))
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := testStore(t)
			var calls atomic.Int32
			e, err := s.obtain(t.Context(), kindAgent, "k", filler(&calls, "hello"))
			require.NoError(t, err)
			require.NoError(t, damage(e.dir))
			_, err = s.find(t.Context(), kindAgent, "k")
			require.Error(t, err)
			e, err = s.obtain(t.Context(), kindAgent, "k", filler(&calls, "hello"))
			require.NoError(t, err)
			require.EqualValues(t, 2, calls.Load())
			b, err := os.ReadFile(e.path("file"))
			require.NoError(t, err)
			require.Equal(t, "hello", string(b))
			require.Empty(t, leftovers(t, s.dir))
		})
	}
}

func TestEntryWhoseTimesAloneDifferIsKept(t *testing.T) {
	s := testStore(t)
	var calls atomic.Int32
	e, err := s.obtain(t.Context(), kindAgent, "k", filler(&calls, "hello"))
	require.NoError(t, err)
	old := time.Now().Add(-time.Hour)
	require.NoError(t, os.Chtimes(e.path("file"), old, old))
	_, err = s.find(t.Context(), kindAgent, "k")
	require.ErrorIs(t, err, errs.ErrCorrupt, "a look alone cannot tell")
	_, err = s.obtain(t.Context(), kindAgent, "k", filler(&calls, "hello"))
	require.NoError(t, err)
	require.EqualValues(t, 1, calls.Load())
	_, err = s.find(t.Context(), kindAgent, "k")
	require.NoError(t, err, "the record was corrected")
}

func TestFailedBuildLeavesNothing(t *testing.T) {
	s := testStore(t)
	mine := errors.New("mine")
	_, err := s.obtain(t.Context(), kindAgent, "k", func(_ context.Context, dir string) (any, error) {
		require.NoError(t, os.WriteFile(filepath.Join(dir, "half"), nil, 0o600))
		return nil, mine
	})
	require.ErrorIs(t, err, mine)
	require.Empty(t, leftovers(t, s.dir))
	var calls atomic.Int32
	_, err = s.obtain(t.Context(), kindAgent, "k", filler(&calls, "x"))
	require.NoError(t, err, "the next one tries again")
}

func TestWaitForABuilderObeysContext(t *testing.T) {
	s := testStore(t)
	building, release := make(chan struct{}), make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		_, err := s.obtain(t.Context(), kindAgent, "k", func(context.Context, string) (any, error) {
			close(building)
			<-release
			return nil, nil
		})
		if err != nil {
			t.Error(err)
		}
	})
	<-building
	ctx, cancel := context.WithCancel(t.Context())
	got := make(chan error, 1)
	wg.Go(func() {
		_, err := s.obtain(ctx, kindAgent, "k", nil)
		got <- err
	})
	cancel()
	require.ErrorIs(t, <-got, context.Canceled)
	close(release)
	wg.Wait()
}

func TestLeftoverOfADeadBuilderIsRemoved(t *testing.T) {
	s := testStore(t)
	dead := filepath.Join(s.dir, kindAgent, ".tmp-k-123", "deep")
	other := filepath.Join(s.dir, kindAgent, ".tmp-other-123")
	require.NoError(t, os.MkdirAll(dead, 0o700))
	require.NoError(t, os.MkdirAll(other, 0o700))
	var calls atomic.Int32
	_, err := s.obtain(t.Context(), kindAgent, "k", filler(&calls, "x"))
	require.NoError(t, err)
	require.NoDirExists(t, dead)
	require.DirExists(t, other, "another key may be in the making")
}

func TestDirectoryThatIsAFile(t *testing.T) {
	p := filepath.Join(t.TempDir(), "file")
	require.NoError(t, os.WriteFile(p, nil, 0o600))
	_, err := openStore(p, slog.New(slog.DiscardHandler))
	require.ErrorContains(t, err, "make boot cache")
}

func TestUnusedEntriesAreRemovedAfterAMonth(t *testing.T) {
	s := testStore(t)
	var calls atomic.Int32
	for _, key := range []string{"old", "busy", "used", "young"} {
		_, err := s.obtain(t.Context(), kindAgent, key, filler(&calls, key))
		require.NoError(t, err)
	}
	long := time.Now().Add(-2 * keepUnused)
	for _, key := range []string{"old", "busy", "used"} {
		require.NoError(t, os.Chtimes(filepath.Join(s.dir, kindAgent, key, recordName), long, long))
	}
	_, err := s.find(t.Context(), kindAgent, "used")
	require.NoError(t, err)
	unlock, err := s.lock(t.Context(), kindAgent+"-busy", false)
	require.NoError(t, err)
	s.prune(time.Now())
	unlock()
	var left []string
	names, err := os.ReadDir(filepath.Join(s.dir, kindAgent))
	require.NoError(t, err)
	for _, n := range names {
		left = append(left, n.Name())
	}
	require.Equal(t, []string{"busy", "used", "young"}, left)
	_, err = s.obtain(t.Context(), kindAgent, "old", filler(&calls, "old"))
	require.NoError(t, err)
	require.EqualValues(t, 5, calls.Load())
}

func TestTemplatesAreBoundedInSize(t *testing.T) {
	s := testStore(t)
	now := time.Now()
	for i, age := range []time.Duration{30 * time.Minute, 3 * time.Hour, 2 * time.Hour, 4 * time.Hour} {
		dir := filepath.Join(s.dir, kindTemplate, fmt.Sprint("t", i))
		require.NoError(t, os.Mkdir(dir, 0o700))
		require.NoError(t, os.WriteFile(filepath.Join(dir, "memory"), bytes.Repeat([]byte("x"), 1<<20), 0o600))
		require.NoError(t, os.WriteFile(filepath.Join(dir, recordName), []byte("{}"), 0o600))
		require.NoError(t, os.Chtimes(filepath.Join(dir, recordName), now.Add(-age), now.Add(-age)))
	}
	left := func() (names []string) {
		entries, err := os.ReadDir(filepath.Join(s.dir, kindTemplate))
		require.NoError(t, err)
		for _, e := range entries {
			names = append(names, e.Name())
		}
		return names
	}
	s.pruneTemplates(now, 5<<20)
	require.Len(t, left(), 4)
	s.pruneTemplates(now, 5<<19)
	require.Equal(t, []string{"t0", "t2"}, left())
	s.pruneTemplates(now, 0)
	require.Equal(t, []string{"t0"}, left(), "one that was used just now stays")
}

// TestDigestOfASparseFile describes a large file with holes: what of it is a hole makes no difference, all else does.
func TestDigestOfASparseFile(t *testing.T) {
	dir := t.TempDir()
	const size = minSparse + 4096
	file := func(name string, write func(f *os.File)) fileRecord {
		f, err := os.Create(filepath.Join(dir, name))
		require.NoError(t, err)
		defer f.Close()
		require.NoError(t, f.Truncate(size))
		write(f)
		rec, err := hashFile(t.Context(), dir, name, true)
		require.NoError(t, err)
		require.Empty(t, rec.SHA256)
		require.Len(t, rec.Sparse, 64)
		again, err := rehashFile(t.Context(), dir, rec)
		require.NoError(t, err)
		require.True(t, again.same(rec))
		return rec
	}
	put := func(at int64, text string) func(*os.File) {
		return func(f *os.File) {
			_, err := f.WriteAt([]byte(text), at)
			require.NoError(t, err)
		}
	}
	rec := file("a", put(100_000, "text"))
	zeros := file("b", func(f *os.File) { put(0, strings.Repeat("\x00", 300_000))(f); put(100_000, "text")(f) })
	require.True(t, rec.same(zeros))
	require.False(t, rec.same(file("c", put(100_001, "text"))))
	require.False(t, rec.same(file("d", put(100_000+1<<20, "text"))))
	require.False(t, rec.same(file("e", put(100_000, "tent"))))

	require.NoError(t, os.WriteFile(filepath.Join(dir, "small"), []byte("text"), 0o600))
	small, err := hashFile(t.Context(), dir, "small", false)
	require.NoError(t, err)
	require.Empty(t, small.Sparse)
	require.False(t, small.same(rec))
}
