package fsx

import (
	"bufio"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
	"github.com/stretchr/testify/require"
)

func TestLockExcludes(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	unlock, err := TryLock(path, true)
	require.NoError(t, err)
	_, err = TryLock(path, false)
	require.ErrorIs(t, err, errs.ErrInUse)
	unlock()
	unlock()
	a, err := TryLock(path, false)
	require.NoError(t, err)
	b, err := TryLock(path, false)
	require.NoError(t, err)
	_, err = TryLock(path, true)
	require.ErrorIs(t, err, errs.ErrInUse)
	a()
	b()
	c, err := TryLock(path, true)
	require.NoError(t, err)
	c()
}

func TestLockObeysContext(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	unlock, err := TryLock(path, true)
	require.NoError(t, err)
	defer unlock()
	why := errors.New("the user left")
	ctx, cancel := context.WithCancelCause(t.Context())
	got := make(chan error, 1)
	go func() {
		_, err := Lock(ctx, path, false)
		got <- err
	}()
	cancel(why)
	require.ErrorIs(t, <-got, why)
}

func TestLockHammerCountsOneHolder(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	var holders atomic.Int32
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for j := range 30 {
				unlock, err := Lock(t.Context(), path, true)
				if err != nil {
					t.Error(err)
					return
				}
				if n := holders.Add(1); n != 1 {
					t.Errorf("%d holders at once", n)
				}
				holders.Add(-1)
				if (i+j)%3 == 0 {
					_ = os.Remove(path) // the last that a holder does: the next one locks a new file at once
				}
				unlock()
			}
		})
	}
	wg.Wait()
}

func TestLockOfADeadProcessIsFree(t *testing.T) {
	if path := os.Getenv("FSX_TEST_HOLD"); path != "" {
		if _, err := TryLock(path, true); err != nil {
			t.Fatal(err)
		}
		_, _ = os.Stdout.WriteString("held\n")
		select {}
	}
	path := filepath.Join(t.TempDir(), "lock")
	cmd := exec.Command(os.Args[0], "-test.run=^TestLockOfADeadProcessIsFree$")
	cmd.Env = append(os.Environ(), "FSX_TEST_HOLD="+path)
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	line, err := bufio.NewReader(out).ReadString('\n')
	require.NoError(t, err)
	require.Equal(t, "held\n", line)
	_, err = TryLock(path, false)
	require.ErrorIs(t, err, errs.ErrInUse)
	require.NoError(t, cmd.Process.Kill())
	_ = cmd.Wait()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	unlock, err := Lock(ctx, path, true)
	require.NoError(t, err)
	unlock()
}
