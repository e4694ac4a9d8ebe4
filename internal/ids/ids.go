// Package ids finds things by the beginnings of their ids.
package ids

import (
	"fmt"
	"iter"
	"slices"
	"strings"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
)

// maxNamed is how many ids an error names.
const maxNamed = 8

// Find returns the only id of all that begins with ref. None is ErrNotFound, as for an empty ref, and several are
// ErrInvalid. kind is what the ids are of, for the error.
func Find(kind, ref string, all iter.Seq[string]) (string, error) {
	var found []string
	for id := range all {
		if ref != "" && strings.HasPrefix(id, ref) {
			found = append(found, id)
		}
	}
	switch len(found) {
	case 0:
		return "", fmt.Errorf("%s %w: no id, name or prefix is %.100q", kind, errs.ErrNotFound, ref)
	case 1:
		return found[0], nil
	}
	slices.Sort(found)
	more := ""
	if len(found) > maxNamed {
		found, more = found[:maxNamed], " and more"
	}
	for i, id := range found {
		found[i] = id[:min(len(id), max(12, len(ref)+4))]
	}
	return "", fmt.Errorf("%w %s %.100q: the prefix fits %s%s", errs.ErrInvalid, kind, ref, strings.Join(found, ", "), more)
}
