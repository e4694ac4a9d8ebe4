package crosscheck

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestProjectCompilesElsewhere checks the library and the examples, their tests included, as they would be compiled for other
// systems: for both kinds of Mac, and without cgo, where there is no Virtualization framework.
func TestProjectCompilesElsewhere(t *testing.T) {
	const library, examples = "../..", "../../examples"
	for _, cfg := range []Config{
		{Dir: library, OS: "darwin", Arch: "arm64", Cgo: true},
		{Dir: library, OS: "darwin", Arch: "amd64", Cgo: true},
		{Dir: library, OS: "darwin", Arch: "arm64"},
		{Dir: library, OS: "windows", Arch: "amd64"},
		{Dir: library, OS: "linux", Arch: "arm64"},
		{Dir: examples, OS: "darwin", Arch: "arm64", Cgo: true},
		{Dir: examples, OS: "windows", Arch: "amd64"},
	} {
		t.Run(fmt.Sprintf("%s on %s, cgo %t", filepath.Base(cfg.Dir), cfg, cfg.Cgo), func(t *testing.T) {
			t.Parallel()
			cfg.Tests = true
			r, err := Check(t.Context(), cfg)
			require.NoError(t, err)
			require.Empty(t, r.Problems)
			require.Greater(t, r.Packages, map[string]int{library: 40, examples: 5}[cfg.Dir])
		})
	}
}

// plant makes files of this package that are compiled on a Mac only, with cgo, and checks the package with them.
func plant(t *testing.T, arch string, files map[string]string) *Report {
	t.Helper()
	dir, err := filepath.Abs(".")
	require.NoError(t, err)
	overlay := make(map[string]string)
	for name, text := range files {
		overlay[filepath.Join(dir, name)] = "//go:build darwin && cgo\n\npackage crosscheck\n\nimport \"github.com/Code-Hex/vz/v3\"\n\n" + text + "\n"
	}
	r, err := Check(t.Context(), Config{OS: "darwin", Arch: arch, Cgo: true, Patterns: []string{"."}, Tests: true, Overlay: overlay})
	require.NoError(t, err)
	return r
}

func TestPlantedErrorsAreFound(t *testing.T) {
	files := map[string]string{
		"planted_argument.go": "var _, _ = vz.NewLinuxBootLoader(5)",
		"planted_method.go":   "func fly(m *vz.VirtualMachine) { m.Fly() }",
		"planted_variable.go": "func idle() { x := vz.VirtualMachineStateError }",
		"planted_test.go":     "var wrong string = vz.VirtualMachineStateError",
		"planted_syntax.go":   "func broken( {}",
		"planted_c.go":        "import \"C\"\n\nvar length int = C.strlen(nil) + vz.Nothing",
		"planted_save.go":     "var save = (*vz.VirtualMachine).SaveMachineStateToPath",
	}
	want := map[string]string{
		"planted_argument.go": "cannot use 5",
		"planted_method.go":   "m.Fly undefined",
		"planted_variable.go": "declared and not used: x",
		"planted_test.go":     "cannot use vz.VirtualMachineStateError",
		"planted_syntax.go":   "expected",
		"planted_c.go":        "undefined: vz.Nothing",
	}
	// What is there on one architecture only is an error on the other.
	for arch, extra := range map[string]map[string]string{
		"arm64": {}, "amd64": {"planted_save.go": "SaveMachineStateToPath undefined"},
	} {
		t.Run(arch, func(t *testing.T) {
			t.Parallel()
			problems := plant(t, arch, files).Problems
			for name, text := range want {
				require.True(t, found(problems, name, text), "%s in %q", name, problems)
			}
			for name, text := range extra {
				require.True(t, found(problems, name, text), "%s in %q", name, problems)
			}
			for _, p := range problems {
				require.True(t, slices.ContainsFunc(keys(want, extra), func(name string) bool { return strings.Contains(p, name) }), p)
			}
		})
	}
}

func found(problems []string, name, text string) bool {
	return slices.ContainsFunc(problems, func(p string) bool { return strings.Contains(p, name) && strings.Contains(p, text) })
}

func keys(maps ...map[string]string) (all []string) {
	for _, m := range maps {
		for k := range m {
			all = append(all, k)
		}
	}
	return all
}

func TestCgoIsTakenOnTrust(t *testing.T) {
	r := plant(t, "arm64", map[string]string{"planted_c.go": "import \"C\"\n\nvar length int = int(C.strlen(nil))\n\nvar _ = vz.NewLinuxBootLoader"})
	require.Empty(t, r.Problems)
	require.Equal(t, 2, r.Cgo, "alone, and with the tests")
}

func TestWhatCannotBeChecked(t *testing.T) {
	_, err := Check(t.Context(), Config{OS: "darwin", Arch: "pdp11"})
	require.ErrorContains(t, err, "no such architecture")
	_, err = Check(t.Context(), Config{OS: "darwin", Arch: "arm64", Patterns: []string{"errors"}})
	require.ErrorContains(t, err, "no package of the module")
	_, err = Check(t.Context(), Config{Dir: filepath.Join(t.TempDir(), "none"), OS: "darwin", Arch: "arm64"})
	require.ErrorContains(t, err, "go list")
}
