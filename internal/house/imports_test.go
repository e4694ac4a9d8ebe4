package house

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// layers says which packages of the project each package may import, tests aside. "x/..." stands for x and what is below
// it. Imports point downwards only, which TestLayersPointDownwards proves of this table.
//
// A package that is not in the table breaks the rule: think of its place first.
func layers() map[string][]string {
	const errs = "internal/errs"
	return map[string][]string{
		errs:                  {},
		"internal/bootfs":     {errs},
		"internal/ids":        {errs},
		"internal/fsx":        {errs},
		"internal/disk":       {"internal/fsx", errs},
		"internal/mux":        {errs},
		"internal/house":      {},
		"internal/keychain":   {errs},
		"internal/crosscheck": {},
		"internal/needs":      {errs},
		"internal/console":    {},
		"internal/splice":     {},
		"event":               {},
		"lifecycle":           {errs},
		"agent/api":           {errs},
		"agent":               {"agent/api", errs},
		"vm":                  {errs},
		"internal/vmlife":     {"internal/console", "internal/mux", errs},
		"vm/vz":               {"vm", "internal/bootfs", "internal/mux", "internal/vmlife", errs},
		"vm/vz/sign":          {"vm/vz"},
		"vm/qemu":             {"vm", "internal/bootfs", "internal/checkpoint", "internal/console", "internal/fsx", "internal/mux", "internal/seccomp", "internal/vmlife", errs},
		"vm/vmtest/guest":     {},
		"vm/vmtest":           {"vm", "vm/vmtest/guest", "internal/bootfs", "internal/fsx", "internal/mux", "internal/vmlife", errs},
		"internal/guest":      {"internal/guest/...", "agent/api", "internal/bootfs", "internal/mux", errs},
		"agent/agenttest":     {"agent", "agent/api", "internal/guest/...", "internal/mux", errs},
		"boot":                {"boot/internal/...", "internal/bootfs", "internal/fsx", "internal/keychain", errs},
		"internal/ext4":       {errs},
		"internal/image":      {"internal/fsx", "internal/ext4", "internal/keychain", errs},
		"internal/volume":     {"internal/fsx", errs},
		"internal/network":    {"internal/fsx", "internal/ids", "internal/splice", errs},
		"internal/share":      {"agent/api", errs},
		"internal/socket":     {"agent/api", "internal/splice", errs},
		"internal/seccomp":    {errs},
		"internal/checkpoint": {errs},
		"internal/container": {
			"agent", "agent/api", "event", "internal/image", "internal/volume", "internal/network", "internal/share", "internal/socket", "internal/seccomp", "internal/ids", "internal/fsx", errs,
		},
		"internal/image/imagetest": {"internal/image", "internal/fsx", errs},
		"machine":                  {"agent", "agent/api", "boot", "vm", "internal/bootfs", "internal/disk", "internal/fsx", "internal/seccomp", "internal/share", "internal/socket", errs},
		"internal/machines":        {"machine", "lifecycle", "event", "internal/disk", "internal/fsx", "internal/ids", errs},
		".":                        {"agent", "agent/api", "boot", "event", "lifecycle", "machine", "vm", "vm/qemu", "vm/vz", "internal/..."},
		"docker":                   {".", "event", errs},
		"arcboxtest":               {".", "event", "vm/vmtest", "internal/image/imagetest", errs},

		"agent/cmd/arcbox-agent": {"internal/guest", errs},
		"vm/vmtest/guest/init":   {"vm/vmtest/guest", "internal/bootfs", "internal/mux", errs},
	}
}

// nested are the packages that belong to one above them: what that may import they may too, and each other.
func nested() []string { return []string{"boot/internal", "internal/guest"} }

// allowed tells whether package from may import package to, both relative to the module.
func allowed(from, to string) (ok, known bool) {
	may, known := layers()[from]
	for _, n := range nested() {
		if strings.HasPrefix(from, n+"/") {
			owner := strings.TrimSuffix(n, "/internal")
			may, known = append(layers()[owner], n+"/..."), true
		}
	}
	return slices.ContainsFunc(may, func(p string) bool {
		below, tree := strings.CutSuffix(p, "/...")
		return p == to || tree && (to == below || strings.HasPrefix(to, below+"/"))
	}), known
}

// local returns an import path relative to the module, if it is in it.
func local(path string) (string, bool) {
	if path == module {
		return ".", true
	}
	return strings.CutPrefix(path, module+"/")
}

// direction checks the imports of the files themselves, so that it sees those for every operating system.
func direction(all tree) (bad []string) {
	for _, f := range all {
		if f.test() || strings.HasPrefix(f.path, "examples/") {
			continue
		}
		for _, p := range f.imports() {
			to, ok := local(p)
			if !ok {
				continue
			}
			switch ok, known := allowed(f.dir(), to); {
			case !known:
				bad = append(bad, fmt.Sprintf("%s: package %s has no place in the table of layers", f.path, f.dir()))
			case !ok && to != f.dir():
				bad = append(bad, fmt.Sprintf("%s: imports %s, which %s must not", f.path, to, f.dir()))
			}
		}
		if _, known := allowed(f.dir(), "?"); !known {
			bad = append(bad, fmt.Sprintf("%s: package %s has no place in the table of layers", f.path, f.dir()))
		}
	}
	return bad
}

func TestDirectionOfImports(t *testing.T) {
	for _, v := range direction(load(t)) {
		t.Error(v)
	}
}

func TestDirectionFindsWhatIsPlanted(t *testing.T) {
	for name, text := range map[string]string{
		"event/x.go":           `import "` + module + `/lifecycle"`,
		"lifecycle/x_linux.go": `import _ "` + module + `/vm"`,
		"internal/guest/x.go":  `import "` + module + `/internal/image"`,
		"boot/internal/x/x.go": `import "` + module + `/vm"`,
		"machine/x.go":         `import "` + module + `"`,
		"vm/new/x.go":          ``,
	} {
		require.NotEmpty(t, direction(plant(t, map[string]string{name: "package p\n" + text})), name)
	}
	for name, text := range map[string]string{
		"x.go":                   `import "` + module + `/internal/image"`,
		"examples/x/x.go":        `import "` + module + `"`,
		"docker/x.go":            `import "` + module + `"`,
		"boot/internal/x/x.go":   `import "` + module + `/boot/internal/y"`,
		"internal/guest/x/x.go":  `import "` + module + `/agent/api"`,
		"event/x_test.go":        `import "` + module + `/event"`,
		"lifecycle/x_windows.go": `import "` + module + `/internal/errs"`,
	} {
		require.Empty(t, direction(plant(t, map[string]string{name: "package p\n" + text})), name)
	}
}

// The table itself has no circles, and only front ends import the root.
func TestLayersPointDownwards(t *testing.T) {
	table := layers()
	for from, may := range table {
		for _, to := range may {
			if to == "." {
				require.Contains(t, []string{"docker", "arcboxtest"}, from)
			}
		}
	}
	state := map[string]int{} // 1 while its imports are visited, 2 after
	var visit func(string)
	visit = func(p string) {
		require.NotEqual(t, 1, state[p], "%s imports itself in a circle", p)
		if state[p] == 2 {
			return
		}
		state[p] = 1
		for _, to := range table[p] {
			if !strings.HasSuffix(to, "/...") {
				visit(to)
			}
		}
		state[p] = 2
	}
	for p := range table {
		visit(p)
	}
}

// listed is a package as go list prints it.
type listed struct {
	ImportPath string
	Standard   bool
	Imports    []string
}

// list returns a package and everything it is built from.
func list(t *testing.T, goos string, pkgs ...string) (all []listed) {
	t.Helper()
	cmd := exec.Command("go", append([]string{"list", "-deps", "-json=ImportPath,Standard,Imports"}, pkgs...)...)
	cmd.Dir = root
	cmd.Env = append(cmd.Environ(), "CGO_ENABLED=0", "GOOS="+goos)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	require.NoError(t, err, stderr.String())
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var p listed
		err := dec.Decode(&p)
		if errors.Is(err, io.EOF) {
			return all
		}
		require.NoError(t, err)
		all = append(all, p)
	}
}

// guestModules are the modules that the agent may be built from.
func guestModules() []string {
	return []string{
		"golang.org/x/sys", "golang.org/x/net", "golang.org/x/sync",
		"github.com/hashicorp/yamux", "github.com/mdlayher/vsock", "github.com/mdlayher/socket", "github.com/pmorjan/kmod",
		"github.com/moby/sys", "github.com/creack/pty", "github.com/vishvananda/netlink", "github.com/vishvananda/netns",
		"github.com/elastic/go-seccomp-bpf", "github.com/opencontainers/runtime-spec",
	}
}

// guestOnly returns what does not belong into the guest.
func guestOnly(all []listed) (bad []string) {
	for _, p := range all {
		if p.Standard {
			continue
		}
		if rel, ok := local(p.ImportPath); ok {
			for _, may := range []string{"agent/api", "agent/cmd/arcbox-agent", "internal/errs", "internal/mux", "internal/bootfs", "internal/guest"} {
				ok = ok && rel != may && !strings.HasPrefix(rel, "internal/guest/")
			}
			if ok {
				bad = append(bad, rel)
			}
			continue
		}
		if !slices.ContainsFunc(guestModules(), func(m string) bool {
			return p.ImportPath == m || strings.HasPrefix(p.ImportPath, m+"/")
		}) {
			bad = append(bad, p.ImportPath)
		}
	}
	return bad
}

func TestGuestHasNoHostCode(t *testing.T) {
	all := list(t, "linux", "./agent/cmd/arcbox-agent")
	require.Greater(t, len(all), 40)
	require.Empty(t, guestOnly(all))
	require.ElementsMatch(t, []string{"internal/image", "github.com/moby/sysx"}, guestOnly([]listed{
		{ImportPath: module + "/internal/image"}, {ImportPath: module + "/internal/guest/box"},
		{ImportPath: "github.com/moby/sys/capability"}, {ImportPath: "github.com/moby/sysx"}, {ImportPath: "os", Standard: true},
	}))
}

// fromTesting returns the packages that bring the test framework into a program, where it adds flags and weight.
func fromTesting(all []listed) (bad []string) {
	for _, p := range all {
		if !p.Standard && slices.Contains(p.Imports, "testing") {
			bad = append(bad, p.ImportPath)
		}
	}
	return bad
}

func TestImportersDoNotGetTheTestFramework(t *testing.T) {
	for _, goos := range []string{"linux", "darwin"} {
		require.Empty(t, fromTesting(list(t, goos, ".")), goos)
	}
	require.Equal(t, []string{"x"}, fromTesting([]listed{{ImportPath: "x", Imports: []string{"io", "testing"}}, {ImportPath: "y"}}))
}
