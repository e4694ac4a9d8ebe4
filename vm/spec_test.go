package vm

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
)

func TestCompleteFillsIn(t *testing.T) {
	got, err := Spec{Kernel: "k"}.Complete("arm64")
	require.NoError(t, err)
	require.Equal(t, Spec{Name: "arcbox", Arch: "arm64", Kernel: "k", CPUs: 1, Memory: 512 << 20}, got)
	again, err := got.Complete("amd64")
	require.NoError(t, err)
	require.Equal(t, got, again)
	got, err = Spec{Kernel: "k", Memory: 100<<20 + 1}.Complete("amd64")
	require.NoError(t, err)
	require.EqualValues(t, 101<<20, got.Memory)
}

func TestCompleteRefuses(t *testing.T) {
	ok := Spec{Kernel: "k"}
	for name, change := range map[string]func(*Spec){
		"no kernel":        func(s *Spec) { s.Kernel = "" },
		"name":             func(s *Spec) { s.Name = "a,process=b" },
		"long name":        func(s *Spec) { s.Name = strings.Repeat("n", MaxName+1) },
		"little memory":    func(s *Spec) { s.Memory = MinMemory - 1<<20 },
		"negative memory":  func(s *Spec) { s.Memory = -1 << 63 },
		"too much memory":  func(s *Spec) { s.Memory = 1<<63 - 1 },
		"many CPUs":        func(s *Spec) { s.CPUs = MaxCPUs + 1 },
		"zero byte":        func(s *Spec) { s.Cmdline = "a\x00b" },
		"disk without ID":  func(s *Spec) { s.Disks = []Disk{{Path: "p"}} },
		"disk's long ID":   func(s *Spec) { s.Disks = []Disk{{ID: strings.Repeat("d", MaxDiskID+1), Path: "p"}} },
		"disk's odd ID":    func(s *Spec) { s.Disks = []Disk{{ID: "ä", Path: "p"}} },
		"disk's odd path":  func(s *Spec) { s.Disks = []Disk{{ID: "d", Path: "a\x00b"}} },
		"disk twice":       func(s *Spec) { s.Disks = []Disk{{ID: "d", Path: "p"}, {ID: "d", Path: "q"}} },
		"share's tag":      func(s *Spec) { s.Shares = []Share{{Tag: "a b", Path: "p"}} },
		"share's long tag": func(s *Spec) { s.Shares = []Share{{Tag: strings.Repeat("s", MaxShareTag+1), Path: "p"}} },
		"share's path":     func(s *Spec) { s.Shares = []Share{{Tag: "a"}} },
		"share twice":      func(s *Spec) { s.Shares = []Share{{Tag: "a", Path: "p"}, {Tag: "a", Path: "q"}} },
		"disk as a bay":    func(s *Spec) { s.Disks = []Disk{{ID: BaySerial(1), Path: "p"}} },
		"many bays":        func(s *Spec) { s.Bays = make([]Bay, MaxBays+1) },
		"empty bay":        func(s *Spec) { s.Bays = []Bay{{}} },
		"large bay":        func(s *Spec) { s.Bays = []Bay{{Size: MaxBaySize + 512}} },
		"odd bay":          func(s *Spec) { s.Bays = []Bay{{Size: 513}} },
		"read-only bay":    func(s *Spec) { s.Bays, s.Disks = []Bay{{512, true}}, []Disk{{ID: "d", Path: "p", Slot: 1}} },
		"read-only disk": func(s *Spec) {
			s.Bays, s.Disks = []Bay{{512, false}}, []Disk{{ID: "d", Path: "p", Slot: 1, ReadOnly: true}}
		},
		"disk without any": func(s *Spec) { s.Disks = []Disk{{}} },
	} {
		t.Run(name, func(t *testing.T) {
			s := ok
			change(&s)
			_, err := s.Complete("amd64")
			require.ErrorIs(t, err, errs.ErrInvalid)
		})
	}
}
