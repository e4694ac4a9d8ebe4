package qemu

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/arcboxlabs/arcbox-go/boot"
	"github.com/arcboxlabs/arcbox-go/internal/needs"
	"github.com/arcboxlabs/arcbox-go/vm"
)

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == ownerArg {
		owner(os.Args[2:])
		return
	}
	goleak.VerifyTestMain(m)
}

// assets are the kernel and the initramfs with the suite's init for this architecture, made once for all tests.
var assets = sync.OnceValues(func() (*boot.Assets, error) { return makeAssets(runtime.GOARCH) })

func makeAssets(arch string) (*boot.Assets, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "arcbox-testinit")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	agent := filepath.Join(dir, "init")
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", agent, "../vmtest/guest/init")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH="+arch)
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("build the suite's init: %w: %s", err, out)
	}
	return boot.Resolve(context.Background(), boot.Config{
		Dir: filepath.Join(cache, "arcbox-test", "boot"), Arch: arch, Agent: agent,
	})
}

// testSpec is a machine that runs the suite's init.
func testSpec(t testing.TB) vm.Spec {
	t.Helper()
	_, err := New(Config{}).Probe(testContext(t), "", vm.AcceleratorAuto)
	needs.Machine(t, err)
	a, err := assets()
	needs.Machine(t, err)
	return vm.Spec{Kernel: a.Kernel, Initramfs: a.Initramfs}
}

// startT starts a machine and closes it when the test ends. A failed test shows the console.
func startT(t testing.TB, spec vm.Spec) *Instance {
	t.Helper()
	inst, err := New(Config{Logger: testLogger(t)}).Start(testContext(t), spec)
	require.NoError(t, err)
	i := inst.(*Instance)
	t.Cleanup(func() {
		i.Close()
		if t.Failed() {
			t.Logf("console:\n%s", i.ConsoleTail())
		}
	})
	return i
}
