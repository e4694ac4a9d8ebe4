package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/arcboxlabs/arcbox-go"
)

// shares measures a directory of the host in a container and, where QEMU's virtiofsd is installed, in turn with it the same by
// virtio-fs on the same guest.
func (b *suite) shares() error {
	dir := filepath.Join(b.dir, "shared")
	if err := makeTree(dir); err != nil {
		return err
	}
	build := exec.CommandContext(b.ctx, "go", "build", "-trimpath", "-ldflags=-s -w", "-o", filepath.Join(dir, "run"), "./bench/tree")
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux")
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("build (run this in the directory examples): %w: %s", err, out)
	}
	cfg := b.config()
	stop, err := b.virtiofs(&cfg, dir)
	if err != nil {
		return err
	}
	if stop != nil {
		defer stop()
	}
	rt, err := arcbox.New(cfg)
	if err != nil {
		return err
	}
	defer rt.Close()
	if stop != nil {
		if err := b.loadVirtiofs(rt); err != nil {
			return err
		}
	}
	mounts := []arcbox.Mount{{Type: arcbox.MountBind, Source: dir, Target: "/s"}}
	values, theirs := map[string][]float64{}, map[string][]float64{}
	for range b.rounds {
		if err := b.shareOnce(rt, values, arcbox.ContainerSpec{Args: []string{"/s/run", "/s"}, Mounts: mounts}); err != nil {
			return err
		}
		if stop == nil {
			continue
		}
		if err := b.shareOnce(rt, theirs, arcbox.ContainerSpec{Args: busybox("sh", "-c", virtiofsMount+"exec /s/run /s"), Privileged: true}); err != nil {
			return fmt.Errorf("virtio-fs: %w", err)
		}
	}
	ways := []gitWay{{values: values, spec: arcbox.ContainerSpec{Mounts: mounts}}}
	if stop != nil {
		ways = append(ways, gitWay{values: theirs, mount: virtiofsMount, spec: arcbox.ContainerSpec{Privileged: true}})
	}
	if err := b.gitStatus(rt, dir, ways...); err != nil {
		return err
	}
	reportShares("share_", values)
	if stop != nil {
		reportShares("qemu_virtiofs_", theirs)
	}
	return nil
}

// virtiofsMount mounts what virtiofs offers.
const virtiofsMount = "busybox mkdir /s && busybox mount -t virtiofs bench /s && "

// virtiofs lets the machine have a directory by QEMU's virtio-fs besides, and returns what ends its server; nil where there is
// none. Such a machine shares its memory with the server, so it cannot come from a template.
func (b *suite) virtiofs(cfg *arcbox.Config, dir string) (stop func(), err error) {
	server := "/usr/lib/qemu/virtiofsd" // where Debian has it
	if _, err := os.Stat(server); err != nil || os.Getuid() != 0 || runtime.GOARCH != "amd64" {
		fmt.Fprintln(os.Stderr, "bench: shares are not compared with virtio-fs: that needs root, amd64 and", server)
		return nil, nil
	}
	socket := filepath.Join(b.dir, "virtiofs.sock")
	cfg.VM.Forkable = true
	if err := b.besides(cfg, "-chardev socket,id=virtiofs,path="+socket+" -device vhost-user-fs-pci,chardev=virtiofs,tag=bench"); err != nil {
		return nil, err
	}
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		return nil, err
	}
	defer listener.Close()
	listener.SetUnlinkOnClose(false)
	file, err := listener.File()
	if err != nil {
		return nil, err
	}
	defer file.Close()
	cmd := exec.CommandContext(b.ctx, server, "--fd=3", "-f", "-o", "source="+dir, "-o", "cache=auto")
	cmd.ExtraFiles = []*os.File{file}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	return func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}, nil
}

// loadVirtiofs loads the module of virtio-fs, which machines in QEMU have no use for otherwise.
func (b *suite) loadVirtiofs(rt *arcbox.Runtime) error {
	var out bytes.Buffer
	p, err := rt.ExecMachine(b.ctx, arcbox.DefaultMachine, arcbox.MachineExecSpec{Image: imageName, Args: busybox("sh", "-c",
		"for m in fuse virtiofs; do busybox insmod $(busybox find /host/lib/modules -name $m.ko) || true; done; busybox grep virtiofs /proc/filesystems")},
		arcbox.RunOptions{Stdout: &out, Stderr: &out})
	if err != nil {
		return err
	}
	exit, err := p.Wait(b.ctx)
	if err == nil && exit.Code != 0 {
		err = fmt.Errorf("load virtiofs: %s", out.String())
	}
	return err
}

func reportShares(prefix string, values map[string][]float64) {
	for _, v := range []struct{ name, unit string }{
		{"stat_us", "us"}, {"stat_cold_us", "us"}, {"miss_us", "us"}, {"read_mb_s", "MB/s"}, {"write_mb_s", "MB/s"}, {"walk_10000_ms", "ms"},
		{"git_status_10000_ms", "ms"}, {"git_status_10000_again_ms", "ms"},
	} {
		if len(values[v.name]) > 0 {
			report(prefix+v.name, v.unit, values[v.name])
		}
	}
}

// gitImage makes an image of the host's git and what it links, and returns its name; "" is that the host has no git.
func (b *suite) gitImage(rt *arcbox.Runtime) (string, error) {
	git, err := exec.LookPath("git")
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench: there is no git here, so it is not measured")
		return "", nil
	}
	out, err := exec.CommandContext(b.ctx, "ldd", git).Output()
	if err != nil {
		return "", fmt.Errorf("find what git links: %w", err)
	}
	files := map[string]arcbox.ImageFile{"/git": {Path: git}, "/bin/busybox": {Path: "/bin/busybox"}}
	for word := range strings.FieldsSeq(string(out)) {
		if filepath.IsAbs(word) {
			files[word] = arcbox.ImageFile{Path: word}
		}
	}
	_, err = rt.BuildImage(b.ctx, arcbox.ImageSpec{Names: []string{"git:bench"}, Layers: []arcbox.ImageLayer{{Files: files}}}, arcbox.BuildOptions{})
	return "git:bench", err
}

// gitWay is how containers get the directory with the tree at /s, and the values of each way.
type gitWay struct {
	values map[string][]float64
	mount  string // a script that mounts it, where it is not mounted by spec
	spec   arcbox.ContainerSpec
}

// gitStatus measures "git status" of a work tree below a directory of the host, in a machine that has not looked at it yet and
// again.
func (b *suite) gitStatus(rt *arcbox.Runtime, dir string, ways ...gitWay) error {
	image, err := b.gitImage(rt)
	if image == "" || err != nil {
		return err
	}
	for _, args := range [][]string{{"init", "-q"}, {"add", "."}, {"-c", "user.name=b", "-c", "user.email=b", "commit", "-q", "-m", "b"}} {
		cmd := exec.CommandContext(b.ctx, "git", args...)
		cmd.Dir = filepath.Join(dir, "tree")
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("git %s: %w: %s", args[0], err, out)
		}
	}
	for range b.rounds {
		for _, way := range ways {
			if err := b.statusTwice(rt, image, way); err != nil {
				return err
			}
		}
	}
	return nil
}

// statusTwice keeps the directory mounted meanwhile, so that the guest remembers what it has seen.
func (b *suite) statusTwice(rt *arcbox.Runtime, image string, way gitWay) error {
	spec := way.spec
	spec.Image, spec.Entrypoint = image, []string{"/bin/busybox", "sh", "-c"}
	spec.Args = []string{way.mount + "busybox echo mounted && busybox sleep 1000"}
	p, err := rt.RunContainer(b.ctx, spec, arcbox.RunOptions{})
	if err != nil {
		return err
	}
	if err := rt.WaitFor(b.ctx, p.ContainerID(), arcbox.ForLog("mounted", 1)); err != nil {
		return err
	}
	spec.Args = []string{way.mount + "exec /git -c 'safe.directory=*' -C /s/tree status --porcelain"}
	spec.Env = []string{"HOME=/", "GIT_OPTIONAL_LOCKS=0"}
	for _, name := range []string{"git_status_10000_ms", "git_status_10000_again_ms"} {
		took, err := b.statusOnce(rt, spec)
		if err != nil {
			return err
		}
		way.values[name] = append(way.values[name], took)
	}
	return rt.RemoveContainer(b.ctx, p.ContainerID(), arcbox.RemoveOptions{Force: true})
}

// statusOnce runs git in a container of its own, of whose making it does not tell the time.
func (b *suite) statusOnce(rt *arcbox.Runtime, spec arcbox.ContainerSpec) (float64, error) {
	info, err := rt.CreateContainer(b.ctx, spec, arcbox.CreateOptions{})
	if err != nil {
		return 0, err
	}
	began := time.Now()
	if err := rt.StartContainer(b.ctx, info.ID); err != nil {
		return 0, err
	}
	exit, err := rt.WaitContainer(b.ctx, info.ID, arcbox.WaitOptions{})
	took := ms(time.Since(began))
	var out bytes.Buffer
	if err == nil {
		err = rt.CopyLogs(b.ctx, info.ID, &out, &out, arcbox.LogsOptions{})
	}
	if err == nil && (exit.Code != 0 || out.Len() > 0) {
		err = fmt.Errorf("git status: exit code %d: %.300s", exit.Code, out.String())
	}
	return took, errors.Join(err, rt.RemoveContainer(b.ctx, info.ID, arcbox.RemoveOptions{Force: true}))
}

// makeTree makes 10,000 files in 100 directories, as a work tree has them, and some more in one.
func makeTree(dir string) error {
	for i := range 100 {
		sub := filepath.Join(dir, "tree", fmt.Sprint(i))
		if err := os.MkdirAll(sub, 0o755); err != nil {
			return err
		}
		for j := range 100 {
			if err := os.WriteFile(filepath.Join(sub, fmt.Sprint(j)), []byte("text\n"), 0o644); err != nil {
				return err
			}
		}
	}
	flat := filepath.Join(dir, "flat")
	if err := os.Mkdir(flat, 0o755); err != nil {
		return err
	}
	for i := range 500 {
		if err := os.WriteFile(filepath.Join(flat, fmt.Sprint(i)), nil, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// shareOnce runs the program in a container and adds what it prints.
func (b *suite) shareOnce(rt *arcbox.Runtime, values map[string][]float64, spec arcbox.ContainerSpec) error {
	var stdout, stderr bytes.Buffer
	spec.Image, spec.AutoRemove = imageName, true
	p, err := rt.RunContainer(b.ctx, spec, arcbox.RunOptions{Stdout: &stdout, Stderr: &stderr})
	if err != nil {
		return err
	}
	exit, err := p.Wait(b.ctx)
	if err != nil {
		return err
	}
	if exit.Code != 0 {
		return fmt.Errorf("exit code %d: %s", exit.Code, stderr.String())
	}
	for lines := bufio.NewScanner(&stdout); lines.Scan(); {
		name, text, _ := strings.Cut(lines.Text(), " ")
		var value float64
		if _, err := fmt.Sscan(text, &value); err != nil {
			return fmt.Errorf("read %q: %w", lines.Text(), err)
		}
		values[name] = append(values[name], value)
	}
	return nil
}
