package arcbox_test

import (
	"context"
	"embed"
	"fmt"
	"log"
	"os"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/arcboxlabs/arcbox-go"
)

//go:embed README.md
var page embed.FS

// An image of one static program and a file system that is embedded in this one.
func ExampleRuntime_BuildImage() {
	rt, err := arcbox.New(arcbox.Config{})
	if err != nil {
		log.Fatal(err)
	}
	defer rt.Close()
	ctx := context.Background()
	img, err := rt.BuildImage(ctx, arcbox.ImageSpec{
		Names: []string{"server:1"},
		Layers: []arcbox.ImageLayer{
			{Files: map[string]arcbox.ImageFile{"/server": {Path: "bin/server"}}}, // go build -o bin/server, with CGO_ENABLED=0
			{FS: page, Dir: "/srv/www"},
		},
		Config: ocispec.ImageConfig{Entrypoint: []string{"/server"}, WorkingDir: "/srv/www", User: "1000"},
	}, arcbox.BuildOptions{})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(img.ID) // the same at every build
	p, err := rt.RunContainer(ctx, arcbox.ContainerSpec{Image: "server:1"}, arcbox.RunOptions{Stdout: os.Stdout})
	if err != nil {
		log.Fatal(err)
	}
	exit, err := p.Wait(ctx)
	fmt.Println(exit.Code, err)
}
