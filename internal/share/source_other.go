//go:build !linux

package share

import (
	"fmt"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
)

type served struct{}

func (*served) serve(Stream) {}
func (*served) close()       {}

// openSource is there on Linux only: the library for the protocol has the structures of the system it is built for.
func openSource(Source) (*served, bool, error) {
	return nil, false, fmt.Errorf("share files with a guest from this system: %w", errs.ErrUnsupported)
}
