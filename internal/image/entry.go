package image

import (
	"archive/tar"
	"encoding/binary"
	"fmt"
	"math"
	"strings"
	"time"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
)

const paxXattr = "SCHILY.xattr."

// clean returns the header as the image writer shall see it: only fields that become part of the file system, within the
// bounds ext4 and Linux have. The name is not looked at. A nil header means that the entry makes no file.
func clean(h *tar.Header) (*tar.Header, error) {
	c := &tar.Header{
		Format: tar.FormatPAX, Typeflag: h.Typeflag, Name: h.Name, Linkname: h.Linkname,
		Mode: h.Mode & 0o7777, Uid: h.Uid, Gid: h.Gid,
		ModTime: clampTime(h.ModTime), AccessTime: clampTime(h.AccessTime), ChangeTime: clampTime(h.ChangeTime),
	}
	switch h.Typeflag {
	case tar.TypeReg, tar.TypeCont, tar.TypeGNUSparse:
		c.Typeflag, c.Size = tar.TypeReg, h.Size
		if h.Size < 0 || h.Size > math.MaxInt64/2 {
			return nil, fmt.Errorf("%.60q has a size of %d bytes: %w", h.Name, h.Size, errs.ErrInvalid)
		}
	case tar.TypeDir, tar.TypeFifo, tar.TypeLink:
	case tar.TypeSymlink:
		if h.Linkname == "" || len(h.Linkname) > maxPath || strings.IndexByte(h.Linkname, 0) >= 0 {
			return nil, fmt.Errorf("%.60q is a symbolic link to a name of %d bytes: %w", h.Name, len(h.Linkname), errs.ErrInvalid)
		}
	case tar.TypeChar, tar.TypeBlock:
		if h.Devmajor < 0 || h.Devmajor >= 1<<12 || h.Devminor < 0 || h.Devminor >= 1<<20 {
			return nil, fmt.Errorf("%.60q is device %d:%d: %w", h.Name, h.Devmajor, h.Devminor, errs.ErrInvalid)
		}
		c.Devmajor, c.Devminor = h.Devmajor, h.Devminor
	case tar.TypeXGlobalHeader:
		return nil, nil
	default:
		return nil, fmt.Errorf("%.60q has type %q, which no file has: %w", h.Name, h.Typeflag, errs.ErrInvalid)
	}
	// The two highest numbers mean "no owner" to the kernel.
	if h.Uid < 0 || h.Gid < 0 || int64(h.Uid) > math.MaxUint32-1 || int64(h.Gid) > math.MaxUint32-1 {
		return nil, fmt.Errorf("%.60q has owner %d:%d: %w", h.Name, h.Uid, h.Gid, errs.ErrInvalid)
	}
	if h.Typeflag != tar.TypeLink { // a link is a name, not a file
		c.PAXRecords = cleanXattrs(h)
	}
	return c, nil
}

// clampTime keeps a time in what ext4 stores and tar2ext4 writes right: before 1970 it would come out in 2378.
func clampTime(t time.Time) time.Time {
	const latest = 0x37fffffff // 34 bits of seconds less the sign range: the year 2446
	switch s := t.Unix(); {
	case t.IsZero():
		return time.Time{}
	case s < 0:
		return time.Unix(0, 0)
	case s > latest:
		return time.Unix(latest, 0)
	}
	return t
}

// cleanXattrs returns the extended attributes that ext4 can hold, as PAX records. Left out: namespaces ext4 has none of,
// those overlayfs keeps for itself (an archive could redirect directories with them), and ACLs that are not well formed.
func cleanXattrs(h *tar.Header) map[string]string {
	var out map[string]string
	for k, v := range h.PAXRecords {
		name, ok := strings.CutPrefix(k, paxXattr)
		if !ok {
			continue
		}
		switch {
		case name == "system.posix_acl_access", name == "system.posix_acl_default":
			if name == "system.posix_acl_default" && h.Typeflag != tar.TypeDir {
				continue
			}
			if v, ok = diskACL(v); !ok {
				continue
			}
		case !plainXattr(name), strings.HasPrefix(name, "trusted.overlay."), strings.HasPrefix(name, "user.overlay."):
			continue
		}
		if out == nil {
			out = map[string]string{}
		}
		out[k] = v
	}
	return out
}

func plainXattr(name string) bool {
	for _, ns := range []string{"user.", "trusted.", "security."} {
		if rest, ok := strings.CutPrefix(name, ns); ok {
			return rest != "" && len(rest) <= maxName && strings.IndexByte(rest, 0) < 0
		}
	}
	return false
}

// POSIX ACLs: tags, versions and sizes of the two forms.
const (
	aclVersionXattr = 2
	aclVersionDisk  = 1

	aclUserObj  = 0x01
	aclUser     = 0x02
	aclGroupObj = 0x04
	aclGroup    = 0x08
	aclMask     = 0x10
	aclOther    = 0x20
)

// diskACL turns an ACL from the form that getxattr gives, and archives carry, into the one ext4 stores: a version of its
// own, and no id on the entries that need none. It reports false for one that the kernel would not have accepted.
func diskACL(v string) (string, bool) {
	b := []byte(v)
	if len(b) < 4 || (len(b)-4)%8 != 0 || binary.LittleEndian.Uint32(b) != aclVersionXattr {
		return "", false
	}
	out := binary.LittleEndian.AppendUint32(nil, aclVersionDisk)
	seen, lastTag, lastID := uint16(0), uint16(0), uint32(0)
	for b = b[4:]; len(b) > 0; b = b[8:] {
		tag, perm, id := binary.LittleEndian.Uint16(b), binary.LittleEndian.Uint16(b[2:]), binary.LittleEndian.Uint32(b[4:])
		named := tag == aclUser || tag == aclGroup
		switch {
		case perm > 7, tag < lastTag, tag == lastTag && (!named || id <= lastID):
			return "", false
		case tag == aclUserObj, tag == aclGroupObj, tag == aclMask, tag == aclOther, named:
		default:
			return "", false
		}
		out = binary.LittleEndian.AppendUint16(out, tag)
		out = binary.LittleEndian.AppendUint16(out, perm)
		if named {
			out = binary.LittleEndian.AppendUint32(out, id)
		}
		seen, lastTag, lastID = seen|tag, tag, id
	}
	const must = aclUserObj | aclGroupObj | aclOther
	if seen&must != must || (seen&(aclUser|aclGroup) != 0 && seen&aclMask == 0) {
		return "", false
	}
	return string(out), true
}

// xattrACL is the reverse of diskACL. It returns "" for what is no ACL.
func xattrACL(v string) string {
	b := []byte(v)
	if len(b) < 4 || binary.LittleEndian.Uint32(b) != aclVersionDisk {
		return ""
	}
	out := binary.LittleEndian.AppendUint32(nil, aclVersionXattr)
	for b = b[4:]; len(b) >= 4; {
		tag, id, size := binary.LittleEndian.Uint16(b), uint32(math.MaxUint32), 4
		if tag == aclUser || tag == aclGroup {
			if len(b) < 8 {
				return ""
			}
			id, size = binary.LittleEndian.Uint32(b[4:]), 8
		}
		out = binary.LittleEndian.AppendUint32(append(out, b[:4]...), id)
		b = b[size:]
	}
	return string(out)
}
