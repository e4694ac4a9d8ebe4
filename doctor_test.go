package arcbox

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/arcboxlabs/arcbox-go/vm"
	"github.com/arcboxlabs/arcbox-go/vm/qemu"
)

func kinds(findings []Finding) map[FindingKind]bool {
	out := map[FindingKind]bool{}
	for _, f := range findings {
		out[f.Kind] = f.Fatal
	}
	return out
}

func TestDoctorFindsWhatIsMissing(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	require.NoError(t, os.WriteFile(file, []byte("#!/bin/sh\necho 'QEMU emulator version 6.2.0'\n"), 0o755))
	findings, err := Doctor(t.Context(), Config{
		DataDir: filepath.Join(file, "below"),
		VM:      VMConfig{QEMU: file},
		Boot:    BootConfig{Dir: t.TempDir(), Kernel: "/no/such/kernel", Agent: file},
	})
	require.NoError(t, err)
	got := kinds(findings)
	for _, want := range []FindingKind{FindingDataDir, FindingQEMUTooOld, FindingNoKernel, FindingNoAgent} {
		require.True(t, got[want], "%s in %v", want, findings)
	}
	for _, f := range findings {
		require.NotEmpty(t, f.Message)
		require.NotEmpty(t, f.Fix)
	}

	findings, err = Doctor(t.Context(), Config{DataDir: t.TempDir(), VM: VMConfig{QEMU: "/no/such/qemu", Transport: vm.TransportVsock}})
	require.NoError(t, err)
	require.True(t, kinds(findings)[FindingQEMUMissing])
	if _, err := os.Stat("/dev/vhost-vsock"); err != nil {
		require.True(t, kinds(findings)[FindingNoVsock])
	}

	_, err = Doctor(t.Context(), Config{DataDir: t.TempDir(), VM: VMConfig{CPUs: -3}})
	require.ErrorIs(t, err, ErrInvalid)
}

func TestDoctorIsContentWithAGoodHost(t *testing.T) {
	findings, err := Doctor(t.Context(), Config{DataDir: t.TempDir()})
	require.NoError(t, err)
	for _, f := range findings {
		if f.Fatal && f.Kind != FindingQEMUMissing || f.Fatal && os.Getenv("ARCBOX_TEST_VM") == "1" {
			t.Errorf("%+v", f)
		}
	}
}

func TestQEMUFinding(t *testing.T) {
	v := qemu.Version{Major: 8}
	tests := []struct {
		name  string
		facts qemu.Facts
		err   error
		want  FindingKind
	}{
		{"fine", qemu.Facts{Binary: "q", Version: v, Accelerator: vm.AcceleratorKVM}, nil, ""},
		{"emulated", qemu.Facts{Binary: "q", Version: v, Accelerator: vm.AcceleratorTCG, Reason: "no vmx"}, nil, FindingNoHardwareVM},
		{"missing", qemu.Facts{}, fmt.Errorf("find: %w", ErrUnavailable), FindingQEMUMissing},
		{"no driver", qemu.Facts{}, fmt.Errorf("windows: %w", ErrUnsupported), FindingUnsupportedOS},
		{"old", qemu.Facts{Binary: "q", Version: qemu.Version{Major: 5}}, ErrUnsupported, FindingQEMUTooOld},
		{"silent", qemu.Facts{Binary: "q"}, ErrUnavailable, FindingQEMUTooOld},
		{"accelerator", qemu.Facts{Binary: "q", Version: v}, ErrUnsupported, FindingAccelerator},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f, ok := qemuFinding(tt.facts, tt.err)
			require.Equal(t, tt.want != "", ok)
			require.Equal(t, tt.want, f.Kind)
		})
	}
}

func TestEntitlementFinding(t *testing.T) {
	require.Empty(t, entitlementFinding("x", "<key>com.apple.security.virtualization</key><true/>", nil))
	for _, err := range []error{nil, errors.New("not signed")} {
		f := entitlementFinding("/bin/app", "", err)
		require.Len(t, f, 1)
		require.True(t, f[0].Fatal)
		require.Contains(t, f[0].Fix, "vm/vz/sign")
		require.Contains(t, f[0].Fix, "/bin/app")
	}
}
