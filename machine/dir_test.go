package machine

import (
	"bufio"
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/arcboxlabs/arcbox-go/internal/disk"
	"github.com/arcboxlabs/arcbox-go/internal/errs"
)

// holdArg makes the test binary take a machine's directory, say so, and wait to be killed.
const holdArg = "machine-test-hold"

func TestMain(m *testing.M) {
	if len(os.Args) == 4 && os.Args[1] == holdArg {
		hold(os.Args[2], os.Args[3])
		return
	}
	os.Exit(m.Run())
}

func hold(parent, name string) {
	d, err := OpenDir(parent, name)
	if name == "" {
		d, err = OpenPrivateDir(parent)
	}
	if err != nil {
		fmt.Println("error:", err)
		return
	}
	fmt.Println(d.Path())
	select {}
}

// startHolder starts a process that has a directory and returns its path.
func startHolder(t *testing.T, parent, name string) (*exec.Cmd, string) {
	t.Helper()
	cmd := exec.Command(os.Args[0], holdArg, parent, name)
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	line, err := bufio.NewReader(out).ReadString('\n')
	require.NoError(t, err)
	require.NotContains(t, line, "error")
	return cmd, strings.TrimSpace(line)
}

func TestNames(t *testing.T) {
	for _, name := range []string{"default", "a", "My.machine_1-x", strings.Repeat("x", maxName)} {
		require.NoError(t, CheckName(name))
	}
	for _, name := range []string{"", ".", "..", ".private-1", "a/b", "a\\b", "a b", "a\x00", "ä", "-x", "_x", "a\n", strings.Repeat("x", maxName+1)} {
		require.ErrorIs(t, CheckName(name), errs.ErrInvalid, name)
		_, err := OpenDir(t.TempDir(), name)
		require.ErrorIs(t, err, errs.ErrInvalid, name)
	}
}

func TestDirIsTakenOnce(t *testing.T) {
	parent := filepath.Join(t.TempDir(), "machines")
	d, err := OpenDir(parent, "default")
	require.NoError(t, err)
	st, err := os.Stat(d.Path())
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o700), st.Mode().Perm())
	_, err = OpenDir(parent, "default")
	require.ErrorIs(t, err, errs.ErrInUse)
	require.ErrorContains(t, err, "this process")
	other, err := OpenDir(parent, "other")
	require.NoError(t, err)
	require.NoError(t, other.Close())
	require.NoError(t, d.Close())
	require.NoError(t, d.Close())
	d, err = OpenDir(parent, "default")
	require.NoError(t, err)
	require.NoError(t, d.Close())
}

// TestAskingHindersNobody takes and gives back a directory while others ask whose it is all the time.
func TestAskingHindersNobody(t *testing.T) {
	parent := t.TempDir()
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					Owner(parent, "default")
				}
			}
		})
	}
	for range 30 {
		d, err := OpenDir(parent, "default")
		require.NoError(t, err)
		who, taken := Owner(parent, "default")
		require.True(t, taken)
		require.Equal(t, "this process", who)
		require.NoError(t, d.Close())
	}
	close(stop)
	wg.Wait()
}

func TestDirOfAnotherProcess(t *testing.T) {
	parent := t.TempDir()
	cmd, _ := startHolder(t, parent, "default")
	_, err := OpenDir(parent, "default")
	require.ErrorIs(t, err, errs.ErrInUse)
	require.ErrorContains(t, err, fmt.Sprintf("process %d", cmd.Process.Pid))
	who, taken := Owner(parent, "default")
	require.True(t, taken)
	require.Equal(t, fmt.Sprintf("process %d", cmd.Process.Pid), who)
	require.NoError(t, cmd.Process.Kill())
	require.Error(t, cmd.Wait())
	_, taken = Owner(parent, "default")
	require.False(t, taken, "it left its file, and no lock")
	d, err := OpenDir(parent, "default")
	require.NoError(t, err, "the lock of a killed process is free")
	require.NoError(t, d.Close())
}

func TestPrivateDirIsRemoved(t *testing.T) {
	parent := filepath.Join(t.TempDir(), "a [strange] name")
	killed, left := startHolder(t, parent, "")
	_, used := startHolder(t, parent, "")
	require.NoError(t, killed.Process.Kill())
	require.Error(t, killed.Wait())
	require.DirExists(t, left)
	d, err := OpenPrivateDir(parent)
	require.NoError(t, err)
	require.True(t, d.Private())
	require.NoDirExists(t, left, "what a killed process left is swept")
	require.DirExists(t, used, "what a living one has is not")
	require.NoError(t, os.WriteFile(filepath.Join(d.Path(), "file"), nil, 0o600))
	require.NoError(t, d.Close())
	require.NoError(t, d.Close())
	require.NoDirExists(t, d.Path())
}

func TestPrivateDirsHammer(t *testing.T) {
	parent := t.TempDir()
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 20 {
				d, err := OpenPrivateDir(parent)
				if err != nil {
					t.Error(err)
					return
				}
				if _, err := os.Stat(filepath.Join(d.Path(), lockFile)); err != nil {
					t.Error("swept while it is in use:", err)
				}
				if err := d.Close(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	entries, err := os.ReadDir(parent)
	require.NoError(t, err)
	require.Empty(t, entries)
}

func TestDirHammerCountsOneHolder(t *testing.T) {
	parent := t.TempDir()
	var holders, taken atomic.Int32
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 50 {
				d, err := OpenDir(parent, "default")
				if err != nil {
					continue
				}
				taken.Add(1)
				if holders.Add(1) != 1 {
					t.Error("two holders")
				}
				holders.Add(-1)
				if err := d.Close(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	require.Positive(t, taken.Load())
}

func TestDataDisk(t *testing.T) {
	cache := t.TempDir()
	log := slog.New(slog.DiscardHandler)
	d, err := OpenDir(t.TempDir(), "default")
	require.NoError(t, err)
	defer d.Close()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = d.dataDisk(ctx, cache, disk.MinSize, log)
	require.ErrorIs(t, err, context.Canceled)
	_, err = d.dataDisk(t.Context(), cache, 5, log)
	require.ErrorIs(t, err, errs.ErrInvalid)
	path, err := d.dataDisk(t.Context(), cache, disk.MinSize, log)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(d.Path(), ".tmp-x"), nil, 0o600))
	again, err := d.dataDisk(t.Context(), cache, 2*disk.MinSize, log)
	require.NoError(t, err)
	require.Equal(t, path, again)
	st, err := os.Stat(path.Path)
	require.NoError(t, err)
	require.EqualValues(t, disk.MinSize, st.Size(), "a disk keeps its size")
	require.NoError(t, os.Truncate(path.Path, disk.MinSize-1))
	_, err = d.dataDisk(t.Context(), cache, disk.MinSize, log)
	require.ErrorIs(t, err, errs.ErrCorrupt)
	require.ErrorContains(t, err, "restore it, or remove it")
	require.NoError(t, os.Remove(path.Path))
	require.NoError(t, os.Mkdir(path.Path, 0o700))
	_, err = d.dataDisk(t.Context(), cache, disk.MinSize, log)
	require.ErrorIs(t, err, errs.ErrCorrupt)
}
