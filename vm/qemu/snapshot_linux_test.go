package qemu

import (
	"bufio"
	"crypto/sha256"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
	"github.com/arcboxlabs/arcbox-go/vm"
	"github.com/arcboxlabs/arcbox-go/vm/vmtest/guest"
)

// ask sends a command to the suite's guest and returns its answer.
func ask(t testing.TB, i vm.Instance, line string) string {
	t.Helper()
	c, err := i.Dial(testContext(t), guest.PortCommand)
	require.NoError(t, err)
	defer c.Close()
	_, err = io.WriteString(c, line+"\n")
	require.NoError(t, err)
	answer, err := bufio.NewReader(c).ReadString('\n')
	require.NoError(t, err)
	return strings.TrimSpace(answer)
}

func fileDigest(t testing.TB, path string) [sha256.Size]byte {
	t.Helper()
	b, err := os.ReadFile(path)
	require.NoError(t, err)
	return sha256.Sum256(b)
}

// savedMachine saves a machine, with an image of its QEMU, and returns the Spec of machines that go on from it.
func savedMachine(t *testing.T, spec vm.Spec) vm.Spec {
	t.Helper()
	dir := t.TempDir()
	spec.MemoryFile = filepath.Join(dir, "memory")
	state := filepath.Join(dir, "state")
	first := startT(t, spec)
	require.Equal(t, "all of it", ask(t, first, "remember all of it"))
	require.NoError(t, first.Snapshot(testContext(t), state))
	require.NoError(t, first.Close())
	if runtime.GOARCH != "amd64" {
		spec.State = state
		return spec
	}
	spec.State, spec.OwnMemory = state, true
	second := startT(t, spec)
	require.Equal(t, "all of it", ask(t, second, "recall"))
	spec.State, spec.OwnMemory = filepath.Join(dir, "state-2"), false
	require.NoError(t, second.Snapshot(testContext(t), spec.State))
	require.NoError(t, second.Close())
	return spec
}

// TestMachinesGoOnFromASnapshot saves a machine and starts several from it at once, with an image of QEMU and without: each
// answers, takes disks, lives on its own, and none of them changes what the others go on from.
func TestMachinesGoOnFromASnapshot(t *testing.T) {
	spec := testSpec(t)
	spec.CPUs, spec.Memory = 2, 256<<20
	spec = savedMachine(t, spec)
	t.Run("by an image", func(t *testing.T) { goOnFrom(t, spec, imageWanted(t)) })
	_ = os.Remove(spec.State + imageSuffix)
	t.Run("by its state", func(t *testing.T) { goOnFrom(t, spec, false) })
}

func goOnFrom(t *testing.T, spec vm.Spec, image bool) {
	dir := t.TempDir()
	memory := fileDigest(t, spec.MemoryFile)
	disk := filepath.Join(dir, "disk")
	require.NoError(t, os.WriteFile(disk, append([]byte("content\n"), make([]byte, 1<<20)...), 0o600))
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			began := time.Now()
			inst, err := New(Config{Logger: testLogger(t)}).Start(testContext(t), spec)
			if err != nil {
				t.Error(err)
				return
			}
			defer inst.Close()
			c := inst.(*Instance)
			if c.image != "" != image {
				t.Errorf("from image %q", c.image)
			}
			if got := ask(t, c, "has disk"); got != "no" {
				t.Error(got)
			}
			if got := ask(t, c, "recall"); got != "all of it" {
				t.Error(got)
			}
			t.Logf("clone answers after %v", time.Since(began))
			if err := c.AttachDisk(testContext(t), vm.Disk{ID: "disk", Path: disk, ReadOnly: true}); err != nil {
				t.Error(err)
			}
			if got := ask(t, c, "wait disk"); got != "yes" {
				t.Error(got)
			}
			if got := ask(t, c, "read disk"); got != "content" {
				t.Error(got)
			}
			if err := c.Snapshot(testContext(t), filepath.Join(t.TempDir(), "x")); err == nil {
				t.Error("a clone's memory is in no file: it cannot be saved")
			}
		})
	}
	wg.Wait()
	require.Equal(t, memory, fileDigest(t, spec.MemoryFile), "no clone changes the memory that it began with")
}

func TestSnapshotThatCannotBeRestored(t *testing.T) {
	dir := t.TempDir()
	spec := testSpec(t)
	spec.MemoryFile, spec.State = filepath.Join(dir, "memory"), filepath.Join(dir, "state")
	_, err := New(Config{}).Start(testContext(t), spec)
	require.ErrorIs(t, err, errs.ErrNotFound)
	require.NoError(t, os.WriteFile(spec.MemoryFile, make([]byte, 512<<20), 0o600))
	require.NoError(t, os.WriteFile(spec.State, []byte("no state at all"), 0o600))
	_, err = New(Config{}).Start(testContext(t), spec)
	require.ErrorIs(t, err, errs.ErrUnavailable)
}
