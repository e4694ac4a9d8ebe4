package boot

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/arcboxlabs/arcbox-go/internal/fsx"
)

// Entries that nobody has asked for during this time are removed. Each change of the agent makes a new agent and a new
// initramfs, so a machine on which arcbox is developed would fill up. Kernels and packages do not multiply so.
const (
	keepUnused = 30 * 24 * time.Hour
	markEvery  = 10 * time.Minute

	// Templates that take more than this together, in bytes, go too, the one first that was not used for longest. One that
	// was used an hour ago may be about to be used.
	maxTemplates = 4 << 30
	keepTemplate = time.Hour
)

// mark notes that an entry is in use, by the time of its record. It writes every ten minutes at most.
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
			if err := s.pruneOne(kind, n.Name(), now, keepUnused); err != nil {
				s.log.Debug("boot cache: old entry stays", "kind", kind, "key", n.Name(), "reason", err)
			}
		}
	}
}

// pruneTemplates removes templates until they take no more than limit together.
func (s *store) pruneTemplates(now time.Time, limit int64) {
	type template struct {
		key  string
		used time.Time
		size int64
	}
	names, _ := os.ReadDir(filepath.Join(s.dir, kindTemplate)) // there may be none
	var all []template
	var total int64
	for _, n := range names {
		dir := filepath.Join(s.dir, kindTemplate, n.Name())
		record, err := os.Stat(filepath.Join(dir, recordName))
		if err != nil {
			continue
		}
		t := template{key: n.Name(), used: record.ModTime()}
		files, _ := os.ReadDir(dir)
		for _, f := range files {
			if info, err := f.Info(); err == nil {
				t.size += fsx.Allocated(info)
			}
		}
		all, total = append(all, t), total+t.size
	}
	slices.SortFunc(all, func(a, b template) int { return a.used.Compare(b.used) })
	for _, t := range all {
		if total <= limit {
			return
		}
		if err := s.pruneOne(kindTemplate, t.key, now, keepTemplate); err != nil {
			s.log.Debug("boot cache: template stays", "key", t.key, "reason", err)
			continue
		}
		if _, err := os.Stat(filepath.Join(s.dir, kindTemplate, t.key)); err != nil {
			total -= t.size
		}
	}
}

// pruneOne removes an entry that nobody has used for a time.
func (s *store) pruneOne(kind, key string, now time.Time, unused time.Duration) error {
	record := filepath.Join(s.dir, kind, key, recordName)
	if info, err := os.Stat(record); err != nil || now.Sub(info.ModTime()) < unused {
		return err
	}
	lock := filepath.Join(s.dir, "locks", kind+"-"+key)
	unlock, err := fsx.TryLock(lock, true)
	if err != nil {
		return err
	}
	defer unlock()
	// Somebody may have used it while the lock was open.
	if info, err := os.Stat(record); err != nil || now.Sub(info.ModTime()) < unused {
		return err
	}
	if err := s.remove(kind, key); err != nil {
		return err
	}
	return os.Remove(lock) // its holder may
}
