// Package box makes containers on Linux: it is the backend of the agent, an OCI runtime of its own in pure Go.
//
// A container's process is forked when the container is created. It runs a program of system calls (package proc) that
// builds its surroundings inside its new namespaces, then waits for one byte on a pipe, which Start writes, and executes
// the command. So no Go code runs in a container, nothing but the command's own process does, and a container is ready
// the moment it is started.
//
// Everything in the container's file system is touched after the change of root, by paths that the kernel resolves below
// the container's root, or with openat2 and RESOLVE_IN_ROOT: what an image contains cannot lead out of it.
package box
