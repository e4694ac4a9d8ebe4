//go:build darwin && cgo

package vz

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"

	"github.com/Code-Hex/vz/v3"
	"golang.org/x/sys/unix"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
	"github.com/arcboxlabs/arcbox-go/vm"
)

// thisSystem is the Mac that the program runs on.
func thisSystem() system { return system{look: look, open: open, saves: saves} }

// look finds out what the Mac is. The binding reads the version of macOS once and panics where it cannot, so it is read
// here first.
func look() (host, error) {
	text, err := unix.Sysctl("kern.osproductversion")
	if err != nil {
		return host{}, fmt.Errorf("read the version of macOS: %w: %w", errs.ErrUnavailable, err)
	}
	v, err := parseVersion(text)
	if err != nil {
		return host{}, err
	}
	h := host{os: v, arch: runtime.GOARCH}
	if h.check() != nil {
		return h, nil
	}
	h.rosetta = rosettaInstalled()
	h.minCPUs = int(vz.VirtualMachineConfigurationMinimumAllowedCPUCount())
	h.maxCPUs = int(vz.VirtualMachineConfigurationMaximumAllowedCPUCount())
	h.minMemory = int64(vz.VirtualMachineConfigurationMinimumAllowedMemorySize())
	h.maxMemory = int64(vz.VirtualMachineConfigurationMaximumAllowedMemorySize())
	return h, nil
}

// machine is a framework by the binding. It keeps what the framework refers to and does not keep itself.
type machine struct {
	vm     *vz.VirtualMachine
	config *vz.VirtualMachineConfiguration
	socket *vz.VirtioSocketDevice
	out    chan state
	over   chan struct{} // closed by release

	// The binding hands bare descriptors to the framework, and the finalizer of an os.File closes its own: issue 201 of
	// Code-Hex/vz. They are held here until the machine has ended.
	files []*os.File
}

var _ framework = (*machine)(nil)

// open makes a machine that is not started yet, and returns the output of its console too.
func open(p plan, nic *os.File) (framework, io.ReadCloser, error) {
	m := &machine{out: make(chan state), over: make(chan struct{})}
	if nic != nil {
		m.files = append(m.files, nic)
	}
	output, err := m.configure(p, nic)
	if err != nil {
		m.closeFiles()
		return nil, nil, flatten(err)
	}
	m.vm, err = vz.NewVirtualMachine(m.config)
	if err == nil {
		// Devices are taken once: the binding makes objects with finalizers anew at each call. The balloon's is never
		// taken, since its finalizer releases what it does not own.
		devices := m.vm.SocketDevices()
		if len(devices) != 1 {
			err = fmt.Errorf("%w: the machine has %d socket devices", errs.ErrUnavailable, len(devices))
		} else {
			m.socket = devices[0]
		}
	}
	if err != nil {
		m.closeFiles()
		output.Close()
		return nil, nil, flatten(err)
	}
	go m.watch(m.vm.StateChangedNotify())
	return m, output, nil
}

// watch passes states on until release. It stays on, and with it the objects, until the machine has really ended: the
// framework would tell the next state to a handle of the binding that is gone, which panics. The binding's channel has no
// bound and is never closed, so one goroutine of the binding stays behind for each machine.
func (m *machine) watch(changes <-chan vz.VirtualMachineState) {
	last := stateStopped
	for over := m.over; over != nil || last == stateOther; {
		select {
		case s := <-changes:
			last = stateOf(s)
			select {
			case m.out <- last:
			case <-m.over:
			}
		case <-over:
			over = nil
		}
	}
	runtime.KeepAlive(m)
}

func stateOf(s vz.VirtualMachineState) state {
	switch s {
	case vz.VirtualMachineStateStopped:
		return stateStopped
	case vz.VirtualMachineStateError:
		return stateError
	}
	return stateOther
}

// configure makes the configuration and the console's pipe, and has the framework judge it.
func (m *machine) configure(p plan, nic *os.File) (output *os.File, err error) {
	options := []vz.LinuxBootLoaderOption{vz.WithCommandLine(p.cmdline)}
	if p.initramfs != "" {
		options = append(options, vz.WithInitrd(p.initramfs))
	}
	loader, err := vz.NewLinuxBootLoader(p.kernel, options...)
	if err != nil {
		return nil, err
	}
	if m.config, err = vz.NewVirtualMachineConfiguration(loader, uint(p.cpus), uint64(p.memory)); err != nil {
		return nil, err
	}
	output, err = m.addConsole()
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			output.Close()
		}
	}()
	if nic != nil {
		if err := m.addNIC(nic); err != nil {
			return nil, err
		}
	}
	for _, add := range []func(plan) error{m.addPlatform, m.addDevices, m.addDisks, m.addShares} {
		if err := add(p); err != nil {
			return nil, err
		}
	}
	ok, err := m.config.Validate()
	if err == nil && !ok {
		err = fmt.Errorf("%w: the Virtualization framework refuses the machine's configuration", errs.ErrInvalid)
	}
	return output, err
}

// addConsole makes the console a virtio console whose output can be read from the returned pipe. Its input is a pipe that
// nobody writes to.
func (m *machine) addConsole() (output *os.File, err error) {
	inRead, inWrite, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("make the console: %w", err)
	}
	m.files = append(m.files, inRead, inWrite)
	outRead, outWrite, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("make the console: %w", err)
	}
	m.files = append(m.files, outWrite)
	attachment, err := vz.NewFileHandleSerialPortAttachment(inRead, outWrite)
	if err == nil {
		var port *vz.VirtioConsoleDeviceSerialPortConfiguration
		if port, err = vz.NewVirtioConsoleDeviceSerialPortConfiguration(attachment); err == nil {
			m.config.SetSerialPortsVirtualMachineConfiguration([]*vz.VirtioConsoleDeviceSerialPortConfiguration{port})
		}
	}
	if err != nil {
		outRead.Close()
		return nil, err
	}
	return outRead, nil
}

// addPlatform gives the machine its identity: that of the file where it goes on, a fresh one that is kept in the file
// where it will be saved, and one that the framework makes up elsewhere. A state is refused by a machine of another
// identity.
func (m *machine) addPlatform(p plan) error {
	var options []vz.GenericPlatformConfigurationOption
	if p.identity != "" {
		id, err := identity(p)
		if err != nil {
			return err
		}
		options = append(options, vz.WithGenericMachineIdentifier(id))
	}
	platform, err := vz.NewGenericPlatformConfiguration(options...)
	if err != nil {
		return err
	}
	m.config.SetPlatformVirtualMachineConfiguration(platform)
	return nil
}

func identity(p plan) (*vz.GenericMachineIdentifier, error) {
	if p.state == "" {
		id, err := vz.NewGenericMachineIdentifier()
		if err != nil {
			return nil, err
		}
		if err := os.WriteFile(p.identity, id.DataRepresentation(), 0o600); err != nil {
			return nil, fmt.Errorf("keep the machine's identity: %w", err)
		}
		return id, nil
	}
	data, err := os.ReadFile(p.identity)
	if err != nil {
		return nil, fmt.Errorf("read the machine's identity: %w", err)
	}
	if len(data) == 0 { // the binding takes the address of its first byte
		return nil, fmt.Errorf("read the machine's identity: %s: %w: it is empty", p.identity, errs.ErrCorrupt)
	}
	id, err := vz.NewGenericMachineIdentifierWithData(data)
	if err == nil && len(id.DataRepresentation()) == 0 {
		err = fmt.Errorf("read the machine's identity: %s: %w", p.identity, errs.ErrCorrupt)
	}
	return id, err
}

// addDevices adds what every machine has.
func (m *machine) addDevices(plan) error {
	entropy, err := vz.NewVirtioEntropyDeviceConfiguration()
	if err != nil {
		return err
	}
	m.config.SetEntropyDevicesVirtualMachineConfiguration([]*vz.VirtioEntropyDeviceConfiguration{entropy})
	balloon, err := vz.NewVirtioTraditionalMemoryBalloonDeviceConfiguration()
	if err != nil {
		return err
	}
	m.config.SetMemoryBalloonDevicesVirtualMachineConfiguration([]vz.MemoryBalloonDeviceConfiguration{balloon})
	socket, err := vz.NewVirtioSocketDeviceConfiguration()
	if err != nil {
		return err
	}
	m.config.SetSocketDevicesVirtualMachineConfiguration([]vz.SocketDeviceConfiguration{socket})
	return nil
}

// nicMTU is the largest packet in bytes that the framework allows. Packets of containers are smaller by more than the tag
// of their network takes.
const nicMTU = 65535

// nicMAC is the address of every machine's interface, as each is alone on its link. A saved machine has to have it again.
func nicMAC() net.HardwareAddr { return net.HardwareAddr{0x52, 0x54, 0x00, 0xab, 0x0c, 0x01} }

// addNIC adds a network interface whose frames are messages on a socket.
func (m *machine) addNIC(nic *os.File) error {
	attachment, err := vz.NewFileHandleNetworkDeviceAttachment(nic)
	if err != nil {
		return fmt.Errorf("network interface: %w", err)
	}
	if err := attachment.SetMaximumTransmissionUnit(nicMTU); err != nil {
		return fmt.Errorf("network interface: %w", err)
	}
	device, err := vz.NewVirtioNetworkDeviceConfiguration(attachment)
	if err != nil {
		return fmt.Errorf("network interface: %w", err)
	}
	mac, err := vz.NewMACAddress(nicMAC())
	if err != nil {
		return fmt.Errorf("network interface: %w", err)
	}
	device.SetMACAddress(mac)
	m.config.SetNetworkDevicesVirtualMachineConfiguration([]*vz.VirtioNetworkDeviceConfiguration{device})
	return nil
}

// addDisks adds the disks of the start, each with its ID as serial number. A guest that flushes has synced the host's
// file; the host's page cache is used, as its images are shared by many machines.
func (m *machine) addDisks(p plan) error {
	var all []vz.StorageDeviceConfiguration
	for _, d := range p.disks {
		block, err := blockDevice(d)
		if err != nil {
			return fmt.Errorf("disk %s: %w", d.ID, err)
		}
		all = append(all, block)
	}
	m.config.SetStorageDevicesVirtualMachineConfiguration(all)
	return nil
}

func blockDevice(d vm.Disk) (*vz.VirtioBlockDeviceConfiguration, error) {
	attachment, err := vz.NewDiskImageStorageDeviceAttachmentWithCacheAndSync(
		d.Path, d.ReadOnly, vz.DiskImageCachingModeCached, vz.DiskImageSynchronizationModeFsync)
	if err != nil {
		return nil, err
	}
	block, err := vz.NewVirtioBlockDeviceConfiguration(attachment)
	if err != nil {
		return nil, err
	}
	return block, block.SetBlockDeviceIdentifier(d.ID)
}

// addShares adds the directory of layers, those of the plan, and Rosetta. The binding cannot change any of them later.
func (m *machine) addShares(p plan) error {
	var all []vz.DirectorySharingDeviceConfiguration
	for _, s := range append([]vm.Share{{Tag: layersTag, Path: p.layers, ReadOnly: true}}, p.shares...) {
		if s.Path == "" { // a plan that is only looked at has no directory of layers
			s.Path = os.TempDir()
		}
		directory, err := vz.NewSharedDirectory(s.Path, s.ReadOnly)
		if err != nil {
			return fmt.Errorf("share %s: %w", s.Tag, err)
		}
		single, err := vz.NewSingleDirectoryShare(directory)
		if err != nil {
			return fmt.Errorf("share %s: %w", s.Tag, err)
		}
		device, err := vz.NewVirtioFileSystemDeviceConfiguration(s.Tag)
		if err != nil {
			return fmt.Errorf("share %s: %w", s.Tag, err)
		}
		device.SetDirectoryShare(single)
		all = append(all, device)
	}
	if p.rosetta {
		device, err := rosettaShare()
		if err != nil {
			return fmt.Errorf("share Rosetta: %w", err)
		}
		all = append(all, device)
	}
	m.config.SetDirectorySharingDevicesVirtualMachineConfiguration(all)
	return nil
}

func (m *machine) start() error  { return flatten(m.vm.Start()) }
func (m *machine) stop() error   { return flatten(m.vm.Stop()) }
func (m *machine) pause() error  { return flatten(m.vm.Pause()) }
func (m *machine) resume() error { return flatten(m.vm.Resume()) }

func (m *machine) requestStop() error {
	_, err := m.vm.RequestStop()
	return flatten(err)
}

// connect returns a connection without half-close: the binding's has none. The multiplexer needs none.
func (m *machine) connect(port uint32) (net.Conn, error) {
	c, err := m.socket.Connect(port)
	if err != nil {
		return nil, flatten(err) // not c: a nil pointer in an interface is not nil
	}
	return c, nil
}

func (m *machine) states() <-chan state { return m.out }

// release closes the files of the machine. The objects go with their finalizers, when nothing refers to them.
func (m *machine) release() {
	close(m.over)
	m.closeFiles()
}

func (m *machine) closeFiles() {
	for _, f := range m.files {
		f.Close()
	}
	m.files = nil
}

// flatten turns the binding's errors into those that explain knows. It returns nil for a nil pointer in err too.
func flatten(err error) error {
	var e *vz.NSError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &e):
		if e == nil {
			return nil
		}
		text := e.LocalizedDescription
		if e.UserInfo != "" {
			text += ": " + e.UserInfo
		}
		return &failure{domain: e.Domain, code: e.Code, text: text}
	case errors.Is(err, vz.ErrUnsupportedOSVersion), errors.Is(err, vz.ErrBuildTargetOSVersion):
		return fmt.Errorf("%w: %w", errs.ErrUnsupported, err)
	}
	return err
}
