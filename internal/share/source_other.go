//go:build !linux

package share

import (
	"fmt"
	"os"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
)

// openPath opens a directory of the host, which is read only: what writes has the structures and the calls of Linux.
func openPath(src Source) (*served, bool, error) {
	st, err := os.Stat(src.Path)
	switch {
	case err != nil:
		return nil, false, err
	case !src.ReadOnly || !st.IsDir():
		return nil, false, fmt.Errorf("%w: from this system directories are shared, read-only", errs.ErrUnsupported)
	}
	return openRoot(src.Path)
}

// hostError is the number of an error of the host's system in the guest. They are not the same.
func hostError(error) errno { return eIO }
