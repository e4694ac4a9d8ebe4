package vmtest

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
	"github.com/arcboxlabs/arcbox-go/vm"
	"github.com/arcboxlabs/arcbox-go/vm/vmtest/guest"
)

// patience is far above what anything takes on a slow and busy host.
const patience = 2 * time.Minute

// Conformance tests a driver. newDriver returns one, and the Spec of a machine that runs the suite's guest: the program
// guest/init beside this package, as the init of an initramfs. It may skip the test. Abilities that the driver's machines
// lack are skipped by name.
func Conformance(t *testing.T, newDriver func(t *testing.T) (vm.Driver, vm.Spec)) {
	d, spec := newDriver(t)
	s := &suite{driver: d, spec: spec, caps: d.Capabilities()}
	// Cases that leave their machine as it was share one.
	t.Run("Machine", func(t *testing.T) {
		m := s.start(t, spec)
		for _, c := range []struct {
			name string
			run  func(*testing.T, vm.Instance)
		}{
			{"Capabilities", s.testCapabilities},
			{"Streams", testStreams},
			{"NobodyListens", testNobodyListens},
			{"DialEndsWithContext", testDialEndsWithContext},
			{"Disks", s.testDisks},
			{"DisksAtOnce", s.testDisksAtOnce},
			{"Pause", testPause},
			{"Console", testConsole},
		} {
			t.Run(c.name, func(t *testing.T) { c.run(t, m) })
		}
	})
	for _, c := range []struct {
		name string
		run  func(*testing.T)
	}{
		{"StartWithCancelledContext", s.testStartCancelled},
		{"StartNonsense", s.testStartNonsense},
		{"StartWithShares", s.testShares},
		{"CloseDuringStart", s.testCloseDuringStart},
		{"CloseWhileBooting", s.testCloseWhileBooting},
		{"CloseMany", s.testCloseMany},
		{"GuestPowersOff", s.testPowerOff},
		{"GuestPanics", s.testPanic},
		{"ShutdownOfDeafGuest", s.testShutdownDeaf},
		{"ShutdownOfPausedGuest", s.testShutdownPaused},
		{"HypervisorIsKilled", s.testKilled},
		{"Snapshot", s.testSnapshot},
		{"DisksAtStart", s.testDisksAtStart},
		{"Bays", s.testBays},
		{"BaysOfASnapshot", s.testBaysOfASnapshot},
		{"NothingIsLeft", s.testNothingLeft},
	} {
		t.Run(c.name, c.run)
	}
}

type suite struct {
	driver vm.Driver
	spec   vm.Spec
	caps   vm.Capabilities
}

func bounded(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

// start starts a machine that the end of the test closes.
func (s *suite) start(t *testing.T, spec vm.Spec) vm.Instance {
	t.Helper()
	m, err := s.driver.Start(bounded(t), spec)
	require.NoError(t, err)
	t.Cleanup(func() {
		require.NoError(t, m.Close())
		if c, ok := m.(vm.ConsoleTailer); ok && t.Failed() {
			t.Logf("console:\n%s", c.ConsoleTail())
		}
	})
	return m
}

// dial opens a stream that fails rather than wait for ever.
func dial(t testing.TB, m vm.Instance, port uint32) net.Conn {
	t.Helper()
	c, err := m.Dial(bounded(t), port)
	require.NoError(t, err)
	t.Cleanup(func() { c.Close() })
	require.NoError(t, c.SetDeadline(time.Now().Add(patience)))
	return c
}

// command has the guest do a command and returns its answer.
func command(t testing.TB, m vm.Instance, format string, args ...any) string {
	t.Helper()
	c := dial(t, m, guest.PortCommand)
	defer c.Close()
	_, err := fmt.Fprintf(c, format+"\n", args...)
	require.NoError(t, err)
	line, err := bufio.NewReader(c).ReadString('\n')
	require.NoError(t, err)
	return line[:len(line)-1]
}

func wait(t testing.TB, m vm.Instance) {
	t.Helper()
	select {
	case <-m.Done():
	case <-bounded(t).Done():
		t.Fatal("the machine did not end")
	}
}

// requireOver checks that a machine that has ended says so, at once and with the same error.
func requireOver(t testing.TB, m vm.Instance) {
	t.Helper()
	_, err := m.Dial(bounded(t), guest.PortEcho)
	require.Error(t, err)
	if why := m.Err(); why != nil {
		require.ErrorContains(t, err, why.Error())
	} else {
		require.ErrorIs(t, err, errs.ErrClosed)
	}
	require.NoError(t, m.Shutdown(bounded(t)))
	require.NoError(t, m.Close())
}

func (s *suite) testStartCancelled(t *testing.T) {
	ctx, cancel := context.WithCancelCause(context.Background())
	why := errors.New("changed my mind")
	cancel(why)
	_, err := s.driver.Start(ctx, s.spec)
	require.ErrorIs(t, err, why)
}

func (s *suite) testStartNonsense(t *testing.T) {
	for name, change := range map[string]func(*vm.Spec){
		"no kernel":     func(s *vm.Spec) { s.Kernel = "" },
		"name":          func(s *vm.Spec) { s.Name = "a,b" },
		"memory":        func(s *vm.Spec) { s.Memory = -1 },
		"CPUs":          func(s *vm.Spec) { s.CPUs = -1 },
		"line break":    func(s *vm.Spec) { s.Cmdline = "a\nb" },
		"disk ID":       func(s *vm.Spec) { s.Disks = []vm.Disk{{ID: "a=b", Path: "/dev/null"}} },
		"disk twice":    func(s *vm.Spec) { s.Disks = []vm.Disk{{ID: "a", Path: "/x"}, {ID: "a", Path: "/y"}} },
		"disk's path":   func(s *vm.Spec) { s.Disks = []vm.Disk{{ID: "a"}} },
		"bay's size":    func(s *vm.Spec) { s.Bays = []vm.Bay{{Size: 1000}} },
		"disk ID empty": func(s *vm.Spec) { s.Disks = []vm.Disk{{Path: "/x"}} },
	} {
		t.Run(name, func(t *testing.T) {
			spec := s.spec
			change(&spec)
			_, err := s.driver.Start(bounded(t), spec)
			require.ErrorIs(t, err, errs.ErrInvalid)
		})
	}
}

func (s *suite) testCloseWhileBooting(t *testing.T) {
	m := s.start(t, s.spec)
	dialed := make(chan error, 1)
	go func() {
		c, err := m.Dial(bounded(t), guest.PortEcho)
		if err == nil { // a guest that boots faster than this test
			_, err = io.ReadFull(c, make([]byte, 1))
			c.Close()
		}
		dialed <- err
	}()
	require.NoError(t, m.Close())
	require.Error(t, <-dialed)
	require.NoError(t, m.Err())
	requireOver(t, m)
}

func (s *suite) testCloseMany(t *testing.T) {
	m := s.start(t, s.spec)
	c := dial(t, m, guest.PortEcho)
	closed := make(chan error)
	for range 8 {
		go func() { closed <- m.Close() }()
	}
	_, err := io.ReadFull(c, make([]byte, 1))
	require.Error(t, err)
	require.NotErrorIs(t, err, io.EOF, "the end of a machine looks like the end of a stream")
	for range 8 {
		require.NoError(t, <-closed)
	}
	wait(t, m)
	require.NoError(t, m.Err())
}

func (s *suite) testPowerOff(t *testing.T) {
	m := s.start(t, s.spec)
	require.Equal(t, "ok", command(t, m, "poweroff"))
	wait(t, m)
	require.NoError(t, m.Err())
	requireOver(t, m)
}

func (s *suite) testPanic(t *testing.T) {
	m := s.start(t, s.spec)
	require.Equal(t, "ok", command(t, m, "say last words"))
	idle := dial(t, m, guest.PortEcho)
	require.Equal(t, "ok", command(t, m, "panic"))
	_, err := idle.Read(make([]byte, 1))
	require.ErrorIs(t, err, errs.ErrUnavailable)
	wait(t, m)
	require.ErrorIs(t, m.Err(), errs.ErrUnavailable)
	require.ErrorContains(t, m.Err(), "Kernel panic")
	require.ErrorContains(t, m.Err(), "last words")
	requireOver(t, m)
	require.ErrorContains(t, m.Err(), "Kernel panic", "Close hides why the machine ended")
}

func (s *suite) testShutdownDeaf(t *testing.T) {
	m := s.start(t, s.spec)
	require.Equal(t, "ok", command(t, m, "say I ignore the power button"))
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if err := m.Shutdown(ctx); err != nil { // nil where the machine has a power button that always works
		require.ErrorIs(t, err, context.DeadlineExceeded)
	}
	wait(t, m)
	require.NoError(t, m.Err())
	requireOver(t, m)
}

// testNothingLeft compares what the process has before and after machines that end in each way.
func (s *suite) testNothingLeft(t *testing.T) {
	s.start(t, s.spec).Close() // what is made once and kept
	before := possessions(t)
	for _, end := range []func(vm.Instance){
		func(m vm.Instance) { m.Close() },
		func(m vm.Instance) { dial(t, m, guest.PortEcho); m.Close() },
		func(m vm.Instance) { command(t, m, "poweroff"); wait(t, m) },
		func(m vm.Instance) {
			c := dial(t, m, guest.PortSource)
			c.Write([]byte{0, 1, 0, 0, 0, 0, 0, 0}) // a flood that nobody reads
			m.Close()
		},
	} {
		m, err := s.driver.Start(bounded(t), s.spec)
		require.NoError(t, err)
		end(m)
		wait(t, m)
	}
	require.Equal(t, before, possessions(t))
}
