package vz

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
	"github.com/arcboxlabs/arcbox-go/vm"
)

func TestVersions(t *testing.T) {
	for text, want := range map[string]version{"13": {13, 0}, "14.6": {14, 6}, "15.1.2\n": {15, 1}} {
		got, err := parseVersion(text)
		require.NoError(t, err)
		require.Equal(t, want, got)
	}
	for _, text := range []string{"", "x", "14.x", "-1", "14.-1", "."} {
		_, err := parseVersion(text)
		require.ErrorIs(t, err, errs.ErrInvalid, "%q", text)
	}
	require.True(t, version{12, 9}.less(version{13, 0}))
	require.True(t, version{13, 1}.less(version{13, 2}))
	require.False(t, version{13, 1}.less(version{13, 1}))
}

func complete(t *testing.T, change func(*vm.Spec)) vm.Spec {
	t.Helper()
	spec := vm.Spec{Name: "m", Kernel: "/boot/Image", Initramfs: "/boot/initramfs", Memory: 512 << 20}
	if change != nil {
		change(&spec)
	}
	spec, err := spec.Complete("arm64")
	require.NoError(t, err)
	return spec
}

func TestPlanHasEverything(t *testing.T) {
	p, err := newPlan(appleSilicon(), complete(t, func(s *vm.Spec) {
		s.CPUs, s.Rosetta, s.Cmdline, s.Dir = 4, true, "extra=1", "/machines/m"
		s.Disks = []vm.Disk{{ID: "data", Path: "/d/data"}, {ID: "layer", Path: "/d/layer", ReadOnly: true}}
		s.Shares = []vm.Share{{Tag: "src", Path: "/home/me", ReadOnly: true}}
	}))
	require.NoError(t, err)
	require.Equal(t, plan{
		name: "m", arch: "arm64", os: version{15, 1}, kernel: "/boot/Image", initramfs: "/boot/initramfs", cpus: 4, memory: 512 << 20,
		cmdline: "quiet random.trust_cpu=on audit=0 lsm=landlock,yama cryptomgr.notests GODEBUG=asyncpreemptoff=1 console=hvc0 panic=0 " +
			"arcbox.layers=virtiofs:arcbox.layers arcbox.rosetta=virtiofs:arcbox.rosetta extra=1",
		disks:  []vm.Disk{{ID: "data", Path: "/d/data"}, {ID: "layer", Path: "/d/layer", ReadOnly: true}},
		shares: []vm.Share{{Tag: "src", Path: "/home/me", ReadOnly: true}}, rosetta: true, dir: "/machines/m",
	}, p)
	p, err = newPlan(appleSilicon(), complete(t, func(s *vm.Spec) { s.Kernel = "relative" }))
	require.NoError(t, err)
	require.True(t, filepath.IsAbs(p.kernel))
}

func TestPlanRefuses(t *testing.T) {
	unsupported, invalid := errs.ErrUnsupported, errs.ErrInvalid
	for name, c := range map[string]struct {
		host   func(*host)
		spec   func(*vm.Spec)
		is     error
		phrase string
	}{
		"old macOS":       {func(h *host) { h.os = version{12, 7} }, nil, unsupported, "macOS 13.0 or later"},
		"architecture":    {nil, func(s *vm.Spec) { s.Arch = "amd64" }, unsupported, "driver qemu"},
		"accelerator":     {nil, func(s *vm.Spec) { s.Accelerator = vm.AcceleratorTCG }, unsupported, "tcg"},
		"transport":       {nil, func(s *vm.Spec) { s.Transport = vm.TransportSerial }, unsupported, "serial"},
		"many CPUs":       {nil, func(s *vm.Spec) { s.CPUs = 9 }, unsupported, "1 to 8"},
		"much memory":     {nil, func(s *vm.Spec) { s.Memory = 17 << 30 }, unsupported, "4 to 16384 MiB"},
		"no Rosetta":      {func(h *host) { h.rosetta = false }, func(s *vm.Spec) { s.Rosetta = true }, unsupported, "softwareupdate"},
		"the layers' tag": {nil, func(s *vm.Spec) { s.Shares = []vm.Share{{Tag: layersTag, Path: "/"}} }, invalid, layersTag},
		"fork":            {nil, func(s *vm.Spec) { s.Forkable = true }, unsupported, "forked"},
		"memory back":     {nil, func(s *vm.Spec) { s.ReturnMemory = true }, unsupported, "balloon"},
		"qcow2":           {nil, func(s *vm.Spec) { s.Disks = []vm.Disk{{ID: "d", Path: "p", Backing: "b"}} }, unsupported, "raw images"},
		"save on Intel": {func(h *host) { h.arch = "amd64" }, func(s *vm.Spec) { s.Arch, s.MemoryFile = "amd64", "m" },
			unsupported, "Apple silicon"},
		"save before 14": {func(h *host) { h.os = version{13, 6} }, func(s *vm.Spec) { s.MemoryFile = "m" }, unsupported, "macOS 14.0"},
		"save with disks": {nil, func(s *vm.Spec) { s.MemoryFile, s.Disks = "m", []vm.Disk{{ID: "d", Path: "p"}} },
			unsupported, "disks"},
	} {
		t.Run(name, func(t *testing.T) {
			h := appleSilicon()
			if c.host != nil {
				c.host(&h)
			}
			_, err := newPlan(h, complete(t, c.spec))
			require.ErrorIs(t, err, c.is)
			require.ErrorContains(t, err, c.phrase)
		})
	}
}

func TestShapes(t *testing.T) {
	d, spec := fakeDriver(&fakeSystem{host: appleSilicon()})
	first, err := d.Shape(spec)
	require.NoError(t, err)
	spec.Name, spec.Kernel = "other", "other"
	same, err := d.Shape(spec)
	require.NoError(t, err)
	require.Equal(t, first, same)
	spec.CPUs = 2
	differs, err := d.Shape(spec)
	require.NoError(t, err)
	require.NotEqual(t, first, differs)
	spec.Shares = []vm.Share{{Tag: "t", Path: "/"}}
	_, err = d.Shape(spec)
	require.ErrorIs(t, err, errs.ErrUnsupported)
}

func TestCapabilitiesByMac(t *testing.T) {
	intel, old, ancient := appleSilicon(), appleSilicon(), appleSilicon()
	intel.arch, intel.rosetta = "amd64", false
	old.os, ancient.os = version{13, 0}, version{12, 0}
	for _, c := range []struct {
		host            host
		pause, snapshot bool
	}{{appleSilicon(), true, true}, {intel, true, false}, {old, true, false}, {ancient, false, false}} {
		d, _ := fakeDriver(&fakeSystem{host: c.host})
		caps := d.Capabilities()
		require.Equal(t, c.pause, caps.Pause)
		require.Equal(t, c.snapshot, caps.Snapshot)
		require.False(t, caps.AttachWritable)
		require.Equal(t, c.pause, d.Probe() == nil)
	}
}

func TestErrorsSayWhatTheyMean(t *testing.T) {
	for _, c := range []struct {
		err, is error
	}{
		{&failure{domain, codeState, "x"}, errs.ErrConflict},
		{&failure{domain, codeStateTransition, "x"}, errs.ErrConflict},
		{&failure{domain, codeDiskImage, "x"}, errs.ErrInvalid},
		{&failure{domain, codeNotSupported, "x"}, errs.ErrUnsupported},
		{&failure{domain, codeConfiguration, "x"}, errs.ErrInvalid},
		{&failure{domain, 6, "x"}, errs.ErrUnavailable},
		{&failure{"NSPOSIXErrorDomain", codeState, "x"}, errs.ErrUnavailable},
		{os.ErrPermission, os.ErrPermission},
	} {
		require.ErrorIs(t, explain(c.err), c.is, c.err)
	}
	require.NoError(t, explain(nil))
	require.Equal(t, os.ErrPermission, explain(os.ErrPermission))

	var e *EntitlementError
	require.ErrorAs(t, explain(&failure{domain, codeConfiguration, "no “" + Entitlement + "”"}), &e)
	self, err := os.Executable()
	require.NoError(t, err)
	require.Equal(t, self, e.Program)
	require.ErrorIs(t, e, errs.ErrUnavailable)
	e.Program = "/a b'c"
	require.Contains(t, e.Error(), `'/a b'\''c'`)
	require.Contains(t, e.Error(), "go test -exec")
	require.Contains(t, (&EntitlementError{}).Error(), "PROGRAM")
	require.True(t, strings.Contains(Entitlements, "<key>"+Entitlement+"</key>\n\t<true/>"))
}

func TestNoFrameworkHere(t *testing.T) {
	d := New(Config{})
	err := d.Probe()
	if err == nil {
		return // a Mac
	}
	require.ErrorIs(t, err, errs.ErrUnsupported)
	require.Equal(t, vm.Capabilities{}, d.Capabilities())
	_, serr := d.Start(t.Context(), vm.Spec{Kernel: "k"})
	require.ErrorIs(t, serr, errs.ErrUnsupported)
	_, serr = d.Shape(vm.Spec{Kernel: "k"})
	require.True(t, errors.Is(serr, errs.ErrUnsupported))
}
