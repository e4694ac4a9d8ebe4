package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// machine does the suite's commands. Its condition is signalled at every kernel event.
type machine struct {
	mu     sync.Mutex
	cond   sync.Cond
	memory string // what it was told to remember
}

func newMachine() *machine {
	m := &machine{}
	m.cond.L = &m.mu
	return m
}

func uevents() (int, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, unix.NETLINK_KOBJECT_UEVENT)
	if err != nil {
		return 0, err
	}
	return fd, unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1})
}

func (m *machine) watch(fd int) {
	b := make([]byte, 64<<10)
	for {
		if _, err := unix.Read(fd, b); err != nil && err != unix.EINTR && err != unix.ENOBUFS {
			return
		}
		m.mu.Lock()
		m.cond.Broadcast()
		m.mu.Unlock()
	}
}

// until waits until f is true, which it is asked after every kernel event.
func (m *machine) until(f func() bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for !f() {
		m.cond.Wait()
	}
}

// useConsole makes the console stdout and stderr, where it needed a module: there was none when the kernel executed init.
func (m *machine) useConsole() error {
	var console *os.File
	m.until(func() (ok bool) {
		var err error
		console, err = os.OpenFile("/dev/console", os.O_WRONLY|unix.O_NOCTTY, 0)
		return err == nil
	})
	defer console.Close()
	for _, std := range []int{1, 2} {
		if err := unix.Dup3(int(console.Fd()), std, 0); err != nil {
			return err
		}
	}
	return nil
}

// port opens the virtio-serial port with the name.
func (m *machine) port(name string) (link, error) {
	var dev string
	m.until(func() bool {
		names, _ := filepath.Glob("/sys/class/virtio-ports/*/name")
		for _, n := range names {
			if b, err := os.ReadFile(n); err == nil && strings.TrimSpace(string(b)) == name {
				dev = filepath.Join("/dev", filepath.Base(filepath.Dir(n)))
				_, err := os.Stat(dev)
				return err == nil
			}
		}
		return false
	})
	f, err := os.OpenFile(dev, os.O_RDWR|unix.O_NONBLOCK, 0)
	return link{f}, err
}

// sharedDir is where files are disks, on hypervisors that show them so.
const sharedDir = "/shared"

// disk returns the device of the disk with the serial, or its file, "" where there is none.
func disk(serial string) string {
	if _, err := os.Stat(filepath.Join(sharedDir, serial)); err == nil && serial != "" {
		return filepath.Join(sharedDir, serial)
	}
	names, _ := filepath.Glob("/sys/block/*/serial") // virtio-blk
	for _, n := range names {
		if b, err := os.ReadFile(n); err == nil && strings.TrimSpace(string(b)) == serial {
			return filepath.Join("/dev", filepath.Base(filepath.Dir(n)))
		}
	}
	pages, _ := filepath.Glob("/sys/block/*/device/vpd_pg80")
	for _, p := range pages {
		if b, err := os.ReadFile(p); err == nil && len(b) > 4 && strings.TrimSpace(string(b[4:])) == serial {
			dev := filepath.Join("/dev", filepath.Base(filepath.Dir(filepath.Dir(p))))
			// The kernel makes the node before it can be opened, and sends the event after that.
			if f, err := os.Open(dev); err == nil {
				f.Close()
				return dev
			}
		}
	}
	return ""
}

// Do implements guest.Machine.
func (m *machine) Do(command string) (string, func()) {
	verb, arg, _ := strings.Cut(command, " ")
	switch verb {
	case "poweroff":
		return "ok", func() { unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF) }
	case "panic":
		return "ok", func() { os.WriteFile("/proc/sysrq-trigger", []byte("c"), 0) }
	case "say":
		fmt.Println(arg)
	case "flood":
		n, _ := strconv.Atoi(arg)
		w := bufio.NewWriter(os.Stdout)
		for i := range n {
			fmt.Fprintf(w, "flood %d of %d\n", i, n)
		}
		w.Flush()
	case "remember", "recall":
		m.mu.Lock()
		defer m.mu.Unlock()
		if verb == "remember" {
			m.memory = arg
		}
		return m.memory, nil
	case "has":
		if disk(arg) == "" {
			return "no", nil
		}
		return "yes", nil
	case "wait":
		m.until(func() bool { return disk(arg) != "" })
		return "yes", nil
	case "gone":
		m.until(func() bool { return disk(arg) == "" })
		return "yes", nil
	case "read":
		return readLine(disk(arg)), nil
	case "write":
		serial, line, _ := strings.Cut(arg, " ")
		if err := writeLine(disk(serial), line); err != nil {
			return err.Error(), nil
		}
	default:
		return "unknown command", nil
	}
	return "ok", nil
}

// writeLine writes a line to the begin of a disk, and has it on the disk when it returns.
func writeLine(dev, line string) error {
	f, err := os.OpenFile(dev, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(line + "\n")
	return errors.Join(err, f.Sync(), f.Close())
}

func readLine(dev string) string {
	f, err := os.Open(dev)
	if err != nil {
		return err.Error()
	}
	defer f.Close()
	line, err := bufio.NewReader(io.LimitReader(f, 4096)).ReadString('\n')
	if err != nil {
		return err.Error()
	}
	return strings.TrimSuffix(line, "\n")
}
