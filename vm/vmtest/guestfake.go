package vmtest

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"

	"github.com/arcboxlabs/arcbox-go/vm/vmtest/guest"
)

// NewGuestFake returns a Fake whose machines are the guest of the conformance suite.
func NewGuestFake() *Fake {
	f := &Fake{Ports: make(map[uint32]func(*FakeInstance, net.Conn))}
	for _, port := range guest.Ports {
		f.Ports[port] = func(m *FakeInstance, c net.Conn) { guest.Serve(port, c, fakeMachine{m}) }
	}
	return f
}

// fakeMachine does the suite's commands on a fake machine.
type fakeMachine struct{ m *FakeInstance }

// Do implements guest.Machine. What is attached is there at once, so waiting is looking.
func (f fakeMachine) Do(command string) (string, func()) {
	verb, arg, _ := strings.Cut(command, " ")
	disk, there := f.m.Disks()[arg]
	switch verb {
	case "poweroff":
		return "ok", f.m.PowerOff
	case "panic":
		return "ok", func() {
			f.m.Say("Kernel panic - not syncing: fake")
			f.m.Crash("the guest's kernel panicked: Kernel panic - not syncing: fake")
		}
	case "say":
		f.m.Say(arg)
	case "flood":
		n, _ := strconv.Atoi(arg)
		for i := range n {
			f.m.Say(fmt.Sprintf("flood %d of %d", i, n))
		}
	case "remember", "recall":
		f.m.mu.Lock()
		defer f.m.mu.Unlock()
		if verb == "remember" {
			f.m.kept = arg
		}
		return f.m.kept, nil
	case "has", "wait":
		return yes(there), nil
	case "gone":
		return yes(!there), nil
	case "read":
		return firstLine(disk.Path), nil
	default:
		return "unknown command", nil
	}
	return "ok", nil
}

func yes(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

func firstLine(path string) string {
	f, err := os.Open(path)
	if err != nil {
		return err.Error()
	}
	defer f.Close()
	line, err := bufio.NewReader(f).ReadString('\n')
	if err != nil {
		return err.Error()
	}
	return strings.TrimSuffix(line, "\n")
}
