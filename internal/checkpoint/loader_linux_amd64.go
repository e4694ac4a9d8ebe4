package checkpoint

import (
	"bytes"
	"fmt"
	"unsafe"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
)

// loaderCode returns the address of the loader, the code that runs a script. It is never called in this process.
func loaderCode() unsafe.Pointer

// loaderText returns a copy of the loader.
func loaderText() ([]byte, error) {
	const most = dataAt - codeAt
	text := unsafe.Slice((*byte)(loaderCode()), most)
	n := bytes.Index(text, []byte{0x0f, 0x0b, 0x0f, 0x0b, 0x0f, 0x0b, 0x0f, 0x0b}) // UNDEF
	if n < 0 {
		return nil, fmt.Errorf("the loader has more than %d bytes: %w", most, errs.ErrUnsupported)
	}
	return bytes.Clone(text[:n+8]), nil
}
