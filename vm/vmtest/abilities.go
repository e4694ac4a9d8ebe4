package vmtest

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
	"github.com/arcboxlabs/arcbox-go/vm"
	"github.com/arcboxlabs/arcbox-go/vm/vmtest/guest"
)

// testCapabilities checks that a machine has the methods for what its driver says it can do.
func (s *suite) testCapabilities(t *testing.T, m vm.Instance) {
	_, console := m.(vm.ConsoleTailer)
	_, pause := m.(vm.Pauser)
	_, disks := m.(vm.DiskAttacher)
	_, snapshot := m.(vm.Snapshotter)
	_, shape := s.driver.(vm.Shaper)
	require.Equal(t, s.caps.Console, console)
	require.Equal(t, s.caps.Pause, pause)
	require.Equal(t, s.caps.AttachReadOnly || s.caps.AttachWritable, disks)
	if s.caps.Snapshot { // without it a Snapshotter says so itself
		require.True(t, snapshot)
		require.True(t, shape)
	}
	if s.caps.Fork {
		_, fork := m.(vm.Forker)
		require.True(t, fork)
	}
	if s.caps.NIC {
		n, nic := m.(vm.Networked)
		require.True(t, nic)
		require.Nil(t, n.NIC(), "it was started without")
	}
	if s.caps.Detach {
		require.True(t, disks)
	}
	if s.caps.SharedState {
		require.True(t, s.caps.Snapshot)
	}
}

func (s *suite) testShares(t *testing.T) {
	spec := s.spec
	spec.Shares = []vm.Share{{Tag: "conformance", Path: t.TempDir(), ReadOnly: true}}
	m, err := s.driver.Start(bounded(t), spec)
	if !s.caps.Shares {
		require.ErrorIs(t, err, errs.ErrUnsupported)
		return
	}
	require.NoError(t, err)
	require.NoError(t, m.Close())
	spec.Shares[0].Path = filepath.Join(t.TempDir(), "none")
	_, err = s.driver.Start(bounded(t), spec)
	require.ErrorIs(t, err, errs.ErrNotFound)
}

// testCloseDuringStart ends the context of a start at moments that sweep over it, and whenever the start looks whether it
// has ended. Either there is a machine or there is nothing.
func (s *suite) testCloseDuringStart(t *testing.T) {
	s.start(t, s.spec).Close()
	before := possessions(t)
	for step := range 20 {
		ctx, cancel := context.WithTimeout(context.Background(), time.Duration(step)*3*time.Millisecond)
		s.startUntil(t, ctx)
		cancel()
		require.Equal(t, before, possessions(t), "step %d", step)
	}
	for looks := range 10 {
		ctx, cancel := context.WithCancel(context.Background())
		s.startUntil(t, &endsWhenSeen{Context: ctx, end: cancel, looks: looks})
		cancel()
		require.Equal(t, before, possessions(t), "after %d looks", looks)
	}
}

// startUntil starts a machine under a context that may end meanwhile, and closes what there is then.
func (s *suite) startUntil(t *testing.T, ctx context.Context) {
	t.Helper()
	m, err := s.driver.Start(ctx, s.spec)
	if err != nil {
		require.Nil(t, m)
		require.ErrorIs(t, err, ctx.Err())
		return
	}
	require.NotNil(t, m)
	require.NoError(t, m.Close())
}

// endsWhenSeen is a context that ends when somebody has asked some times whether it has.
type endsWhenSeen struct {
	context.Context
	end context.CancelFunc

	mu    sync.Mutex
	looks int
}

func (c *endsWhenSeen) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.looks--; c.looks < 0 {
		c.end()
	}
	return c.Context.Err()
}

// testShutdownPaused shuts a machine down that is paused.
func (s *suite) testShutdownPaused(t *testing.T) {
	m := s.start(t, s.spec)
	p, ok := m.(vm.Pauser)
	if !ok {
		t.Skip("no pause")
	}
	c := dial(t, m, guest.PortEcho)
	require.NoError(t, p.Pause(bounded(t)))
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	m.Shutdown(ctx) // its error is that of the ctx where the guest has no ear for the power button
	wait(t, m)
	require.NoError(t, m.Err())
	_, err := c.Read(make([]byte, 1))
	require.Error(t, err)
	require.NotErrorIs(t, err, io.EOF)
	require.Error(t, p.Resume(bounded(t)))
	requireOver(t, m)
}

// testKilled kills the process of a machine from outside, where it has one of its own and the system tells which.
func (s *suite) testKilled(t *testing.T) {
	before := possessions(t)
	m := s.start(t, s.spec)
	c := dial(t, m, guest.PortEcho)
	var pids []int
	for _, p := range possessions(t) {
		if text, ok := strings.CutPrefix(p, "process "); ok && !slices.Contains(before, p) {
			pid, err := strconv.Atoi(text)
			require.NoError(t, err)
			pids = append(pids, pid)
		}
	}
	if len(pids) == 0 {
		t.Skip("the machine has no process of its own")
	}
	for _, pid := range pids {
		p, err := os.FindProcess(pid)
		require.NoError(t, err)
		require.NoError(t, p.Kill())
	}
	_, err := c.Read(make([]byte, 1))
	require.Error(t, err)
	require.NotErrorIs(t, err, io.EOF)
	wait(t, m)
	require.ErrorIs(t, m.Err(), errs.ErrUnavailable)
	requireOver(t, m)
}

// testSnapshot saves a machine and lets two go on from it: each has what the first one remembered, and what they remember
// themselves is their own.
func (s *suite) testSnapshot(t *testing.T) {
	spec, dir := s.spec, t.TempDir()
	state := filepath.Join(dir, "state")
	plain := s.start(t, spec)
	if p, ok := plain.(vm.Snapshotter); ok {
		require.ErrorIs(t, p.Snapshot(bounded(t), state), errs.ErrUnsupported, "it has no memory file")
		require.NoFileExists(t, state)
	}
	require.NoError(t, plain.Close())
	if !s.caps.Snapshot {
		t.Skip("no snapshots")
	}
	_, err := s.driver.(vm.Shaper).Shape(spec)
	if errors.Is(err, errs.ErrUnsupported) {
		t.Skip(err)
	}
	require.NoError(t, err)

	spec.MemoryFile = filepath.Join(dir, "memory")
	first := s.start(t, spec)
	require.Equal(t, "first", command(t, first, "remember first"))
	require.NoError(t, first.(vm.Snapshotter).Snapshot(bounded(t), state))
	require.NoError(t, first.Close())

	spec.State = state
	var clones []vm.Instance
	for range 2 {
		clones = append(clones, s.start(t, spec))
	}
	for _, m := range clones {
		require.Equal(t, "first", command(t, m, "recall"))
		require.Equal(t, "other", command(t, m, "remember other"))
	}
	require.Equal(t, "first", command(t, s.start(t, spec), "recall"))
}
