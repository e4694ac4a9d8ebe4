package disk

import (
	"os"

	"golang.org/x/sys/windows"
)

// setSparse lets a file have holes.
func setSparse(f *os.File) error {
	var n uint32
	return windows.DeviceIoControl(windows.Handle(f.Fd()), windows.FSCTL_SET_SPARSE, nil, 0, nil, 0, &n, nil)
}
