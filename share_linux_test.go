package arcbox_test

import (
	"bufio"
	"context"
	"io"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/arcboxlabs/arcbox-go"
)

// speaker is a container whose lines a test waits for.
type speaker struct {
	t     *testing.T
	id    string
	lines *bufio.Scanner
}

// speak runs a container until it ends or the test does.
func speak(t *testing.T, rt *arcbox.Runtime, spec arcbox.ContainerSpec) speaker {
	t.Helper()
	ctx := testContext(t)
	r, w := io.Pipe()
	p, err := rt.RunContainer(ctx, spec, arcbox.RunOptions{Stdout: w, Stderr: w})
	require.NoError(t, err)
	var wg sync.WaitGroup
	wg.Go(func() {
		_, err := p.Wait(ctx)
		w.CloseWithError(err)
	})
	t.Cleanup(func() {
		r.Close()
		require.NoError(t, rt.RemoveContainer(context.Background(), p.ContainerID(), arcbox.RemoveOptions{Force: true}))
		wg.Wait()
	})
	return speaker{t, p.ContainerID(), bufio.NewScanner(r)}
}

func (s speaker) says(want string) {
	s.t.Helper()
	require.True(s.t, s.lines.Scan(), "it has ended before it said %q: %v", want, s.lines.Err())
	require.Equal(s.t, want, s.lines.Text())
}

// takesLocks locks a file with flock(2) and fcntl(2), once without waiting, then until it is told to go on.
const takesLocks = `
import fcntl, sys
f, g = open("/s/flock", "r+"), open("/s/fcntl", "r+")
for lock, file in ((fcntl.flock, f), (fcntl.lockf, g)):
    try: lock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError: print("taken", flush=True)
fcntl.flock(f, fcntl.LOCK_EX)
fcntl.lockf(g, fcntl.LOCK_EX)
print("locked", flush=True)
open("/s/pipe").read()
`

// TestShareLocks locks files in containers and on the host, and kills a container that waits for a lock.
func TestShareLocks(t *testing.T) {
	rt := shared.get(t)
	dir := t.TempDir()
	flock, err := os.Create(filepath.Join(dir, "flock"))
	require.NoError(t, err)
	defer flock.Close()
	fcntl, err := os.Create(filepath.Join(dir, "fcntl"))
	require.NoError(t, err)
	defer fcntl.Close()
	require.NoError(t, unix.Mkfifo(filepath.Join(dir, "pipe"), 0o600))
	lock := func(kind int16) []error {
		how := unix.LOCK_EX
		if kind == unix.F_UNLCK {
			how = unix.LOCK_UN
		}
		return []error{
			unix.Flock(int(flock.Fd()), how|unix.LOCK_NB),
			unix.FcntlFlock(fcntl.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: kind}),
		}
	}
	free, taken := []error{nil, nil}, []error{unix.EAGAIN, unix.EAGAIN}
	spec := arcbox.ContainerSpec{Image: shared.realPrograms(t), Args: []string{"python3", "-c", takesLocks}, Mounts: onHost(dir)}

	require.Equal(t, free, lock(unix.F_WRLCK))
	first := speak(t, rt, spec)
	first.says("taken")
	first.says("taken")
	require.Equal(t, free, lock(unix.F_UNLCK))
	first.says("locked")
	require.Equal(t, taken, lock(unix.F_WRLCK), "by the container")

	second := speak(t, rt, spec)
	second.says("taken")
	second.says("taken")
	other := arcbox.ContainerSpec{Args: sh("echo > /s/pipe"), Mounts: onHost(dir)}
	require.Zero(t, run(t, rt, other, arcbox.RunOptions{}).exit.Code)
	second.says("locked")
	third := speak(t, rt, spec)
	third.says("taken")
	third.says("taken")
	end := func(id string) {
		require.NoError(t, rt.KillContainer(testContext(t), id, "KILL"))
		_, err := rt.WaitContainer(testContext(t), id, arcbox.WaitOptions{})
		require.NoError(t, err)
	}
	end(third.id) // it waits for a lock
	require.Equal(t, taken, lock(unix.F_WRLCK))
	end(second.id)
	got := make(chan []error, 1)
	go func() { // the host learns of the end of a holder's files a moment after that of the holder
		got <- []error{
			unix.Flock(int(flock.Fd()), unix.LOCK_EX),
			unix.FcntlFlock(fcntl.Fd(), unix.F_OFD_SETLKW, &unix.Flock_t{Type: unix.F_WRLCK}),
		}
	}()
	select {
	case errs := <-got:
		require.Equal(t, free, errs)
	case <-testContext(t).Done():
		t.Fatal("locks do not end with their holder")
	}
}
