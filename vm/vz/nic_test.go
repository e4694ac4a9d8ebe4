//go:build unix

package vz

import (
	"bytes"
	"net"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/arcboxlabs/arcbox-go/vm"
)

// TestNICCarriesFrames sends frames both ways, of all sizes, and ends with the machine.
func TestNICCarriesFrames(t *testing.T) {
	f := &fakeSystem{host: appleSilicon()}
	d, spec := fakeDriver(f)
	spec.NIC = true
	inst, err := d.Start(t.Context(), spec)
	require.NoError(t, err)
	ours := inst.(vm.Networked).NIC()
	require.Same(t, ours, inst.(vm.Networked).NIC())
	theirs, err := net.FileConn(f.made[0].nic)
	require.NoError(t, err)
	defer theirs.Close()
	for _, size := range []int{14, 60, 1514, 65018} {
		frame := bytes.Repeat([]byte{byte(size)}, size)
		for _, way := range [][2]net.Conn{{ours, theirs}, {theirs, ours}} {
			_, err := way[0].Write(frame)
			require.NoError(t, err)
			b := make([]byte, 1<<17)
			require.NoError(t, way[1].SetReadDeadline(time.Now().Add(time.Minute)))
			n, err := way[1].Read(b)
			require.NoError(t, err)
			require.True(t, bytes.Equal(frame, b[:n]), "a frame of %d bytes came as %d others", size, n)
		}
	}
	require.NoError(t, inst.Close())
	_, err = ours.Write([]byte("late"))
	require.ErrorIs(t, err, net.ErrClosed)
}
