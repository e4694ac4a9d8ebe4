package house

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// root is the project's directory as seen from this package.
const root = "../.."

const module = "github.com/arcboxlabs/arcbox-go"

// file is one Go file of the tree.
type file struct {
	path string // from the project's directory, with slashes
	text string
	fset *token.FileSet
	ast  *ast.File
}

// tree is what the rules are applied to.
type tree []*file

func (f *file) dir() string     { return path.Dir(f.path) }
func (f *file) test() bool      { return strings.HasSuffix(f.path, "_test.go") }
func (f *file) generated() bool { return ast.IsGenerated(f.ast) }
func (f *file) lines() int      { return strings.Count(f.text, "\n") }

// library tells that the file becomes part of the programs that import arcbox, or of the agent.
func (f *file) library() bool {
	return !f.test() && f.ast.Name.Name != "main" && !strings.HasPrefix(f.path, "examples/")
}

// at returns a violation at a place in the file.
func (f *file) at(p token.Pos, format string, args ...any) string {
	return fmt.Sprintf("%s:%d: %s", f.path, f.fset.Position(p).Line, fmt.Sprintf(format, args...))
}

// imports returns the paths that the file imports, by the name they have in it.
func (f *file) imports() map[string]string {
	m := map[string]string{}
	for _, spec := range f.ast.Imports {
		p := strings.Trim(spec.Path.Value, `"`)
		name := path.Base(p)
		if spec.Name != nil {
			name = spec.Name.Name
		}
		if name == "_" {
			name = "_" + p // several may be blank
		}
		m[name] = p
	}
	return m
}

func parse(name, text string) (*file, error) {
	f := &file{path: name, text: text, fset: token.NewFileSet()}
	var err error
	f.ast, err = parser.ParseFile(f.fset, name, text, parser.ParseComments)
	return f, err
}

// walk calls fn with every file of the project, but not with what belongs to git or was built.
func walk(t *testing.T, fn func(name string)) {
	t.Helper()
	err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(root, p)
		if err != nil {
			return err
		}
		if d.IsDir() {
			if base := d.Name(); name != "." && (strings.HasPrefix(base, ".") && base != ".ci" || base == "testdata" || base == "bin" || base == "dist") {
				return filepath.SkipDir
			}
			return nil
		}
		if d.Type().IsRegular() && name != ".git" { // a file in a linked work tree
			fn(filepath.ToSlash(name))
		}
		return nil
	})
	require.NoError(t, err)
}

// load reads the project's Go files.
func load(t *testing.T) (all tree) {
	t.Helper()
	walk(t, func(name string) {
		if !strings.HasSuffix(name, ".go") {
			return
		}
		text, err := os.ReadFile(filepath.Join(root, name))
		require.NoError(t, err)
		f, err := parse(name, string(text))
		require.NoError(t, err)
		all = append(all, f)
	})
	require.Greater(t, len(all), 40, "the whole project is read")
	return all
}
