package image

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
	"github.com/arcboxlabs/arcbox-go/internal/ext4"
	"github.com/arcboxlabs/arcbox-go/internal/image/imagetest"
	"github.com/google/go-containerregistry/pkg/authn"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"
)

var soak = flag.Duration("soak", 3*time.Second, "how `long` processes work on one store, and are killed, in TestKilledProcesses")

// churnEnv has the job of a process that works on a store until it is killed.
const churnEnv = "ARCBOX_IMAGE_CHURN"

type churnJob struct {
	Dir  string
	Refs []string
	Seed uint64
}

// TestKilledProcesses has several processes pull, use, build, remove and prune on one store, each until it is killed,
// which is at any moment. What is there in the end is whole.
func TestKilledProcesses(t *testing.T) {
	if job := os.Getenv(churnEnv); job != "" {
		churn(t, job)
		return
	}
	job := churnJob{Dir: filepath.Join(t.TempDir(), "images")}
	srv := imagetest.NewRegistry(t)
	for i := range 4 { // that have layers in common
		img := threeLayers(t)
		img.Layers = append(img.Layers[i%3:len(img.Layers):len(img.Layers)], contentLayer(t, fmt.Sprint("own", i), 50_000))
		img.Config.Cmd = []string{fmt.Sprint(i)}
		job.Refs = append(job.Refs, srv.Push(t, fmt.Sprint("app", i), "1", img))
	}
	ctx, cancel := context.WithTimeout(t.Context(), *soak)
	defer cancel()
	var wg sync.WaitGroup
	lives, done := make([]int, 3), make([]int, 3)
	for i := range lives {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(uint64(i), 1))
			for ; ctx.Err() == nil && !t.Failed(); lives[i]++ {
				job := job
				job.Seed = r.Uint64()
				done[i] += live(t, job, 100*time.Millisecond+time.Duration(r.Int64N(int64(700*time.Millisecond))))
			}
		})
	}
	wg.Wait()
	t.Log("lives:", lives, "done in them:", done)
	s := openStore(t, func(c *Config) { c.Dir = job.Dir })
	_, err := s.Prune(t.Context(), PruneOptions{Keep: true})
	require.NoError(t, err)
	requireTidy(t, s)
	sessions, err := os.ReadDir(filepath.Join(job.Dir, "ingest"))
	require.NoError(t, err)
	require.Len(t, sessions, 1, "only that of the living")
	users, err := s.Users(t.Context())
	require.NoError(t, err)
	require.Empty(t, users)
	images, err := s.List(t.Context())
	require.NoError(t, err)
	for _, ref := range job.Refs {
		img, err := s.Pull(t.Context(), ref, PullOptions{})
		require.NoError(t, err)
		images = append(images, img)
	}
	for _, img := range images {
		require.NoError(t, s.hasBlobs(t.Context(), record{ID: img.ID, Manifest: ocispec.Descriptor{Digest: img.Manifest}}))
		disks, err := s.Layers(t.Context(), img)
		require.NoError(t, err)
		require.NoError(t, checkContent(disks))
		for _, d := range disks {
			requireClean(t, d.Path)
		}
	}
	_, err = s.Prune(t.Context(), PruneOptions{All: true})
	require.NoError(t, err)
	d, err := s.DiskUsage(t.Context())
	require.NoError(t, err)
	require.Zero(t, d)
}

// live starts a process, kills it when its time has come, and returns how much it has done. One that ends before has
// found a fault.
func live(t *testing.T, job churnJob, after time.Duration) (done int) {
	data, err := json.Marshal(job)
	if err != nil {
		t.Error(err)
		return 0
	}
	ctx, cancel := context.WithTimeout(t.Context(), after)
	defer cancel()
	cmd := exec.CommandContext(ctx, os.Args[0], "-test.run=^TestKilledProcesses$")
	cmd.Env = append(os.Environ(), churnEnv+"="+string(data))
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err = cmd.Run()
	if ctx.Err() == nil || strings.Contains(out.String(), "Error Trace") {
		t.Errorf("a process ended by itself: %v\n%s", err, out.String())
	}
	return strings.Count(out.String(), "done\n")
}

// contentLayer makes a layer of a file that says which bytes follow.
func contentLayer(t testing.TB, name string, size int) imagetest.Layer {
	return imagetest.Gzip(imagetest.Tar(t, reg(name, string(noise(uint64(len(name)), size)))))
}

// checkContent reads all files of layer images. Those of threeLayers and contentLayer are known by their size.
func checkContent(disks []LayerDisk) error {
	for _, d := range disks {
		if err := checkDisk(d.Path); err != nil {
			return err
		}
	}
	return nil
}

func checkDisk(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	v, err := ext4.Open(f)
	if err != nil {
		return err
	}
	root, err := v.Root()
	if err != nil {
		return err
	}
	var all error
	err = v.ReadDir(root, func(name string, number uint32) bool {
		all = checkFile(v, name, number)
		return all == nil
	})
	return errors.Join(err, all)
}

func checkFile(v *ext4.Volume, name string, number uint32) error {
	n, err := v.Inode(number)
	if err != nil || n.Type() != ext4.TypeFile {
		return err
	}
	r, err := v.File(n)
	if err != nil {
		return err
	}
	data, err := io.ReadAll(r)
	if err != nil {
		return err
	}
	seed := uint64(len(name))
	if len(name) == 1 {
		seed = uint64(name[0]-'a') + 1 // of threeLayers
	}
	if !bytes.Equal(data, noise(seed, len(data))) {
		return fmt.Errorf("file %s has another content", name)
	}
	return nil
}

// churn works until it is killed. An image that is used must be there with all it has, whatever others do.
func churn(t *testing.T, env string) {
	var job churnJob
	require.NoError(t, json.Unmarshal([]byte(env), &job))
	s, err := Open(Config{Dir: job.Dir, Keychain: authn.NewMultiKeychain()})
	require.NoError(t, err)
	r := rand.New(rand.NewPCG(job.Seed, 2))
	me := fmt.Sprintf("u%d", os.Getpid())
	for ; ; fmt.Println("done") {
		ref := job.Refs[r.IntN(len(job.Refs))]
		what := r.IntN(10)
		fmt.Println("begin", what)
		switch what {
		case 0, 1, 2:
			_, err = s.Pull(t.Context(), ref, PullOptions{})
			require.NoError(t, err)
		case 3, 4, 5:
			useImage(t, s, ref, me)
		case 6:
			_, err = s.Build(t.Context(), BuildSpec{Base: ref, Names: []string{fmt.Sprint("built:", r.IntN(3))}, Layers: []LayerSource{
				{Files: map[string]LayerFile{"built": {Data: noise(5, 20_000)}}},
			}})
			if err != nil { // the base may go while it is built upon
				require.ErrorIs(t, err, errs.ErrNotFound)
			}
		case 7:
			removeImage(t, s, ref)
		case 8:
			_, err = s.Prune(t.Context(), PruneOptions{LayerImages: r.IntN(2) == 0})
			require.NoError(t, err)
		case 9:
			_, err = s.Prune(t.Context(), PruneOptions{All: true, Budget: int64(r.IntN(2)) << 20})
			require.NoError(t, err)
		}
	}
}

func useImage(t *testing.T, s *Store, ref, user string) {
	img, err := s.Use(t.Context(), ref, User{ID: user, Name: user})
	if errors.Is(err, errs.ErrNotFound) || errors.Is(err, fs.ErrNotExist) {
		return
	}
	require.NoError(t, err)
	for range 2 {
		disks, err := s.Layers(t.Context(), img)
		require.NoError(t, err)
		require.NoError(t, checkContent(disks))
	}
	s.Unuse(user)
}

func removeImage(t *testing.T, s *Store, ref string) {
	_, err := s.Remove(t.Context(), ref, RemoveOptions{})
	if !errors.Is(err, errs.ErrNotFound) && !errors.Is(err, errs.ErrInUse) {
		require.NoError(t, err)
	}
}
