package boot

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
)

func TestCheckTellsWhatIsMissing(t *testing.T) {
	dir := t.TempDir()
	text := filepath.Join(dir, "text")
	require.NoError(t, os.WriteFile(text, []byte("no program"), 0o600))

	kernel, agent := Check(t.Context(), Config{Dir: dir, Kernel: filepath.Join(dir, "nope"), Agent: text})
	require.ErrorIs(t, kernel, errs.ErrNotFound)
	require.ErrorIs(t, agent, errs.ErrInvalid)

	kernel, agent = Check(t.Context(), Config{Dir: dir, Kernel: text})
	require.NoError(t, kernel)
	require.NoError(t, agent, "the tests run in the source tree, with a toolchain")

	kernel, agent = Check(t.Context(), Config{Dir: dir, Arch: "vax"})
	require.ErrorIs(t, kernel, errs.ErrUnsupported)
	require.ErrorIs(t, agent, errs.ErrUnsupported)

	t.Setenv("PATH", dir)
	kernel, _ = Check(t.Context(), Config{Dir: dir})
	require.NoError(t, kernel, "without apt there is the built-in list")
}
