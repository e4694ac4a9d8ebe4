// Command init is the PID 1 of the conformance suite's guest: it loads the early modules and the disk driver, and serves
// the suite's ports over the virtio-serial port.
package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/arcboxlabs/arcbox-go/internal/bootfs"
	"github.com/arcboxlabs/arcbox-go/internal/mux"
	"github.com/arcboxlabs/arcbox-go/vm/vmtest/guest"
)

func main() {
	err := run()
	fmt.Println("testinit:", err)
	unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
}

func run() error {
	for dir, kind := range map[string]string{"/proc": "proc", "/sys": "sysfs", "/dev": "devtmpfs"} {
		os.Mkdir(dir, 0o755)
		if err := unix.Mount(kind, dir, kind, 0, ""); err != nil && err != unix.EBUSY {
			return fmt.Errorf("mount %s: %w", dir, err)
		}
	}
	fmt.Println("testinit: up")
	cmdline, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return err
	}
	for _, word := range strings.Fields(string(cmdline)) {
		switch word {
		case "testinit=exit":
			os.Exit(3)
		case "testinit=hang":
			_, err := unix.Ppoll(nil, nil, nil)
			return err
		}
	}
	events, err := uevents()
	if err != nil {
		return fmt.Errorf("uevents: %w", err)
	}
	m := newMachine()
	go m.watch(events)
	if err := loadModules(); err != nil {
		return err
	}
	port, err := m.port("arcbox.agent")
	if err != nil {
		return err
	}
	fmt.Println("testinit: serving")
	var l mux.Listener
	for _, p := range guest.Ports {
		l.Handle(p, func(c net.Conn) { guest.Serve(p, c, m) })
	}
	return l.Serve(context.Background(), port)
}

func loadModules() error {
	text, err := os.ReadFile(bootfs.ModuleList)
	if err != nil {
		return err
	}
	mods, err := bootfs.Parse(text)
	if err != nil {
		return err
	}
	for _, mod := range mods {
		if mod.Stage == bootfs.Demand {
			continue
		}
		if mod.Stage == bootfs.Late && !strings.Contains(filepath.Base(mod.Path), "scsi") && filepath.Base(mod.Path) != "sd_mod.ko" {
			continue
		}
		f, err := os.Open(mod.Path)
		if err != nil {
			return err
		}
		err = unix.FinitModule(int(f.Fd()), "", 0)
		f.Close()
		if err != nil && err != unix.EEXIST {
			return fmt.Errorf("load %s: %w", mod.Path, err)
		}
	}
	return nil
}

// link is the virtio-serial port. The suite's host never goes away and comes back.
type link struct{ *os.File }

func (l link) WaitPeer(ctx context.Context) error { return os.ErrClosed }
