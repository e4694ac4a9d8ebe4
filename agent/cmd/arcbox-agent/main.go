// Command arcbox-agent is the first process of the guest, and of containers that ask for an init. It is the /init of the
// initramfs that package boot composes, and of no use anywhere else.
package main

import (
	"fmt"
	"os"

	"github.com/arcboxlabs/arcbox-go/internal/guest"
)

func main() {
	if code, is := guest.Init(os.Args, os.Stdin, os.Stdout, os.Stderr); is {
		os.Exit(code)
	}
	// Main returns when something fatal has happened. When the first process ends, the kernel panics and the host notices.
	fmt.Fprintln(os.Stderr, "arcbox-agent:", guest.Main(os.Stderr))
	os.Exit(1)
}
