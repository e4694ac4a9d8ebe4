package box

import (
	"context"
	"fmt"
	"os"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/arcboxlabs/arcbox-go/agent/api"
	"github.com/arcboxlabs/arcbox-go/internal/errs"
	"github.com/arcboxlabs/arcbox-go/internal/guest/engine"
	"github.com/arcboxlabs/arcbox-go/internal/guest/proc"
	"github.com/arcboxlabs/arcbox-go/internal/guest/uevent"
)

// Box makes containers. It implements engine.Backend. Make one with New.
type Box struct {
	reaper *proc.Reaper
	layers *layers
	host   shared // what the host shares whole
	data   atomic.Pointer[data]
	fills  fills
	shares shares
	hide   hidden
	oom    oomWatch
	nets   *networks
	ready  chan struct{} // closed by Ready
	err    error         // of Ready

	rosetta rosetta
}

var _ engine.Backend = (*Box)(nil)

// New returns a box in which Create waits for Ready.
func New(reaper *proc.Reaper) *Box {
	b := &Box{reaper: reaper, layers: newLayers(), nets: newNetworks(), ready: make(chan struct{})}
	b.data.Store(newData())
	return b
}

// Ready says that the machine is as containers need it: the mount namespace is the caller's own, with /proc, /sys, /dev,
// cgroup2 at /sys/fs/cgroup, and /run; modules are loaded. It prepares the rest and lets Create go on. Where err is not
// nil, or the rest fails, every Create returns that. It is called once.
func (b *Box) Ready(err error) error {
	if err == nil {
		err = b.prepare()
	}
	b.err = err
	close(b.ready)
	return err
}

func (b *Box) prepare() error {
	for _, d := range []string{layersDir, memoryDir, memoryVolumes, diskDir} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return fmt.Errorf("prepare for containers: %w", err)
		}
	}
	for _, dir := range []string{cgroupParent, privilegedParent} {
		if err := os.Mkdir(dir, 0o755); err != nil && !os.IsExist(err) {
			return fmt.Errorf("prepare for containers: %w", err)
		}
		if err := Delegate(dir); err != nil {
			return err
		}
	}
	if err := guardDevices(cgroupParent); err != nil {
		return err
	}
	if err := b.nets.prepare(); err != nil {
		return err
	}
	b.hide = findHidden()
	return b.oom.open()
}

// OnOOM implements engine.Backend.
func (b *Box) OnOOM(report func(id string)) { b.oom.report = report }

// HandleDevice takes an event of the kernel about a device. The first one should be a Rescan.
func (b *Box) HandleDevice(e uevent.Event) { b.layers.disks.handle(e) }

// Close unmounts the data disk and the layers. Remove all containers before. What is wrong with the data disk is the
// error.
func (b *Box) Close() error {
	b.oom.close()
	err := b.data.Load().close()
	b.rosetta.close()
	b.host.close()
	b.layers.close()
	b.nets.close()
	return err
}

// undo is a list of what to do when making a container fails, in reverse order.
type undo []func()

func (u undo) run() {
	for i := len(u) - 1; i >= 0; i-- {
		u[i]()
	}
}

// Create makes a container and forks its process, which prepares itself while Create returns.
func (b *Box) Create(ctx context.Context, req api.CreateRequest) (engine.Sandbox, error) {
	sb, err := b.create(ctx, req, false)
	if err != nil {
		return nil, err
	}
	return sb, nil
}

// create is Create. In the machine the process has no namespaces of its own but that of mounts.
func (b *Box) create(ctx context.Context, req api.CreateRequest, inMachine bool) (_ *sandbox, err error) {
	var u undo
	defer func() {
		if err != nil {
			u.run()
		}
	}()
	select {
	case <-b.ready:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if b.err != nil {
		return nil, b.err
	}
	if err := b.rosetta.register(); err != nil {
		return nil, err
	}
	st := newStage(req, b.hide)
	st.inMachine = inMachine
	files := &descriptors{}
	defer files.close() // the child has its own by then
	sb := &sandbox{box: b, volumes: volumesOf(req.Mounts)}
	if err := sb.begin(req, st, files, &u); err != nil {
		return nil, err
	}
	lower, err := b.lowerDirs(ctx, req.Layers)
	if err != nil {
		return nil, err
	}
	if sb.scratch, err = b.data.Load().scratch(ctx, req.ID); err != nil {
		return nil, err
	}
	u = append(u, func() { sb.scratch.undo() })
	root, err := mountRoot(lower, sb.scratch)
	if err != nil {
		return nil, err
	}
	if sb.tree, err = newTree(root, lower, sb.scratch, req.ReadOnly); err != nil {
		return nil, err
	}
	u = append(u, sb.tree.close)
	st.root, st.at = sb.tree.view, sb.tree.at
	if err := addFiles(st, files, sb.scratch, req); err != nil {
		return nil, err
	}
	for _, m := range req.Mounts {
		mnt, err := b.openMount(ctx, m, st.root)
		if err != nil {
			return nil, fmt.Errorf("mount %s: %w", m.Target, err)
		}
		files.add(mnt.fd, nil)
		st.mounted = append(st.mounted, mnt)
	}
	if st.process, err = newProcess(withPrivilege(req.Process, req.Privileged), st.root); err != nil {
		return nil, err
	}
	if req.Init {
		if st.exe, err = files.add(openSelf()); err != nil {
			return nil, err
		}
	}
	if sb.ends, err = openStdio(req.Process, st.pts, st.user); err != nil {
		return nil, err
	}
	u = append(u, sb.ends.closeAgent)
	defer sb.ends.closeChild()
	if err := b.joinNetwork(st, files, sb.net, req.Network); err != nil {
		return nil, err
	}
	if err := sb.fork(st, files); err != nil {
		return nil, err
	}
	sb.tree.detach()
	sb.id = req.ID
	b.nets.register(req.ID, sb)
	return sb, nil
}

// descriptors are file descriptors to close together.
type descriptors []int

func (d *descriptors) add(fd int, err error) (int, error) {
	if err == nil {
		*d = append(*d, fd)
	}
	return fd, err
}

func (d *descriptors) close() {
	for _, fd := range *d {
		unix.Close(fd)
	}
	*d = nil
}

// begin makes what needs no disk: those may still be on their way. u undoes it.
func (s *sandbox) begin(req api.CreateRequest, st *stage, files *descriptors, u *undo) (err error) {
	if req.Network.Mode == api.NetworkOwn {
		s.net = newNetwork(s.box.nets, req.Network.Interfaces)
		*u = append(*u, s.net.close)
	}
	if s.cgroup, err = newCgroup(req.ID, req.Privileged); err != nil {
		return err
	}
	*u = append(*u, func() { s.cgroup.remove() })
	if err := s.cgroup.limit(req.Resources, true); err != nil {
		return err
	}
	s.oom = s.box.oom.add(req.ID, s.cgroup)
	*u = append(*u, s.oom.close)
	if st.dev, err = files.add(mountDev(req.Privileged)); err != nil {
		return err
	}
	st.pts, err = files.add(mountPts())
	return err
}

// addFiles makes the files of a container that its image does not have as they must be.
func addFiles(st *stage, files *descriptors, s scratch, req api.CreateRequest) error {
	for _, f := range []struct{ path, text string }{
		{"/etc/hostname", st.hostname + "\n"},
		{"/etc/hosts", "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n" + ownHosts(req.Network, st.hostname) + hostLines(req.ExtraHosts)},
		{"/etc/resolv.conf", resolvConf(req.Network.Nameservers)},
	} {
		fd, err := files.add(newFile(s, f.path, f.text))
		if err != nil {
			return err
		}
		st.files = append(st.files, file{fd, f.path})
	}
	return nil
}

// newFile makes a file in a container's scratch space and returns a mount of it.
func newFile(s scratch, path, text string) (int, error) {
	name := s.dir + "/" + path[len("/etc/"):]
	if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
		return -1, fmt.Errorf("make %s: %w", path, err)
	}
	fd, err := unix.OpenTree(unix.AT_FDCWD, name, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("make %s: %w", path, err)
	}
	return fd, nil
}

func hostname(req api.CreateRequest) string {
	if req.Hostname != "" {
		return req.Hostname
	}
	return req.ID[:min(12, len(req.ID))]
}

// commandError turns the failure to execute a command into the exit code and the error that go with it.
func commandError(f *proc.Failure) (int, error) {
	switch f.Errno {
	case unix.ENOENT, unix.ENOTDIR, unix.ENAMETOOLONG, unix.ELOOP:
		return 127, fmt.Errorf("%w: %w", errs.ErrNoCommand, f)
	}
	return 126, fmt.Errorf("%w: %w", errs.ErrNoExecutable, f)
}
