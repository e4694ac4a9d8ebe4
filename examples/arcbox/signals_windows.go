package main

import "os"

// proxied are the signals that a container gets, by name.
func proxied() map[os.Signal]string { return map[os.Signal]string{os.Interrupt: "INT"} }

// resized is the signal that tells of a terminal's new size: none on this system.
func resized() os.Signal { return nil }
