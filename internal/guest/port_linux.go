package guest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/arcboxlabs/arcbox-go/internal/guest/uevent"
	"github.com/arcboxlabs/arcbox-go/internal/mux"
)

// portName is the name of the virtio-serial port to the host.
const portName = "arcbox.agent"

// ports finds the port to the host. It learns of ports by uevents: a port gets its name after it came.
type ports struct {
	found chan string // gets the device name, once
	once  sync.Once
}

func newPorts() *ports { return &ports{found: make(chan string, 1)} }

func (p *ports) handle(e uevent.Event) {
	const class = "/sys/class/virtio-ports"
	switch {
	case e.Action == uevent.Rescan:
		entries, _ := os.ReadDir(class) // not there before the module is loaded
		for _, d := range entries {
			p.look(filepath.Join(class, d.Name()))
		}
	case e.Subsystem == "virtio-ports" && e.Action != "remove" && !strings.Contains(e.Name, "/"):
		p.look(filepath.Join(class, e.Name))
	}
}

func (p *ports) look(dir string) {
	b, err := os.ReadFile(dir + "/name")
	if err != nil || strings.TrimSpace(string(b)) != portName {
		return
	}
	p.once.Do(func() { p.found <- filepath.Base(dir) })
}

// open waits for the port and opens it.
func (p *ports) open(ctx context.Context) (*portLink, error) {
	select {
	case name := <-p.found:
		f, err := os.OpenFile("/dev/"+name, os.O_RDWR|unix.O_NONBLOCK, 0)
		if err != nil {
			return nil, fmt.Errorf("open the port to the host: %w", err)
		}
		raw, err := f.SyscallConn()
		if err != nil {
			f.Close()
			return nil, fmt.Errorf("open the port to the host: %w", err)
		}
		return &portLink{f, raw}, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// portLink is the port to the host as the link of a multiplexer. While the host is away a read returns 0 bytes, which
// os.File makes io.EOF.
type portLink struct {
	*os.File
	raw syscall.RawConn
}

var _ mux.Link = (*portLink)(nil)

// WaitPeer waits until the host has opened its end.
func (l *portLink) WaitPeer(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { _ = l.SetReadDeadline(time.Unix(1, 0)) })
	defer func() {
		if !stop() {
			_ = l.SetReadDeadline(time.Time{})
		}
	}()
	var perr error
	// The kernel wakes those who wait for input when the host comes or goes.
	err := l.raw.Read(func(fd uintptr) bool {
		pfd := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		_, perr = unix.Poll(pfd, 0)
		return perr != nil && perr != unix.EINTR || perr == nil && pfd[0].Revents&unix.POLLHUP == 0
	})
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return errors.Join(err, perr)
}
