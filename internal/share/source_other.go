//go:build !linux && !darwin

package share

import (
	"fmt"
	"runtime"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
)

// openPath refuses: what serves directories has the calls of Unix.
func openPath(Source) (*served, bool, error) {
	return nil, false, fmt.Errorf("%w: directories of %s cannot be shared, an fs.FS can", errs.ErrUnsupported, runtime.GOOS)
}

// openTree refuses as openPath.
func openTree(path string, readOnly bool) (*served, bool, error) {
	return openPath(Source{Path: path, ReadOnly: readOnly})
}

// hostError is the number of an error of the host's system in the guest. They are not the same.
func hostError(error) errno { return eIO }
