package box

import (
	"fmt"
	"strings"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
)

// capNames has the capabilities of Linux by number.
const capNames = "CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE " +
	"NET_BIND_SERVICE NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT SYS_PTRACE " +
	"SYS_PACCT SYS_ADMIN SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL " +
	"SETFCAP MAC_OVERRIDE MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE"

// defaultCaps are the capabilities of a container that names none: those that Docker grants.
const defaultCaps = "CHOWN DAC_OVERRIDE FSETID FOWNER MKNOD NET_RAW SETGID SETUID SETFCAP SETPCAP NET_BIND_SERVICE SYS_CHROOT KILL AUDIT_WRITE"

// parseCaps returns the set of the named capabilities, a bit for each. Names may begin with CAP_, in any case; ALL is
// all of them. nil is the default set, an empty list is none.
func parseCaps(names []string) (uint64, error) {
	if names == nil {
		names = strings.Fields(defaultCaps)
	}
	all := strings.Fields(capNames)
	var set uint64
next:
	for _, name := range names {
		short := strings.TrimPrefix(strings.ToUpper(name), "CAP_")
		if short == "ALL" {
			set = 1<<len(all) - 1
			continue
		}
		for i, c := range all {
			if c == short {
				set |= 1 << i
				continue next
			}
		}
		return 0, fmt.Errorf("capability %.40q: %w: no such capability", name, errs.ErrInvalid)
	}
	return set, nil
}
