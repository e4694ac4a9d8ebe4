package image

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
	"github.com/arcboxlabs/arcbox-go/internal/fsx"
	"github.com/opencontainers/go-digest"
)

// leaseFile is the file in a session that names the content its operations need.
const leaseFile = "leases"

// leases keep content from being pruned that no record names yet. An operation takes a lease on a digest before it looks
// whether the content is there, or makes it visible. The leases of an open Store are in a file of its session, for all
// processes to read, and end with the last operation of the Store or with its process.
type leases struct {
	gc   string // path of the lock that a sweep holds
	path string // of the file

	mu     sync.Mutex
	active int // operations
	held   map[digest.Digest]bool
}

func (l *leases) enter() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.active++
}

// leave ends an operation. What it made visible is named by a record now.
func (l *leases) leave() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.active--; l.active > 0 || len(l.held) == 0 {
		return nil
	}
	l.held = nil
	if err := os.Truncate(l.path, 0); err != nil {
		return fmt.Errorf("end leases: %w", err)
	}
	return nil
}

// take leases content for as long as the operations last that are under way. It waits for a sweep to end. Without an
// operation it does nothing.
func (l *leases) take(ctx context.Context, digests ...digest.Digest) error {
	if l.has(digests) {
		return nil
	}
	unlock, err := fsx.Lock(ctx, l.gc, false)
	if err != nil {
		return err
	}
	defer unlock()
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.active == 0 {
		return nil
	}
	var lines strings.Builder
	for _, d := range digests {
		if !l.held[d] {
			lines.WriteString(d.Encoded() + "\n")
		}
	}
	f, err := os.OpenFile(l.path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return fmt.Errorf("lease content: %w", err)
	}
	_, err = f.WriteString(lines.String())
	if err := errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("lease content: %w", err)
	}
	if l.held == nil {
		l.held = map[digest.Digest]bool{}
	}
	for _, d := range digests {
		l.held[d] = true
	}
	return nil
}

// has tells whether nothing is left to be leased.
func (l *leases) has(digests []digest.Digest) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.active == 0 {
		return true
	}
	return !slices.ContainsFunc(digests, func(d digest.Digest) bool { return !l.held[d] })
}

// lease is take for content of the store.
func (s *Store) lease(ctx context.Context, digests ...digest.Digest) error {
	return s.blobs.leases.take(ctx, digests...)
}

// leased returns the digests, in hexadecimal, that operations of any process need. The caller holds the lock of a sweep.
func (b *blobStore) leased(ctx context.Context) (map[string]bool, error) {
	out := map[string]bool{}
	err := b.sessions(ctx, func(dir string, alive bool) error {
		f, err := os.Open(filepath.Join(dir, leaseFile))
		if errors.Is(err, fs.ErrNotExist) || !alive {
			if err == nil {
				_ = f.Close()
			}
			return nil
		}
		if err != nil {
			return fmt.Errorf("read leases: %w", err)
		}
		defer func() { _ = f.Close() }()
		lines := bufio.NewScanner(f)
		for lines.Scan() {
			out[lines.Text()] = true
		}
		return lines.Err()
	})
	return out, err
}

// sessions calls do for every session, with whether its Store is open in a process that lives. No session begins
// meanwhile.
func (b *blobStore) sessions(ctx context.Context, do func(dir string, alive bool) error) error {
	unlock, err := b.lockIngest(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	ingest := filepath.Join(b.root, "ingest")
	entries, err := os.ReadDir(ingest)
	if err != nil {
		return fmt.Errorf("list sessions: %w", err)
	}
	for _, e := range entries {
		dir := filepath.Join(ingest, e.Name())
		free, err := fsx.TryLock(filepath.Join(dir, "lock"), true)
		if err == nil {
			free()
		}
		if err := do(dir, errors.Is(err, errs.ErrInUse)); err != nil {
			return err
		}
	}
	return nil
}
