//go:build darwin && cgo

package vz

import (
	"fmt"

	"github.com/Code-Hex/vz/v3"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
)

func (m *machine) save(string) error    { return noSave() }
func (m *machine) restore(string) error { return noSave() }

func saves(plan) error { return noSave() }

func noSave() error { return fmt.Errorf("save a machine: %w on Intel", errs.ErrUnsupported) }

func rosettaInstalled() bool { return false }

func rosettaShare() (vz.DirectorySharingDeviceConfiguration, error) {
	return nil, fmt.Errorf("rosetta: %w on Intel", errs.ErrUnsupported)
}
