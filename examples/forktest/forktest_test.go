package forktest

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/arcboxlabs/arcbox-go"
	"github.com/arcboxlabs/arcbox-go/arcboxtest"
	"github.com/arcboxlabs/arcbox-go/internal/image/imagetest"
	"github.com/arcboxlabs/arcbox-go/internal/needs"
)

func TestMain(m *testing.M) { os.Exit(arcboxtest.Main(m)) }

const (
	forks = 10
	keys  = 1000
)

// TestForks fills a Redis once, and changes it in ten forks at a time.
func TestForks(t *testing.T) {
	rt := arcboxtest.Runtime(t, arcboxtest.Options{Config: arcbox.Config{VM: arcbox.VMConfig{CPUs: 2}}})
	warm(t, rt)
	began := time.Now()
	for i := range forks {
		t.Run(fmt.Sprint("fork", i), func(t *testing.T) {
			t.Parallel()
			rt := rt.Fork(t)
			t.Logf("fork %d is there after %v", i, time.Since(began))
			if got := redis(t, rt, "get", "key:1000"); got != "1000" {
				t.Errorf("the fork has %q for what was set before", got)
			}
			redis(t, rt, "set", "mine", fmt.Sprint(i))
			redis(t, rt, "del", fmt.Sprint("key:", i+1))
			if got := redis(t, rt, "get", "mine"); got != fmt.Sprint(i) {
				t.Errorf("fork %d reads what fork %s has written", i, got)
			}
			if got := redis(t, rt, "dbsize"); got != fmt.Sprint(keys) {
				t.Errorf("the fork has %s keys: another one has changed its data", got)
			}
		})
	}
}

// warm starts Redis, from an image that is made of Debian's package, and fills it.
func warm(t *testing.T, rt *arcboxtest.Sandbox) {
	t.Helper()
	img, err := imagetest.Programs(t)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "image.tar")
	if err := os.WriteFile(file, imagetest.OCIArchive(t, img), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := rt.LoadImage(t.Context(), file, arcbox.LoadOptions{}); err != nil {
		t.Fatal(err)
	}
	_, err = rt.RunContainer(t.Context(), arcbox.ContainerSpec{
		Name: "redis", Image: "programs:test", User: "redis", WorkingDir: "/var/lib/redis",
		Args: []string{"redis-server", "--save", "", "--dir", "/var/lib/redis"},
	}, arcbox.RunOptions{})
	needs.Machine(t, err)
	script := "until redis-cli ping; do sleep 0.1; done; for i in $(seq 1 %d); do echo set key:$i $i; done | redis-cli > /dev/null; redis-cli dbsize"
	if got := execute(t, rt, "sh", "-c", fmt.Sprintf(script, keys)); !strings.HasSuffix(got, fmt.Sprint(keys)) {
		t.Fatalf("Redis has not what was set: %s", got)
	}
}

// redis asks the server of a sandbox.
func redis(t *testing.T, rt *arcboxtest.Sandbox, args ...string) string {
	t.Helper()
	return execute(t, rt, append([]string{"redis-cli"}, args...)...)
}

// execute executes a command beside the server and returns what it has written.
func execute(t *testing.T, rt *arcboxtest.Sandbox, args ...string) string {
	t.Helper()
	var out bytes.Buffer
	p, err := rt.Exec(t.Context(), "redis", arcbox.ExecSpec{Args: args}, arcbox.ExecOptions{Stdout: &out, Stderr: &out})
	if err != nil {
		t.Fatal(err)
	}
	exit, err := p.Wait(t.Context())
	if err != nil || exit.Code != 0 {
		t.Fatalf("%s: exit code %d, %v: %s", args, exit.Code, err, out.String())
	}
	return strings.TrimSpace(out.String())
}
