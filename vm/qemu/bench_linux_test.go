package qemu

import (
	"encoding/binary"
	"io"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/arcboxlabs/arcbox-go/vm"
	"github.com/arcboxlabs/arcbox-go/vm/vmtest/guest"
)

// BenchmarkBoot measures from Start to the first answer of the guest, and as first-line-ms to the first line of its init.
func BenchmarkBoot(b *testing.B) {
	spec := testSpec(b)
	var first time.Duration
	for b.Loop() {
		up := newSignal("testinit: up")
		spec.Console = up
		began := time.Now()
		i := startT(b, spec)
		<-up.seen
		first += time.Since(began)
		ping(b, i)
		i.Close()
	}
	b.ReportMetric(float64(first.Milliseconds())/float64(b.N), "first-line-ms")
}

func ping(b *testing.B, i *Instance) {
	c, err := i.Dial(testContext(b), guest.PortEcho)
	require.NoError(b, err)
	defer c.Close()
	_, err = c.Write([]byte("x"))
	require.NoError(b, err)
	_, err = io.ReadFull(c, make([]byte, 1))
	require.NoError(b, err)
}

func BenchmarkDialAndRoundTrip(b *testing.B) {
	i := startT(b, testSpec(b))
	ping(b, i)
	for b.Loop() {
		ping(b, i)
	}
}

func BenchmarkRoundTrip(b *testing.B) {
	i := startT(b, testSpec(b))
	ping(b, i)
	c, err := i.Dial(testContext(b), guest.PortEcho)
	require.NoError(b, err)
	defer c.Close()
	buf := make([]byte, 100)
	for b.Loop() {
		_, err = c.Write(buf)
		require.NoError(b, err)
		_, err = io.ReadFull(c, buf)
		require.NoError(b, err)
	}
}

func BenchmarkToGuest(b *testing.B) {
	i := startT(b, testSpec(b))
	ping(b, i)
	c, err := i.Dial(testContext(b), guest.PortSink)
	require.NoError(b, err)
	defer c.Close()
	buf := make([]byte, 1<<20)
	b.SetBytes(int64(len(buf)))
	for b.Loop() {
		_, err := c.Write(buf)
		require.NoError(b, err)
	}
}

func BenchmarkFromGuest(b *testing.B) {
	i := startT(b, testSpec(b))
	ping(b, i)
	c, err := i.Dial(testContext(b), guest.PortSource)
	require.NoError(b, err)
	defer c.Close()
	_, err = c.Write(binary.BigEndian.AppendUint64(nil, 1<<50))
	require.NoError(b, err)
	buf := make([]byte, 1<<20)
	b.SetBytes(int64(len(buf)))
	for b.Loop() {
		_, err := io.ReadFull(c, buf)
		require.NoError(b, err)
	}
}

// BenchmarkAttach measures from AttachDisk to the guest having the block device, the question included.
func BenchmarkAttach(b *testing.B) {
	i := startT(b, testSpec(b))
	ping(b, i)
	path := testSpec(b).Initramfs
	for b.Loop() {
		require.NoError(b, i.AttachDisk(b.Context(), vm.Disk{ID: "bench", Path: path, ReadOnly: true}))
		order(b, i, "wait bench")
		b.StopTimer()
		require.NoError(b, i.DetachDisk(b.Context(), "bench"))
		order(b, i, "gone bench")
		b.StartTimer()
	}
}

func order(b *testing.B, i *Instance, line string) {
	c, err := i.Dial(testContext(b), guest.PortCommand)
	require.NoError(b, err)
	defer c.Close()
	_, err = io.WriteString(c, line+"\n")
	require.NoError(b, err)
	_, err = io.ReadFull(c, make([]byte, 4))
	require.NoError(b, err)
}
