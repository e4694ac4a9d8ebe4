package vmtest

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
	"github.com/arcboxlabs/arcbox-go/vm"
)

// withBays returns the suite's Spec with a bay that can be written and two that cannot.
func (s *suite) withBays() vm.Spec {
	spec := s.spec
	spec.Bays = []vm.Bay{{Size: 1 << 20}, {Size: vm.MaxBaySize, ReadOnly: true}, {Size: vm.MaxBaySize, ReadOnly: true}}
	return spec
}

// testBays has disks in bays from the start, puts others in and takes them out.
func (s *suite) testBays(t *testing.T) {
	spec := s.withBays()
	if !s.caps.Bays {
		_, err := s.driver.Start(bounded(t), spec)
		require.ErrorIs(t, err, errs.ErrUnsupported)
		t.Skip("no bays")
	}
	large := vm.Disk{ID: "large", Path: filepath.Join(t.TempDir(), "large"), Slot: 1}
	require.NoError(t, os.WriteFile(large.Path, make([]byte, 1<<20+1), 0o600))
	spec.Disks = []vm.Disk{large}
	_, err := s.driver.Start(bounded(t), spec)
	require.ErrorIs(t, err, errs.ErrInvalid)

	spec.Disks = []vm.Disk{
		{ID: "in-a-bay", Path: diskFile(t, "one"), ReadOnly: true, Slot: 2},
		{ID: "in-none", Path: diskFile(t, "two"), ReadOnly: true},
	}
	m := s.start(t, spec)
	for serial, line := range map[string]string{vm.BaySerial(2): "one", "in-none": "two", vm.BaySerial(1): "EOF"} {
		require.Equal(t, "yes", command(t, m, "wait %s", serial))
		require.Equal(t, line, command(t, m, "read %s", serial))
	}
	a := m.(vm.DiskAttacher)
	later := vm.Disk{ID: "later", Path: diskFile(t, "three"), ReadOnly: true, Slot: 3}
	require.Equal(t, "EOF", command(t, m, "read %s", vm.BaySerial(3)), "zeros, and no line")
	for range 2 {
		require.NoError(t, a.AttachDisk(bounded(t), later))
		require.Equal(t, "three", command(t, m, "read %s", vm.BaySerial(3)))
		require.Equal(t, "no", command(t, m, "has later"))
		require.ErrorIs(t, a.AttachDisk(bounded(t), later), errs.ErrExists)
		other := later
		other.ID = "other"
		require.ErrorIs(t, a.AttachDisk(bounded(t), other), errs.ErrExists, "the bay is taken")
		require.NoError(t, a.DetachDisk(bounded(t), later.ID))
		require.Equal(t, "yes", command(t, m, "wait %s", vm.BaySerial(3)), "it comes back")
		require.Equal(t, "EOF", command(t, m, "read %s", vm.BaySerial(3)))
	}
	require.NoError(t, a.DetachDisk(bounded(t), "in-a-bay"))
	for slot, d := range map[int]vm.Disk{1: later, 3: {ID: "w", Path: later.Path}, 4: later, -1: later} {
		d.Slot = slot
		require.ErrorIs(t, a.AttachDisk(bounded(t), d), errs.ErrInvalid, "slot %d", slot)
	}
	require.ErrorIs(t, a.AttachDisk(bounded(t), large), errs.ErrInvalid)
	later.Slot = 0
	require.NoError(t, a.AttachDisk(bounded(t), later))
	require.Equal(t, "yes", command(t, m, "wait later"))
}

// testBaysOfASnapshot lets machines go on from one whose bays were empty: what they have in them is there at once.
func (s *suite) testBaysOfASnapshot(t *testing.T) {
	if !s.caps.Bays || !s.caps.Snapshot {
		t.Skip("no bays, or no snapshots")
	}
	spec, dir := s.withBays(), t.TempDir()
	shape, err := s.driver.(vm.Shaper).Shape(spec)
	require.NoError(t, err)
	spec.MemoryFile = filepath.Join(dir, "memory")
	state := filepath.Join(dir, "state")
	first := s.start(t, spec)
	for slot := range spec.Bays {
		require.Equal(t, "yes", command(t, first, "wait %s", vm.BaySerial(slot+1)))
		require.Equal(t, "EOF", command(t, first, "read %s", vm.BaySerial(slot+1)))
	}
	require.NoError(t, first.(vm.Snapshotter).Snapshot(bounded(t), state))
	require.NoError(t, first.Close())

	spec.State = state
	path := diskFile(t, "read only")
	for _, line := range []string{"eins", "zwei"} {
		spec := spec
		w := vm.Disk{ID: "data-" + line, Path: diskFile(t, line), Slot: 1}
		spec.Disks = []vm.Disk{w, {ID: "layer", Path: path, ReadOnly: true, Slot: 3}}
		again, err := s.driver.(vm.Shaper).Shape(spec)
		require.NoError(t, err)
		require.Equal(t, shape, again, "it does not depend on what is in the bays")
		m := s.start(t, spec)
		require.Equal(t, line, command(t, m, "read %s", vm.BaySerial(1)))
		require.Equal(t, "read only", command(t, m, "read %s", vm.BaySerial(3)))
		require.Equal(t, "ok", command(t, m, "write %s changed %s", vm.BaySerial(1), line))
		require.NotEqual(t, "ok", command(t, m, "write %s x", vm.BaySerial(3)))
		require.Equal(t, "EOF", command(t, m, "read %s", vm.BaySerial(2)))
		require.NoError(t, m.(vm.DiskAttacher).AttachDisk(bounded(t), vm.Disk{ID: "more", Path: path, ReadOnly: true, Slot: 2}))
		require.Equal(t, "read only", command(t, m, "read %s", vm.BaySerial(2)))
		b, err := os.ReadFile(w.Path)
		require.NoError(t, err)
		require.True(t, strings.HasPrefix(string(b), "changed "+line+"\n"))
		require.Len(t, b, 1<<20)
	}
}
