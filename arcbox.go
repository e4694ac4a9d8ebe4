// Package arcbox is a Linux container engine inside a Go program, with no daemon. It boots a lightweight virtual machine
// in the caller's process tree when the first container is made, runs containers from OCI images in it, and leaves
// nothing behind when the program ends.
//
//	rt, err := arcbox.New(arcbox.Config{})
//	if err != nil {
//		return err
//	}
//	defer rt.Close()
//	p, err := rt.RunContainer(ctx, arcbox.ContainerSpec{
//		Image: "alpine",
//		Args:  []string{"echo", "hello"},
//	}, arcbox.RunOptions{Stdout: os.Stdout})
//	if err != nil {
//		return err
//	}
//	exit, err := p.Wait(ctx)
//
// # The model
//
// A Runtime owns everything: the machine, the containers in it, the images. All calls are methods on it. A thing is
// described by a Spec, a call is tuned by Options whose zero value is the default, and what is read back is an Info, a
// snapshot. Containers are named by id, by a unique prefix of an id, or by name; a reference by which nothing goes is
// ErrNotFound, a prefix that fits several things ErrInvalid. The only live handle is a Process.
//
// A context bounds the call that it is given to, never the thing that the call makes. Sizes are bytes. Errors are of type
// *Error and wrap sentinels such as ErrNotFound. That a command exits with another code than 0 is a result, not an error.
//
// The machine works with hardware virtualisation where there is one, and without. Doctor tells what is missing on a
// host, and how to mend it.
package arcbox
