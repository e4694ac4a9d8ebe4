// Package proc starts and reaps the processes of the guest.
//
// A Program is a list of system calls that a new process makes before it executes a command. The list is made by the
// parent, in memory; the child runs it, and needs neither the Go runtime nor a second executable. That saves the start of a
// Go binary for each container, and leaves no binary of the agent that a container could run. The child can do so in the
// parent's memory: to copy that, and to let go of the copy, may take longer than all the rest.
//
// A Reaper is the only one that waits for children.
package proc
