package fsx

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync"
	"time"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
)

// How long Lock waits between two tries: first and longest. A try costs three system calls, so the longest is a delay
// that nobody notices at next to no load.
const (
	firstRetry = time.Millisecond
	lastRetry  = 20 * time.Millisecond
)

// errBusy is what lockFile returns where another holder excludes this one.
var errBusy = errors.New("lock is held")

// Lock takes a lock on the file at path, which it creates (mode 0600) if need be, and waits for other holders to let go
// until ctx ends. Locks are advisory, shared or exclusive, and hold between processes as well as between two calls in one
// process; the kernel releases those of a process that dies. unlock releases the lock; further calls do nothing.
//
// The holder of an exclusive lock may remove the file as the last thing before it unlocks: those who wait then lock the
// file that has the name, from that moment on. Locks are not fair: a stream of shared holders can keep an exclusive one out.
//
// Lock tries again at an interval of 1 to 20 ms instead of blocking in the kernel. A blocked flock cannot be given up: the
// Go runtime installs its signal handlers with SA_RESTART, and closing the descriptor does not wake it, so a cancelled
// wait would leave behind a thread for as long as the other holder likes.
func Lock(ctx context.Context, path string, exclusive bool) (unlock func(), err error) {
	wait := firstRetry
	for {
		if err := context.Cause(ctx); err != nil {
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
		unlock, err := tryLock(path, exclusive)
		if !errors.Is(err, errBusy) {
			return unlock, err
		}
		t := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			t.Stop()
		case <-t.C:
			wait = min(2*wait, lastRetry)
		}
	}
}

// TryLock is Lock without waiting: where another holder excludes this one it returns an error that wraps errs.ErrInUse.
func TryLock(path string, exclusive bool) (unlock func(), err error) {
	unlock, err = tryLock(path, exclusive)
	if errors.Is(err, errBusy) {
		return nil, fmt.Errorf("lock %s: %w by another process or goroutine", path, errs.ErrInUse)
	}
	return unlock, err
}

func tryLock(path string, exclusive bool) (func(), error) {
	for {
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			return nil, fmt.Errorf("open lock file: %w", err)
		}
		if err := lockFile(f, exclusive); err != nil {
			_ = f.Close()
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
		same, err := isAt(f, path)
		if err != nil {
			_ = f.Close()
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
		if same {
			return sync.OnceFunc(func() {
				unlockFile(f)
				_ = f.Close()
			}), nil
		}
		_ = f.Close() // the former holder removed the file: lock the one that has the name now
	}
}

func isAt(f *os.File, path string) (bool, error) {
	mine, err := f.Stat()
	if err != nil {
		return false, err
	}
	named, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	return os.SameFile(mine, named), nil
}
