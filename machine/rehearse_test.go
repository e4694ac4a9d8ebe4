package machine

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/arcboxlabs/arcbox-go/agent/agenttest"
	"github.com/arcboxlabs/arcbox-go/agent/api"
	"github.com/arcboxlabs/arcbox-go/internal/errs"
	"github.com/arcboxlabs/arcbox-go/internal/ext4"
	"github.com/arcboxlabs/arcbox-go/vm"
)

// newRehearsing returns the template of a rig whose guests know the rehearsal's program, and counts how often it ran.
func newRehearsing(t *testing.T, exit int) (tmpl *template, r *rig, ran *atomic.Int32) {
	ran = new(atomic.Int32)
	r = newRigOf(t, map[string]agenttest.Command{api.RehearsalCommand: func(_ context.Context, p *agenttest.Process) int {
		ran.Add(1)
		_, _ = io.Copy(io.Discard, p.Stdin)
		return exit
	}})
	r.cfg.DiskCache, r.cfg.DiskSize = t.TempDir(), 1<<30
	agent := filepath.Join(t.TempDir(), "agent")
	require.NoError(t, os.WriteFile(agent, []byte("an executable"), 0o700))
	return &template{cfg: r.cfg, spec: vm.Spec{Arch: "amd64"}, agent: agent}, r, ran
}

func (r *rig) start(t *testing.T, d vm.Driver) vm.Instance {
	inst, err := d.Start(t.Context(), vm.Spec{Kernel: r.cfg.dataDisk.Path})
	require.NoError(t, err)
	t.Cleanup(func() { inst.Close() })
	return inst
}

// TestRehearsal runs one, twice as for a template: the guest is greeted, has the disks, runs the container and a command in
// it, and has nothing of that at the end.
func TestRehearsal(t *testing.T) {
	tmpl, r, ran := newRehearsing(t, 0)
	d := withBays{r.fake, false}
	r.cfg.Driver = d
	tmpl.spec.Bays, tmpl.spec.NIC = r.cfg.bays(), true
	dir := t.TempDir()
	re, err := tmpl.newRehearsal(t.Context(), dir)
	require.NoError(t, err)
	for n := range 2 {
		inst := r.start(t, d)
		fake := r.fake.Started()[n]
		require.NoError(t, re.run(t.Context(), inst))
		require.EqualValues(t, 2*(n+1), ran.Load(), "as a container and in it")
		require.Len(t, r.told, n+1)
		require.Equal(t, vm.BaySerial(1), r.told[n])
		require.Equal(t, map[string]vm.Disk{re.data.ID: *re.data, re.layer.ID: *re.layer}, fake.Disks())
		require.ErrorIs(t, newAgent(inst, nil).Remove(t.Context(), api.RemoveRequest{ID: rehearsalName}), errs.ErrNotFound)
		require.NoError(t, re.leave(t.Context(), inst))
		require.Empty(t, fake.Disks())
	}
	require.NoError(t, re.remove())
	left, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Empty(t, left)
}

// Machines without bays are only greeted.
func TestRehearsalWithoutBays(t *testing.T) {
	tmpl, r, ran := newRehearsing(t, 0)
	re, err := tmpl.newRehearsal(t.Context(), t.TempDir())
	require.NoError(t, err)
	inst := r.start(t, r.fake)
	require.NoError(t, re.run(t.Context(), inst))
	require.Equal(t, []string{""}, r.told)
	require.Zero(t, ran.Load())
	require.NoError(t, re.leave(t.Context(), inst))
	require.NoError(t, re.remove())
}

func TestRehearsalFails(t *testing.T) {
	tmpl, r, _ := newRehearsing(t, 3)
	d := withBays{r.fake, false}
	tmpl.spec.Bays = (&Config{Driver: d, dataDisk: r.cfg.dataDisk}).bays()
	re, err := tmpl.newRehearsal(t.Context(), t.TempDir())
	require.NoError(t, err)
	require.ErrorContains(t, re.run(t.Context(), r.start(t, d)), "exit code 3")

	tmpl.agent = "/no/agent"
	_, err = tmpl.newRehearsal(t.Context(), t.TempDir())
	require.ErrorIs(t, err, os.ErrNotExist)
}

func TestLayerOfTheRehearsal(t *testing.T) {
	tmpl, _, _ := newRehearsing(t, 0)
	layer := filepath.Join(t.TempDir(), "layer")
	require.NoError(t, writeLayer(layer, tmpl.agent))
	f, err := os.Open(layer)
	require.NoError(t, err)
	defer f.Close()
	v, err := ext4.Open(f)
	require.NoError(t, err)
	inode, err := v.Root()
	require.NoError(t, err)
	for _, name := range []string{programDir, api.RehearsalCommand} {
		inode, err = v.Lookup(inode, name)
		require.NoError(t, err)
	}
	require.EqualValues(t, 0o755, inode.Mode&0o777)
	r, err := v.File(inode)
	require.NoError(t, err)
	content, err := io.ReadAll(r)
	require.NoError(t, err)
	require.Equal(t, "an executable", string(content))
}
