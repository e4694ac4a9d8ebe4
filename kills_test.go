package arcbox_test

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/arcboxlabs/arcbox-go"
)

// victimArg makes the test binary a program that does everything with machines until it is killed.
const victimArg = "arcbox-test-victim"

// victim says "doing STEP" before and "did STEP [ARG]" after each step, which is a promise that holds after a kill.
func victim(args []string) {
	rt, err := arcbox.New(victimConfig(args[0], args[1], args[4]))
	if err == nil {
		for n := 0; err == nil; n++ {
			err = victimRound(rt, args[2], args[4], args[3]+"-"+strconv.Itoa(n))
		}
	}
	fmt.Println("error:", err)
	os.Exit(1)
}

// victimConfig is the config of victims, and of who looks at what they left. remote is the image that they pull.
func victimConfig(dir, boot, remote string) arcbox.Config {
	host, _, _ := strings.Cut(remote, "/")
	return arcbox.Config{
		DataDir: dir, VM: arcbox.VMConfig{CPUs: 1, Memory: 512 << 20}, Boot: arcbox.BootConfig{Dir: boot}, LockTimeout: -1,
		Registry: arcbox.RegistryConfig{PlainHTTP: []string{host}},
	}
}

// step is one step of a victim. It returns what was made or removed, if anything.
type step struct {
	name string
	do   func(ctx context.Context) (string, error)
}

func victimRound(rt *arcbox.Runtime, archive, remote, suffix string) error {
	name := "m" + suffix
	var container, snapshot string
	none := func(err error) (string, error) { return "", err }
	steps := []step{
		{"load", func(ctx context.Context) (string, error) {
			_, err := rt.LoadImage(ctx, archive, arcbox.LoadOptions{})
			return "busybox:test", err
		}},
		{"pull-image", func(ctx context.Context) (string, error) {
			_, err := rt.PullImage(ctx, remote, arcbox.PullOptions{})
			return remote, err
		}},
		{"create-machine", func(ctx context.Context) (string, error) {
			_, err := rt.CreateMachine(ctx, arcbox.MachineSpec{Name: name, Forkable: true})
			return name, err
		}},
		{"start-machine", func(ctx context.Context) (string, error) { return none(rt.StartMachine(ctx, name)) }},
		{"create-container", func(ctx context.Context) (string, error) {
			info, err := rt.CreateContainer(ctx, arcbox.ContainerSpec{
				Name: "c" + suffix, Machine: name, Image: "busybox:test", Args: sh("echo logged; exec sleep 1000"),
			}, arcbox.CreateOptions{})
			container = info.ID
			return container, err
		}},
		{"start-container", func(ctx context.Context) (string, error) { return none(rt.StartContainer(ctx, container)) }},
		{"write", func(ctx context.Context) (string, error) {
			p, err := rt.Exec(ctx, container, arcbox.ExecSpec{Args: sh("echo kept > /kept; sync")}, arcbox.ExecOptions{})
			if err == nil {
				_, err = p.Wait(ctx)
			}
			return container, err
		}},
		{"snapshot", func(ctx context.Context) (string, error) {
			info, err := rt.SnapshotMachine(ctx, name, arcbox.SnapshotOptions{Name: "s" + suffix})
			snapshot = info.ID
			return snapshot, err
		}},
		{"stop-machine", func(ctx context.Context) (string, error) { return none(rt.StopMachine(ctx, name)) }},
		{"remove-snapshot", func(ctx context.Context) (string, error) { return snapshot, rt.RemoveSnapshot(ctx, snapshot) }},
		{"remove-container", func(ctx context.Context) (string, error) {
			return container, rt.RemoveContainer(ctx, container, arcbox.RemoveOptions{})
		}},
		{"remove-machine", func(ctx context.Context) (string, error) {
			return name, rt.RemoveMachine(ctx, name, arcbox.RemoveMachineOptions{})
		}},
		{"remove-image", func(ctx context.Context) (string, error) {
			_, err := rt.RemoveImage(ctx, remote, arcbox.RemoveImageOptions{})
			if err == nil { // so that the next pull has something to do
				_, err = rt.PruneImages(ctx, arcbox.PruneImagesOptions{Keep: true})
			}
			return remote, err
		}},
	}
	for _, s := range steps {
		fmt.Println("doing", s.name)
		made, err := s.do(context.Background())
		if err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
		fmt.Println("did", s.name, made)
	}
	return nil
}
