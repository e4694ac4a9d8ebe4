// Shop is what a compose file would describe, as a Go program: three containers on one network. nginx takes the requests, a
// service in Go, whose image is made on the spot, handles them, and Redis keeps the orders on a volume, where the next run
// finds them. Nothing of it can reach the outside.
//
//	go run ./shop &
//	curl -X POST http://127.0.0.1:8080/order
package main

import (
	"context"
	"embed"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/arcboxlabs/arcbox-go"
)

//go:embed nginx.conf
var config embed.FS

func main() {
	var s shop
	var cfg arcbox.Config
	port := flag.Uint("port", 8080, "port on 127.0.0.1")
	flag.StringVar(&s.nginx, "nginx", "nginx", "image of nginx")
	flag.StringVar(&s.redis, "redis", "redis", "image of Redis")
	flag.StringVar(&cfg.DataDir, "data", "", "arcbox's data directory; default is the user's")
	flag.Parse()
	s.port = uint16(*port)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, cfg, s); err != nil {
		fmt.Fprintln(os.Stderr, "shop:", err)
		os.Exit(1)
	}
}

// run opens the shop until ctx ends.
func run(ctx context.Context, cfg arcbox.Config, s shop) error {
	rt, err := arcbox.New(cfg)
	if err != nil {
		return err
	}
	defer rt.Close() // the containers end with it, the volume stays
	address, err := s.open(ctx, rt)
	if err != nil {
		return err
	}
	fmt.Println("the shop is open at http://" + address)
	<-ctx.Done()
	return nil
}

// shop says what the shop is made of.
type shop struct {
	nginx, redis string // images
	port         uint16 // on 127.0.0.1; 0 is a free one
}

// open starts the containers, each when the one it needs is ready, and returns the address of the shop.
func (s shop) open(ctx context.Context, rt *arcbox.Runtime) (address string, err error) {
	app, err := buildApp(ctx, rt)
	if err != nil {
		return "", err
	}
	_, err = rt.CreateNetwork(ctx, arcbox.NetworkSpec{Name: "shop", Internal: true})
	if err != nil && !errors.Is(err, arcbox.ErrExists) {
		return "", err
	}
	for _, part := range []struct {
		spec  arcbox.ContainerSpec
		ready arcbox.WaitStrategy
	}{
		{arcbox.ContainerSpec{
			Name: "store", Image: s.redis, Args: []string{"redis-server", "--dir", "/data", "--appendonly", "yes", "--protected-mode", "no"},
			Mounts: []arcbox.Mount{{Type: arcbox.MountVolume, Source: "orders", Target: "/data"}},
		}, arcbox.ForListeningPort(6379)},
		{arcbox.ContainerSpec{Name: "app", Image: app, User: "1000", ReadOnly: true}, arcbox.ForHTTP(8080, "/", 200)},
		{arcbox.ContainerSpec{
			Name: "front", Image: s.nginx, User: "1000", Args: []string{"nginx", "-c", "/etc/shop/nginx.conf"},
			Mounts: []arcbox.Mount{{Type: arcbox.MountFS, FS: config, Target: "/etc/shop"}},
			Tmpfs:  []arcbox.Tmpfs{{Path: "/tmp"}},
			Ports:  []arcbox.PortMapping{{HostPort: s.port, ContainerPort: 8080}},
		}, arcbox.ForHTTP(8080, "/", 200)},
	} {
		part.spec.Networks = []arcbox.NetworkAttachment{{Network: "shop"}}
		part.spec.AutoRemove = true
		if _, err := rt.RunContainer(ctx, part.spec, arcbox.RunOptions{}); err != nil {
			return "", err
		}
		if err := rt.WaitFor(ctx, part.spec.Name, part.ready.WithTimeout(time.Minute)); err != nil {
			return "", err
		}
	}
	front, err := rt.InspectContainer(ctx, "front")
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%s:%d", front.Ports[0].HostIP, front.Ports[0].HostPort), nil
}

// buildApp makes an image of nothing but the service.
func buildApp(ctx context.Context, rt *arcbox.Runtime) (string, error) {
	dir, err := os.MkdirTemp("", "shop-*")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(dir)
	binary := filepath.Join(dir, "app")
	build := exec.CommandContext(ctx, "go", "build", "-trimpath", "-o", binary, "github.com/arcboxlabs/arcbox-go/examples/shop/app")
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH="+runtime.GOARCH)
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build the service (run this in the directory examples): %w: %s", err, out)
	}
	const name = "shop-app:1"
	_, err = rt.BuildImage(ctx, arcbox.ImageSpec{
		Names:  []string{name},
		Layers: []arcbox.ImageLayer{{Files: map[string]arcbox.ImageFile{"/app": {Path: binary}}}},
		Config: ocispec.ImageConfig{Entrypoint: []string{"/app"}},
	}, arcbox.BuildOptions{})
	return name, err
}
