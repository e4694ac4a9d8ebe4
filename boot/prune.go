package boot

import (
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/arcboxlabs/arcbox-go/internal/fsx"
)

// Entries that nobody has asked for during this time are removed. Each change of the agent makes a new agent and a new
// initramfs, so a machine on which arcbox is developed would fill up. Kernels and packages do not multiply so.
const (
	keepUnused = 30 * 24 * time.Hour
	markEvery  = 24 * time.Hour
)

// mark notes that an entry is in use, by the time of its record. It writes once a day at most.
func (e *entry) mark(now time.Time) {
	p := filepath.Join(e.dir, recordName)
	if info, err := os.Stat(p); err == nil && now.Sub(info.ModTime()) > markEvery {
		_ = os.Chtimes(p, now, now) // an entry that looks unused is at worst made again
	}
}

// prune removes the agents, initramfs archives and templates that were not used for long. What somebody is looking at or building
// just now is left.
func (s *store) prune(now time.Time) {
	for _, kind := range []string{kindAgent, kindInitramfs, kindTemplate} {
		names, err := os.ReadDir(filepath.Join(s.dir, kind))
		if err != nil {
			continue
		}
		for _, n := range names {
			if strings.HasPrefix(n.Name(), fsx.TempPrefix) {
				continue
			}
			if err := s.pruneOne(kind, n.Name(), now); err != nil {
				s.log.Debug("boot cache: old entry stays", "kind", kind, "key", n.Name(), "reason", err)
			}
		}
	}
}

func (s *store) pruneOne(kind, key string, now time.Time) error {
	record := filepath.Join(s.dir, kind, key, recordName)
	if info, err := os.Stat(record); err != nil || now.Sub(info.ModTime()) < keepUnused {
		return err
	}
	lock := filepath.Join(s.dir, "locks", kind+"-"+key)
	unlock, err := fsx.TryLock(lock, true)
	if err != nil {
		return err
	}
	defer unlock()
	// Somebody may have used it while the lock was open.
	if info, err := os.Stat(record); err != nil || now.Sub(info.ModTime()) < keepUnused {
		return err
	}
	if err := s.remove(kind, key); err != nil {
		return err
	}
	return os.Remove(lock) // its holder may
}
