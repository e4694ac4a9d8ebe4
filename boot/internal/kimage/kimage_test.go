package kimage_test

import (
	"bytes"
	"encoding/binary"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/arcboxlabs/arcbox-go/boot/internal/codec"
	"github.com/arcboxlabs/arcbox-go/boot/internal/fixture"
	"github.com/arcboxlabs/arcbox-go/boot/internal/kimage"
	"github.com/arcboxlabs/arcbox-go/internal/errs"
)

var formats = []codec.Format{codec.Gzip, codec.XZ, codec.Zstd, codec.LZ4, codec.LZMA}

func TestKernelsOfAllFormsUnpack(t *testing.T) {
	vmlinux := fixture.Vmlinux(fixture.AMD64, true, 200_000)
	image := fixture.Image(200_000)
	type form struct {
		name string
		arch string
		file []byte
		want []byte
	}
	forms := []form{{"vmlinux", "amd64", vmlinux, vmlinux}, {"Image", "arm64", image, image}}
	for _, f := range formats {
		forms = append(forms,
			form{"bzImage " + string(f), "amd64", fixture.BzImage(f, vmlinux), vmlinux},
			form{"zboot " + string(f), "arm64", fixture.Zboot(f, image), image},
			form{"Image " + string(f), "arm64", fixture.Pack(f, image), image},
			form{"vmlinux " + string(f), "amd64", fixture.Pack(f, vmlinux), vmlinux})
	}
	for _, f := range forms {
		t.Run(f.name, func(t *testing.T) {
			var out bytes.Buffer
			require.NoError(t, kimage.Unpack(&out, f.file, f.arch))
			require.True(t, bytes.Equal(f.want, out.Bytes()), "%d bytes instead of %d", out.Len(), len(f.want))
			require.NoError(t, kimage.Check(bytes.NewReader(out.Bytes()), f.arch))
		})
	}
}

func TestBadKernelsAreRefused(t *testing.T) {
	vmlinux := fixture.Vmlinux(fixture.AMD64, true, 10_000)
	change := func(at int, v uint32) []byte {
		b := fixture.BzImage(codec.Zstd, vmlinux)
		binary.LittleEndian.PutUint32(b[at:], v)
		return b
	}
	old := fixture.BzImage(codec.Gzip, vmlinux)
	binary.LittleEndian.PutUint16(old[0x206:], 0x0207)
	zboot := fixture.Zboot(codec.Gzip, fixture.Image(1000))
	binary.LittleEndian.PutUint32(zboot[12:], 1<<31)
	shorter := fixture.BzImage(codec.LZ4, vmlinux)
	size := 2*512 + 0x40 + int(binary.LittleEndian.Uint32(shorter[0x24c:])) - 4
	binary.LittleEndian.PutUint32(shorter[size:], uint32(len(vmlinux)+1))
	for name, c := range map[string]struct {
		arch string
		file []byte
		want error
	}{
		"empty":                   {"amd64", nil, errs.ErrInvalid},
		"text":                    {"amd64", []byte("#!/bin/sh\nexit 0\n"), errs.ErrInvalid},
		"other architecture":      {"amd64", fixture.Image(100), errs.ErrInvalid},
		"bzImage for arm64":       {"arm64", fixture.BzImage(codec.Gzip, vmlinux), errs.ErrInvalid},
		"payload beyond the end":  {"amd64", change(0x248, 1<<30), errs.ErrCorrupt},
		"payload that overflows":  {"amd64", change(0x24c, 0xffffffff), errs.ErrCorrupt},
		"no payload":              {"amd64", change(0x24c, 0), errs.ErrCorrupt},
		"cut":                     {"amd64", fixture.BzImage(codec.Gzip, vmlinux)[:1200], errs.ErrCorrupt},
		"wrong size":              {"amd64", shorter, errs.ErrCorrupt},
		"protocol too old":        {"amd64", old, errs.ErrUnsupported},
		"unknown compression":     {"amd64", change(2*512+0x40, 0x12345678), errs.ErrUnsupported},
		"zboot beyond the end":    {"arm64", zboot, errs.ErrCorrupt},
		"zboot of unknown method": {"arm64", fixture.Zboot(codec.None, []byte("12345678")), errs.ErrUnsupported},
	} {
		t.Run(name, func(t *testing.T) {
			var out bytes.Buffer
			require.ErrorIs(t, kimage.Unpack(&out, c.file, c.arch), c.want)
		})
	}
}

func TestCheckTellsWhatIsMissing(t *testing.T) {
	check := func(b []byte, arch string) error { return kimage.Check(bytes.NewReader(b), arch) }
	require.ErrorContains(t, check(fixture.Vmlinux(fixture.AMD64, false, 0), "amd64"), "CONFIG_PVH")
	require.ErrorContains(t, check(fixture.Vmlinux(fixture.ARM64, true, 0), "amd64"), "not for x86-64")
	require.ErrorIs(t, check([]byte("short"), "arm64"), errs.ErrInvalid)
	require.ErrorIs(t, check([]byte("\x7fELF"), "amd64"), errs.ErrInvalid)
	require.ErrorIs(t, check(nil, "riscv64"), errs.ErrUnsupported)
}

func FuzzUnpack(f *testing.F) {
	vmlinux := fixture.Vmlinux(fixture.AMD64, true, 500)
	for _, p := range formats {
		f.Add(fixture.BzImage(p, vmlinux), true)
		f.Add(fixture.Zboot(p, fixture.Image(500)), false)
	}
	f.Fuzz(func(_ *testing.T, data []byte, amd64 bool) {
		arch := map[bool]string{true: "amd64", false: "arm64"}[amd64]
		var out bytes.Buffer
		_ = kimage.Unpack(&out, data, arch)
		_ = kimage.Check(bytes.NewReader(out.Bytes()), arch)
		_ = kimage.Check(bytes.NewReader(data), arch)
	})
}
