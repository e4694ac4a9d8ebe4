package house

import (
	"fmt"
	"go/ast"
	"go/token"
	"maps"
	"slices"
	"strings"
)

// rule is one rule: a function that returns what breaks it.
type rule struct {
	name  string
	check func(tree) []string
}

// rules returns all rules about single files and declarations.
func rules() []rule {
	return []rule{
		{"files are short", fileSizes},
		{"functions are short", functionSizes},
		{"exported names are documented", documented},
		{"no init functions", noInit},
		{"no global state", noGlobals},
		{"libraries leave the process to their caller", noProcess},
		{"tests do not sleep", noSleep},
		{"tests are skipped for what they need", noSkip},
		{"no notes to self", noNotes},
		{"testing stays in tests", noTesting},
		{"no cgo", noCgo},
	}
}

// The sizes, in lines.
const (
	fileMost, fileP90         = 600, 350
	functionMost, functionP90 = 100, 40
)

func p90(sizes []int) int {
	if len(sizes) == 0 {
		return 0
	}
	slices.Sort(sizes)
	return sizes[(len(sizes)-1)*9/10]
}

func fileSizes(all tree) (bad []string) {
	var sizes []int
	for _, f := range all {
		if f.generated() {
			continue
		}
		if !f.test() {
			sizes = append(sizes, f.lines())
		}
		if f.lines() > fileMost {
			bad = append(bad, fmt.Sprintf("%s: %d lines, more than %d", f.path, f.lines(), fileMost))
		}
	}
	if n := p90(sizes); n > fileP90 {
		bad = append(bad, fmt.Sprintf("one file in ten has more than %d lines, allowed are %d", n, fileP90))
	}
	return bad
}

func functionSizes(all tree) (bad []string) {
	var sizes []int
	for _, f := range all {
		for _, d := range f.ast.Decls {
			fn, ok := d.(*ast.FuncDecl)
			if !ok || f.generated() {
				continue
			}
			n := f.fset.Position(fn.End()).Line - f.fset.Position(fn.Pos()).Line + 1
			if !f.test() {
				sizes = append(sizes, n)
			}
			if n > functionMost {
				bad = append(bad, f.at(fn.Pos(), "function %s has %d lines, more than %d", fn.Name.Name, n, functionMost))
			}
		}
	}
	if n := p90(sizes); n > functionP90 {
		bad = append(bad, fmt.Sprintf("one function in ten has more than %d lines, allowed are %d", n, functionP90))
	}
	return bad
}

// documented wants a comment on every exported name of a library, and on every package.
func documented(all tree) (bad []string) {
	packages := map[string]bool{} // documented?
	for _, f := range all {
		if f.test() {
			continue
		}
		packages[f.dir()] = packages[f.dir()] || f.ast.Doc.Text() != ""
		if !f.library() {
			continue
		}
		for _, d := range f.ast.Decls {
			bad = append(bad, undocumented(f, d)...)
		}
	}
	for dir, ok := range packages {
		if !ok {
			bad = append(bad, dir+": the package has no comment")
		}
	}
	return bad
}

func undocumented(f *file, d ast.Decl) (bad []string) {
	switch d := d.(type) {
	case *ast.FuncDecl:
		if d.Name.IsExported() && exportedReceiver(d) && d.Doc.Text() == "" {
			bad = append(bad, f.at(d.Pos(), "%s has no comment", d.Name.Name))
		}
	case *ast.GenDecl:
		for _, s := range d.Specs {
			switch s := s.(type) {
			case *ast.TypeSpec:
				if s.Name.IsExported() && s.Doc.Text() == "" && (d.Lparen.IsValid() || d.Doc.Text() == "") {
					bad = append(bad, f.at(s.Pos(), "type %s has no comment", s.Name.Name))
				}
			case *ast.ValueSpec:
				if exportedValue(s) && s.Doc.Text() == "" && s.Comment.Text() == "" && d.Doc.Text() == "" {
					bad = append(bad, f.at(s.Pos(), "%s has no comment", s.Names[0].Name))
				}
			}
		}
	}
	return bad
}

func exportedValue(s *ast.ValueSpec) bool {
	return slices.ContainsFunc(s.Names, func(n *ast.Ident) bool { return n.IsExported() })
}

// exportedReceiver tells that d is a function, or a method that users can see.
func exportedReceiver(d *ast.FuncDecl) bool {
	if d.Recv == nil {
		return true
	}
	t := d.Recv.List[0].Type
	for {
		switch x := t.(type) {
		case *ast.StarExpr:
			t = x.X
		case *ast.IndexExpr:
			t = x.X
		case *ast.IndexListExpr:
			t = x.X
		case *ast.Ident:
			return x.IsExported()
		default:
			return true
		}
	}
}

func noInit(all tree) (bad []string) {
	for _, f := range all {
		for _, d := range f.ast.Decls {
			if fn, ok := d.(*ast.FuncDecl); ok && fn.Recv == nil && fn.Name.Name == "init" && !f.test() {
				bad = append(bad, f.at(fn.Pos(), "function init"))
			}
		}
	}
	return bad
}

// noSleep refuses time.Sleep: in tests, but for files of tests in virtual time, and in libraries.
func noSleep(all tree) (bad []string) {
	for _, f := range all {
		virtual := slices.Contains(slices.Collect(maps.Values(f.imports())), "testing/synctest")
		if f.test() && virtual || !f.test() && !f.library() {
			continue
		}
		for _, c := range uses(f, "time") {
			if c.name == "Sleep" && !excepted(f, "time.Sleep") {
				bad = append(bad, f.at(c.pos, "time.Sleep: wait for an event"))
			}
		}
	}
	return bad
}

// noSkip refuses tests that skip themselves: package needs does it for what a host lacks, and the suite of drivers for what
// a driver says it lacks.
func noSkip(all tree) (bad []string) {
	for _, f := range all {
		if f.dir() == "internal/needs" || f.dir() == "vm/vmtest" || !f.test() && !helpsTests(f.dir()) {
			continue
		}
		ast.Inspect(f.ast, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok {
				return true
			}
			sel, ok := call.Fun.(*ast.SelectorExpr)
			if ok && slices.Contains([]string{"Skip", "Skipf", "SkipNow"}, sel.Sel.Name) {
				bad = append(bad, f.at(call.Pos(), "%s: say in package needs what the test needs", sel.Sel.Name))
			}
			return true
		})
	}
	return bad
}

// noNotes refuses comments that put work off.
func noNotes(all tree) (bad []string) {
	for _, f := range all {
		for _, g := range f.ast.Comments {
			for _, word := range []string{"TO" + "DO", "FIX" + "ME", "XX" + "X"} {
				if strings.Contains(g.Text(), word) {
					bad = append(bad, f.at(g.Pos(), "a comment says %s", word))
				}
			}
		}
	}
	return bad
}

// noTesting keeps the test framework out of the programs that import arcbox.
func noTesting(all tree) (bad []string) {
	for _, f := range all {
		if f.test() || helpsTests(f.dir()) {
			continue
		}
		for _, p := range f.imports() {
			if p == "testing" || strings.HasPrefix(p, "testing/") && p != "testing/fstest" {
				bad = append(bad, f.path+": imports "+p)
			}
		}
	}
	return bad
}

// noCgo keeps arcbox buildable without a C compiler; only the driver for Apple's framework may need one.
func noCgo(all tree) (bad []string) {
	for _, f := range all {
		for _, p := range f.imports() {
			if p == "C" && f.dir() != "vm/vz" {
				bad = append(bad, f.path+": imports C")
			}
		}
	}
	return bad
}

// use is a mention of a name of an imported package.
type use struct {
	name string
	pos  token.Pos
}

// uses returns the mentions of names of the package with that import path.
func uses(f *file, importPath string) (all []use) {
	local := ""
	for name, p := range f.imports() {
		if p == importPath {
			local = name
		}
	}
	if local == "" {
		return nil
	}
	ast.Inspect(f.ast, func(n ast.Node) bool {
		if sel, ok := n.(*ast.SelectorExpr); ok {
			if x, ok := sel.X.(*ast.Ident); ok && x.Name == local && x.Obj == nil {
				all = append(all, use{sel.Sel.Name, sel.Pos()})
			}
		}
		return true
	})
	return all
}
