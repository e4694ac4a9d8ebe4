package boot

import (
	"bufio"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestChildIsKilledWithAllItStarted(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	dir := t.TempDir()
	fifo := filepath.Join(dir, "fifo")
	require.NoError(t, exec.Command("mkfifo", fifo).Run())
	done := make(chan error, 1)
	go func() {
		// The grandchild holds the fifo open as long as it lives.
		_, err := child{path: "/bin/sh", args: []string{"-c", "(echo up; exec sleep 1000) >" + fifo + " & wait"}}.run(ctx)
		done <- err
	}()
	f, err := os.Open(fifo)
	require.NoError(t, err)
	defer func() { _ = f.Close() }()
	r := bufio.NewReader(f)
	line, err := r.ReadString('\n')
	require.NoError(t, err)
	require.Equal(t, "up\n", line)
	cancel()
	require.ErrorIs(t, <-done, context.Canceled)
	_, err = r.ReadString('\n')
	require.ErrorContains(t, err, "EOF", "the grandchild is dead")
}
