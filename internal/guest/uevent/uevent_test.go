package uevent

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestParse(t *testing.T) {
	for in, want := range map[string]Event{
		"add@/devices/x\x00ACTION=add\x00DEVPATH=/devices/x\x00SUBSYSTEM=block\x00DEVNAME=sda\x00DEVTYPE=disk\x00": {"add", "block", "disk", "sda"},
		"remove@/x\x00ACTION=remove\x00SUBSYSTEM=virtio-ports\x00DEVNAME=vport0p1":                                 {"remove", "virtio-ports", "", "vport0p1"},
		"change@/x\x00ACTION=change\x00ODD\x00=\x00":                                                               {"change", "", "", ""},
	} {
		got, ok := Parse([]byte(in))
		require.True(t, ok)
		require.Equal(t, want, got)
	}
	for _, in := range []string{"", "\x00", "libudev\x00ACTION=add\x00", "add@/x", "add@/x\x00", "add@/x\x00SUBSYSTEM=block\x00"} {
		_, ok := Parse([]byte(in))
		require.False(t, ok, "%q", in)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte("add@/x\x00ACTION=add\x00SUBSYSTEM=block\x00DEVNAME=sda\x00"))
	f.Fuzz(func(t *testing.T, in []byte) {
		if e, ok := Parse(in); ok {
			require.NotEmpty(t, e.Action)
		}
	})
}
