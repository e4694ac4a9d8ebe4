// Package crosscheck type-checks packages for systems other than the one it runs on: in seconds, since nothing is
// compiled, and for macOS with neither Apple's SDK nor a C compiler for it.
//
// It works because of two facts. "go list -deps -json" does not run cgo unless -compiled or -export is given, so with
// GOOS=darwin and CGO_ENABLED=1 it lists exactly the files that a Mac would compile, cgo files included. And go/types has
// FakeImportC: every C.name is accepted and has the invalid type, about which the checker is silent.
//
// It does not see wrong uses of C names, Objective-C code, linking, and what "go vet" sees beyond the compiler.
package crosscheck

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/scanner"
	"go/token"
	"go/types"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Config says what Check checks.
type Config struct {
	Dir      string   // a directory in the module; "" is the current one
	OS, Arch string   // GOOS and GOARCH
	Cgo      bool     // with the files that import C
	Tests    bool     // check the packages' tests too
	Patterns []string // as for go list; none is ./...
	// Overlay has contents that stand for those of files, by absolute path; the files need not exist.
	Overlay map[string]string
}

// Report is what Check found.
type Report struct {
	Packages int      // of the module that were checked
	Cgo      int      // files of them that import C
	Problems []string // what the compiler would refuse, with its place, each once
}

// String returns the system and the architecture, as GOOS/GOARCH.
func (c Config) String() string { return c.OS + "/" + c.Arch }

// Check type-checks packages of a module, with their dependencies' declarations. Only problems in packages of
// the module itself are reported. The error says that nothing could be checked; patterns that match nothing are one.
func Check(ctx context.Context, cfg Config) (*Report, error) {
	c := &checker{
		fset: token.NewFileSet(), sizes: types.SizesFor("gc", cfg.Arch), overlay: cfg.Overlay,
		pkgs: make(map[string]*types.Package), seen: make(map[string]bool),
	}
	if c.sizes == nil {
		return nil, fmt.Errorf("check for %s: no such architecture", cfg)
	}
	list, err := goList(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("check for %s: %w", cfg, err)
	}
	for _, p := range list {
		c.check(p) // -deps lists a package after all that it imports
	}
	if c.report.Packages == 0 {
		return nil, fmt.Errorf("check for %s: no package of the module matches", cfg)
	}
	return &c.report, nil
}

// listed is the part of go list's output that is used here.
type listed struct {
	Dir, ImportPath   string
	Standard          bool
	GoFiles, CgoFiles []string
	ImportMap         map[string]string
	Module            *struct {
		Main      bool
		GoVersion string
	}
	Error *struct{ Pos, Err string }
}

// ours tells that the package belongs to the module that is checked.
func (p *listed) ours() bool { return !p.Standard && p.Module != nil && p.Module.Main }

func goList(ctx context.Context, cfg Config) (all []*listed, err error) {
	args := []string{"list", "-e", "-deps", "-json=Dir,ImportPath,Standard,GoFiles,CgoFiles,ImportMap,Module,Error"}
	if cfg.Tests {
		args = append(args, "-test")
	}
	if len(cfg.Overlay) > 0 {
		dir, err := os.MkdirTemp("", "crosscheck")
		if err != nil {
			return nil, err
		}
		defer os.RemoveAll(dir)
		file, err := writeOverlay(dir, cfg.Overlay)
		if err != nil {
			return nil, err
		}
		args = append(args, "-overlay", file)
	}
	patterns := cfg.Patterns
	if len(patterns) == 0 {
		patterns = []string{"./..."}
	}
	cmd := exec.CommandContext(ctx, "go", append(append(args, "--"), patterns...)...)
	cmd.Dir = cfg.Dir
	cgo := "0"
	if cfg.Cgo {
		cgo = "1"
	}
	cmd.Env = append(cmd.Environ(), "GOOS="+cfg.OS, "GOARCH="+cfg.Arch, "CGO_ENABLED="+cgo)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("go list: %w: %s", err, stderr.Bytes())
	}
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		p := new(listed)
		err := dec.Decode(p)
		if errors.Is(err, io.EOF) {
			return all, nil
		}
		if err != nil {
			return nil, fmt.Errorf("go list: %w", err)
		}
		// "unsafe" has no source to check, and a package whose path ends so is the generated main of a test.
		if p.ImportPath != "unsafe" && !strings.HasSuffix(p.ImportPath, ".test") {
			all = append(all, p)
		}
	}
}

// writeOverlay writes an overlay as the go command takes it and returns the path of its file.
func writeOverlay(dir string, overlay map[string]string) (string, error) {
	replace := make(map[string]string)
	for path, text := range overlay {
		file := filepath.Join(dir, fmt.Sprint(len(replace), ".go"))
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			return "", err
		}
		replace[path] = file
	}
	b, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		return "", err
	}
	file := filepath.Join(dir, "overlay.json")
	return file, os.WriteFile(file, b, 0o600)
}

// checker checks packages in the order of their imports.
type checker struct {
	fset    *token.FileSet
	sizes   types.Sizes
	overlay map[string]string
	pkgs    map[string]*types.Package
	seen    map[string]bool
	report  Report
}

// problem records an error once: with its tests a package is checked twice, alone and together with them.
func (c *checker) problem(err error) {
	if text := err.Error(); !c.seen[text] {
		c.seen[text] = true
		c.report.Problems = append(c.report.Problems, text)
	}
}

func (c *checker) check(p *listed) {
	if p.Error != nil && p.ours() {
		c.problem(fmt.Errorf("%s: %s: %s", p.ImportPath, p.Error.Pos, p.Error.Err))
	}
	conf := types.Config{
		FakeImportC:      true,
		IgnoreFuncBodies: !p.ours(),
		Importer:         importer{c, p.ImportMap},
		Sizes:            c.sizes,
		Error: func(err error) {
			// A type made of C types, such as *C.char, can be half invalid, and conversions of it look wrong then.
			fake := len(p.CgoFiles) > 0 && strings.Contains(err.Error(), "invalid type")
			if p.ours() && !fake {
				c.problem(err)
			}
		},
	}
	if p.Module != nil && p.Module.GoVersion != "" {
		conf.GoVersion = "go" + p.Module.GoVersion
	}
	// Its error is the first of those that Error was told.
	c.pkgs[p.ImportPath], _ = conf.Check(p.ImportPath, c.fset, c.parse(p), nil)
	if p.ours() {
		c.report.Packages++
		c.report.Cgo += len(p.CgoFiles)
	}
}

// parse reads the files of a package, and takes of those with mistakes what can be had.
func (c *checker) parse(p *listed) (files []*ast.File) {
	for _, name := range append(append([]string(nil), p.GoFiles...), p.CgoFiles...) {
		if !filepath.IsAbs(name) {
			name = filepath.Join(p.Dir, name)
		}
		var src any
		if text, ok := c.overlay[name]; ok {
			src = text
		}
		f, err := parser.ParseFile(c.fset, name, src, parser.SkipObjectResolution)
		if err != nil && p.ours() {
			var list scanner.ErrorList
			if !errors.As(err, &list) {
				c.problem(err)
			}
			for _, e := range list {
				c.problem(e)
			}
		}
		if f != nil {
			files = append(files, f)
		}
	}
	return files
}

// importer finds packages among those that were checked before.
type importer struct {
	c *checker
	m map[string]string // of the importing package
}

// Import implements types.Importer.
func (i importer) Import(path string) (*types.Package, error) {
	if path == "unsafe" {
		return types.Unsafe, nil
	}
	if p, ok := i.m[path]; ok {
		path = p
	}
	if p := i.c.pkgs[path]; p != nil {
		return p, nil
	}
	return nil, fmt.Errorf("package %q is not there", path)
}
