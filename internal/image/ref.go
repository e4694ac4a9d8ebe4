package image

import (
	"fmt"
	"regexp"
	"strings"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
	"github.com/distribution/reference"
)

// maxRef bounds a reference before it is parsed; the longest valid one is shorter.
const maxRef = 1024

// Normalize returns a reference in full, as Docker reads it: "alpine" is "docker.io/library/alpine:latest". A reference
// with a tag and a digest keeps both. Errors wrap errs.ErrInvalid.
func Normalize(ref string) (string, error) {
	named, err := parseRef(ref)
	if err != nil {
		return "", err
	}
	return named.String(), nil
}

func parseRef(ref string) (reference.Named, error) {
	if len(ref) > maxRef {
		return nil, fmt.Errorf("image reference of %d bytes: %w", len(ref), errs.ErrInvalid)
	}
	named, err := reference.ParseNormalizedNamed(ref)
	if err != nil {
		return nil, fmt.Errorf("image reference %q: %w (%w)", ref, err, errs.ErrInvalid)
	}
	if d, ok := named.(reference.Digested); ok {
		if err := checkDigest(d.Digest()); err != nil {
			return nil, fmt.Errorf("image reference %q: %w", ref, err)
		}
	}
	return reference.TagNameOnly(named), nil
}

var shortID = regexp.MustCompile(`^[0-9a-f]{4,64}$`)

// idPrefix returns the hexadecimal digits of what may be an image ID or the start of one.
func idPrefix(ref string) (string, bool) {
	hex := strings.TrimPrefix(ref, "sha256:")
	return hex, shortID.MatchString(hex)
}
