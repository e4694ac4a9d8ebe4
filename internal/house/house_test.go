package house

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestRules(t *testing.T) {
	all := load(t)
	for _, r := range rules() {
		t.Run(r.name, func(t *testing.T) {
			for _, v := range r.check(all) {
				t.Error(v)
			}
		})
	}
}

// Every exception is of a file that is there and does the thing, so that none outlives its reason.
func TestExceptionsAreNeeded(t *testing.T) {
	all := load(t)
	for name, whats := range exceptions() {
		for what := range whats {
			used := false
			for _, f := range all {
				if f.path != name {
					continue
				}
				if v, ok := strings.CutPrefix(what, "var "); ok {
					used = f.ast.Scope.Lookup(v) != nil
					continue
				}
				dot := strings.LastIndex(what, ".")
				for _, u := range uses(f, what[:dot]) {
					used = used || u.name == what[dot+1:]
				}
			}
			require.True(t, used, "exception %q of %s", what, name)
		}
	}
}

// places finds absolute paths that exist on one machine only: of checkouts, of scratch files, of the superuser.
func places(text string) []string {
	return regexp.MustCompile(`(^|[^\w.~/-])/(wor`+`k/(main|shared)|roo`+`t/|tmp/(k|prompts|full_\w+)/)[\w.-]*`).FindAllString(text, -1)
}

func TestNoPathsOfOneMachine(t *testing.T) {
	walk(t, func(name string) {
		if strings.HasPrefix(name, "LICENSE") || strings.HasSuffix(name, ".sum") {
			return
		}
		text, err := os.ReadFile(filepath.Join(root, name))
		require.NoError(t, err)
		for _, p := range places(string(text)) {
			t.Errorf("%s: path of one machine: %s", name, strings.TrimSpace(p))
		}
	})
}

// go.mod has nothing that an importer does not get, or pays for without need.
func modLines(text string) (bad []string) {
	for line := range strings.Lines(text) {
		word, _, _ := strings.Cut(strings.TrimSpace(line), " ")
		switch word {
		case "replace", "exclude", "tool", "toolchain":
			bad = append(bad, strings.TrimSpace(line))
		}
	}
	return bad
}

func TestModuleFile(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(root, "go.mod"))
	require.NoError(t, err)
	require.Contains(t, string(text), "module "+module+"\n")
	require.Empty(t, modLines(string(text)))
}
