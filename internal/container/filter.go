package container

import (
	"cmp"
	"slices"
	"strings"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
)

// Filter says which containers List returns. The zero value is all. Fields are joined by and, the entries of States by or.
type Filter struct {
	States []State
	Labels []string // key, or key=value
	Name   string   // part of the name
	Image  string   // as the spec named it, without a tag or with it, or the image's id or a prefix of it
	Limit  int      // only the newest; 0 is all
}

func (f Filter) validate() error {
	for _, s := range f.States {
		if _, ok := transitions[s]; !ok {
			return invalid("state", clip(string(s)), "use created, running, paused, restarting, exited, removing or dead")
		}
	}
	if f.Limit < 0 {
		return invalid("limit", "negative", "use 1 or more, or 0 for all")
	}
	return nil
}

func (f Filter) fits(i Info) bool {
	if len(f.States) > 0 && !slices.Contains(f.States, i.State) {
		return false
	}
	for _, l := range f.Labels {
		k, v, valued := strings.Cut(l, "=")
		if got, ok := i.Labels[k]; !ok || valued && got != v {
			return false
		}
	}
	return strings.Contains(i.Name, f.Name) && f.fitsImage(i)
}

func (f Filter) fitsImage(i Info) bool {
	if f.Image == "" || i.Image == f.Image || i.ImageID == f.Image {
		return true
	}
	_, hex, _ := strings.Cut(i.ImageID, ":")
	if len(f.Image) >= 6 && strings.HasPrefix(hex, f.Image) {
		return true
	}
	rest, ok := strings.CutPrefix(i.Image, f.Image)
	return ok && (rest[0] == ':' && !strings.Contains(rest, "/") || rest[0] == '@')
}

// List returns the containers that fit, oldest first.
func (m *Manager) List(f Filter) ([]Info, error) {
	if err := f.validate(); err != nil {
		return nil, err
	}
	others := m.foreigners()
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return nil, errs.ErrClosed
	}
	found := make([]*Info, 0, len(m.entries)+len(others))
	for _, e := range m.entries {
		if f.fits(e.info) {
			found = append(found, &e.info)
		}
	}
	for i := range others {
		if f.fits(others[i]) && m.entries[others[i].ID] == nil { // it may have become ours
			found = append(found, &others[i])
		}
	}
	slices.SortFunc(found, func(a, b *Info) int {
		return cmp.Or(a.Created.Compare(b.Created), strings.Compare(a.ID, b.ID))
	})
	if f.Limit > 0 && len(found) > f.Limit {
		found = found[len(found)-f.Limit:]
	}
	out := make([]Info, len(found))
	for i := range found {
		out[i] = found[i].clone()
	}
	return out, nil
}
