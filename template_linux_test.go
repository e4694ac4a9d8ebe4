package arcbox_test

import (
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/arcboxlabs/arcbox-go"
	"github.com/arcboxlabs/arcbox-go/vm"
)

// logged is a logger whose text can be looked at.
func logged(cfg *arcbox.Config) *consoleLog {
	out := &consoleLog{}
	cfg.Logger = slog.New(slog.NewTextHandler(out, &slog.HandlerOptions{Level: slog.LevelInfo}))
	return out
}

// templateConfig is a config with a template of its own: no other test has a machine of this size.
func templateConfig(t *testing.T, memory int64) arcbox.Config {
	shared.get(t)
	cfg := testConfig(t)
	cfg.VM.Memory = memory
	cfg.VM.Accelerator = vm.AcceleratorTCG // with hardware virtualisation there are no templates yet
	return cfg
}

const (
	madeTemplate = "made a template"
	noTemplate   = "without a template"
)

// TestTemplate makes one, uses it, and damages it.
func TestTemplate(t *testing.T) {
	cfg := templateConfig(t, 384<<20)
	for _, dir := range templates(t, cfg) {
		require.NoError(t, os.RemoveAll(dir))
	}
	t.Run("clones are machines of their own", func(t *testing.T) { testClones(t, cfg) })
	t.Run("does not serve", func(t *testing.T) { testTemplateThatDoesNotServe(t, cfg) })
}

// testClones runs several machines from one template at once, which is not there: it is made once, and they have their own
// randomness, the right time, and their own memory.
func testClones(t *testing.T, cfg arcbox.Config) {
	log := logged(&cfg)
	var wg sync.WaitGroup
	outputs := make([]string, 4)
	for i := range outputs {
		cfg := cfg
		cfg.DataDir = t.TempDir()
		rt := newRuntime(t, cfg)
		loadBusybox(t, rt)
		wg.Go(func() {
			outputs[i] = run(t, rt, arcbox.ContainerSpec{
				Args: sh(`cat /proc/sys/kernel/random/uuid; head -c 16 /dev/hwrng | od -An -tx1 | tr -d " "; grep -c -w -e rdrand -e rdseed /proc/cpuinfo
					date +%s; head -c 30000000 /dev/zero > /tmp/mine && wc -c < /tmp/mine`),
				Privileged: true,
			}, arcbox.RunOptions{}).stdout
		})
	}
	wg.Wait()
	require.NotContains(t, log.String(), noTemplate)
	require.Equal(t, 1, strings.Count(log.String(), madeTemplate), "%s", log)
	seen := map[string]bool{}
	for _, out := range outputs {
		lines := strings.Fields(out)
		require.Len(t, lines, 5, out)
		for _, random := range lines[:2] { // of the kernel, and of the device
			require.GreaterOrEqual(t, len(random), 32)
			require.False(t, seen[random], "two clones have the same randomness")
			seen[random] = true
		}
		if runtime.GOARCH == "amd64" {
			require.Equal(t, "0", lines[2], "the processor's randomness would come from what all clones have of QEMU")
		}
		at, err := strconv.ParseInt(lines[3], 10, 64)
		require.NoError(t, err)
		require.WithinDuration(t, time.Now(), time.Unix(at, 0), time.Minute)
		require.Equal(t, "30000000", lines[4])
	}
}

// templates returns the directories of the templates of machines with a config's memory.
func templates(t *testing.T, cfg arcbox.Config) (dirs []string) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(cfg.Boot.Dir, "templates", "*", "memory"))
	require.NoError(t, err)
	for _, file := range files {
		if info, err := os.Stat(file); err == nil && info.Size() == cfg.VM.Memory {
			dirs = append(dirs, filepath.Dir(file))
		}
	}
	return dirs
}

// testTemplateThatDoesNotServe damages a template in a way that only its use shows: the machine boots, says why, and the next
// one has a template again.
func testTemplateThatDoesNotServe(t *testing.T, cfg arcbox.Config) {
	log := logged(&cfg)
	fine := func() {
		rt := newRuntime(t, cfg)
		loadBusybox(t, rt)
		require.Equal(t, "fine\n", run(t, rt, arcbox.ContainerSpec{Args: sh("echo fine")}, arcbox.RunOptions{}).stdout)
		require.NoError(t, rt.Close())
	}
	dirs := templates(t, cfg)
	require.Len(t, dirs, 1)
	states, err := filepath.Glob(filepath.Join(dirs[0], "state*")) // and what the driver has beside it
	require.NoError(t, err)
	require.NotEmpty(t, states)
	for _, state := range states {
		info, err := os.Stat(state)
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(state, make([]byte, info.Size()), info.Mode()))
		require.NoError(t, os.Chtimes(state, info.ModTime(), info.ModTime()))
	}
	fine()
	require.Contains(t, log.String(), noTemplate)
	fine()
	require.Equal(t, 1, strings.Count(log.String(), madeTemplate), "%s", log)
}

func TestTemplatesCanBeSwitchedOff(t *testing.T) {
	cfg := templateConfig(t, 320<<20)
	cfg.VM.Template = arcbox.TemplateOff
	log := logged(&cfg)
	rt := newRuntime(t, cfg)
	loadBusybox(t, rt)
	require.Equal(t, "fine\n", run(t, rt, arcbox.ContainerSpec{Args: sh("echo fine")}, arcbox.RunOptions{}).stdout)
	require.NotContains(t, log.String(), "emplate")

	cfg.VM.Template = "always"
	_, err := arcbox.New(cfg)
	require.ErrorIs(t, err, arcbox.ErrInvalid)
	require.ErrorContains(t, err, "Config.VM.Template")
}
