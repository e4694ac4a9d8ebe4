package arcbox_test

import (
	"bufio"
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/arcboxlabs/arcbox-go"
	"github.com/arcboxlabs/arcbox-go/internal/image/imagetest"
)

var killCount = flag.Int("arcbox.kills", 20, "how often TestKillsAtEveryStep kills; 200 take some minutes")

// promises are what victims have said that is there, by what makes and removes it.
type promises struct {
	there map[string]map[string]bool // by kind: machine, container, snapshot, load
	kept  map[string]bool            // containers that have written
	doubt string                     // the step that was cut off
}

// hear takes one line of a victim.
func (p *promises) hear(line string) {
	word, rest, _ := strings.Cut(line, " ")
	name, made, _ := strings.Cut(rest, " ")
	if word == "doing" {
		p.doubt = name
		return
	}
	p.doubt = ""
	verb, kind, _ := strings.Cut(name, "-")
	switch {
	case name == "load":
		p.there["image"][made] = true
	case name == "snapshot":
		p.there["snapshot"][made] = true
	case name == "write":
		p.kept[made] = true
	case verb == "create" || verb == "pull":
		p.there[kind][made] = true
	case verb == "remove":
		delete(p.there[kind], made)
	}
}

// check compares what a Runtime finds with what was promised. Only what a step that was cut off has made or removed may
// differ, and that is taken over.
func (p *promises) check(t *testing.T, rt *arcbox.Runtime) {
	t.Helper()
	ctx := testContext(t)
	found := map[string]map[string]bool{"machine": {}, "container": {}, "snapshot": {}, "image": {}}
	machines, err := rt.ListMachines(ctx, arcbox.ListMachinesOptions{})
	require.NoError(t, err)
	for _, m := range machines {
		require.NotEqual(t, arcbox.MachineForeign, m.State, "a lock was left: %s", m.Name)
		require.Empty(t, m.Reason)
		if m.Name != arcbox.DefaultMachine {
			found["machine"][m.Name] = true
		} else {
			require.False(t, m.Ephemeral)
		}
	}
	containers, err := rt.ListContainers(ctx, arcbox.ListContainersOptions{})
	require.NoError(t, err)
	for _, c := range containers {
		require.NotEqual(t, arcbox.ContainerDead, c.State, c.Reason)
		found["container"][c.ID] = true
	}
	snapshots, err := rt.ListSnapshots(ctx, arcbox.ListSnapshotsOptions{})
	require.NoError(t, err)
	for _, s := range snapshots {
		found["snapshot"][s.ID] = true
	}
	images, err := rt.ListImages(ctx, arcbox.ListImagesOptions{})
	require.NoError(t, err)
	for _, i := range images {
		for _, name := range i.Names {
			found["image"][strings.TrimPrefix(name, "docker.io/library/")] = true
		}
	}
	for kind, want := range p.there {
		cut := p.doubt == "load" && kind == "image" || p.doubt == "snapshot" && kind == "snapshot" || strings.HasSuffix(p.doubt, "-"+kind)
		if !cut {
			require.Equal(t, want, found[kind], "%ss, cut off: %q", kind, p.doubt)
			continue
		}
		gained, lost := 0, 0
		for k := range found[kind] {
			if !want[k] {
				gained++
			}
		}
		for k := range want {
			if !found[kind][k] {
				lost++
			}
		}
		removing := strings.HasPrefix(p.doubt, "remove-")
		require.LessOrEqual(t, gained, 1, kind)
		require.LessOrEqual(t, lost, 1, kind)
		require.False(t, gained > 0 && removing || lost > 0 && !removing, "%s after %s", kind, p.doubt)
		p.there[kind] = found[kind]
	}
}

// TestKillsAtEveryStep kills a program again and again, at each of its steps and at random moments of them, and looks each
// time for what is left: no process, no lock, no file of something half made, and everything that was promised.
func TestKillsAtEveryStep(t *testing.T) {
	shared.get(t)
	dir := t.TempDir()
	img, err := imagetest.Busybox(t)
	require.NoError(t, err)
	archive := filepath.Join(t.TempDir(), "image.tar")
	require.NoError(t, os.WriteFile(archive, imagetest.OCIArchive(t, img), 0o600))
	remote := imagetest.NewRegistry(t).Push(t, "victim", "test", largeImage(t))
	p := &promises{there: map[string]map[string]bool{"machine": {}, "container": {}, "snapshot": {}, "image": {}}, kept: map[string]bool{}}
	names := []string{
		"load", "pull-image", "create-machine", "start-machine", "create-container", "start-container", "write", "snapshot", "stop-machine",
		"remove-snapshot", "remove-container", "remove-machine", "remove-image",
	}
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	for n := range *killCount {
		at, after := names[n%len(names)], time.Duration(r.IntN(150))*time.Millisecond
		killVictim(t, p, []string{victimArg, dir, bootDir(t), archive, strconv.Itoa(n), remote}, at, after)
		rt, err := arcbox.New(victimConfig(dir, bootDir(t), remote))
		require.NoError(t, err, "kill %d at %s", n, at)
		p.check(t, rt)
		last := n == *killCount-1
		if last {
			checkKept(t, p, rt)
			_, err := rt.PullImage(testContext(t), remote, arcbox.PullOptions{}) // what a kill left of it is of use, or no matter
			require.NoError(t, err)
		}
		clean(t, p, rt, last)
		require.NoError(t, rt.Close())
		left, err := filepath.Glob(filepath.Join(dir, "machines", ".[pr]*"))
		require.NoError(t, err)
		require.Empty(t, left, "kill %d at %s", n, at)
	}
}

// largeImage is an image whose pull takes a while.
func largeImage(t *testing.T) imagetest.Image {
	t.Helper()
	var img imagetest.Image
	for i := range 3 {
		b := make([]byte, 8<<20)
		r := rand.New(rand.NewPCG(1, uint64(i)))
		for j := range b {
			b[j] = 'a' + byte(r.Uint32()%16)
		}
		img.Layers = append(img.Layers, imagetest.Files(t, map[string]imagetest.File{fmt.Sprint("f", i): {Data: b}}))
	}
	return img
}

// killVictim runs a victim and kills it some time after it has begun a step.
func killVictim(t *testing.T, p *promises, args []string, at string, after time.Duration) {
	t.Helper()
	cmd := exec.CommandContext(testContext(t), os.Args[0], args...)
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	lines := bufio.NewReader(out)
	for {
		line, err := lines.ReadString('\n')
		require.NoError(t, err)
		line = strings.TrimSuffix(line, "\n")
		require.NotContains(t, line, "error")
		p.hear(line)
		if line == "doing "+at {
			break
		}
	}
	<-time.After(after)
	killTree(t, cmd)
	rest, err := io.ReadAll(lines) // what it has said before it died
	require.NoError(t, err)
	for line := range bytes.Lines(rest) {
		if whole, ok := bytes.CutSuffix(line, []byte("\n")); ok {
			p.hear(string(whole))
		}
	}
	require.Error(t, cmd.Wait())
}

// checkKept starts a container that has written, and looks for that and for its log.
func checkKept(t *testing.T, p *promises, rt *arcbox.Runtime) {
	t.Helper()
	for id := range p.kept {
		if !p.there["container"][id] {
			continue
		}
		require.NoError(t, rt.StartContainer(testContext(t), id))
		require.Equal(t, "kept", output(t, rt, id, "cat /kept"))
		var log bytes.Buffer
		require.NoError(t, rt.CopyLogs(testContext(t), id, &log, nil, arcbox.LogsOptions{}))
		require.Contains(t, log.String(), "logged")
		return
	}
}

// clean removes what was made by earlier victims, but for the newest machine, or all.
func clean(t *testing.T, p *promises, rt *arcbox.Runtime, all bool) {
	t.Helper()
	ctx := testContext(t)
	for id := range p.there["snapshot"] {
		require.NoError(t, rt.RemoveSnapshot(ctx, id))
		delete(p.there["snapshot"], id)
	}
	kept := ""
	for name := range p.there["machine"] {
		if !all && kept == "" {
			kept = name
			continue
		}
		require.NoError(t, rt.RemoveMachine(ctx, name, arcbox.RemoveMachineOptions{Force: true}))
		delete(p.there["machine"], name)
	}
	for id := range p.there["container"] {
		_, err := rt.InspectContainer(ctx, id)
		if errors.Is(err, arcbox.ErrNotFound) {
			delete(p.there["container"], id)
			continue
		}
		require.NoError(t, err)
	}
}
