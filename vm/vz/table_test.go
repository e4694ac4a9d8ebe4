package vz

import (
	"flag"
	"os"
	"reflect"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/arcboxlabs/arcbox-go/vm"
	"github.com/arcboxlabs/arcbox-go/vm/qemu"
)

var update = flag.Bool("update", false, "write the table of capabilities anew")

// rationale is the file with the table of what each driver can do, between two marks.
const (
	rationale = "../../RATIONALE.md"
	tableFrom = "<!-- capabilities -->\n"
	tableTo   = "<!-- end of capabilities -->\n"
)

// TestTableOfCapabilities compares the documented table with what the drivers say of themselves.
func TestTableOfCapabilities(t *testing.T) {
	silicon, intel := appleSilicon(), appleSilicon()
	silicon.os = saveVersion
	intel.arch, intel.rosetta = "amd64", false
	columns := []vm.Capabilities{qemu.New(qemu.Config{}).Capabilities(), silicon.capabilities(), intel.capabilities()}
	text := map[string]string{
		"Console":        "the guest's last lines in errors",
		"Pause":          "pause and resume",
		"AttachReadOnly": "layers added to a running machine",
		"AttachWritable": "disks that can be written, added to a running machine",
		"Bays":           "disks put into devices that the guest knows from the start",
		"Detach":         "disks taken out of a running machine",
		"Snapshot":       "templates: machines that go on from a saved one",
		"Fork":           "forks of a running machine",
		"SharedState":    "such machines share the memory that they do not write",
		"ReturnMemory":   "memory that the guest has done with goes back to the host",
		"ForeignArch":    "guests of another architecture",
		"NIC":            "networks of containers",
		"Shares":         "directories of the host as virtio-fs",
		"Rosetta":        "programs for amd64 in an arm64 guest, by Rosetta",
	}
	var want strings.Builder
	want.WriteString("\n| | QEMU | vz on Apple silicon, macOS 14 | vz on Intel or macOS 13 |\n|---|---|---|---|\n")
	fields := reflect.TypeFor[vm.Capabilities]()
	require.Len(t, text, fields.NumField())
	for i := range fields.NumField() {
		name := fields.Field(i).Name
		require.Contains(t, text, name)
		want.WriteString("| " + text[name] + " |")
		for _, c := range columns {
			want.WriteString(map[bool]string{true: " yes |", false: " no |"}[reflect.ValueOf(c).Field(i).Bool()])
		}
		want.WriteString("\n")
	}
	want.WriteString("\n")
	b, err := os.ReadFile(rationale)
	require.NoError(t, err)
	before, rest, ok := strings.Cut(string(b), tableFrom)
	require.True(t, ok)
	got, after, ok := strings.Cut(rest, tableTo)
	require.True(t, ok)
	if *update {
		require.NoError(t, os.WriteFile(rationale, []byte(before+tableFrom+want.String()+tableTo+after), 0o644))
		return
	}
	require.Equal(t, want.String(), got)
}
