// Package files reads and writes the files of a container from outside: as tar archives, by path, and compared with the
// container's image.
//
// The container may be running and hostile. Every path is resolved by the kernel below the container's root (openat2 with
// RESOLVE_IN_ROOT or RESOLVE_BENEATH, never through the links of /proc), and whatever is done to a file is done to a
// descriptor of it or to a name in a descriptor of its directory. So nothing outside the root is read or written, however
// quickly the container swaps files for links; it can only make a copy of its own files miss some. What a walk holds in
// memory is bounded.
package files
