package qemu

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	diskimage "github.com/arcboxlabs/arcbox-go/internal/disk"
	"github.com/arcboxlabs/arcbox-go/internal/errs"
	"github.com/arcboxlabs/arcbox-go/internal/fsx"
	"github.com/arcboxlabs/arcbox-go/vm"
	"github.com/arcboxlabs/arcbox-go/vm/vmtest/guest"
)

// TestForkOfARunningMachine saves a machine that runs, twice, with a stream open and disks that were added: it goes on, and
// so do several children, whose writes none of the files see.
func TestForkOfARunningMachine(t *testing.T) {
	dir := t.TempDir()
	spec := testSpec(t)
	spec.CPUs, spec.Memory, spec.Forkable = 2, 256<<20, true
	spec.Bays = []vm.Bay{{Size: 1 << 30, ReadOnly: true}, {Size: 1 << 30, ReadOnly: true}}
	parent := startT(t, spec)
	ctx := testContext(t)
	image := filepath.Join(dir, "image")
	require.NoError(t, os.WriteFile(image, append([]byte("content\n"), make([]byte, 1<<20)...), 0o600))
	data := filepath.Join(dir, "data")
	require.NoError(t, fsx.CloneFile(ctx, data, image))
	layer := vm.BaySerial(1)
	require.NoError(t, parent.AttachDisk(ctx, vm.Disk{ID: "layer", Path: image, ReadOnly: true, Slot: 1}))
	require.NoError(t, parent.AttachDisk(ctx, vm.Disk{ID: "data", Path: data}))
	for _, serial := range []string{layer, "data"} {
		require.Equal(t, "yes", ask(t, parent, "wait "+serial))
	}
	echo, err := parent.Dial(ctx, guest.PortEcho)
	require.NoError(t, err)
	defer echo.Close()
	say := func() {
		_, err := io.WriteString(echo, "still")
		require.NoError(t, err)
		b := make([]byte, 5)
		_, err = io.ReadFull(echo, b)
		require.NoError(t, err)
		require.Equal(t, "still", string(b))
	}
	say()

	memory, state := filepath.Join(dir, "memory"), filepath.Join(dir, "state")
	base := filepath.Join(dir, "base")
	var disks []vm.Disk
	for range 2 {
		_ = os.Remove(memory)
		_ = os.Remove(state)
		began := time.Now()
		require.NoError(t, parent.Fork(ctx, memory, state, func(all []vm.Disk) error {
			disks = all
			_ = os.Remove(base)
			return fsx.CloneFile(ctx, base, data)
		}))
		say()
		t.Logf("forked in %v", time.Since(began))
	}
	require.Len(t, disks, 2)
	require.ErrorIs(t, parent.Fork(ctx, memory, filepath.Join(dir, "x"), nil), os.ErrExist)
	require.NoFileExists(t, filepath.Join(dir, "x"))
	boom := func([]vm.Disk) error { return errs.ErrConflict }
	require.ErrorIs(t, parent.Fork(ctx, filepath.Join(dir, "m"), filepath.Join(dir, "x"), boom), errs.ErrConflict)
	require.NoFileExists(t, filepath.Join(dir, "m"))
	say()

	forkAndGo(t, parent, say)

	digest := fileDigest(t, memory)
	spec.MemoryFile, spec.State = memory, state
	var wg sync.WaitGroup
	for n := range 4 {
		spec := spec
		spec.Forkable = n == 3 // a child can have children
		spec.Disks = nil
		for _, d := range disks {
			if d.ID == "data" {
				d.Path, d.Backing = filepath.Join(t.TempDir(), "overlay"), base
				require.NoError(t, diskimage.CreateOverlay(d.Path, 1<<20+512))
			}
			spec.Disks = append(spec.Disks, d)
		}
		wg.Go(func() {
			began := time.Now()
			inst, err := New(Config{Logger: testLogger(t)}).Start(testContext(t), spec)
			if err != nil {
				t.Error(err)
				return
			}
			defer inst.Close()
			child := inst.(*Instance)
			t.Logf("child answers %q after %v", ask(t, child, "read "+layer), time.Since(began))
			takesDisks(t, child, image)
			forked := child.Fork(testContext(t), filepath.Join(t.TempDir(), "m"), filepath.Join(t.TempDir(), "s"), func([]vm.Disk) error { return nil })
			if (forked == nil) != spec.Forkable {
				t.Error(forked)
			}
		})
	}
	wg.Wait()
	say()
	require.Equal(t, digest, fileDigest(t, memory), "no child changes the memory that it began with")
}

// takesDisks checks that a child has the disks of its parent, and gives it more.
func takesDisks(t *testing.T, child *Instance, image string) {
	t.Helper()
	for _, d := range []vm.Disk{{ID: "more", Path: image, ReadOnly: true}, {ID: "bay", Path: image, ReadOnly: true, Slot: 2}} {
		if err := child.AttachDisk(testContext(t), d); err != nil {
			t.Error(err)
		}
	}
	if got := ask(t, child, "wait more"); got != "yes" {
		t.Error(got)
	}
	for _, serial := range []string{vm.BaySerial(1), "data", "more", vm.BaySerial(2)} {
		if got := ask(t, child, "read "+serial); got != "content" {
			t.Error(serial, got)
		}
	}
}

// forkAndGo forks a machine for callers that go away at any moment, after which the machine goes on, and can be forked.
func forkAndGo(t *testing.T, parent *Instance, say func()) {
	t.Helper()
	dir := t.TempDir()
	nothing := func([]vm.Disk) error { return nil }
	for n := range 6 {
		ctx, cancel := context.WithTimeout(testContext(t), time.Duration(n*n)*2*time.Millisecond)
		_ = parent.Fork(ctx, filepath.Join(dir, "m"), filepath.Join(dir, "x"), nothing)
		cancel()
		_ = os.Remove(filepath.Join(dir, "m"))
		_ = os.Remove(filepath.Join(dir, "x"))
		say()
	}
	require.NoError(t, parent.Fork(testContext(t), filepath.Join(dir, "m"), filepath.Join(dir, "x"), nothing))
	say()
}
