// Hello builds an image from one static binary, loads it, and runs a container from it in a virtual machine that is
// booted for the purpose. It shows how long each step took.
package main

import (
	"archive/tar"
	"bytes"
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"sync"
	"syscall"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"github.com/google/go-containerregistry/pkg/name"

	"github.com/arcboxlabs/arcbox-go"
	"github.com/arcboxlabs/arcbox-go/boot"
	"github.com/arcboxlabs/arcbox-go/event"
)

// script runs in the container.
const script = `echo "hello from a container"
echo "  guest kernel: $(uname -r)"
echo "  my hostname:  $(hostname)"
echo "  my PID:       $$"
exit 7`

func main() {
	binary := flag.String("busybox", "/bin/busybox", "a static busybox for the image")
	dataDir := flag.String("data", "", "arcbox's data directory; default is the user's")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *binary, *dataDir); err != nil {
		fmt.Fprintln(os.Stderr, "hello:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, binary, dataDir string) error {
	tl := &timeline{start: time.Now()}
	rt, err := arcbox.New(arcbox.Config{
		DataDir: dataDir,
		Boot:    arcbox.BootConfig{Progress: tl.bootProgress},
	})
	if err != nil {
		return err
	}
	defer rt.Close()
	tl.follow(rt.Events(ctx, arcbox.EventsOptions{}))

	dir, err := os.MkdirTemp("", "hello-*")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	archive := filepath.Join(dir, "hello.tar")
	if err := buildImage(archive, binary); err != nil {
		return fmt.Errorf("build the image: %w", err)
	}
	if _, err := rt.LoadImage(ctx, archive, arcbox.LoadOptions{}); err != nil {
		return err
	}
	p, err := rt.RunContainer(ctx, arcbox.ContainerSpec{
		Image: "hello:latest", Args: []string{"sh", "-c", script}, AutoRemove: true,
	}, arcbox.RunOptions{Stdout: &firstWrite{w: os.Stdout, tell: func() { tl.add("first output") }}, Stderr: os.Stderr})
	if err != nil {
		return err
	}
	exit, err := p.Wait(ctx)
	if err != nil {
		return err
	}
	fmt.Printf("the container exited with code %d\n\n", exit.Code)
	if err := rt.Close(); err != nil {
		return err
	}
	tl.print(os.Stdout)
	return nil
}

// buildImage writes an image of one layer, busybox and its applets sh, echo, hostname and uname, as docker save would.
func buildImage(path, binary string) error {
	busybox, err := os.ReadFile(binary)
	if err != nil {
		return err
	}
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	w.WriteHeader(&tar.Header{Name: "bin/", Typeflag: tar.TypeDir, Mode: 0o755})
	w.WriteHeader(&tar.Header{Name: "bin/busybox", Mode: 0o755, Size: int64(len(busybox))})
	w.Write(busybox)
	for _, applet := range []string{"sh", "echo", "hostname", "uname"} {
		w.WriteHeader(&tar.Header{Name: "bin/" + applet, Typeflag: tar.TypeSymlink, Linkname: "busybox", Mode: 0o777})
	}
	if err := w.Close(); err != nil {
		return err
	}
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b.Bytes())), nil })
	if err != nil {
		return err
	}
	img, err := mutate.AppendLayers(empty.Image, layer)
	if err != nil {
		return err
	}
	cfg, err := img.ConfigFile()
	if err != nil {
		return err
	}
	cfg = cfg.DeepCopy()
	cfg.OS, cfg.Architecture = "linux", runtime.GOARCH
	cfg.Config = v1.Config{Cmd: []string{"sh"}, Env: []string{"PATH=/bin"}}
	if img, err = mutate.ConfigFile(img, cfg); err != nil {
		return err
	}
	return tarball.WriteToFile(path, name.MustParseReference("hello:latest"), img)
}

// timeline remembers when what happened.
type timeline struct {
	start time.Time
	wg    sync.WaitGroup

	mu    sync.Mutex
	steps []step
	last  boot.Step // the one that was printed last
}

type step struct {
	name string
	at   time.Duration
}

func (t *timeline) add(name string) { t.addAt(name, time.Now()) }

func (t *timeline) addAt(name string, at time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.steps = append(t.steps, step{name, at.Sub(t.start)})
}

func (t *timeline) bootProgress(p boot.Progress) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if p.Step != t.last {
		fmt.Printf("%s ...\n", p.Step)
		t.last = p.Step
	}
}

// follow turns events into steps until the channel is closed.
func (t *timeline) follow(events <-chan event.Event) {
	names := map[event.Kind]string{
		event.ImageLoaded: "image loaded", event.MachineStarting: "machine wanted", event.MachineBooting: "kernel found",
		event.MachineReady: "VM ready", event.ContainerCreated: "container created", event.ContainerStarted: "container started",
		event.ContainerExited: "exit", event.MachineStopped: "VM gone",
	}
	t.wg.Go(func() {
		for e := range events {
			if n, ok := names[e.Kind]; ok {
				t.addAt(n, e.Time)
			}
			if e.Kind == event.MachineBooting {
				fmt.Println("boot the VM ...")
			}
		}
	})
}

func (t *timeline) print(w io.Writer) {
	t.wg.Wait()
	fmt.Fprintln(w, "timeline:")
	before := time.Duration(0)
	for _, s := range t.steps {
		fmt.Fprintf(w, "  %8.3f s  +%.3f  %s\n", s.at.Seconds(), (s.at - before).Seconds(), s.name)
		before = s.at
	}
}

// firstWrite tells of the first write.
type firstWrite struct {
	w    io.Writer
	once sync.Once
	tell func()
}

func (f *firstWrite) Write(p []byte) (int, error) {
	f.once.Do(f.tell)
	return f.w.Write(p)
}
