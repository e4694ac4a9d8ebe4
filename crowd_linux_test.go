package arcbox_test

import (
	"bufio"
	"crypto/sha256"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/arcboxlabs/arcbox-go"
	"github.com/arcboxlabs/arcbox-go/internal/fsx"
	"github.com/arcboxlabs/arcbox-go/internal/image/imagetest"
)

var (
	crowdLives = flag.Int("arcbox.lives", 2, "how many programs TestCrowd starts in each of three places, one after another; 40 take some minutes")
	crowdSeed  = flag.Uint64("arcbox.seed", 0, "what TestCrowd does; 0 is something else each time")
)

// TestCrowd has several programs pull, build, run, tag, save, remove and prune in one data directory, each with a machine
// of its own, and kills most of them: at the beginning or end of a step, or while they read a layer. What is there in the
// end is whole, and runs.
func TestCrowd(t *testing.T) {
	shared.get(t)
	seed := *crowdSeed
	if seed == 0 {
		seed = rand.Uint64()
	}
	t.Logf("-arcbox.seed=%d", seed)
	reg := imagetest.NewRegistry(t)
	job := crowdJob{Dir: t.TempDir(), Boot: bootDir(t), Apps: 3}
	for n := range job.Apps {
		pushApp(t, reg, n)
	}
	t.Run("lives", func(t *testing.T) {
		for i := range uint64(3) {
			t.Run(fmt.Sprint(i), func(t *testing.T) {
				t.Parallel()
				rnd := rand.New(rand.NewPCG(seed, i))
				p := newPlace(t, reg)
				for n := range *crowdLives {
					job := job
					job.Mirror, job.Seed, job.Steps = p.host, rnd.Uint64(), 10
					p.life(t, job, n == *crowdLives-1, rnd)
				}
			})
		}
	})
	job.Mirror = newPlace(t, reg).host
	checkCrowdStore(t, job)
}

// pushApp makes the image appN, which has layers in common with the others.
func pushApp(t *testing.T, reg *imagetest.Registry, n int) {
	t.Helper()
	img, err := imagetest.Busybox(t)
	require.NoError(t, err)
	shared := make([]byte, 300_000)
	r := rand.New(rand.NewPCG(uint64(n/2), 0))
	for i := range shared {
		shared[i] = byte(r.Uint32())
	}
	sum := fmt.Sprintf("%x", sha256.Sum256(shared))
	img.Layers = append(img.Layers,
		imagetest.Files(t, map[string]imagetest.File{"shared": {Data: shared}}),
		imagetest.Files(t, map[string]imagetest.File{"own": {Data: fmt.Append(nil, "app ", n)}, "built": {}}),
	)
	img.Config.Env = append(img.Config.Env, fmt.Sprintf("EXPECT=app %d %s", n, sum))
	img.Config.Labels = map[string]string{"shared": sum}
	reg.Push(t, fmt.Sprint("app", n), "1", img)
}

// place is where programs live one after another, with a mirror of their own.
type place struct {
	host   string
	halves chan chan struct{} // a program has read half a layer; what comes is closed when it is dead
}

func newPlace(t *testing.T, reg *imagetest.Registry) *place {
	p := &place{halves: make(chan chan struct{})}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		rec := httptest.NewRecorder()
		reg.ServeHTTP(rec, r)
		for k, v := range rec.Header() {
			w.Header()[k] = v
		}
		w.WriteHeader(rec.Code)
		body := rec.Body.Bytes()
		half := len(body) / 2
		_, _ = w.Write(body[:half])
		if half > 100_000 {
			w.(http.Flusher).Flush()
			dead := make(chan struct{})
			select {
			case p.halves <- dead:
				<-dead
			default: // it shall live
			}
		}
		_, _ = w.Write(body[half:])
	}))
	t.Cleanup(srv.Close)
	p.host = strings.TrimPrefix(srv.URL, "http://")
	return p
}

// life is that of one program, which is killed unless it is the last one.
func (p *place) life(t *testing.T, job crowdJob, last bool, rnd *rand.Rand) {
	t.Helper()
	arg, err := json.Marshal(job)
	require.NoError(t, err)
	cmd := exec.CommandContext(testContext(t), os.Args[0], crowdArg, string(arg))
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	lines := make(chan string)
	go func() {
		defer close(lines)
		for s := bufio.NewScanner(out); s.Scan(); {
			lines <- s.Text()
		}
	}()
	left, halves := 1+rnd.IntN(2*job.Steps), p.halves
	if last {
		left, halves = -1, nil
	} else if rnd.IntN(2) == 0 {
		halves = nil
	}
	var said []string
	for {
		select {
		case line, more := <-lines:
			if !more {
				require.NoError(t, cmd.Wait(), said)
				return
			}
			said = append(said, line)
			require.NotContains(t, line, "error", said)
			if left--; left != 0 {
				continue
			}
			killTree(t, cmd)
		case dead := <-halves:
			killTree(t, cmd)
			close(dead)
		}
		for range lines { // what it had said
		}
		require.Error(t, cmd.Wait())
		return
	}
}

// checkCrowdStore looks at what a crowd has left.
func checkCrowdStore(t *testing.T, job crowdJob) {
	t.Helper()
	ctx := testContext(t)
	rts := []*arcbox.Runtime{newRuntime(t, job.config()), newRuntime(t, job.config())}
	rt := rts[0]
	for n := range job.Apps {
		_, err := rt.PullImage(ctx, appName(n), arcbox.PullOptions{Policy: arcbox.PullMissing})
		require.NoError(t, err)
	}
	_, err := rt.PruneImages(ctx, arcbox.PruneImagesOptions{Keep: true})
	require.NoError(t, err)
	requireWhole(t, filepath.Join(job.Dir, "images", "blobs", "sha256"))
	images, err := rt.ListImages(ctx, arcbox.ListImagesOptions{})
	require.NoError(t, err)
	require.GreaterOrEqual(t, len(images), job.Apps)
	for i, img := range images {
		require.NoError(t, rt.SaveImage(ctx, io.Discard, img.ID))
		got := run(t, rts[i%2], arcbox.ContainerSpec{Image: img.ID, Args: sh(crowdScript)}, arcbox.RunOptions{})
		require.NoError(t, checkCrowd(got.stdout), "%+v %s", img, got.stderr)
	}
	containers, err := rt.ListContainers(ctx, arcbox.ListContainersOptions{})
	require.NoError(t, err)
	t.Log(len(images), "images and", len(containers), "containers were left")
	for _, c := range containers {
		if c.State == arcbox.ContainerCreated {
			require.NoError(t, rt.StartContainer(ctx, c.ID))
			_, err := rt.WaitContainer(ctx, c.ID, arcbox.WaitOptions{})
			require.NoError(t, err)
			require.NoError(t, checkCrowd(logOf(t, rt, c.ID)))
		}
		require.NoError(t, rt.RemoveContainer(ctx, c.ID, arcbox.RemoveOptions{}))
	}
	_, err = rt.PruneImages(ctx, arcbox.PruneImagesOptions{All: true})
	require.NoError(t, err)
	usage, err := rt.DiskUsage(ctx)
	require.NoError(t, err)
	require.Zero(t, usage.Images)
	for _, rt := range rts {
		require.NoError(t, rt.Close())
	}
	requireNothingLeft(t, job.Dir)
}

// requireWhole compares all blobs with their digests.
func requireWhole(t *testing.T, dir string) {
	t.Helper()
	files, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.NotEmpty(t, files)
	for _, f := range files {
		data, err := os.ReadFile(filepath.Join(dir, f.Name()))
		require.NoError(t, err)
		require.Equal(t, f.Name(), fmt.Sprintf("%x", sha256.Sum256(data)))
	}
}

// requireNothingLeft looks for what only programs have that run.
func requireNothingLeft(t *testing.T, dir string) {
	t.Helper()
	var left []string
	require.NoError(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		rel := strings.TrimPrefix(path, dir+"/")
		for _, odd := range []string{
			"/" + fsx.TempPrefix, "images/ingest/", "images/uses/", "images/partial/", "images/locks/blob-", "images/locks/layer-", "machines/.p", "machines/.r",
		} {
			if strings.Contains(rel, odd) {
				left = append(left, rel)
			}
		}
		return err
	}))
	require.Empty(t, left)
}
