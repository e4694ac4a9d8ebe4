package arcbox_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/arcboxlabs/arcbox-go"
)

// crowdArg makes the test binary one of a crowd of programs that do all there is with images in one data directory.
const crowdArg = "arcbox-test-crowd"

// crowdHost is a registry that only its mirrors know.
const crowdHost = "registry.test"

// crowdJob is what a program of the crowd is told.
type crowdJob struct {
	Dir, Boot string
	Mirror    string // of crowdHost
	Apps      int    // how many images are there, as app0:1 and so on
	Seed      uint64
	Steps     int
}

func (j crowdJob) config() arcbox.Config {
	return arcbox.Config{
		DataDir: j.Dir, VM: arcbox.VMConfig{CPUs: 1, Memory: 512 << 20}, Boot: arcbox.BootConfig{Dir: j.Boot},
		Registry: arcbox.RegistryConfig{Mirrors: map[string][]string{crowdHost: {j.Mirror}}},
	}
}

func appName(n int) string { return fmt.Sprintf("%s/app%d:1", crowdHost, n) }

// crowdScript prints what a container has of its image, and what the image says that it is.
const crowdScript = "cat /own /built; echo; sha256sum < /shared; echo $EXPECT"

// checkCrowd returns an error where the output of crowdScript is not right.
func checkCrowd(out string) error {
	lines := strings.Split(strings.TrimSuffix(out, "\n"), "\n")
	if len(lines) != 3 {
		return fmt.Errorf("a container printed %q", out)
	}
	if got := lines[0] + " " + strings.TrimSuffix(lines[1], "  -"); got != lines[2] {
		return fmt.Errorf("a container has %q, and not %q", got, lines[2])
	}
	return nil
}

// crowd is that program: it says "doing STEP" before and "did STEP" after each step.
func crowd(arg string) {
	var job crowdJob
	err := json.Unmarshal([]byte(arg), &job)
	if err == nil {
		err = (&member{job: job, rnd: rand.New(rand.NewPCG(job.Seed, 0)), mine: make(map[string]bool)}).live()
	}
	if err != nil {
		fmt.Println("error:", err)
		os.Exit(1)
	}
}

type member struct {
	job crowdJob
	rnd *rand.Rand
	rt  *arcbox.Runtime

	mine map[string]bool // the containers that it made
}

func (m *member) live() (err error) {
	if m.rt, err = arcbox.New(m.job.config()); err != nil {
		return err
	}
	steps := []struct {
		name string
		do   func(context.Context) error
	}{
		{"pull", m.pull}, {"run", m.run}, {"run", m.run}, {"run", m.run}, {"build", m.build}, {"keep", m.keep}, {"tag", m.tag},
		{"save", m.save}, {"remove", m.remove}, {"prune", m.prune}, {"prune", m.prune}, {"clear", m.clear},
	}
	for range m.job.Steps {
		s := steps[m.rnd.IntN(len(steps))]
		fmt.Println("doing", s.name)
		if err := s.do(context.Background()); err != nil {
			return errors.Join(fmt.Errorf("%s: %w", s.name, err), m.rt.Close())
		}
		fmt.Println("did", s.name)
	}
	fmt.Println("doing close")
	return m.rt.Close()
}

func (m *member) app() string { return appName(m.rnd.IntN(m.job.Apps)) }

// some is an image that may be there.
func (m *member) some() string {
	if n := m.rnd.IntN(6); n < 4 {
		return []string{"built:0", "built:1", "tagged:0", "tagged:1"}[n]
	}
	return m.app()
}

// unlessGone is nil for what may happen as others remove images, too.
func unlessGone(err error) error {
	if errors.Is(err, arcbox.ErrNotFound) || errors.Is(err, arcbox.ErrInUse) {
		return nil
	}
	return err
}

func (m *member) pull(ctx context.Context) error {
	_, err := m.rt.PullImage(ctx, m.app(), arcbox.PullOptions{})
	return err
}

// run runs a container of an image, which nobody can take away from it meanwhile.
func (m *member) run(ctx context.Context) error {
	spec := arcbox.ContainerSpec{Image: m.app(), Args: sh(crowdScript), AutoRemove: m.rnd.IntN(2) == 0}
	var out, stderr bytes.Buffer
	p, err := m.rt.RunContainer(ctx, spec, arcbox.RunOptions{Stdout: &out, Stderr: &stderr})
	if err != nil {
		return unlessGone(err)
	}
	m.mine[p.ContainerID()] = true
	if _, err := p.Wait(ctx); err != nil {
		return err
	}
	return checkCrowd(out.String())
}

func (m *member) build(ctx context.Context) error {
	base := m.rnd.IntN(m.job.Apps)
	info, err := m.rt.PullImage(ctx, appName(base), arcbox.PullOptions{Policy: arcbox.PullMissing})
	if err != nil {
		return unlessGone(err)
	}
	built := fmt.Sprint(" with ", m.rnd.IntN(4))
	_, err = m.rt.BuildImage(ctx, arcbox.ImageSpec{
		Names: []string{fmt.Sprint("built:", m.rnd.IntN(2))}, Base: info.ID,
		Layers: []arcbox.ImageLayer{{Files: map[string]arcbox.ImageFile{"/built": {Data: []byte(built)}}}},
		Config: ocispec.ImageConfig{Env: []string{fmt.Sprintf("EXPECT=app %d%s %s", base, built, info.Labels["shared"])}},
	}, arcbox.BuildOptions{Pull: arcbox.PullNever})
	return unlessGone(err)
}

// keep leaves a container, which lasts where the machine is the default one.
func (m *member) keep(ctx context.Context) error {
	info, err := m.rt.CreateContainer(ctx, arcbox.ContainerSpec{Image: m.some(), Args: sh(crowdScript)}, arcbox.CreateOptions{Pull: arcbox.PullNever})
	m.mine[info.ID] = err == nil
	return unlessGone(err)
}

func (m *member) tag(ctx context.Context) error {
	return unlessGone(m.rt.TagImage(ctx, m.some(), fmt.Sprint("tagged:", m.rnd.IntN(2))))
}

func (m *member) save(ctx context.Context) error {
	return unlessGone(m.rt.SaveImage(ctx, io.Discard, m.some()))
}

// remove removes an image, not by force: containers that were left shall start in the end.
func (m *member) remove(ctx context.Context) error {
	_, err := m.rt.RemoveImage(ctx, m.some(), arcbox.RemoveImageOptions{})
	return unlessGone(err)
}

func (m *member) prune(ctx context.Context) error {
	o := arcbox.PruneImagesOptions{LayerImages: m.rnd.IntN(2) == 0}
	if m.rnd.IntN(2) == 0 {
		o.All, o.Budget = true, int64(m.rnd.IntN(3))<<20
	}
	_, err := m.rt.PruneImages(ctx, o)
	return err
}

// clear removes the containers of this program. The list has those of the others, too: they are in use, or in conflict
// where their program has ended meanwhile, since this one has a default machine of its own.
func (m *member) clear(ctx context.Context) error {
	list, err := m.rt.ListContainers(ctx, arcbox.ListContainersOptions{})
	for _, c := range list {
		e := m.rt.RemoveContainer(ctx, c.ID, arcbox.RemoveOptions{Force: true})
		if m.mine[c.ID] || !errors.Is(e, arcbox.ErrConflict) {
			err = errors.Join(err, unlessGone(e))
		}
	}
	return err
}
