// Package forktest shows how a test warms up a server once and gives every subtest a copy of it: TestForks starts Redis in a
// container, fills it, and runs ten subtests at a time, each on a fork of the machine with the server running and its data in
// memory. What one writes, no other sees.
//
//	go test -v ./forktest
package forktest
