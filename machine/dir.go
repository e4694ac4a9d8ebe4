package machine

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/arcboxlabs/arcbox-go/internal/disk"
	"github.com/arcboxlabs/arcbox-go/internal/errs"
	"github.com/arcboxlabs/arcbox-go/internal/fsx"
	"github.com/arcboxlabs/arcbox-go/vm"
)

// The files in a machine's directory.
const (
	lockFile  = "lock"     // locked by the owner as long as it has the machine
	ownerFile = "owner"    // the owner's process number, for messages; locked as lockFile is, for those who only ask
	diskFile  = "disk.img" // the data disk
)

// What the names of directories of machines begin with that are gone with their owner, and of those that are being
// removed: nobody takes these any more. No machine's name begins so.
const (
	privatePrefix = ".private-"
	removedPrefix = ".removed-"
)

// maxName bounds a machine's name, in bytes.
const maxName = 63

// Dir is the directory of a machine: its data disk, and whatever else belongs to it. One Dir at a time, in all processes,
// has the directory, from OpenDir to Close or to the end of its process.
type Dir struct {
	path    string
	private bool
	unlock  func()
	once    sync.Once
	err     error
}

// CheckName returns ErrInvalid for what cannot be a machine's name: one has 1 to 63 letters, digits, '-', '_' and '.', and
// begins with a letter or a digit.
func CheckName(name string) error {
	word := func(r rune) bool {
		return 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9'
	}
	bad := name == "" || len(name) > maxName || !word(rune(name[0]))
	for _, r := range name {
		bad = bad || !word(r) && !strings.ContainsRune("-_.", r)
	}
	if bad {
		return fmt.Errorf("%w machine name %.80q: use 1 to %d letters, digits, '-', '_' and '.', a letter or digit first",
			errs.ErrInvalid, name, maxName)
	}
	return nil
}

// OpenDir takes the directory of the machine with the name, below parent. Both are made, with mode 0700, where they do not
// exist. A bad name is ErrInvalid. A directory that somebody else has is ErrInUse, at once, and the error names the
// process.
func OpenDir(parent, name string) (*Dir, error) {
	if err := CheckName(name); err != nil {
		return nil, err
	}
	path := filepath.Join(parent, name)
	d, err := takeDir(path, false)
	if err != nil {
		return nil, fmt.Errorf("open machine %s: %w", name, err)
	}
	return d, nil
}

// WaitDir is OpenDir that waits for another one who has the directory, for at most the timeout. 0 and less does not wait.
func WaitDir(ctx context.Context, parent, name string, timeout time.Duration) (*Dir, error) {
	d, err := OpenDir(parent, name)
	if !errors.Is(err, errs.ErrInUse) || timeout <= 0 {
		return d, err
	}
	waiting, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	for { // another one may be faster whenever it is free
		unlock, lerr := fsx.Lock(waiting, filepath.Join(parent, name, lockFile), true)
		if ctx.Err() != nil {
			return nil, fmt.Errorf("open machine %s: %w", name, context.Cause(ctx))
		}
		if lerr != nil {
			return nil, fmt.Errorf("%w; it was not free within %s", err, timeout)
		}
		unlock()
		if d, err = OpenDir(parent, name); !errors.Is(err, errs.ErrInUse) {
			return d, err
		}
	}
}

// OpenPrivateDir makes a directory of its own below parent for a machine that leaves nothing: Close removes it with all
// that is in it. What earlier ones left behind whose process was killed is removed first.
func OpenPrivateDir(parent string) (*Dir, error) {
	if err := os.MkdirAll(parent, 0o700); err != nil {
		return nil, fmt.Errorf("make directory of machines: %w", err)
	}
	Sweep(parent)
	for {
		path, err := os.MkdirTemp(parent, privatePrefix+"*")
		if err != nil {
			return nil, fmt.Errorf("make directory of a machine: %w", err)
		}
		d, err := takeDir(path, true)
		if errors.Is(err, errs.ErrInUse) || errors.Is(err, fs.ErrNotExist) {
			continue // somebody sweeps, and has found it before it was locked
		}
		if err != nil {
			return nil, errors.Join(fmt.Errorf("make directory of a machine: %w", err), os.RemoveAll(path))
		}
		return d, nil
	}
}

// Sweep removes the private directories below parent that nobody has, and what is left of those that were being removed.
// What cannot be removed is left to the next one.
func Sweep(parent string) {
	entries, _ := os.ReadDir(parent)
	for _, e := range entries {
		path := filepath.Join(parent, e.Name())
		switch {
		case strings.HasPrefix(e.Name(), removedPrefix):
			_ = os.RemoveAll(path)
		case strings.HasPrefix(e.Name(), privatePrefix):
			if d, err := takeDir(path, true); err == nil {
				_ = d.Close()
			}
		}
	}
}

// takeDir locks a directory. One that is private must exist.
func takeDir(path string, private bool) (*Dir, error) {
	if !private {
		if err := os.MkdirAll(path, 0o700); err != nil {
			return nil, err
		}
	}
	unlock, err := fsx.TryLock(filepath.Join(path, lockFile), true)
	if errors.Is(err, errs.ErrInUse) {
		return nil, fmt.Errorf("%w by %s: use another data directory, or end that program", errs.ErrInUse, owner(path))
	}
	if err != nil {
		return nil, err
	}
	disown, err := own(filepath.Join(path, ownerFile))
	if err != nil {
		unlock()
		return nil, err
	}
	return &Dir{path: path, private: private, unlock: func() { disown(); unlock() }}, nil
}

// own locks the file of the owner, which those who ask hold for a moment only, and writes into it who that is.
func own(file string) (unlock func(), err error) {
	ctx, cancel := context.WithTimeout(context.Background(), askTimeout)
	defer cancel()
	if unlock, err = fsx.Lock(ctx, file, true); err != nil {
		return nil, err
	}
	if err := os.WriteFile(file, []byte(strconv.Itoa(os.Getpid())+"\n"), 0o600); err != nil {
		unlock()
		return nil, err
	}
	return unlock, nil
}

// askTimeout is far above what it takes somebody to ask for the owner.
const askTimeout = 10 * time.Second

// Owner tells whether somebody has the directory of a machine below parent, and who: "process 12", for a message. Asking
// hinders nobody who takes the directory at the same time.
func Owner(parent, name string) (who string, taken bool) {
	path := filepath.Join(parent, name)
	file := filepath.Join(path, ownerFile)
	if _, err := os.Stat(file); err != nil {
		return "", false
	}
	unlock, err := fsx.TryLock(file, false)
	if errors.Is(err, errs.ErrInUse) {
		return owner(path), true
	}
	if err == nil {
		unlock()
	}
	return "", false
}

// owner says who has a directory that is locked.
func owner(path string) string {
	b, err := os.ReadFile(filepath.Join(path, ownerFile))
	pid, perr := strconv.Atoi(strings.TrimSpace(string(b)))
	switch {
	case err != nil || perr != nil: // it has only just taken the directory
		return "another process"
	case pid == os.Getpid():
		return "this process"
	}
	return "process " + strconv.Itoa(pid)
}

// Path returns the directory's path.
func (d *Dir) Path() string { return d.path }

// HasData tells whether there is a data disk.
func (d *Dir) HasData() bool {
	for _, name := range []string{diskFile, overlayFile} {
		if _, err := os.Lstat(filepath.Join(d.path, name)); !errors.Is(err, fs.ErrNotExist) {
			return true
		}
	}
	return false
}

// Private tells whether Close removes the directory.
func (d *Dir) Private() bool { return d.private }

// Remove closes the directory and removes it with all that is in it. The machine must have ended.
func (d *Dir) Remove() error {
	d.private = true
	return d.Close()
}

// Publish gives a private directory a name beside it, under which it stays, and closes it. A name that is taken is an
// error, after which the directory is as it was.
func (d *Dir) Publish(name string) error {
	if !d.private {
		return fmt.Errorf("publish directory: %w: it is not private", errs.ErrInvalid)
	}
	to := filepath.Join(filepath.Dir(d.path), name)
	if _, err := os.Lstat(to); err == nil {
		return fmt.Errorf("publish directory %s: %w", name, errs.ErrExists)
	}
	if err := os.Remove(filepath.Join(d.path, ownerFile)); err != nil {
		return err
	}
	if err := os.Rename(d.path, to); err != nil {
		return err
	}
	d.once.Do(func() {
		d.err = errors.Join(os.Remove(filepath.Join(to, lockFile)), fsx.SyncDir(filepath.Dir(to)))
		d.unlock()
	})
	return d.err
}

// Close gives the directory back, and removes it where it is private. The machine must have ended. A second call does
// nothing and returns the same.
func (d *Dir) Close() error {
	d.once.Do(func() {
		if d.private {
			d.err = removeTaken(d.path)
		} else {
			d.err = os.Remove(filepath.Join(d.path, ownerFile))
		}
		d.unlock()
		if d.err != nil {
			d.err = fmt.Errorf("close machine directory: %w", d.err)
		}
	})
	return d.err
}

// RemovedName returns the name that a directory beside those of machines gets before its content is removed: what is left
// of it after a crash is swept with what private directories have left.
func RemovedName(name string) string { return removedPrefix + name }

// removeTaken removes a directory whose lock is held. Somebody who tries the lock would make the file again, so the
// directory gets another name first.
func removeTaken(path string) error {
	removed := filepath.Join(filepath.Dir(path), removedPrefix+strings.TrimPrefix(filepath.Base(path), privatePrefix))
	if err := os.Rename(path, removed); err != nil {
		return err
	}
	return os.RemoveAll(removed)
}

// dataDisk returns the path of the machine's data disk, which is made with the size where there is none. A disk that is
// there keeps its size. One whose file was cut short is ErrCorrupt: a guest that has it in a bay does not see where it ends.
func (d *Dir) dataDisk(ctx context.Context, cache string, size int64, log *slog.Logger) (vm.Disk, error) {
	out := vm.Disk{ID: dataDiskID, Path: filepath.Join(d.path, diskFile)}
	if err := os.RemoveAll(filepath.Join(d.path, fromDir)); err != nil { // what it went on from, or half of it
		return out, fmt.Errorf("data disk: %w", err)
	}
	overlay := filepath.Join(d.path, overlayFile)
	if _, err := os.Lstat(overlay); err == nil {
		out.Path, out.Backing = overlay, filepath.Join(d.path, baseFile)
	}
	path := out.Path
	st, err := os.Stat(path)
	switch {
	case err == nil && !st.Mode().IsRegular():
		return out, fmt.Errorf("data disk %s: %w: it is no regular file", path, errs.ErrCorrupt)
	case err == nil:
		return out, disk.Check(cmp.Or(out.Backing, path))
	case !errors.Is(err, fs.ErrNotExist):
		return out, fmt.Errorf("data disk: %w", err)
	}
	if err := fsx.SweepTemp(d.path, time.Now()); err != nil { // nobody else writes here
		log.Debug("sweep machine directory", "err", err)
	}
	if err := disk.Create(ctx, cache, path, size, disk.Options{Temporary: d.private}); err != nil {
		return out, err
	}
	return out, nil
}
