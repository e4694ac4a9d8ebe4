package kmod

import (
	"fmt"

	"github.com/arcboxlabs/arcbox-go/internal/bootfs"
	"github.com/arcboxlabs/arcbox-go/internal/errs"
)

// Want is a module somebody wants.
type Want struct {
	Name     string
	Stage    bootfs.Stage
	Required bool // an error where the kernel has it neither as a module nor built in
}

// Module is a chosen module.
type Module struct {
	Name    string       // normalised
	Path    string       // relative to the directory, with the suffix of its compression
	Stage   bootfs.Stage // of the first that wants it
	Deps    []string     // names of the modules it needs directly, soft ones included
	Aliases []string
	Content []byte // uncompressed
}

// Resolve returns the modules that wants name and all they need, each once, in the order in which they load. wants are
// taken in their order, which must be that of their stages. Modules the kernel has built in are left out, and so are
// modules it does not have, unless they are required: then the error is ErrNotFound.
func (t *Tree) Resolve(wants []Want) ([]Module, error) {
	r := resolver{t: t, state: map[string]bool{}}
	for _, w := range wants {
		name := Normal(w.Name)
		if t.builtin[name] {
			continue
		}
		if _, ok := t.files[name]; !ok {
			if w.Required && t.known {
				return nil, fmt.Errorf("resolve modules: %w: the kernel has no %s, neither as a module nor built in", errs.ErrNotFound, name)
			}
			continue
		}
		if err := r.add(name, w.Stage); err != nil {
			return nil, fmt.Errorf("resolve module %s: %w", name, err)
		}
	}
	return r.out, nil
}

type resolver struct {
	t     *Tree
	state map[string]bool // present: seen; true: chosen
	out   []Module
}

// add appends a module after all it needs. depth is bounded by the number of modules, since each is entered once.
func (r *resolver) add(name string, stage bootfs.Stage) error {
	if chosen, seen := r.state[name]; seen {
		if !chosen {
			return fmt.Errorf("%w: modules need each other in a circle at %s", errs.ErrInvalid, name)
		}
		return nil
	}
	r.state[name] = false
	m := Module{Name: name, Path: r.t.files[name], Stage: stage}
	var err error
	if m.Content, err = r.t.Read(m.Path); err != nil {
		return err
	}
	info, err := ParseInfo(m.Content)
	if err != nil {
		return fmt.Errorf("%s: %w", m.Path, err)
	}
	m.Aliases = info.Aliases
	deps, ok := r.t.deps[name]
	if !ok {
		deps = info.Depends
	}
	for _, d := range deps {
		if r.t.builtin[d] {
			continue
		}
		if _, ok := r.t.files[d]; !ok {
			return fmt.Errorf("%w: it needs %s, which the kernel does not have", errs.ErrNotFound, d)
		}
		if err := r.add(d, stage); err != nil {
			return err
		}
		m.Deps = append(m.Deps, d)
	}
	if err := r.soft(&m, info); err != nil {
		return err
	}
	r.state[name] = true
	r.out = append(r.out, m)
	return nil
}

// soft adds the modules that m would like to have. Circles among soft dependencies are allowed, and one is left out there.
func (r *resolver) soft(m *Module, info *Info) error {
	for _, s := range info.Soft {
		d := Normal(s)
		if _, ok := r.t.files[d]; !ok || r.t.builtin[d] {
			continue // an alias or a module of another configuration
		}
		if chosen, seen := r.state[d]; seen && !chosen {
			continue
		}
		if err := r.add(d, m.Stage); err != nil {
			return err
		}
		m.Deps = append(m.Deps, d)
	}
	return nil
}
