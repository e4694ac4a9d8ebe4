// Command arcbox runs containers in a virtual machine of its own, without a daemon. It is a small front end over package
// arcbox, a place to try things, and an example of how to use the package.
//
// There being no daemon, every call of the command has a machine of its own, which is started when the first container
// needs it and is gone when the command ends: a container runs no longer than that. Within "arcbox shell" one machine
// serves many commands. Images, boot files, and the records, files and logs of containers are kept in the data
// directory and are shared by all calls.
package main

import (
	"context"
	"os"
)

func main() {
	c := &cli{in: os.Stdin, out: os.Stdout, err: os.Stderr}
	os.Exit(c.run(context.Background(), os.Args[1:]))
}
