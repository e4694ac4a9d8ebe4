package arcbox_test

import (
	"context"
	"embed"
	"fmt"
	"log"
	"net"
	"net/http"
	"os"

	"github.com/arcboxlabs/arcbox-go"
)

//go:embed README.md LICENSE
var assets embed.FS

// A volume that outlives the container, a directory of the host that the container cannot write, and files that are part
// of this program.
func ExampleMount() {
	rt, err := arcbox.New(arcbox.Config{})
	if err != nil {
		log.Fatal(err)
	}
	defer rt.Close()
	ctx := context.Background()
	p, err := rt.RunContainer(ctx, arcbox.ContainerSpec{
		Image: "alpine",
		Args:  []string{"sh", "-c", "cp -r /src /assets /work"},
		Mounts: []arcbox.Mount{
			{Type: arcbox.MountVolume, Source: "work", Target: "/work"},
			{Type: arcbox.MountBind, Source: "/usr/src/app", Target: "/src", ReadOnly: true},
			{Type: arcbox.MountFS, FS: assets, Target: "/assets"},
		},
	}, arcbox.RunOptions{Stderr: os.Stderr})
	if err != nil {
		log.Fatal(err)
	}
	exit, err := p.Wait(ctx)
	fmt.Println(exit.Code, err)
}

// A service of this program that the container finds as a Unix socket, without a network.
func ExampleMount_socket() {
	rt, err := arcbox.New(arcbox.Config{})
	if err != nil {
		log.Fatal(err)
	}
	defer rt.Close()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	defer l.Close()
	go http.Serve(l, http.FileServerFS(assets))
	ctx := context.Background()
	p, err := rt.RunContainer(ctx, arcbox.ContainerSpec{
		Image:   "curlimages/curl",
		Args:    []string{"curl", "-s", "--unix-socket", "/run/files.sock", "http://files/LICENSE"},
		Network: arcbox.NetworkNone,
		Mounts: []arcbox.Mount{{
			Type: arcbox.MountSocket, Target: "/run/files.sock",
			Dial: func(ctx context.Context) (net.Conn, error) {
				var d net.Dialer
				return d.DialContext(ctx, "tcp", l.Addr().String())
			},
		}},
	}, arcbox.RunOptions{Stdout: os.Stdout})
	if err != nil {
		log.Fatal(err)
	}
	exit, err := p.Wait(ctx)
	fmt.Println(exit.Code, err)
}
