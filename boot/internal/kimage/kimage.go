// Package kimage unpacks Linux kernels: from the self-extracting forms that distributions ship to the plain ones that a
// hypervisor starts without running a decompressor in the guest.
package kimage

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"

	"github.com/arcboxlabs/arcbox-go/boot/internal/codec"
	"github.com/arcboxlabs/arcbox-go/internal/errs"
)

// MaxSize is the largest unpacked kernel in bytes that Unpack writes.
const MaxSize = 512 << 20

// Unpack writes the plain form of the kernel in src to w: for amd64 an ELF vmlinux, for arm64 an Image. It takes bzImage
// and vmlinux for amd64, Image and EFI zboot for arm64, and any of them compressed as a whole. It returns ErrInvalid for
// bytes that are no kernel of arch, ErrUnsupported for a compression it does not read, and ErrCorrupt for a broken
// payload. It does not prove that the result is a kernel; Check does.
func Unpack(w io.Writer, src []byte, arch string) error {
	switch {
	case arch == "amd64" && isBzImage(src):
		return unpackBzImage(w, src)
	case arch == "arm64" && isZboot(src):
		return unpackZboot(w, src)
	case arch == "amd64" && bytes.HasPrefix(src, []byte("\x7fELF")), arch == "arm64" && isImage(src):
		_, err := w.Write(src)
		return err
	}
	f := codec.Detect(src)
	if f == codec.None {
		return fmt.Errorf("unpack kernel: %w: the file is no %s kernel (%s)", errs.ErrInvalid, arch, forms(arch))
	}
	if _, err := decompress(w, src, f); err != nil {
		return fmt.Errorf("unpack kernel: %w", err)
	}
	return nil
}

func forms(arch string) string {
	if arch == "arm64" {
		return "Image, compressed Image or EFI zboot"
	}
	return "bzImage or vmlinux"
}

// The fields of the x86 setup header, by Documentation/x86/boot.rst of the kernel.
const (
	offSetupSects    = 0x1f1
	offHeaderMagic   = 0x202
	offVersion       = 0x206
	offPayloadOffset = 0x248
	offPayloadLength = 0x24c
	setupHeaderEnd   = 0x250
	payloadVersion   = 0x0208 // first protocol with the payload fields
)

func isBzImage(b []byte) bool {
	return len(b) >= setupHeaderEnd && string(b[offHeaderMagic:offHeaderMagic+4]) == "HdrS"
}

func unpackBzImage(w io.Writer, b []byte) error {
	if v := binary.LittleEndian.Uint16(b[offVersion:]); v < payloadVersion {
		return fmt.Errorf("unpack bzImage: boot protocol %#x: %w: kernels before 2.6.26 do not tell where the payload is", v, errs.ErrUnsupported)
	}
	sects := uint64(b[offSetupSects])
	if sects == 0 {
		sects = 4
	}
	start := (sects+1)*512 + uint64(binary.LittleEndian.Uint32(b[offPayloadOffset:]))
	length := uint64(binary.LittleEndian.Uint32(b[offPayloadLength:]))
	if start+length > uint64(len(b)) || length < 8 {
		return fmt.Errorf("unpack bzImage: %w: the payload of %d bytes at %d does not lie in the file of %d", errs.ErrCorrupt, length, start, len(b))
	}
	payload := b[start : start+length]
	// The last four bytes are the size of what is packed: the build appends them, except for gzip, which ends so itself.
	want := binary.LittleEndian.Uint32(payload[length-4:])
	f := codec.Detect(payload)
	if f == codec.None {
		return fmt.Errorf("unpack bzImage: %w: payload of unknown compression %x", errs.ErrUnsupported, payload[:4])
	}
	if f != codec.Gzip {
		payload = payload[:length-4]
	}
	n, err := decompress(w, payload, f)
	if err != nil {
		return fmt.Errorf("unpack bzImage: %w", err)
	}
	if uint64(n) != uint64(want) {
		return fmt.Errorf("unpack bzImage: %w: %d bytes came out of the payload, not the %d it announces", errs.ErrCorrupt, n, want)
	}
	return nil
}

// The header of an EFI zboot image, by drivers/firmware/efi/libstub/zboot-header.S of the kernel.
const (
	offZbootOffset = 8
	offZbootSize   = 12
	zbootHeaderEnd = 64
)

func isZboot(b []byte) bool {
	return len(b) >= zbootHeaderEnd && string(b[:2]) == "MZ" && string(b[4:8]) == "zimg"
}

func unpackZboot(w io.Writer, b []byte) error {
	start := uint64(binary.LittleEndian.Uint32(b[offZbootOffset:]))
	length := uint64(binary.LittleEndian.Uint32(b[offZbootSize:]))
	if start+length > uint64(len(b)) {
		return fmt.Errorf("unpack EFI zboot: %w: the payload of %d bytes at %d does not lie in the file of %d", errs.ErrCorrupt, length, start, len(b))
	}
	payload := b[start : start+length]
	f := codec.Detect(payload)
	if f == codec.None {
		return fmt.Errorf("unpack EFI zboot: %w: payload of unknown compression", errs.ErrUnsupported)
	}
	if _, err := decompress(w, payload, f); err != nil {
		return fmt.Errorf("unpack EFI zboot: %w", err)
	}
	return nil
}

func decompress(w io.Writer, payload []byte, f codec.Format) (int64, error) {
	r, err := codec.NewReader(bytes.NewReader(payload), f)
	if err != nil {
		return 0, err
	}
	defer func() { _ = r.Close() }()
	n, err := io.Copy(w, io.LimitReader(r, MaxSize+1))
	if err == nil && n > MaxSize {
		err = fmt.Errorf("%w: the kernel is larger than %d MiB", errs.ErrInvalid, MaxSize>>20)
	}
	return n, err
}
