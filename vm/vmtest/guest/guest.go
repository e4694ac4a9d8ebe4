// Package guest is the guest of the conformance suite of drivers: small services on a few ports. The fake runs them in
// process, package init in a real machine.
package guest

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"strings"
)

// The ports. On every other port nobody listens.
const (
	PortEcho    uint32 = 1 // sends back what it gets, and its end after the caller's
	PortSink    uint32 = 2 // reads to the end, then sends how many bytes that were, as 8 bytes big endian
	PortSource  uint32 = 3 // gets a count as 8 bytes big endian, sends as many zero bytes
	PortCommand uint32 = 4 // gets a line, sends a line: see Machine
)

// Ports are all ports on which the guest listens.
var Ports = [...]uint32{PortEcho, PortSink, PortSource, PortCommand}

// Machine does the commands that concern the machine as a whole. A command that ends the machine is answered first: the
// returned function is called after the answer was sent.
type Machine interface {
	// Do does a command:
	//
	//	poweroff        ends the machine in good order
	//	panic           ends it by a kernel panic
	//	flood N         writes N lines to the console
	//	say TEXT        writes TEXT and a newline to the console
	//	remember TEXT   keeps TEXT in memory and answers it
	//	recall          answers what was remembered last
	//	has SERIAL      answers "yes" or "no": whether the disk is there
	//	wait SERIAL     answers "yes" when the disk is there
	//	gone SERIAL     answers "yes" when the disk is not there any more
	//	read SERIAL     answers the first line of the disk
	//	write SERIAL TEXT
	//	                writes TEXT and a newline to the begin of the disk and answers "ok", or why not
	Do(command string) (answer string, then func())
}

// Serve serves one stream to a port and closes it.
func Serve(port uint32, c net.Conn, m Machine) {
	defer c.Close()
	switch port {
	case PortEcho:
		io.Copy(c, c)
	case PortSink:
		n, _ := io.Copy(io.Discard, c)
		c.Write(binary.BigEndian.AppendUint64(nil, uint64(n)))
	case PortSource:
		var b [8]byte
		if _, err := io.ReadFull(c, b[:]); err != nil {
			return
		}
		io.CopyN(c, zeros{}, int64(binary.BigEndian.Uint64(b[:])))
	case PortCommand:
		line, err := bufio.NewReader(io.LimitReader(c, 4096)).ReadString('\n')
		if err != nil {
			return
		}
		answer, then := m.Do(strings.TrimSuffix(line, "\n"))
		fmt.Fprintln(c, answer)
		if then != nil {
			// The caller closes its end when it has the answer.
			io.Copy(io.Discard, c)
			then()
		}
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }
