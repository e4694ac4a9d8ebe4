package share

import (
	"fmt"
	"sync"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
)

// served is a file system that can be served once.
type served struct {
	raw  fuse.RawFileSystem
	end  func()
	once sync.Once
}

func (f *served) serve(s Stream) { serve(f.raw, s) }

func (f *served) close() { f.once.Do(f.end) }

// openSource opens what is shared. file tells that its root is a regular file.
func openSource(src Source) (f *served, file bool, err error) {
	if src.FS != nil {
		v := newValue(src.FS)
		return &served{raw: v, end: v.close}, false, nil
	}
	d, file, err := openDir(src.Path, src.ReadOnly)
	if err != nil {
		return nil, false, fmt.Errorf("share %q: %w: %w", src.Path, errs.ErrInvalid, err)
	}
	return &served{raw: d, end: d.close}, file, nil
}
