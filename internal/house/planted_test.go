package house

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// planted is source that breaks one rule.
type planted struct {
	rule  string
	files map[string]string
	want  string // part of the violation
}

func repeat(line string, n int) string { return strings.Repeat(line+"\n", n) }

func allPlanted() []planted {
	one := func(rule, name, text, want string) planted {
		return planted{rule, map[string]string{name: text}, want}
	}
	many := map[string]string{}
	for _, n := range []string{"a", "b", "c"} {
		many[n+"/x.go"] = "// Package p is p.\npackage p\n" + repeat("//", 400)
	}
	return []planted{
		one("files are short", "a/x.go", "package p\n"+repeat("//", 600), "a/x.go: 601 lines"),
		one("files are short", "a/x_test.go", "package p\n"+repeat("//", 600), "a/x_test.go: 601 lines"),
		{"files are short", many, "one file in ten"},
		one("functions are short", "a/x.go", "package p\nfunc f() {\n"+repeat("", 99)+"}\n", "function f has 101 lines"),
		one("functions are short", "a/x.go", "package p\nfunc f() {\n"+repeat("", 50)+"}\n", "one function in ten"),
		one("exported names are documented", "a/x.go", "// Package p is p.\npackage p\nfunc F() {}\n", "x.go:3: F"),
		one("exported names are documented", "a/x.go", "// Package p is p.\npackage p\ntype T int\n", "x.go:3: type T"),
		one("exported names are documented", "a/x.go", "// Package p is p.\npackage p\n// Types.\ntype (\nT int\n)\n", "x.go:5: type T"),
		one("exported names are documented", "a/x.go", "// Package p is p.\npackage p\nconst c, C = 1, 2\n", "x.go:3: c"),
		one("exported names are documented", "a/x.go", "// Package p is p.\npackage p\n\n// T is t.\ntype T[A any] int\nfunc (*T[A]) M() {}\n", "x.go:6: M"),
		one("exported names are documented", "a/x.go", "package p\n", "a: the package has no comment"),
		one("no init functions", "a/x.go", "package p\nfunc init() {}\n", "x.go:2: function init"),
		one("no global state", "a/x.go", "package p\nvar n int\n", "variable n of the package holds state"),
		one("no global state", "a/x.go", "package p\nvar m = make(map[int]int)\n", "variable m"),
		one("no global state", "a/x.go", "package p\nvar z [2]byte\nfunc f() { z[0] = 1 }\n", "x.go:3: variable z"),
		one("no global state", "a/x.go", "package p\nvar s []byte\n", "variable s"),
		one("no global state", "a/x.go", "package p\nvar p = &T{}\n", "variable p"),
		one("no global state", "a/x.go", "package p\nvar f = func() {}\n", "variable f"),
		one("no global state", "a/x.go", "package p\nimport \"sync\"\nvar mu sync.Mutex\n", "variable mu"),
		one("no global state", "a/x.go", "package p\nvar m = map[int]int{}\nfunc f() { m[1] = 2 }\n", "x.go:3: variable m of the package is changed"),
		one("no global state", "a/x.go", "package p\nvar m = T{}\nfunc f() { m.x++ }\n", "x.go:3: variable m"),
		one("no global state", "a/x.go", "package p\nvar m = T{}\nfunc f() { g(&m) }\n", "x.go:3: variable m"),
		one("no global state", "a/x.go", "package p\nvar m = map[int]int{}\nfunc f() { delete(m, 1) }\n", "x.go:3: variable m"),
		{"no global state", map[string]string{
			"a/x.go": "package p\nvar m = map[int]int{}\n", "a/y.go": "package p\nfunc f() { m = nil }\n",
		}, "a/y.go:2: variable m"},
		one("libraries leave the process to their caller", "a/x.go", "package p\nimport \"os\"\nfunc f() { os.Exit(1) }\n", "os.Exit"),
		one("libraries leave the process to their caller", "a/x.go", "package p\nimport x \"os\"\nfunc f() { x.Exit(1) }\n", "os.Exit"),
		one("libraries leave the process to their caller", "a/x.go", "package p\nimport \"log\"\nfunc f() { log.Fatal() }\n", "log.Fatal"),
		one("libraries leave the process to their caller", "a/x.go", "package p\nimport \"fmt\"\nfunc f() { fmt.Println() }\n", "fmt.Println"),
		one("libraries leave the process to their caller", "a/x.go", "package p\nimport \"os/signal\"\nfunc f() { signal.Notify(nil) }\n", "os/signal.Notify"),
		one("libraries leave the process to their caller", "a/x.go", "package p\nimport \"os\"\nfunc f() { g(os.Getenv(\"X\")) }\n", "os.Getenv"),
		one("libraries leave the process to their caller", "a/x.go", "package p\nimport \"log/slog\"\nfunc f() { slog.Info(\"x\") }\n", "log/slog.Info"),
		one("libraries leave the process to their caller", "a/x.go", "package p\nfunc f() { println() }\n", "println"),
		one("tests do not sleep", "a/x_test.go", "package p\nimport \"time\"\nfunc f() { time.Sleep(1) }\n", "x_test.go:3: time.Sleep"),
		one("tests do not sleep", "a/x.go", "package p\nimport \"time\"\nfunc f() { time.Sleep(1) }\n", "x.go:3: time.Sleep"),
		{"tests do not sleep", map[string]string{
			"a/x_test.go": "package p\nimport \"time\"\nfunc f() { time.Sleep(1) }\n",
			"a/y_test.go": "package p\nimport _ \"testing/synctest\"\n",
		}, "x_test.go:3: time.Sleep"},
		one("tests are skipped for what they need", "a/x_test.go", "package p\nfunc f(t *T) { t.Skip() }\n", "x_test.go:2: Skip"),
		one("tests are skipped for what they need", "arcboxtest/x.go", "package p\nfunc f(t *T) { t.Skipf(\"\") }\n", "x.go:2: Skipf"),
		one("no notes to self", "a/x.go", "package p\n\n// TO"+"DO: everything\n", "x.go:3"),
		one("testing stays in tests", "a/x.go", "package p\nimport \"testing\"\n", "a/x.go: imports testing"),
		one("no cgo", "a/x.go", "package p\nimport \"C\"\n", "a/x.go: imports C"),
	}
}

func plant(t *testing.T, files map[string]string) (all tree) {
	t.Helper()
	for name, text := range files {
		f, err := parse(name, text)
		require.NoError(t, err)
		all = append(all, f)
	}
	return all
}

func ruleNamed(t *testing.T, name string) rule {
	t.Helper()
	for _, r := range rules() {
		if r.name == name {
			return r
		}
	}
	require.Fail(t, "no such rule", name)
	return rule{}
}

func TestRulesFindWhatIsPlanted(t *testing.T) {
	shown := map[string]bool{}
	for _, p := range allPlanted() {
		shown[p.rule] = true
		bad := ruleNamed(t, p.rule).check(plant(t, p.files))
		require.Contains(t, strings.Join(bad, "\n"), p.want, "%s: %v", p.rule, p.files)
	}
	for _, r := range rules() {
		require.True(t, shown[r.name], "nothing is planted for %q", r.name)
	}
}

// Source that keeps every rule, with what looks like a violation and is none.
func TestRulesFindNothingElse(t *testing.T) {
	all := plant(t, map[string]string{
		"a/x.go": `// Package p is p.
package p

import (
	_ "embed"
	"errors"
	"os"
	"time"
)

//go:embed x
var data []byte

// ErrX is x.
var ErrX = errors.New("x")

// The kinds.
const (
	A = 1
	B = 2
)

var table = map[int]string{1: "a"}

var zeros [4096]byte

var _ error = (*t)(nil)

type t struct{}

func (t) Exported() {}

// F is f.
func F(table map[int]string) {
	table[1] = "b"
	os := struct{ Exit func() }{}
	os.Exit()
	_ = time.Second
}
`,
		"a/x_test.go": `package p

import (
	"testing"
	"testing/synctest"
	"time"
)

func TestX(t *testing.T) { synctest.Test(t, func(*testing.T) { time.Sleep(1) }) }
`,
		"cmd/x/main.go": "// Command x is a program.\npackage main\nimport (\n\"fmt\"\n\"os\"\n)\nvar n int\nfunc main() { n++; fmt.Println(os.Args); os.Exit(n) }\n",
	})
	for _, r := range rules() {
		require.Empty(t, r.check(all), r.name)
	}
}

func TestPlacesAndModuleLinesAreFound(t *testing.T) {
	require.Len(t, places("see /wor"+"k/main and \"/roo"+"t/x\""), 2)
	require.Empty(t, places("a/wor"+"k/main https://x/roo"+"t/y ../roo"+"t/z /wor"+"k /home/user"))
	require.Len(t, modLines("module x\n\ntool y\nreplace a => b\n"), 2)
}
