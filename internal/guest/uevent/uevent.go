// Package uevent receives the kernel's messages about devices that come and go.
package uevent

import "bytes"

// Rescan is the action of an event that stands in place of events that were lost: whoever follows devices looks at all
// of them again.
const Rescan = "rescan"

// Event is one message of the kernel.
type Event struct {
	Action    string // add, remove, change, ..., or Rescan
	Subsystem string // block, virtio-ports, ...
	Type      string // of a block device: disk or partition
	Name      string // of the device node below /dev, "" where it has none
}

// Parse reads a message of the kernel. It returns false for what is not one.
func Parse(msg []byte) (Event, bool) {
	var e Event
	head, rest, ok := bytes.Cut(msg, []byte{0})
	if !ok || !bytes.Contains(head, []byte{'@'}) {
		return e, false
	}
	for field := range bytes.SplitSeq(rest, []byte{0}) {
		key, value, _ := bytes.Cut(field, []byte{'='})
		switch string(key) {
		case "ACTION":
			e.Action = string(value)
		case "SUBSYSTEM":
			e.Subsystem = string(value)
		case "DEVTYPE":
			e.Type = string(value)
		case "DEVNAME":
			e.Name = string(value)
		}
	}
	return e, e.Action != ""
}
