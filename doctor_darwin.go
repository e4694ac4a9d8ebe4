package arcbox

import (
	"context"
	"os"
	"os/exec"
)

// checkSystem looks for the entitlement without which macOS lets no program use its virtualization.
func checkSystem(ctx context.Context, cfg Config) []Finding {
	if cfg.hypervisor() != HypervisorVZ {
		return nil
	}
	exe, err := os.Executable()
	if err != nil {
		return nil
	}
	out, err := exec.CommandContext(ctx, "codesign", "-d", "--entitlements", "-", exe).CombinedOutput()
	return entitlementFinding(exe, string(out), err)
}
