//go:build !darwin

package arcbox

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestDoctorOnAHostWithoutTheFramework(t *testing.T) {
	cfg := Config{DataDir: t.TempDir(), VM: VMConfig{Hypervisor: HypervisorVZ}}
	findings, err := Doctor(t.Context(), cfg)
	require.NoError(t, err)
	require.True(t, kinds(findings)[FindingUnsupportedOS], findings)
	require.NotContains(t, kinds(findings), FindingQEMUMissing)
}
