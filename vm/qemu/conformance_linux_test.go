package qemu

import (
	"testing"

	"github.com/arcboxlabs/arcbox-go/vm"
	"github.com/arcboxlabs/arcbox-go/vm/vmtest"
)

func TestConformance(t *testing.T) {
	vmtest.Conformance(t, func(t *testing.T) (vm.Driver, vm.Spec) {
		return New(Config{Logger: testLogger(t)}), testSpec(t)
	})
}
