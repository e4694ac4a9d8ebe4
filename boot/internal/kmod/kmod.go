// Package kmod chooses kernel modules on the host: from a directory of modules, as packages ship them or depmod left
// them, it resolves names to files in the order in which they load.
//
// Packages carry no modules.dep, since depmod makes it at installation. Dependencies are then read from the modules
// themselves: each names those it needs in its .modinfo section.
package kmod

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/arcboxlabs/arcbox-go/boot/internal/codec"
	"github.com/arcboxlabs/arcbox-go/internal/errs"
)

// The bounds of a directory of modules.
const (
	maxModules = 50_000
	MaxSize    = 64 << 20 // of one module in bytes, unpacked
)

// Tree is a directory of modules, like /lib/modules/6.1.0-56-cloud-amd64. It is used by one goroutine.
type Tree struct {
	root    *os.Root
	files   map[string]string   // normalised name to path
	deps    map[string][]string // normalised name to names, from modules.dep; nil where it is missing
	builtin map[string]bool
	known   bool // modules.builtin exists
}

// Open reads the index of the modules in dir. The caller closes the Tree. A directory that does not exist is
// ErrNotFound.
func Open(dir string) (*Tree, error) {
	root, err := os.OpenRoot(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("open modules: %w: %s", errs.ErrNotFound, dir)
	}
	if err != nil {
		return nil, fmt.Errorf("open modules: %w", err)
	}
	t := &Tree{root: root, files: map[string]string{}, builtin: map[string]bool{}}
	if err := t.index(); err != nil {
		_ = root.Close()
		return nil, fmt.Errorf("index modules of %s: %w", dir, err)
	}
	return t, nil
}

// Close releases the directory.
func (t *Tree) Close() error { return t.root.Close() }

// Len returns the number of modules.
func (t *Tree) Len() int { return len(t.files) }

// Builtin tells whether the kernel has the module built in. known is false where the directory does not say.
func (t *Tree) Builtin(name string) (yes, known bool) { return t.builtin[Normal(name)], t.known }

// Normal returns the form of a module's name that the kernel uses: without directory and suffix, '_' for '-'.
func Normal(name string) string {
	name = path.Base(name)
	if i := strings.Index(name, ".ko"); i > 0 {
		name = name[:i]
	}
	return strings.ReplaceAll(name, "-", "_")
}

func (t *Tree) index() error {
	err := fs.WalkDir(t.root.FS(), ".", func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if !d.Type().IsRegular() || !isModule(p) {
			return nil
		}
		if len(t.files) == maxModules {
			return fmt.Errorf("%w: more than %d modules", errs.ErrInvalid, maxModules)
		}
		name := Normal(p)
		// depmod prefers what an administrator added (updates/, extra/) to what came with the kernel.
		if old, ok := t.files[name]; !ok || strings.HasPrefix(old, "kernel/") {
			t.files[name] = p
		}
		return nil
	})
	if err != nil {
		return err
	}
	t.known, err = t.lines("modules.builtin", func(line string) { t.builtin[Normal(line)] = true })
	if err != nil {
		return err
	}
	deps := map[string][]string{}
	found, err := t.lines("modules.dep", func(line string) {
		file, list, ok := strings.Cut(line, ":")
		if !ok {
			return
		}
		name := Normal(file)
		deps[name] = []string{}
		for _, d := range strings.Fields(list) {
			deps[name] = append(deps[name], Normal(d))
		}
		if p := path.Clean(file); fs.ValidPath(p) && isModule(p) {
			if _, err := t.root.Lstat(filepath.FromSlash(p)); err == nil {
				t.files[name] = p // depmod's choice among files of one name
			}
		}
	})
	if found {
		t.deps = deps
	}
	return err
}

func isModule(p string) bool {
	base := path.Base(p)
	for _, suffix := range []string{".ko", ".ko.xz", ".ko.zst", ".ko.gz"} {
		if strings.HasSuffix(base, suffix) && len(base) > len(suffix) {
			return true
		}
	}
	return false
}

func (t *Tree) lines(name string, each func(string)) (found bool, err error) {
	f, err := t.root.Open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer func() { _ = f.Close() }()
	s := bufio.NewScanner(f)
	s.Buffer(nil, 1<<20)
	for s.Scan() {
		if line := strings.TrimSpace(s.Text()); line != "" {
			each(line)
		}
	}
	if err := s.Err(); err != nil {
		return false, fmt.Errorf("read %s: %w", name, err)
	}
	return true, nil
}

// Read returns the uncompressed content of the module at path p, relative to the directory.
func (t *Tree) Read(p string) ([]byte, error) {
	f, err := t.root.Open(filepath.FromSlash(p))
	if err != nil {
		return nil, fmt.Errorf("open module: %w", err)
	}
	defer func() { _ = f.Close() }()
	br := bufio.NewReader(f)
	head, _ := br.Peek(8)
	z, err := codec.NewReader(br, codec.Detect(head))
	if err != nil {
		return nil, fmt.Errorf("read module %s: %w", p, err)
	}
	defer func() { _ = z.Close() }()
	b, err := io.ReadAll(io.LimitReader(z, MaxSize+1))
	if err != nil {
		return nil, fmt.Errorf("read module %s: %w", p, err)
	}
	if len(b) > MaxSize {
		return nil, fmt.Errorf("read module %s: %w: larger than %d MiB", p, errs.ErrInvalid, MaxSize>>20)
	}
	return b, nil
}
