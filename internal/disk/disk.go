// Package disk makes the data disks of machines: sparse raw files with an empty ext4, without a tool of the host.
//
// Making an ext4 of 64 GiB takes a second or two, although all it consists of is a few MiB of blocks between holes. So it
// is made once for each size, in memory, and kept as a template: a file of those blocks, packed, with a checksum. A disk
// is made by writing the template's blocks into a new sparse file, which takes milliseconds on every file system.
package disk

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
	"github.com/arcboxlabs/arcbox-go/internal/fsx"
)

// The sizes of disks, in bytes. Others than multiples of Unit are rounded up.
const (
	DefaultSize = 64 << 30
	MinSize     = 256 << 20
	MaxSize     = 1 << 40
	Unit        = 128 << 20 // a block group of ext4
)

// Options tune Create. The zero value makes a disk that survives a power cut once Create has returned.
type Options struct {
	Temporary bool // the disk is not kept for longer than this process runs: it is not synced
}

// Create makes a disk at path: a sparse file of size bytes, 0 for DefaultSize, mode 0600, with an empty ext4. Templates
// are kept in cacheDir, which is made where it does not exist and which any number of processes may share; path and
// cacheDir need not be on one file system.
//
// A file at path is ErrExists and stays as it is, a size out of bounds ErrInvalid. After an error there is no file. When
// ctx ends first, the error is that of ctx.
func Create(ctx context.Context, cacheDir, path string, size int64, opts Options) error {
	size, err := Round(size)
	if err != nil {
		return fmt.Errorf("create disk: %w", err)
	}
	if _, err := os.Lstat(path); err == nil {
		return fmt.Errorf("create disk %s: %w", path, errs.ErrExists)
	} else if !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("create disk: %w", err)
	}
	t, err := template(ctx, cacheDir, size)
	if err != nil {
		return fmt.Errorf("create disk %s: %w", path, err)
	}
	if err := t.writeTo(ctx, path, opts); err != nil {
		return fmt.Errorf("create disk %s: %w", path, err)
	}
	return nil
}

// Round returns the size a disk gets that is asked for with size bytes, 0 for the default. It returns ErrInvalid for a
// size out of bounds.
func Round(size int64) (int64, error) {
	if size == 0 {
		return DefaultSize, nil
	}
	if size < MinSize || size > MaxSize {
		return 0, fmt.Errorf("%w disk size %d: it is in bytes; use %d to %d, or 0 for the default", errs.ErrInvalid, size, int64(MinSize), int64(MaxSize))
	}
	return (size + Unit - 1) / Unit * Unit, nil
}

// writeTo makes the disk.
func (t *packed) writeTo(ctx context.Context, path string, opts Options) error {
	f, err := fsx.Create(path, 0o600)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	if err := setSparse(f.File); err != nil {
		return fmt.Errorf("make %s sparse: %w", path, err)
	}
	if err := f.Truncate(t.size); err != nil {
		return fmt.Errorf("set size: %w", err)
	}
	for _, r := range t.runs {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		if _, err := f.WriteAt(r.data, r.offset); err != nil {
			return err
		}
	}
	if !opts.Temporary {
		return f.Commit()
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	return f.File.Close() // File.Close finds no temporary file any more
}

// templateLock is the name of the lock that who makes a template holds.
const templateLock = "lock"

// template returns the template of a size from the cache. Where there is none, or a damaged one, it is made.
func template(ctx context.Context, cacheDir string, size int64) (*packed, error) {
	path := filepath.Join(cacheDir, fmt.Sprintf("ext4-%d-%dm", layout, size>>20))
	if t, err := readTemplate(path, size); err == nil {
		return t, nil
	}
	if err := os.MkdirAll(cacheDir, 0o700); err != nil {
		return nil, fmt.Errorf("make cache: %w", err)
	}
	unlock, err := fsx.Lock(ctx, filepath.Join(cacheDir, templateLock), true)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if t, err := readTemplate(path, size); err == nil { // somebody has made it meanwhile
		return t, nil
	}
	if err := fsx.SweepTemp(cacheDir, time.Now()); err != nil { // nobody else writes while the lock is held
		return nil, err
	}
	t, err := build(ctx, size)
	if err != nil {
		return nil, err
	}
	if err := fsx.WriteFile(path, t.encode(), 0o600); err != nil {
		return nil, fmt.Errorf("keep template: %w", err)
	}
	return t, nil
}

func readTemplate(path string, size int64) (*packed, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	t, err := decode(b)
	if err == nil && t.size != size {
		err = errs.ErrCorrupt
	}
	return t, err
}
