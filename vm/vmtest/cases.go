package vmtest

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
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

type closeWriter interface{ CloseWrite() error }

// testStreams runs many streams at once, each with its own bytes and a half-close.
func testStreams(t *testing.T, m vm.Instance) {
	t.Run("many", func(t *testing.T) {
		var wg sync.WaitGroup
		results := make(chan error, 64)
		for i := range 64 {
			wg.Go(func() { results <- echoOnce(m, bytes.Repeat([]byte{byte(i)}, 1+i*1000)) })
		}
		wg.Wait()
		close(results)
		for err := range results {
			require.NoError(t, err)
		}
	})
	t.Run("one after the other", func(t *testing.T) {
		for range 200 {
			require.NoError(t, echoOnce(m, []byte("x")))
		}
	})
	t.Run("to the guest", func(t *testing.T) {
		const size = 32 << 20
		c := dial(t, m, guest.PortSink)
		_, err := io.CopyN(c, zeros{}, size)
		require.NoError(t, err)
		require.NoError(t, c.(closeWriter).CloseWrite())
		b, err := io.ReadAll(c)
		require.NoError(t, err)
		require.Equal(t, binary.BigEndian.AppendUint64(nil, size), b)
	})
	t.Run("from the guest", func(t *testing.T) {
		const size = 32 << 20
		c := dial(t, m, guest.PortSource)
		_, err := c.Write(binary.BigEndian.AppendUint64(nil, size))
		require.NoError(t, err)
		n, err := io.Copy(io.Discard, c)
		require.NoError(t, err)
		require.EqualValues(t, size, n)
	})
	t.Run("one that is not read holds up no other", func(t *testing.T) {
		c := dial(t, m, guest.PortSource)
		_, err := c.Write(binary.BigEndian.AppendUint64(nil, 1<<40))
		require.NoError(t, err)
		require.NoError(t, echoOnce(m, make([]byte, 1<<20)))
		require.NoError(t, c.Close())
		_, err = c.Read(make([]byte, 1))
		require.Error(t, err)
	})
	t.Run("deadline", func(t *testing.T) {
		c := dial(t, m, guest.PortEcho)
		require.NoError(t, c.SetReadDeadline(time.Now().Add(10*time.Millisecond)))
		_, err := c.Read(make([]byte, 1))
		require.ErrorIs(t, err, os.ErrDeadlineExceeded)
	})
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// echoOnce sends p to the guest, ends its direction, and expects p and an end back.
func echoOnce(m vm.Instance, p []byte) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	c, err := m.Dial(ctx, guest.PortEcho)
	if err != nil {
		return err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	sent := make(chan error, 1)
	go func() {
		_, err := c.Write(p)
		sent <- errors.Join(err, c.(closeWriter).CloseWrite())
	}()
	b, err := io.ReadAll(c)
	if err := errors.Join(err, <-sent); err != nil {
		return err
	}
	if !bytes.Equal(b, p) {
		return fmt.Errorf("%d bytes came back as %d others", len(p), len(b))
	}
	return nil
}

func testNobodyListens(t *testing.T, m vm.Instance) {
	c, err := m.Dial(bounded(t), 4711)
	if err == nil {
		defer c.Close()
		c.SetDeadline(time.Now().Add(patience))
		_, err = c.Read(make([]byte, 1))
	}
	require.ErrorIs(t, err, errs.ErrUnavailable)
}

func testDialEndsWithContext(t *testing.T, m vm.Instance) {
	ctx, cancel := context.WithCancel(context.Background())
	c, err := m.Dial(ctx, guest.PortEcho)
	require.NoError(t, err)
	defer c.Close()
	cancel()
	_, err = c.Write([]byte("x")) // the stream does not belong to the context it was dialed with
	require.NoError(t, err)
	_, err = m.Dial(ctx, guest.PortEcho)
	require.ErrorIs(t, err, context.Canceled)
}

// diskFile makes the raw image of a small disk with a first line of text.
func diskFile(t testing.TB, line string) string {
	path := filepath.Join(t.TempDir(), "disk, with a comma.raw")
	b := make([]byte, 1<<20)
	copy(b, line+"\n")
	require.NoError(t, os.WriteFile(path, b, 0o600))
	return path
}

func disksOf(t *testing.T, m vm.Instance) vm.DiskAttacher {
	a, ok := m.(vm.DiskAttacher)
	if !ok {
		t.Skip("no disks while the machine runs")
	}
	return a
}

func (s *suite) testDisks(t *testing.T, m vm.Instance) {
	a := disksOf(t, m)
	d := vm.Disk{ID: "conformance-disk", Path: diskFile(t, "hello disk"), ReadOnly: true}
	for i := range 3 { // the same disk comes back
		if i > 0 && !s.caps.Detach {
			break // its ID may still be that of what the guest holds on to
		}
		require.NoError(t, a.AttachDisk(bounded(t), d))
		require.ErrorIs(t, a.AttachDisk(bounded(t), d), errs.ErrExists)
		require.Equal(t, "yes", command(t, m, "wait %s", d.ID))
		require.Equal(t, "hello disk", command(t, m, "read %s", d.ID))
		require.NoError(t, a.DetachDisk(bounded(t), d.ID))
		s.requireGone(t, m, d.ID)
		require.ErrorIs(t, a.DetachDisk(bounded(t), d.ID), errs.ErrNotFound)
	}
	require.ErrorIs(t, a.AttachDisk(bounded(t), vm.Disk{ID: "none", Path: "/no/such/file", ReadOnly: true}), errs.ErrNotFound)
	require.ErrorIs(t, a.AttachDisk(bounded(t), vm.Disk{ID: "no good", Path: d.Path, ReadOnly: true}), errs.ErrInvalid)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	require.ErrorIs(t, a.AttachDisk(ctx, vm.Disk{ID: "late", Path: d.Path, ReadOnly: true}), context.Canceled)

	w := vm.Disk{ID: "writable", Path: diskFile(t, "to be written")}
	if !s.caps.AttachWritable {
		require.ErrorIs(t, a.AttachDisk(bounded(t), w), errs.ErrUnsupported)
		return
	}
	require.NoError(t, a.AttachDisk(bounded(t), w))
	require.Equal(t, "yes", command(t, m, "wait %s", w.ID))
	require.NoError(t, a.DetachDisk(bounded(t), w.ID))
	s.requireGone(t, m, w.ID)
}

// requireGone waits until the guest has no disk with the ID any more, where it learns of that.
func (s *suite) requireGone(t *testing.T, m vm.Instance, id string) {
	t.Helper()
	if s.caps.Detach {
		require.Equal(t, "yes", command(t, m, "gone %s", id))
	}
}

func (s *suite) testDisksAtOnce(t *testing.T, m vm.Instance) {
	a := disksOf(t, m)
	path := diskFile(t, "shared")
	var wg sync.WaitGroup
	results := make(chan error, 16)
	for i := range cap(results) {
		wg.Go(func() {
			results <- a.AttachDisk(bounded(t), vm.Disk{ID: fmt.Sprint("many-", i), Path: path, ReadOnly: true})
		})
	}
	wg.Wait()
	for i := range cap(results) {
		require.NoError(t, <-results)
		require.Equal(t, "yes", command(t, m, "wait many-%d", i))
	}
	for i := range cap(results) {
		wg.Go(func() { results <- a.DetachDisk(bounded(t), fmt.Sprint("many-", i)) })
	}
	wg.Wait()
	for i := range cap(results) {
		require.NoError(t, <-results)
		s.requireGone(t, m, fmt.Sprint("many-", i))
	}
}

func (s *suite) testDisksAtStart(t *testing.T) {
	spec := s.spec
	spec.Disks = []vm.Disk{
		{ID: "first", Path: diskFile(t, "one"), ReadOnly: true},
		{ID: "second_is-20-bytes-l", Path: diskFile(t, "two")},
	}
	m := s.start(t, spec)
	for id, line := range map[string]string{"first": "one", "second_is-20-bytes-l": "two"} {
		require.Equal(t, "yes", command(t, m, "wait %s", id))
		require.Equal(t, line, command(t, m, "read %s", id))
	}
	if a, ok := m.(vm.DiskAttacher); ok && s.caps.Detach {
		require.NoError(t, a.DetachDisk(bounded(t), "first"))
		require.Equal(t, "yes", command(t, m, "gone first"))
		require.Equal(t, "yes", command(t, m, "has second_is-20-bytes-l"))
	}
}

func testPause(t *testing.T, m vm.Instance) {
	p, ok := m.(vm.Pauser)
	if !ok {
		t.Skip("no pause")
	}
	c := dial(t, m, guest.PortEcho)
	for range 3 {
		require.NoError(t, p.Pause(bounded(t)))
		require.NoError(t, p.Pause(bounded(t)))
		_, err := io.WriteString(c, "ping")
		require.NoError(t, err)
		require.NoError(t, c.SetReadDeadline(time.Now().Add(100*time.Millisecond)))
		_, err = c.Read(make([]byte, 4))
		require.ErrorIs(t, err, os.ErrDeadlineExceeded, "a paused guest answers")
		require.NoError(t, p.Resume(bounded(t)))
		require.NoError(t, p.Resume(bounded(t)))
		require.NoError(t, c.SetReadDeadline(time.Now().Add(patience)))
		b := make([]byte, 4)
		_, err = io.ReadFull(c, b)
		require.NoError(t, err)
		require.Equal(t, "ping", string(b))
	}
}

func testConsole(t *testing.T, m vm.Instance) {
	c, ok := m.(vm.ConsoleTailer)
	if !ok {
		t.Skip("no console")
	}
	// The command after it is answered when the console has taken the line before it, or soon after.
	require.Equal(t, "ok", command(t, m, "flood 2000"))
	require.Equal(t, "ok", command(t, m, "say good\x1b[31m bye\x07"))
	require.Eventually(t, func() bool { return strings.Contains(c.ConsoleTail(), "bye") }, patience, time.Millisecond)
	tail := c.ConsoleTail()
	require.Contains(t, tail, "flood 1999 of 2000")
	require.NotContains(t, tail, "\x1b")
	require.Less(t, len(tail), 256<<10)
}
