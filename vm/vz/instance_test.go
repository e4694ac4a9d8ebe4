package vz

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
	"github.com/arcboxlabs/arcbox-go/vm"
	"github.com/arcboxlabs/arcbox-go/vm/vmtest"
	"github.com/arcboxlabs/arcbox-go/vm/vmtest/guest"
)

// TestFakeMacConforms runs the suite of drivers on all of the driver but its calls of the framework.
func TestFakeMacConforms(t *testing.T) {
	vmtest.Conformance(t, func(*testing.T) (vm.Driver, vm.Spec) { return fakeDriver(&fakeSystem{host: appleSilicon()}) })
}

// TestLateGuestIsReached has a guest that listens late.
func TestLateGuestIsReached(t *testing.T) {
	f := &fakeSystem{host: appleSilicon()}
	f.tweak = func(m *fakeFramework) { m.deafFor = 5 }
	d, spec := fakeDriver(f)
	m, err := d.Start(t.Context(), spec)
	require.NoError(t, err)
	defer m.Close()
	c, err := m.Dial(t.Context(), guest.PortEcho)
	require.NoError(t, err)
	defer c.Close()
	_, err = io.WriteString(c, "x")
	require.NoError(t, err)
	_, err = io.ReadFull(c, make([]byte, 1))
	require.NoError(t, err)
	require.Equal(t, 6, f.made[0].tries)
}

// TestOneConnectionForAllStreams: the binding closes the descriptor of each connection twice, so there is but one.
func TestOneConnectionForAllStreams(t *testing.T) {
	f := &fakeSystem{host: appleSilicon()}
	d, spec := fakeDriver(f)
	m, err := d.Start(t.Context(), spec)
	require.NoError(t, err)
	defer m.Close()
	for range 20 {
		c, err := m.Dial(t.Context(), guest.PortEcho)
		require.NoError(t, err)
		require.NoError(t, c.Close())
	}
	require.Len(t, f.made[0].conns, 1)
}

// TestBindingIsNotCalledWhereItFails looks for what works in no way that could be borne: a listener that does not end, and
// balloons that are released twice.
func TestBindingIsNotCalledWhereItFails(t *testing.T) {
	files, err := filepath.Glob("framework_darwin*.go")
	require.NoError(t, err)
	require.NotEmpty(t, files)
	for _, name := range files {
		text, err := os.ReadFile(name)
		require.NoError(t, err)
		for _, call := range []string{".Listen(", ".MemoryBalloonDevices("} {
			require.NotContains(t, string(text), call, name)
		}
	}
}

// TestConnectThatNeverAnswers: the framework may keep silent where nobody listens.
func TestConnectThatNeverAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		silent := make(chan struct{})
		f := &fakeSystem{host: appleSilicon()}
		f.tweak = func(m *fakeFramework) {
			m.deafFor, m.deaf = 1, func(uint32) error { <-silent; return errors.New("too late") }
		}
		d, spec := fakeDriver(f)
		m, err := d.Start(t.Context(), spec)
		require.NoError(t, err)
		_, err = m.Dial(t.Context(), guest.PortEcho)
		require.NoError(t, err)
		require.Equal(t, 2, f.made[0].tries)
		close(silent)
		require.NoError(t, m.Close())
	})
}

func TestStartThatHangsEndsWithContext(t *testing.T) {
	begun, hang := make(chan struct{}), make(chan struct{})
	f := &fakeSystem{host: appleSilicon()}
	f.tweak = func(m *fakeFramework) { m.onStart = func() error { close(begun); <-hang; return nil } }
	d, spec := fakeDriver(f)
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("changed my mind")
	started := make(chan error, 1)
	go func() {
		_, err := d.Start(ctx, spec)
		started <- err
	}()
	<-begun
	cancel(why)
	close(hang) // the framework cannot be interrupted: what it has started is stopped again
	require.ErrorIs(t, <-started, why)
	<-f.made[0].over
}

// TestCallThatNeverReturns: the machine's end does not wait for ever for the framework.
func TestCallThatNeverReturns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hang := make(chan struct{})
		f := &fakeSystem{host: appleSilicon()}
		f.tweak = func(m *fakeFramework) { m.onPause = func() error { <-hang; return nil } }
		d, spec := fakeDriver(f)
		inst, err := d.Start(t.Context(), spec)
		require.NoError(t, err)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		require.ErrorIs(t, inst.(vm.Pauser).Pause(ctx), context.DeadlineExceeded)
		ctx, cancel = context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		require.ErrorIs(t, inst.(vm.Pauser).Resume(ctx), context.DeadlineExceeded, "one change at a time")
		began := time.Now()
		require.NoError(t, inst.Close())
		require.Less(t, time.Since(began), 5*grace)
		close(hang)
		synctest.Wait()
	})
}

func TestStartFails(t *testing.T) {
	for name, c := range map[string]struct {
		err, is error
		text    string
	}{
		"no memory":      {&failure{domain, 1, "out of memory"}, errs.ErrUnavailable, "out of memory (VZErrorDomain 1)"},
		"no entitlement": {&failure{domain, codeConfiguration, "x “com.apple.security.virtualization” y"}, errs.ErrUnavailable, "vm/vz/sign '"},
		"no good config": {&failure{domain, codeConfiguration, "bad"}, errs.ErrInvalid, "bad"},
	} {
		t.Run(name, func(t *testing.T) {
			f := &fakeSystem{host: appleSilicon()}
			f.tweak = func(m *fakeFramework) { m.onStart = func() error { return c.err } }
			d, spec := fakeDriver(f)
			spec.Dir = t.TempDir()
			_, err := d.Start(t.Context(), spec)
			require.ErrorIs(t, err, c.is)
			require.ErrorContains(t, err, c.text)
			<-f.made[0].over
			require.NoDirExists(t, filepath.Join(spec.Dir, layersName))
		})
	}
}

func TestFrameworkEndsWithAnError(t *testing.T) {
	f := &fakeSystem{host: appleSilicon()}
	d, spec := fakeDriver(f)
	m, err := d.Start(t.Context(), spec)
	require.NoError(t, err)
	f.made[0].end(stateError)
	<-m.Done()
	require.ErrorIs(t, m.Err(), errs.ErrUnavailable)
	require.ErrorContains(t, m.Err(), "framework ended it by an error")
}

func TestGuestBreaksTheLink(t *testing.T) {
	f := &fakeSystem{host: appleSilicon()}
	d, spec := fakeDriver(f)
	m, err := d.Start(t.Context(), spec)
	require.NoError(t, err)
	_, err = m.Dial(t.Context(), guest.PortEcho)
	require.NoError(t, err)
	f.made[0].mu.Lock()
	for _, c := range f.made[0].conns {
		c.Close()
	}
	f.made[0].mu.Unlock()
	<-m.Done()
	require.ErrorContains(t, m.Err(), "broke the link")
}

// TestSaveAndGoOn saves a machine and lets another one go on from it.
func TestSaveAndGoOn(t *testing.T) {
	f := &fakeSystem{host: appleSilicon()}
	d, spec := fakeDriver(f)
	dir := t.TempDir()
	inst, err := d.Start(t.Context(), spec)
	require.NoError(t, err)
	require.ErrorIs(t, inst.(vm.Snapshotter).Snapshot(t.Context(), filepath.Join(dir, "state")), errs.ErrUnsupported)
	require.NoError(t, inst.Close())

	spec.MemoryFile = filepath.Join(dir, "memory")
	first, err := d.Start(t.Context(), spec)
	require.NoError(t, err)
	defer first.Close()
	require.NoError(t, first.(vm.Snapshotter).Snapshot(t.Context(), filepath.Join(dir, "state")))
	require.NotNil(t, f.made[1].paused, "it stays paused")

	spec.State = filepath.Join(dir, "state")
	second, err := d.Start(t.Context(), spec)
	require.NoError(t, err)
	defer second.Close()
	require.Nil(t, f.made[2].paused, "it goes on")
	c, err := second.Dial(t.Context(), guest.PortEcho)
	require.NoError(t, err)
	c.Close()
	spec.State = filepath.Join(dir, "none")
	_, err = d.Start(t.Context(), spec)
	require.ErrorIs(t, err, errs.ErrNotFound)
}

func TestLayersAreLinks(t *testing.T) {
	f := &fakeSystem{host: appleSilicon()}
	d, spec := fakeDriver(f)
	spec.Dir = t.TempDir()
	stale := filepath.Join(spec.Dir, layersName, "stale")
	require.NoError(t, os.MkdirAll(filepath.Dir(stale), 0o700))
	require.NoError(t, os.WriteFile(stale, nil, 0o600))
	data := filepath.Join(t.TempDir(), "data")
	require.NoError(t, os.WriteFile(data, []byte("data"), 0o600))
	spec.Disks = []vm.Disk{{ID: "data", Path: data}}
	inst, err := d.Start(t.Context(), spec)
	require.NoError(t, err)
	a := inst.(vm.DiskAttacher)
	require.NoFileExists(t, stale, "of a process that was killed")

	require.ErrorIs(t, a.AttachDisk(t.Context(), vm.Disk{ID: "w", Path: data}), errs.ErrUnsupported)
	require.ErrorIs(t, a.AttachDisk(t.Context(), vm.Disk{ID: "data", Path: data, ReadOnly: true}), errs.ErrExists)
	require.ErrorIs(t, a.DetachDisk(t.Context(), "data"), errs.ErrUnsupported)
	require.ErrorIs(t, a.DetachDisk(t.Context(), "../data"), errs.ErrNotFound)
	require.ErrorIs(t, a.AttachDisk(t.Context(), vm.Disk{ID: "dir", Path: spec.Dir, ReadOnly: true}), errs.ErrInvalid)
	symlink := filepath.Join(t.TempDir(), "symlink")
	require.NoError(t, os.Symlink(data, symlink))
	require.NoError(t, a.AttachDisk(t.Context(), vm.Disk{ID: "l", Path: symlink, ReadOnly: true}))
	st, err := os.Lstat(filepath.Join(spec.Dir, layersName, "l"))
	require.NoError(t, err)
	require.True(t, st.Mode().IsRegular())
	require.NoError(t, inst.Close())
	require.NoDirExists(t, filepath.Join(spec.Dir, layersName))
	require.FileExists(t, data)
	require.ErrorIs(t, a.AttachDisk(t.Context(), vm.Disk{ID: "late", Path: data, ReadOnly: true}), errs.ErrClosed)
}
