// Command init is the PID 1 of the conformance suite's guest: it loads the early modules and the disk driver, and serves
// the suite's ports over the virtio-serial port, or over AF_VSOCK where there is none.
package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"

	"github.com/mdlayher/vsock"
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
	layers := layersOf(string(cmdline))
	events, err := uevents()
	if err != nil {
		return fmt.Errorf("uevents: %w", err)
	}
	m := newMachine()
	go m.watch(events)
	if err := loadModules(layers != ""); err != nil {
		return err
	}
	var l mux.Listener
	for _, p := range guest.Ports {
		l.Handle(p, func(c net.Conn) { guest.Serve(p, c, m) })
	}
	if layers != "" {
		return serveVsock(m, &l, layers)
	}
	port, err := m.port("arcbox.agent")
	if err != nil {
		return err
	}
	fmt.Println("testinit: serving")
	return l.Serve(context.Background(), port)
}

// layersOf returns the value of bootfs.LayersParameter, "" where disks are no files.
func layersOf(cmdline string) string {
	for _, word := range strings.Fields(cmdline) {
		if v, ok := strings.CutPrefix(word, bootfs.LayersParameter); ok {
			return v
		}
	}
	return ""
}

// serveVsock serves on a hypervisor that has a virtio socket and shows disks as files.
func serveVsock(m *machine, l *mux.Listener, layers string) error {
	if err := m.useConsole(); err != nil {
		return err
	}
	kind, source, _ := strings.Cut(layers, ":")
	if err := os.Mkdir(sharedDir, 0o755); err != nil {
		return err
	}
	if err := unix.Mount(source, sharedDir, kind, unix.MS_RDONLY, ""); err != nil {
		return fmt.Errorf("mount %s: %w", layers, err)
	}
	sock, err := vsock.ListenContextID(unix.VMADDR_CID_ANY, mux.VsockPort, nil)
	if err != nil {
		return err
	}
	fmt.Println("testinit: serving")
	for {
		c, err := sock.Accept()
		if err != nil {
			return err
		}
		go l.Serve(context.Background(), connLink{c})
	}
}

// connLink is a connection as a link. Its peer does not come back.
type connLink struct{ net.Conn }

func (connLink) WaitPeer(context.Context) error { return net.ErrClosed }

// loadModules loads what the suite needs: the early modules and the disk driver, and all where files are disks, of which
// not every one has a device.
func loadModules(all bool) error {
	text, err := os.ReadFile(bootfs.ModuleList)
	if err != nil {
		return err
	}
	mods, err := bootfs.Parse(text)
	if err != nil {
		return err
	}
	for _, mod := range mods {
		if mod.Stage == bootfs.Demand && !all {
			continue
		}
		if mod.Stage == bootfs.Late && !all && !strings.Contains(filepath.Base(mod.Path), "scsi") && filepath.Base(mod.Path) != "sd_mod.ko" {
			continue
		}
		f, err := os.Open(mod.Path)
		if err != nil {
			return err
		}
		err = unix.FinitModule(int(f.Fd()), "", 0)
		f.Close()
		if err != nil && err != unix.EEXIST && mod.Stage != bootfs.Demand {
			return fmt.Errorf("load %s: %w", mod.Path, err)
		}
	}
	return nil
}

// link is the virtio-serial port. The suite's host never goes away and comes back.
type link struct{ *os.File }

func (l link) WaitPeer(ctx context.Context) error { return os.ErrClosed }
