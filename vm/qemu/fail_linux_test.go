package qemu

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
	"github.com/arcboxlabs/arcbox-go/vm"
	"github.com/arcboxlabs/arcbox-go/vm/vmtest/guest"
)

// fakeQEMU is a program in the place of QEMU, written in shell. Descriptor 3 is its control socket.
func fakeQEMU(t *testing.T, script string) *Driver {
	path := filepath.Join(t.TempDir(), "qemu")
	require.NoError(t, os.WriteFile(path, []byte("#!/bin/sh\n"+script), 0o755))
	return New(Config{Binary: path, Logger: testLogger(t)})
}

// anyFile is a Spec whose files exist.
func anyFile(t *testing.T) vm.Spec {
	path := filepath.Join(t.TempDir(), "kernel")
	require.NoError(t, os.WriteFile(path, []byte("not a kernel"), 0o600))
	return vm.Spec{Kernel: path, Accelerator: vm.AcceleratorTCG}
}

func TestStartOfBrokenQEMU(t *testing.T) {
	for name, c := range map[string]struct{ script, text string }{
		"ends at once":        {"echo bad luck >&2; exit 3", "exit status 3): bad luck"},
		"ends silently":       {"exit 0", "exit status 0"},
		"is killed":           {"kill -9 $$", "signal: killed"},
		"says nonsense":       {"echo hello >&3; exec sleep 1000", "decode what QEMU sent"},
		"greets strangely":    {`echo '{"return": {}}' >&3; exec sleep 1000`, "not a QMP greeting"},
		"never ends its line": {"exec cat /dev/zero >&3", "a line of more than"},
		"ends after greeting": {"echo '" + greeting + "' >&3; echo oops >&2; exit 1", "oops"},
		"refuses": {"echo '" + greeting + "' >&3; head -n1 <&3 >/dev/null; " +
			`echo '{"id": 1, "error": {"class": "GenericError", "desc": "not today"}}' >&3; exec sleep 1000`, "not today"},
		"leaves a child with its sockets": {"sleep 5 & echo gone >&2; exit 1", "gone"},
		"writes much to stderr":           {"head -c 10000000 /dev/zero | tr '\\0' x >&2; echo; echo end of it >&2; exit 1", "end of it"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := fakeQEMU(t, c.script).Start(testContext(t), anyFile(t))
			require.ErrorIs(t, err, errs.ErrUnavailable)
			require.ErrorContains(t, err, c.text)
			require.Less(t, len(err.Error()), 20<<10)
		})
	}
}

func TestStartOfOldQEMU(t *testing.T) {
	old := strings.Replace(greeting, `"major": 7`, `"major": 6`, 1)
	d := fakeQEMU(t, "echo '"+old+"' >&3; head -n1 <&3 >/dev/null; echo '{\"id\": 1, \"return\": {}}' >&3; exec sleep 1000")
	_, err := d.Start(testContext(t), anyFile(t))
	require.ErrorIs(t, err, errs.ErrUnsupported)
	require.ErrorContains(t, err, "QEMU 6.2.22")
	require.ErrorContains(t, err, "7.2.0 or later")
}

func TestStartOfSilentQEMUEndsWithContext(t *testing.T) {
	for name, script := range map[string]string{
		"no greeting":  "exec sleep 1000",
		"no answer":    "echo '" + greeting + "' >&3; exec sleep 1000",
		"half a line":  "printf '{\"QMP\"' >&3; exec sleep 1000",
		"signal-proof": "trap '' TERM INT HUP; exec sleep 1000",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
			defer cancel()
			_, err := fakeQEMU(t, script).Start(ctx, anyFile(t))
			require.ErrorIs(t, err, context.DeadlineExceeded)
		})
	}
}

func TestMissingBinary(t *testing.T) {
	d := New(Config{Binary: filepath.Join(t.TempDir(), "none")})
	_, err := d.Start(testContext(t), anyFile(t))
	require.ErrorIs(t, err, errs.ErrUnavailable)
	require.ErrorContains(t, err, "apt-get install qemu-system-x86")
	_, err = d.Probe(testContext(t), "amd64", "")
	require.ErrorIs(t, err, errs.ErrUnavailable)
}

func TestMissingFiles(t *testing.T) {
	ok := anyFile(t)
	gone := filepath.Join(t.TempDir(), "gone")
	for name, change := range map[string]func(*vm.Spec){
		"kernel":    func(s *vm.Spec) { s.Kernel = gone },
		"initramfs": func(s *vm.Spec) { s.Initramfs = gone },
		"disk":      func(s *vm.Spec) { s.Disks = []vm.Disk{{ID: "d", Path: gone}} },
	} {
		spec := ok
		change(&spec)
		_, err := New(Config{}).Start(testContext(t), spec)
		require.ErrorIs(t, err, errs.ErrNotFound, name)
		require.ErrorContains(t, err, gone)
	}
	spec := ok
	spec.Kernel = t.TempDir()
	_, err := New(Config{}).Start(testContext(t), spec)
	require.ErrorIs(t, err, errs.ErrInvalid)
}

func TestKernelThatIsNone(t *testing.T) {
	testSpec(t) // skips where there is no QEMU
	m, err := New(Config{}).Start(testContext(t), anyFile(t))
	if err == nil {
		defer m.Close()
		select {
		case <-m.Done():
			err = m.Err()
		case <-testContext(t).Done():
		}
	}
	require.ErrorIs(t, err, errs.ErrUnavailable)
	require.ErrorContains(t, err, "kernel")
}

func TestInitThatExits(t *testing.T) {
	spec := testSpec(t)
	spec.Cmdline = "testinit=exit"
	i := startT(t, spec)
	_, err := i.Dial(testContext(t), guest.PortEcho)
	require.ErrorIs(t, err, errs.ErrUnavailable)
	require.ErrorContains(t, err, "Attempted to kill init")
	require.ErrorContains(t, err, "testinit: up")
	<-i.Done()
	require.ErrorContains(t, i.Err(), "Attempted to kill init")
}

func TestDialOfGuestThatNeverListens(t *testing.T) {
	spec := testSpec(t)
	spec.Cmdline = "testinit=hang"
	up := newSignal("testinit: up")
	spec.Console = up
	i := startT(t, spec)
	<-up.seen
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err := i.Dial(ctx, guest.PortEcho)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	dialed := make(chan error, 1)
	go func() {
		_, err := i.Dial(testContext(t), guest.PortEcho)
		dialed <- err
	}()
	require.NoError(t, i.proc.cmd.Process.Kill())
	err = <-dialed
	require.ErrorIs(t, err, errs.ErrUnavailable)
	require.ErrorContains(t, err, "signal: killed")
}

// signal is a Writer that tells when it has seen a text.
type signal struct {
	text string
	seen chan struct{}
	once sync.Once
	b    []byte
}

func newSignal(text string) *signal { return &signal{text: text, seen: make(chan struct{})} }

func (s *signal) Write(p []byte) (int, error) {
	s.b = append(s.b, p...)
	if bytes.Contains(s.b, []byte(s.text)) {
		s.once.Do(func() { close(s.seen) })
	}
	return len(p), nil
}

func TestAcceleratorThatCannotWork(t *testing.T) {
	spec := anyFile(t)
	spec.Accelerator = vm.AcceleratorHVF
	_, err := New(Config{}).Start(testContext(t), spec)
	require.ErrorIs(t, err, errs.ErrUnsupported)
	spec.Accelerator = "warp"
	_, err = New(Config{}).Start(testContext(t), spec)
	require.ErrorIs(t, err, errs.ErrInvalid)
}

func TestTransports(t *testing.T) {
	spec := anyFile(t)
	spec.Transport = "pigeon"
	_, err := New(Config{}).Start(testContext(t), spec)
	require.ErrorIs(t, err, errs.ErrInvalid)
	if probeVsock() == nil {
		return
	}
	spec.Transport = vm.TransportVsock
	_, err = New(Config{}).Start(testContext(t), spec)
	require.ErrorIs(t, err, errs.ErrUnsupported)
	require.True(t, errors.Is(err, os.ErrNotExist) || errors.Is(err, os.ErrPermission), err)
}

// TestOnlyMeantDescriptors looks at what a child has.
func TestOnlyMeantDescriptors(t *testing.T) {
	secret, err := os.CreateTemp(t.TempDir(), "secret")
	require.NoError(t, err)
	defer secret.Close()
	d := fakeQEMU(t, "ls -l /proc/$$/fd >&2; env >&2; exit 1")
	t.Setenv("ARCBOX_TEST_PASSWORD", "hunter2")
	_, err = d.Start(testContext(t), anyFile(t))
	require.ErrorContains(t, err, "socket:")
	require.Equal(t, 3, strings.Count(err.Error(), "socket:"), err)
	require.NotContains(t, err.Error(), "secret")
	require.NotContains(t, err.Error(), "hunter2")
}

func TestProbe(t *testing.T) {
	testSpec(t)
	f, err := New(Config{}).Probe(testContext(t), "", "")
	require.NoError(t, err)
	require.False(t, f.Version.Less(MinVersion))
	require.Equal(t, f.Accelerator == vm.AcceleratorTCG, f.Reason != "")

	for name, c := range map[string]struct {
		script, text string
		is           error
	}{
		"nonsense":  {"echo hello", "is not the version of a QEMU", errs.ErrUnavailable},
		"nothing":   {"exit 0", "is not the version", errs.ErrUnavailable},
		"fails":     {"echo no library >&2; exit 127", "no library", errs.ErrUnavailable},
		"too old":   {"echo QEMU emulator version 5.2.0", "7.2.0 or later", errs.ErrUnsupported},
		"too much":  {"head -c 1000000 /dev/zero", "is not the version", errs.ErrUnavailable},
		"endlessly": {"exec sleep 1000", "deadline", context.DeadlineExceeded},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ctx := testContext(t)
			if name == "endlessly" {
				var cancel context.CancelFunc
				ctx, cancel = context.WithTimeout(ctx, 100*time.Millisecond)
				defer cancel()
			}
			_, err := fakeQEMU(t, c.script).Probe(ctx, "amd64", "")
			require.ErrorIs(t, err, c.is)
			require.ErrorContains(t, err, c.text)
		})
	}
	_, err = New(Config{}).Probe(testContext(t), "mips", "")
	require.ErrorIs(t, err, errs.ErrUnsupported)
}
