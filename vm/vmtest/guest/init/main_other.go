//go:build !linux

// Command init is the PID 1 of the conformance suite's guest. It is for Linux only.
package main

func main() {}
