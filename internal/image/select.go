package image

import (
	"context"
	"fmt"
	"path"
	"strings"
	"time"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
	"github.com/distribution/reference"
)

// Filter chooses images. An image has to pass every field that is set.
type Filter struct {
	References []string // patterns such as "alpine", "team/*:1.*"; one of them must match one name
	Dangling   *bool    // whether it has no name
	Labels     []string // "key" or "key=value", all of them
	Before     string   // a reference: images created before that one
	Since      string   // a reference: images created after that one
}

// Select returns the images that pass a filter, newest first. Of names that a pattern does not match none are listed. A
// malformed pattern is errs.ErrInvalid, an unknown image in Before or Since errs.ErrNotFound.
func (s *Store) Select(ctx context.Context, f Filter) ([]Image, error) {
	pass, err := s.compile(ctx, f)
	if err != nil {
		return nil, err
	}
	all, err := s.List(ctx)
	if err != nil {
		return nil, err
	}
	out := all[:0]
	for _, img := range all {
		if pass(&img) {
			out = append(out, img)
		}
	}
	return out, nil
}

// compile makes a test of a filter. The test takes names away that no pattern matches.
func (s *Store) compile(ctx context.Context, f Filter) (func(*Image) bool, error) {
	for _, p := range f.References {
		if _, err := path.Match(p, ""); p == "" || err != nil {
			return nil, fmt.Errorf("pattern %q of references is malformed: %w", p, errs.ErrInvalid)
		}
	}
	for _, l := range f.Labels {
		if key, _, _ := strings.Cut(l, "="); key == "" {
			return nil, fmt.Errorf("label filter %q, use key or key=value: %w", l, errs.ErrInvalid)
		}
	}
	var before, since time.Time
	for ref, at := range map[string]*time.Time{f.Before: &before, f.Since: &since} {
		if ref == "" {
			continue
		}
		img, err := s.Get(ctx, ref)
		if err != nil {
			return nil, err
		}
		*at = img.Created
	}
	return func(img *Image) bool {
		switch {
		case f.Before != "" && !img.Created.Before(before), f.Since != "" && !img.Created.After(since):
			return false
		case f.Dangling != nil && *f.Dangling != (len(img.Names) == 0):
			return false
		case len(f.References) > 0 && !matchNames(img, f.References):
			return false
		}
		return hasLabels(img.Config.Labels, f.Labels)
	}, nil
}

// matchNames keeps the names that one of the patterns matches, as Docker reads them: against the familiar name, with or
// without its tag.
func matchNames(img *Image, patterns []string) bool {
	var kept []string
	for _, name := range img.Names {
		named, err := parseRef(name)
		if err != nil {
			continue
		}
		for _, p := range patterns {
			if ok, _ := reference.FamiliarMatch(p, named); ok || p == name {
				kept = append(kept, name)
				break
			}
		}
	}
	img.Names = kept
	return len(kept) > 0
}

func hasLabels(has map[string]string, want []string) bool {
	for _, l := range want {
		key, value, exact := strings.Cut(l, "=")
		if v, ok := has[key]; !ok || (exact && v != value) {
			return false
		}
	}
	return true
}
