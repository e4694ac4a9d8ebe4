package boot

import (
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/arcboxlabs/arcbox-go/boot/internal/codec"
	"github.com/arcboxlabs/arcbox-go/boot/internal/fixture"
)

func TestMain(m *testing.M) {
	if os.Getenv("BOOT_TEST_CHILD") != "" {
		os.Exit(childMain())
	}
	goleak.VerifyTestMain(m)
}

const testRelease = "6.1.0-1-test"

// testPackage returns a kernel package for amd64 and its digest.
func testPackage() (data []byte, sum string) {
	data = fixture.Deb(codec.XZ, fixture.KernelFiles(testRelease))
	return data, sumOf(data)
}

func sumOf(data []byte) string {
	s := sha256.Sum256(data)
	return hex.EncodeToString(s[:])
}

// testAgent returns the path of an ELF file that passes for an agent.
func testAgent(t *testing.T) string {
	t.Helper()
	p := filepath.Join(t.TempDir(), "agent")
	require.NoError(t, os.WriteFile(p, fixture.Vmlinux(fixture.AMD64, false, 5000), 0o600))
	return p
}

// server serves data at every path and counts requests.
func server(t *testing.T, data []byte) (url string, requests *atomic.Int32) {
	t.Helper()
	requests = new(atomic.Int32)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		requests.Add(1)
		_, _ = w.Write(data)
	}))
	t.Cleanup(s.Close)
	return s.URL, requests
}

// standIn makes a module whose agent is a small program, and returns its directory.
func standIn(t *testing.T, program string) string {
	t.Helper()
	dir := t.TempDir()
	for name, body := range map[string]string{
		"go.mod":                         "module " + modulePath + "\n\ngo 1.24\n",
		"agent/cmd/arcbox-agent/main.go": program,
		"internal/x/x.go":                "package x\n",
		"internal/x/x_test.go":           "package x\n",
		"vm/vm.go":                       "package vm\n",
	} {
		p := filepath.Join(dir, filepath.FromSlash(name))
		require.NoError(t, os.MkdirAll(filepath.Dir(p), 0o700))
		require.NoError(t, os.WriteFile(p, []byte(body), 0o600))
	}
	return dir
}

func needGo(t *testing.T) string {
	t.Helper()
	p, err := goTool(usualGo)
	require.NoError(t, err, "the tests are run by go, so it is there")
	return p
}
