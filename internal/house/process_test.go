package house

import (
	"go/ast"
	"go/token"
	"strings"
)

// forbidden says what a library leaves alone, by import path: names, or prefixes of names with a star.
func forbidden() map[string][]string {
	return map[string][]string{
		"os":        {"Exit", "Stdin", "Stdout", "Stderr", "Getenv", "LookupEnv", "Environ", "ExpandEnv", "Setenv", "Unsetenv", "Clearenv", "Chdir"},
		"fmt":       {"Print", "Printf", "Println", "Scan*"},
		"log":       {"*"},
		"log/slog":  {"Default", "SetDefault", "Debug*", "Info", "InfoContext", "Warn*", "Error", "ErrorContext", "Log", "LogAttrs"},
		"flag":      {"*"},
		"expvar":    {"*"},
		"context":   {"TODO"},
		"os/signal": {"*"},
		"net/http":  {"DefaultClient", "DefaultServeMux", "Get", "Post*", "Head", "Handle", "HandleFunc", "ListenAndServe*"},
		"math/rand": {"*"}, // math/rand/v2, or crypto/rand where it matters
	}
}

// noProcess refuses what acts on the whole process of the caller, and what takes input from it behind the caller's back.
func noProcess(all tree) (bad []string) {
	for _, f := range all {
		if !f.library() {
			continue
		}
		for pkg, names := range forbidden() {
			for _, u := range uses(f, pkg) {
				if what := pkg + "." + u.name; matches(u.name, names) && !excepted(f, what) {
					bad = append(bad, f.at(u.pos, "%s in a library", what))
				}
			}
		}
		ast.Inspect(f.ast, func(n ast.Node) bool {
			if call, ok := n.(*ast.CallExpr); ok {
				if id, ok := call.Fun.(*ast.Ident); ok && id.Obj == nil && (id.Name == "print" || id.Name == "println") {
					bad = append(bad, f.at(call.Pos(), "%s in a library", id.Name))
				}
			}
			return true
		})
	}
	return bad
}

func matches(name string, patterns []string) bool {
	for _, p := range patterns {
		if prefix, ok := strings.CutSuffix(p, "*"); ok && strings.HasPrefix(name, prefix) || name == p {
			return true
		}
	}
	return false
}

// noGlobals refuses variables of a package that hold state: all but sentinel errors, tables that nothing changes,
// embedded files, and assertions of interfaces.
func noGlobals(all tree) (bad []string) {
	globals := map[string]map[string]bool{} // by directory
	for _, f := range all {
		if !f.library() {
			continue
		}
		for _, d := range f.ast.Decls {
			g, ok := d.(*ast.GenDecl)
			if !ok || g.Tok != token.VAR {
				continue
			}
			for _, s := range g.Specs {
				s := s.(*ast.ValueSpec)
				if globals[f.dir()] == nil {
					globals[f.dir()] = map[string]bool{}
				}
				for i, n := range s.Names {
					globals[f.dir()][n.Name] = true
					if n.Name != "_" && !embedded(g, s) && !constant(f, s, i) && !excepted(f, "var "+n.Name) {
						bad = append(bad, f.at(n.Pos(), "variable %s of the package holds state", n.Name))
					}
				}
			}
		}
	}
	for _, f := range all {
		if f.library() {
			bad = append(bad, changed(f, globals[f.dir()])...)
		}
	}
	return bad
}

func embedded(g *ast.GenDecl, s *ast.ValueSpec) bool {
	for _, doc := range []*ast.CommentGroup{g.Doc, s.Doc} {
		if doc != nil {
			for _, c := range doc.List {
				if strings.HasPrefix(c.Text, "//go:embed ") {
					return true
				}
			}
		}
	}
	return false
}

// constant tells that the i-th value of s could be a constant, if Go had constants of its type.
func constant(f *file, s *ast.ValueSpec, i int) bool {
	if i >= len(s.Values) {
		array, ok := s.Type.(*ast.ArrayType) // zeros
		return ok && array.Len != nil && len(s.Values) == 0
	}
	switch v := s.Values[i].(type) {
	case *ast.CompositeLit:
		return true
	case *ast.SelectorExpr:
		_, ok := v.X.(*ast.Ident) // another package's, given a second home
		return ok
	case *ast.CallExpr:
		sel, ok := v.Fun.(*ast.SelectorExpr)
		if !ok {
			return false
		}
		x, ok := sel.X.(*ast.Ident)
		if !ok {
			return false
		}
		switch f.imports()[x.Name] + "." + sel.Sel.Name {
		case "errors.New", "fmt.Errorf", "regexp.MustCompile", "strings.NewReplacer", "netip.MustParsePrefix", "net/netip.MustParsePrefix":
			return true
		}
	}
	return false
}

// changed finds what changes one of the globals. A name without an object is one of another file of the package; one
// whose object is not that of the file's own scope is declared by a function.
func changed(f *file, globals map[string]bool) (bad []string) {
	is := func(e ast.Expr) string {
		for {
			switch x := e.(type) {
			case *ast.IndexExpr:
				e = x.X
			case *ast.SelectorExpr:
				e = x.X
			case *ast.ParenExpr:
				e = x.X
			case *ast.Ident:
				if globals[x.Name] && (x.Obj == nil || x.Obj == f.ast.Scope.Lookup(x.Name)) {
					return x.Name
				}
				return ""
			default:
				return ""
			}
		}
	}
	report := func(e ast.Expr) {
		if name := is(e); name != "" && name != "_" && !excepted(f, "var "+name) {
			bad = append(bad, f.at(e.Pos(), "variable %s of the package is changed", name))
		}
	}
	ast.Inspect(f.ast, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.AssignStmt:
			if n.Tok != token.DEFINE {
				for _, e := range n.Lhs {
					report(e)
				}
			}
		case *ast.IncDecStmt:
			report(n.X)
		case *ast.UnaryExpr:
			if n.Op == token.AND {
				report(n.X)
			}
		case *ast.CallExpr:
			if id, ok := n.Fun.(*ast.Ident); ok && (id.Name == "delete" || id.Name == "clear") && len(n.Args) > 0 {
				report(n.Args[0])
			}
		}
		return true
	})
	return bad
}
