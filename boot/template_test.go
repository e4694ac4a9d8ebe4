package boot

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
)

// TestDamagedTemplates damages a template in the ways that a file system does: it is made again, at once or after it was
// read whole.
func TestDamagedTemplates(t *testing.T) {
	ctx := t.Context()
	for name, tc := range map[string]struct {
		damage func(t *testing.T, dir string)
		atOnce bool // Template sees it
	}{
		"as it was": {damage: func(*testing.T, string) {}},
		"truncated": {atOnce: true, damage: func(t *testing.T, dir string) {
			require.NoError(t, os.Truncate(filepath.Join(dir, "memory"), 5))
		}},
		"a file removed": {atOnce: true, damage: func(t *testing.T, dir string) {
			require.NoError(t, os.Remove(filepath.Join(dir, "state")))
		}},
		"written to": {atOnce: true, damage: func(t *testing.T, dir string) {
			flip(t, filepath.Join(dir, "state"), false)
		}},
		"a bit of the header flipped by the disk": {damage: func(t *testing.T, dir string) {
			flip(t, filepath.Join(dir, "state"), true)
		}},
		"another template in its place": {atOnce: true, damage: func(t *testing.T, dir string) {
			cfg := Config{Dir: filepath.Dir(filepath.Dir(dir)), Arch: "amd64"}
			other, err := templateDir(ctx, cfg, TemplateKey{Assets: "other", Shape: "s"}, fill("other"))
			require.NoError(t, err)
			require.NoError(t, os.RemoveAll(dir))
			require.NoError(t, os.Rename(other, dir))
		}},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := Config{Dir: t.TempDir(), Arch: "amd64"}
			key := TemplateKey{Assets: "a", Shape: "s"}
			dir, err := templateDir(ctx, cfg, key, fill("memory of the machine"))
			require.NoError(t, err)
			tc.damage(t, dir)
			built := false
			again, err := templateDir(ctx, cfg, key, func(ctx context.Context, dir string) error {
				built = true
				return fill("memory of the machine")(ctx, dir)
			})
			require.NoError(t, err)
			require.Equal(t, dir, again)
			require.Equal(t, tc.atOnce, built)
			require.NoError(t, VerifyTemplate(ctx, cfg, key), "it was read when it was made")
			long := time.Now().Add(-2 * verifiedFor)
			require.NoError(t, os.Chtimes(filepath.Join(dir, verifiedName), long, long))
			err = VerifyTemplate(ctx, cfg, key)
			if tc.atOnce || name == "as it was" {
				require.NoError(t, err)
				info, err := os.Stat(filepath.Join(dir, verifiedName))
				require.NoError(t, err)
				require.WithinDuration(t, time.Now(), info.ModTime(), time.Minute)
				return
			}
			require.ErrorIs(t, err, errs.ErrCorrupt)
			require.NoDirExists(t, dir)
			require.ErrorIs(t, VerifyTemplate(ctx, cfg, key), errs.ErrNotFound)
		})
	}
}

// templateDir returns the directory of a template.
func templateDir(ctx context.Context, cfg Config, key TemplateKey, build func(context.Context, string) error) (dir string, err error) {
	err = Template(ctx, cfg, key, build, func(d string) error { dir = d; return nil })
	return dir, err
}

// TestTemplateIsRenewed makes a template anew: who uses the old one does so to the end, and who wants it meanwhile has it.
func TestTemplateIsRenewed(t *testing.T) {
	ctx := t.Context()
	cfg := Config{Dir: t.TempDir(), Arch: "amd64"}
	key := TemplateKey{Assets: "a", Shape: "s"}
	none := func(context.Context, string) error { return errors.New("it is there") }
	memory := func() (b []byte) {
		require.NoError(t, Template(ctx, cfg, key, none, func(dir string) (err error) {
			b, err = os.ReadFile(filepath.Join(dir, "memory"))
			return err
		}))
		return b
	}
	_, err := templateDir(ctx, cfg, key, fill("old"))
	require.NoError(t, err)

	building, build := make(chan struct{}), make(chan struct{})
	renewed := make(chan error, 1)
	go func() {
		renewed <- RenewTemplate(ctx, cfg, key, func(ctx context.Context, dir string) error {
			close(building)
			<-build
			return fill("new")(ctx, dir)
		})
	}()
	<-building
	require.Equal(t, "old", string(memory()))
	require.ErrorIs(t, RenewTemplate(ctx, cfg, key, none), errs.ErrInUse)
	require.NoError(t, Template(ctx, cfg, key, none, func(dir string) error {
		close(build)
		select {
		case err := <-renewed:
			t.Error("it is in use:", err)
		case <-time.After(50 * time.Millisecond):
		}
		b, err := os.ReadFile(filepath.Join(dir, "memory"))
		require.Equal(t, "old", string(b))
		return err
	}))
	require.NoError(t, <-renewed)
	require.Equal(t, "new", string(memory()))
	require.NoError(t, VerifyTemplate(ctx, cfg, key))

	require.ErrorContains(t, RenewTemplate(ctx, cfg, key, none), "it is there")
	require.Equal(t, "new", string(memory()), "what could not be made replaces nothing")
	left, err := os.ReadDir(filepath.Join(cfg.Dir, kindTemplate))
	require.NoError(t, err)
	require.Len(t, left, 1)
}

func TestTemplateErrors(t *testing.T) {
	cfg := Config{Dir: t.TempDir(), Arch: "amd64"}
	key := TemplateKey{Assets: "a", Shape: "s"}
	boom := errors.New("boom")
	fails := func(context.Context, string) error { return boom }
	require.ErrorIs(t, Template(t.Context(), cfg, key, fails, nil), boom)
	require.ErrorIs(t, Template(t.Context(), cfg, key, fill("m"), func(string) error { return boom }), boom)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	require.ErrorIs(t, Template(ctx, cfg, key, fill("m"), nil), context.Canceled)
}

// fill makes the files of a template.
func fill(memory string) func(context.Context, string) error {
	return func(_ context.Context, dir string) error {
		if err := os.WriteFile(filepath.Join(dir, "memory"), []byte(memory), 0o600); err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(dir, "state"), []byte("header and state"), 0o600)
	}
}

// flip changes a bit of a file, with its times as they were or not.
func flip(t *testing.T, path string, silent bool) {
	t.Helper()
	b, err := os.ReadFile(path)
	require.NoError(t, err)
	info, err := os.Stat(path)
	require.NoError(t, err)
	b[0] ^= 1
	require.NoError(t, os.WriteFile(path, b, 0o600))
	at := info.ModTime()
	if !silent {
		at = at.Add(time.Second)
	}
	require.NoError(t, os.Chtimes(path, at, at))
}
