package machine

import (
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/arcboxlabs/arcbox-go/agent/agenttest"
	"github.com/arcboxlabs/arcbox-go/agent/api"
	"github.com/arcboxlabs/arcbox-go/boot"
	"github.com/arcboxlabs/arcbox-go/vm"
	"github.com/arcboxlabs/arcbox-go/vm/vmtest"
)

// readOnlyLater is a driver whose machines take disks that can be written at their start only.
type readOnlyLater struct{ *vmtest.Fake }

func (d readOnlyLater) Capabilities() vm.Capabilities {
	c := d.Fake.Capabilities()
	c.AttachWritable = false
	return c
}

// TestDataDiskGoesInWhenItCan starts a machine with a data disk on drivers that can add it while the machine runs, and on
// such as cannot: the guest is told of it either way, and it is there once.
func TestDataDiskGoesInWhenItCan(t *testing.T) {
	for _, later := range []bool{true, false} {
		t.Run(fmt.Sprint("later: ", later), func(t *testing.T) {
			agent := agenttest.New(nil)
			defer agent.Close()
			var told []string
			agent.OnConfigure = func(r api.ConfigureRequest) error { told = append(told, r.DataDisk); return nil }
			fake := &vmtest.Fake{Ports: map[uint32]func(*vmtest.FakeInstance, net.Conn){
				api.Port: func(_ *vmtest.FakeInstance, c net.Conn) { agent.Serve(c) },
			}}
			agent.OnPoweroff = func() { fake.Started()[0].PowerOff() }
			path := filepath.Join(t.TempDir(), "disk")
			require.NoError(t, os.WriteFile(path, nil, 0o600))
			cfg := Config{
				Name: "m", Driver: fake, Logger: slog.New(slog.DiscardHandler), dataDisk: vm.Disk{ID: dataDiskID, Path: path},
			}
			if !later {
				cfg.Driver = readOnlyLater{fake}
			}
			m, err := launch(t.Context(), cfg, cfg.spec(&boot.Assets{Arch: "amd64", Kernel: path}))
			require.NoError(t, err)
			defer m.Shutdown(t.Context())
			inst := fake.Started()[0]
			require.Equal(t, map[string]vm.Disk{dataDiskID: cfg.dataDisk}, inst.Disks())
			require.Equal(t, later, len(inst.Spec().Disks) == 0)
			require.Equal(t, []string{dataDiskID}, told)
			require.True(t, m.HasDisk())
			require.NoError(t, m.AttachDisks(t.Context(), cfg.dataDisk), "it is there already")
			require.NoError(t, m.Shutdown(t.Context()))
		})
	}
}
