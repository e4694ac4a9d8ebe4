package qemu

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/arcboxlabs/arcbox-go/internal/checkpoint"
	"github.com/arcboxlabs/arcbox-go/internal/errs"
	"github.com/arcboxlabs/arcbox-go/internal/fsx"
	"github.com/arcboxlabs/arcbox-go/vm"
)

// imageWanted tells whether this host saves images of QEMU. Where it should, tests fail without them.
func imageWanted(t testing.TB) bool {
	t.Helper()
	return runtime.GOARCH == "amd64"
}

// resumed starts a machine that goes on from an image.
func resumed(t testing.TB, spec vm.Spec) *Instance {
	t.Helper()
	i := startT(t, spec)
	require.NotEmpty(t, i.image)
	return i
}

// TestImageOfQEMU looks at a machine that goes on from one: it has the name, the disks and the bounds that it shall have,
// and what it learns others have.
func TestImageOfQEMU(t *testing.T) {
	if !imageWanted(t) {
		return
	}
	dir := t.TempDir()
	spec := testSpec(t)
	spec.CPUs, spec.Memory, spec.NIC = 2, 256<<20, true
	spec.Bays = []vm.Bay{{Size: 1 << 30}, {Size: 1 << 30, ReadOnly: true}}
	spec = savedMachine(t, spec)
	spec.Name = "goes-on"
	data, disk := filepath.Join(dir, "data"), filepath.Join(dir, "disk")
	for _, path := range []string{data, disk} {
		require.NoError(t, os.WriteFile(path, append([]byte("content\n"), make([]byte, 1<<20)...), 0o600))
	}
	spec.Disks = []vm.Disk{{ID: "data", Path: data, Slot: 1}}

	i := resumed(t, spec)
	require.Equal(t, "all of it", ask(t, i, "recall"))
	require.Equal(t, "content", ask(t, i, "read "+vm.BaySerial(1)))
	require.NotNil(t, i.NIC())
	proc := fmt.Sprintf("/proc/%d/", i.proc.pid())
	tasks, err := filepath.Glob(proc + "task/*/status")
	require.NoError(t, err)
	require.Greater(t, len(tasks), 3)
	for _, task := range tasks {
		status, err := os.ReadFile(task)
		require.NoError(t, err)
		for _, line := range []string{"Name:\tgoes-on\n", "NoNewPrivs:\t1\n", "Seccomp_filters:\t2\n"} {
			require.Contains(t, string(status), line)
		}
	}
	require.Equal(t, "ok", ask(t, i, "say on the console"))
	require.Eventually(t, func() bool { return strings.Contains(i.ConsoleTail(), "on the console") }, testTimeout, time.Millisecond)

	// The machine is as others are.
	require.NoError(t, i.AttachDisk(testContext(t), vm.Disk{ID: "layer", Path: disk, ReadOnly: true, Slot: 2}))
	require.NoError(t, i.AttachDisk(testContext(t), vm.Disk{ID: "more", Path: disk, ReadOnly: true}))
	require.Equal(t, "yes", ask(t, i, "wait more"))
	for _, serial := range []string{"more", vm.BaySerial(2)} {
		require.Equal(t, "content", ask(t, i, "read "+serial))
	}
	require.NoError(t, i.Pause(testContext(t)))
	require.NoError(t, i.Resume(testContext(t)))
	require.NoError(t, i.DetachDisk(testContext(t), "more"))
	require.Equal(t, "yes", ask(t, i, "gone more"))

	pages := func(i *Instance) int64 {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", i.proc.pid()))
		require.NoError(t, err)
		_, rest, _ := strings.Cut(string(b), "\nAnonymous:")
		var kb int64
		_, err = fmt.Sscan(rest, &kb)
		require.NoError(t, err)
		return kb
	}
	used := pages(i)
	require.NoError(t, i.Learn(testContext(t), true))
	require.NoError(t, i.Close())
	lazy := resumed(t, spec)
	require.Less(t, pages(lazy), used/2)
	require.NoError(t, lazy.Close())
	spec.Eager = true
	next := resumed(t, spec)
	require.Greater(t, pages(next), used/2, "it has the memory that the one before has used")
	require.Equal(t, "content", ask(t, next, "read "+vm.BaySerial(1)))
	require.Equal(t, "ok", ask(t, next, "write "+vm.BaySerial(1)+" changed"))
	require.NoError(t, next.Close())
	b, err := os.ReadFile(data)
	require.NoError(t, err)
	require.Equal(t, "changed", string(b[:7]))
}

// A machine that can be forked goes on from an image with a memory of its own.
func TestForkOfAMachineFromAnImage(t *testing.T) {
	if !imageWanted(t) {
		return
	}
	dir := t.TempDir()
	spec := testSpec(t)
	spec.CPUs, spec.Memory = 2, 256<<20
	spec = savedMachine(t, spec)
	digest := fileDigest(t, spec.MemoryFile)
	spec.Forkable = true
	parent := resumed(t, spec)
	require.Equal(t, "all of it", ask(t, parent, "recall"))
	require.Equal(t, "of the parent", ask(t, parent, "remember of the parent"))
	memory, state := filepath.Join(dir, "memory"), filepath.Join(dir, "state")
	require.NoError(t, parent.Fork(testContext(t), memory, state, func([]vm.Disk) error { return nil }))
	require.Equal(t, "of the parent", ask(t, parent, "recall"))
	require.Equal(t, digest, fileDigest(t, spec.MemoryFile), "the parent changes nothing that others go on from")

	spec.MemoryFile, spec.State = memory, state
	child := startT(t, spec)
	require.Empty(t, child.image)
	require.Equal(t, "of the parent", ask(t, child, "recall"))
	require.ErrorIs(t, child.Learn(testContext(t), false), errs.ErrUnsupported)
}

// Memory that is given back would come again from an image.
func TestMachineThatReturnsMemoryHasNoImage(t *testing.T) {
	spec := testSpec(t)
	spec.ReturnMemory = true
	spec = savedMachine(t, spec)
	require.NoFileExists(t, spec.State+imageSuffix)
	i := startT(t, spec)
	require.Equal(t, "all of it", ask(t, i, "recall"))
}

// TestImageThatDoesNotServe has machines go on all the same.
func TestImageThatDoesNotServe(t *testing.T) {
	if !imageWanted(t) {
		return
	}
	dir := t.TempDir()
	spec := testSpec(t)
	kernel := filepath.Join(dir, "kernel")
	require.NoError(t, fsx.CloneFile(testContext(t), kernel, spec.Kernel))
	spec.Kernel = kernel
	spec = savedMachine(t, spec)
	image := spec.State + imageSuffix
	whole, err := os.ReadFile(image)
	require.NoError(t, err)
	d := New(Config{Logger: testLogger(t)})
	d.resumeLimit = time.Second
	require.False(t, d.Stale(spec.State))
	// The image begins with a program, which is replaced.
	begin := func(code ...byte) func() error {
		const codeAt = 0x100
		return func() error {
			b := slices.Clone(whole)
			copy(b[codeAt:], code)
			return os.WriteFile(image, b, 0o700)
		}
	}
	exit := func(status byte) func() error { // mov $status, %edi; mov $231, %eax; syscall
		return begin(0xbf, status, 0, 0, 0, 0xb8, 231, 0, 0, 0, 0x0f, 0x05)
	}
	for _, tc := range []struct {
		name  string
		spoil func() error
		stale bool
	}{
		{"crashes", begin(0x0f, 0x0b), false}, // ud2
		{"fails", exit(12), false},
		{"has no place", exit(checkpoint.Collision), false},
		{"hangs", begin(0xeb, 0xfe), false}, // a jump to itself
		{"is cut short", func() error { return os.WriteFile(image, whole[:len(whole)/2], 0o700) }, false},
		{"cannot be executed", func() error { return errors.Join(os.WriteFile(image, whole, 0o700), os.Chmod(image, 0o600)) }, false},
		{"is old", func() error { return os.Chtimes(kernel, time.Time{}, time.Now().Add(-time.Hour)) }, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			require.NoError(t, tc.spoil())
			require.Equal(t, tc.stale, d.Stale(spec.State))
			inst, err := d.Start(testContext(t), spec)
			require.NoError(t, err)
			defer inst.Close()
			require.Empty(t, inst.(*Instance).image)
			require.Equal(t, "all of it", ask(t, inst, "recall"))
		})
	}
	require.NoError(t, d.DropImage(spec.State))
	require.NoFileExists(t, image)
	require.ErrorIs(t, d.DropImage(spec.State), errs.ErrNotFound)
	require.False(t, d.Stale(spec.State), "there is nothing to be renewed")
}
