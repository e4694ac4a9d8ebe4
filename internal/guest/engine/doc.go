// Package engine is the part of the agent that knows no operating system: containers and their states, the stdio of
// their processes, events, and the methods of agent/api for them. It drives a Backend, which makes containers; the one
// for Linux is package box, and tests have one in memory.
package engine
