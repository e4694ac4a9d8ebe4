//go:build darwin && cgo

package vz

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/arcboxlabs/arcbox-go/boot"
	"github.com/arcboxlabs/arcbox-go/internal/needs"
	"github.com/arcboxlabs/arcbox-go/vm"
	"github.com/arcboxlabs/arcbox-go/vm/vmtest"
)

// TestConformance runs the suite of drivers on this Mac. The test binary must be signed:
//
//	go test -exec 'go run github.com/arcboxlabs/arcbox-go/vm/vz/sign -run' ./vm/vz
func TestConformance(t *testing.T) {
	vmtest.Conformance(t, func(t *testing.T) (vm.Driver, vm.Spec) { return New(Config{}), testSpec(t) })
}

// testSpec is a machine that runs the suite's init. It skips where there is none, and fails where one was asked for.
func testSpec(t *testing.T) vm.Spec {
	t.Helper()
	needs.Machine(t, New(Config{}).Probe())
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	cache, err := os.UserCacheDir()
	require.NoError(t, err)
	init := filepath.Join(t.TempDir(), "init")
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags=-s -w", "-o", init, "../vmtest/guest/init")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH="+runtime.GOARCH)
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, string(out))
	a, err := boot.Resolve(ctx, boot.Config{Dir: filepath.Join(cache, "arcbox-test", "boot"), Agent: init})
	needs.Machine(t, err)
	return vm.Spec{Kernel: a.Kernel, Initramfs: a.Initramfs, Memory: 512 << 20}
}
