// Package fsx writes files so that a crash leaves either the old content or the new one, and locks files between
// processes.
//
// WriteFile and File write under a temporary name beside the target, sync, rename, and sync the directory. Temporary
// names begin with TempPrefix, so an owner of a directory can tell what a crash left behind (see SweepTemp). Replace leaves
// out the syncs, for what must survive the program at once and a power cut a little later.
package fsx

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
)

// TempPrefix begins the name of every temporary file this package makes.
const TempPrefix = ".tmp-"

// WriteFile replaces the content of path by data in one step and makes it durable: a reader sees the old file or the
// whole new one, and after a return without error the new one survives a power cut. The file gets exactly perm, whatever
// the umask. The directory must exist. On an error the old file is untouched and no temporary file is left.
func WriteFile(path string, data []byte, perm fs.FileMode) error {
	f, err := Create(path, perm)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	if _, err := f.Write(data); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return f.Commit()
}

// Replace is WriteFile without the syncs: after a return without error the new content survives the end of the process,
// however that comes, and a power cut only after Sync.
func Replace(path string, data []byte, perm fs.FileMode) error {
	f, err := Create(path, perm)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	if _, err := f.Write(data); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return f.rename()
}

// ReadRegular reads a regular file, and of a longer one the first max bytes and one more: the caller tells by that. What is
// no regular file is errs.ErrCorrupt.
func ReadRegular(path string, max int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() {
		return nil, fmt.Errorf("%w: not a regular file", errs.ErrCorrupt)
	}
	return io.ReadAll(io.LimitReader(f, max+1))
}

// Sync makes what a file has durable. The directory, where its name is, takes SyncDir.
func Sync(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("sync: %w", err)
	}
	err = f.Sync()
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return fmt.Errorf("sync %s: %w", path, err)
	}
	return nil
}

// File is a file that becomes visible under its name only when Commit succeeds. It is used by one goroutine at a time.
type File struct {
	*os.File
	path string
	done bool
}

// Create opens a new temporary file beside path for reading and writing. Close without Commit removes it.
func Create(path string, perm fs.FileMode) (*File, error) {
	return CreateIn(filepath.Dir(path), path, perm)
}

// CreateIn is Create with the temporary file in the directory tmp, which must be on the file system of path.
func CreateIn(tmp, path string, perm fs.FileMode) (*File, error) {
	base := filepath.Base(path)
	if len(base) > 100 {
		base = base[:100]
	}
	f, err := os.CreateTemp(tmp, TempPrefix+base+"-*")
	if err != nil {
		return nil, fmt.Errorf("create temporary file for %s: %w", path, err)
	}
	t := &File{File: f, path: path}
	if err := f.Chmod(perm); err != nil && !errors.Is(err, errors.ErrUnsupported) {
		_ = t.Close()
		return nil, fmt.Errorf("set mode of %s: %w", path, err)
	}
	return t, nil
}

// Commit syncs the file, closes it, gives it its name in place of whatever had that name, and syncs the directory. After
// an error the temporary file is gone. A second call returns an error that wraps fs.ErrClosed.
func (f *File) Commit() error {
	if f.done {
		return fmt.Errorf("commit %s: %w", f.path, fs.ErrClosed)
	}
	if err := f.Sync(); err != nil {
		_ = f.Close()
		return fmt.Errorf("sync %s: %w", f.path, err)
	}
	if err := f.rename(); err != nil {
		return err
	}
	return SyncDir(filepath.Dir(f.path))
}

// rename closes the file and gives it its name. After an error the temporary file is gone.
func (f *File) rename() error {
	f.done = true
	if err := f.File.Close(); err != nil {
		_ = os.Remove(f.Name())
		return fmt.Errorf("close %s: %w", f.path, err)
	}
	if err := os.Rename(f.Name(), f.path); err != nil {
		_ = os.Remove(f.Name())
		return fmt.Errorf("rename to %s: %w", f.path, err)
	}
	return nil
}

// Close discards the file if it was not committed. Further calls do nothing.
func (f *File) Close() error {
	if f.done {
		return nil
	}
	f.done = true
	err := f.File.Close()
	if rerr := os.Remove(f.Name()); rerr != nil && !errors.Is(rerr, fs.ErrNotExist) {
		return fmt.Errorf("remove temporary file of %s: %w", f.path, rerr)
	}
	if err != nil {
		return fmt.Errorf("close %s: %w", f.path, err)
	}
	return nil
}

// SweepTemp removes the temporary files of this package in dir that were last written before the given time. The caller
// holds a lock, or picks a time, that excludes files still being written. A directory that does not exist is no error.
func SweepTemp(dir string, before time.Time) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("list %s: %w", dir, err)
	}
	var all []error
	for _, e := range entries {
		if !e.Type().IsRegular() || !strings.HasPrefix(e.Name(), TempPrefix) {
			continue
		}
		info, err := e.Info()
		if err != nil || !info.ModTime().Before(before) {
			continue
		}
		if err := os.Remove(filepath.Join(dir, e.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
			all = append(all, fmt.Errorf("remove left-over: %w", err))
		}
	}
	return errors.Join(all...)
}
