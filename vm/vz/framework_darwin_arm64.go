//go:build darwin && cgo

package vz

import (
	"fmt"
	"os"

	"github.com/Code-Hex/vz/v3"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
)

func (m *machine) save(path string) error { return flatten(m.vm.SaveMachineStateToPath(path)) }

func (m *machine) restore(path string) error { return flatten(m.vm.RestoreMachineStateFromURL(path)) }

// saves asks the framework whether a machine of the plan can be saved. It starts nothing.
func saves(p plan) error {
	p.identity = ""
	m := &machine{}
	defer m.closeFiles()
	var nic *os.File
	if p.nic {
		ours, theirs, err := nicPair()
		if err != nil {
			return err
		}
		defer ours.Close()
		m.files, nic = append(m.files, theirs), theirs
	}
	output, err := m.configure(p, nic)
	if err != nil {
		return flatten(err)
	}
	defer output.Close()
	if _, err := m.config.ValidateSaveRestoreSupport(); err != nil {
		return fmt.Errorf("save a machine of this configuration: %w: %w", errs.ErrUnsupported, flatten(err))
	}
	return nil
}

// rosettaInstalled tells whether there is Rosetta for Linux. It is not installed from here: that asks the user.
func rosettaInstalled() bool {
	return vz.LinuxRosettaDirectoryShareAvailability() == vz.LinuxRosettaAvailabilityInstalled
}

func rosettaShare() (vz.DirectorySharingDeviceConfiguration, error) {
	share, err := vz.NewLinuxRosettaDirectoryShare()
	if err != nil {
		return nil, err
	}
	device, err := vz.NewVirtioFileSystemDeviceConfiguration(rosettaTag)
	if err != nil {
		return nil, err
	}
	device.SetDirectoryShare(share)
	return device, nil
}
