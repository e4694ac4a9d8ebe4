package arcbox_test

import (
	"context"
	"embed"
	"fmt"
	"log"
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
