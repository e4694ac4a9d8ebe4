package arcbox_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/arcboxlabs/arcbox-go"
	"github.com/arcboxlabs/arcbox-go/agent"
	"github.com/arcboxlabs/arcbox-go/agent/api"
)

// hammerCount is small in the suite, whose time is short: go test -race -run TestHammer -args -hammer=200.
var hammerCount = flag.Int("hammer", 32, "containers of the hammer test")

// possessions are what there is in the guest and on the host.
type possessions struct {
	guest      api.CensusReply
	children   []string
	files      []string // descriptors of this process
	goroutines int
	containers []arcbox.ContainerInfo
}

// census looks at the default machine, which it starts where it does not run.
func census(t *testing.T, rt *arcbox.Runtime) api.CensusReply {
	t.Helper()
	ctx := testContext(t)
	rep, err := agent.New(func(ctx context.Context) (net.Conn, error) {
		return rt.DialMachine(ctx, arcbox.DefaultMachine, api.Port)
	}).Census(ctx)
	require.NoError(t, err)
	return rep
}

func possess(t *testing.T, rt *arcbox.Runtime) (p possessions) {
	t.Helper()
	ctx := testContext(t)
	p.guest = census(t, rt)
	var err error
	p.containers, err = rt.ListContainers(ctx, arcbox.ListContainersOptions{})
	require.NoError(t, err)
	fds, err := os.ReadDir("/proc/self/fd")
	require.NoError(t, err)
	for _, fd := range fds {
		if to, err := os.Readlink("/proc/self/fd/" + fd.Name()); err == nil {
			kind, _, _ := strings.Cut(to, ":[")
			p.files = append(p.files, kind)
		}
	}
	slices.Sort(p.files)
	p.children, p.goroutines = children(os.Getpid()), runtime.NumGoroutine()
	return p
}

// more lists what there is over what there was.
func (p possessions) more(before possessions) (out []string) {
	over := func(what string, now, was []string) {
		was = slices.Clone(was)
		for _, s := range now {
			if i := slices.Index(was, s); i >= 0 {
				was = slices.Delete(was, i, i+1)
			} else {
				out = append(out, what+" "+s)
			}
		}
	}
	over("mount", p.guest.Mounts, before.guest.Mounts)
	over("cgroup", p.guest.Cgroups, before.guest.Cgroups)
	over("process", p.guest.Processes, before.guest.Processes)
	over("disk", p.guest.Disks, before.guest.Disks)
	over("data", p.guest.Data, before.guest.Data)
	over("guest's file", p.guest.Files, withSpare(before.guest.Files))
	over("child", p.children, before.children)
	over("file", p.files, before.files)
	if n := p.guest.Goroutines - before.guest.Goroutines; n > 0 {
		out = append(out, fmt.Sprint(n, " goroutines in the guest"))
	}
	if n := p.goroutines - before.goroutines; n > 0 {
		out = append(out, fmt.Sprint(n, " goroutines"))
	}
	if n := len(p.containers) - len(before.containers); n != 0 {
		out = append(out, fmt.Sprint(n, " containers"))
	}
	return out
}

// withSpare adds to the agent's files those of the network namespace that it has in spare: it makes one when it has been quiet
// for a while. The other one is its own.
func withSpare(files []string) []string {
	own := slices.Index(files, "net")
	if own >= 0 && slices.Contains(files[own+1:], "net") {
		return files
	}
	return append(slices.Clone(files), "net", "socket")
}

// settled returns what there is over before when that does not change any more: deletion goes on in the background.
func settled(t *testing.T, rt *arcbox.Runtime, before possessions, patience time.Duration) []string {
	t.Helper()
	end := time.NewTimer(patience)
	defer end.Stop()
	look := time.NewTicker(100 * time.Millisecond)
	defer look.Stop()
	for {
		more := possess(t, rt).more(before)
		if len(more) == 0 {
			return nil
		}
		select {
		case <-look.C:
		case <-end.C:
			return more
		}
	}
}

// atRest returns what there is when that does not change any more.
func atRest(t *testing.T, rt *arcbox.Runtime) possessions {
	t.Helper()
	look := time.NewTicker(200 * time.Millisecond)
	defer look.Stop()
	for before := possess(t, rt); ; {
		<-look.C
		now := possess(t, rt)
		if len(now.more(before)) == 0 && len(before.more(now)) == 0 {
			return now
		}
		before = now
	}
}

// hammer is one container's life, in which a context may end at any moment.
func hammer(rt *arcbox.Runtime, dir string, rnd *rand.Rand) error {
	base, cancelBase := context.WithTimeout(context.Background(), testTimeout)
	defer cancelBase()
	ctx, cancel := base, context.CancelFunc(func() {})
	if rnd.IntN(2) == 0 {
		ctx, cancel = context.WithTimeout(base, time.Duration(rnd.Int64N(int64(600*time.Millisecond))))
	}
	defer cancel()
	spec := arcbox.ContainerSpec{
		Image: "busybox:test", Args: sh("echo begin; sleep 0." + fmt.Sprint(rnd.IntN(4)) + "; sleep 1000 & exit 3"),
		TTY: rnd.IntN(4) == 0, Init: rnd.IntN(4) == 0, AutoRemove: rnd.IntN(3) == 0, StopTimeout: time.Millisecond,
	}
	if rnd.IntN(3) == 0 {
		spec.Args = sh("echo begin; sleep 1000 & sleep 1000")
		spec.Restart.Name = arcbox.RestartAlways
		spec.AutoRemove = false
	}
	if rnd.IntN(2) == 0 {
		spec.Ports = []arcbox.PortMapping{{ContainerPort: 80}}
		spec.Sockets = []arcbox.SocketMapping{{HostPath: filepath.Join(dir, fmt.Sprint(rnd.Uint32())), ContainerPath: "/none"}}
		spec.Mounts = []arcbox.Mount{{Type: arcbox.MountSocket, Target: "/run/s", Dial: func(ctx context.Context) (net.Conn, error) { return nil, ctx.Err() }}}
	}
	var out strings.Builder
	p, err := rt.RunContainer(ctx, spec, arcbox.RunOptions{Stdout: &out, Stderr: &out})
	if err != nil {
		return err
	}
	id := p.ID()
	if spec.Restart.Name != "" { // it does not end by itself
		ctx, cancel = context.WithTimeout(ctx, 300*time.Millisecond)
		defer cancel()
	}
	var errs []error
	switch rnd.IntN(7) {
	case 0:
		_, err = p.Wait(ctx)
	case 1:
		_, err = rt.CommandContext(ctx, id, "sh", "-c", "sleep 0.1; echo from exec").Output()
	case 2:
		err = rt.StopContainer(ctx, id, arcbox.StopOptions{})
	case 3:
		if err = rt.PauseContainer(ctx, id); err == nil && rnd.IntN(2) == 0 {
			err = rt.ResumeContainer(ctx, id)
		}
	case 4:
		err = rt.CopyLogs(ctx, id, nil, nil, arcbox.LogsOptions{Follow: true, Tail: 1})
	case 5:
		_, err = rt.ContainerStats(ctx, id)
	case 6:
		var c net.Conn
		if c, err = rt.Dial(ctx, id, "unix", "/none"); err == nil {
			c.Close()
		}
	}
	errs = append(errs, err)
	if err := rt.RemoveContainer(base, id, arcbox.RemoveOptions{Force: true}); err != nil && !errors.Is(err, arcbox.ErrNotFound) {
		errs = append(errs, fmt.Errorf("that must not fail: %w", err))
	}
	return errors.Join(append(errs, p.Close())...)
}

// TestHammer lets 16 goroutines make, start, use and remove containers, with contexts that end at any moment, and looks
// for what is left of them, in the guest as well as here.
func TestHammer(t *testing.T) {
	rt, dir := shared.get(t), t.TempDir()
	lives := func(n int) {
		var wg sync.WaitGroup
		left := make(chan uint64, n)
		for i := range n {
			left <- uint64(i)
		}
		close(left)
		for range 16 {
			wg.Go(func() {
				for seed := range left {
					err := hammer(rt, dir, rand.New(rand.NewPCG(seed, 7)))
					for _, must := range []error{arcbox.ErrUnavailable, arcbox.ErrCorrupt, arcbox.ErrInvalid} {
						if errors.Is(err, must) {
							t.Errorf("life %d: %v", seed, err)
						}
					}
					if err != nil && strings.Contains(err.Error(), "must not fail") {
						t.Errorf("life %d: %v", seed, err)
					}
				}
			})
		}
		wg.Wait()
	}
	lives(16) // what is made once is there after this: connections, goroutines of pools
	before := atRest(t, rt)
	lives(*hammerCount)
	require.Empty(t, settled(t, rt, before, 20*time.Second))

	// The look can fail: a container that is there has all of it.
	p, err := rt.RunContainer(testContext(t), arcbox.ContainerSpec{Image: "busybox:test", Args: sh("sleep 1000")}, arcbox.RunOptions{})
	require.NoError(t, err)
	planted := strings.Join(possess(t, rt).more(before), "\n")
	for _, what := range []string{"cgroup", "process", "data", "guest's file", "goroutines in the guest", "goroutines", "containers"} {
		require.Contains(t, planted, what)
	}
	require.NoError(t, rt.RemoveContainer(testContext(t), p.ID(), arcbox.RemoveOptions{Force: true}))
	require.NoError(t, p.Close())
	require.Empty(t, settled(t, rt, before, 20*time.Second))
}
