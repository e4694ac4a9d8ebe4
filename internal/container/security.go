package container

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
)

// capNames are the capabilities of Linux.
const capNames = "AUDIT_CONTROL AUDIT_READ AUDIT_WRITE BLOCK_SUSPEND BPF CHECKPOINT_RESTORE CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER " +
	"FSETID IPC_LOCK IPC_OWNER KILL LEASE LINUX_IMMUTABLE MAC_ADMIN MAC_OVERRIDE MKNOD NET_ADMIN NET_BIND_SERVICE " +
	"NET_BROADCAST NET_RAW PERFMON SETFCAP SETGID SETPCAP SETUID SYSLOG SYS_ADMIN SYS_BOOT SYS_CHROOT SYS_MODULE SYS_NICE " +
	"SYS_PACCT SYS_PTRACE SYS_RAWIO SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG WAKE_ALARM"

// defaultCaps are those of a container that asks for no change, as Docker has it.
const defaultCaps = "AUDIT_WRITE CHOWN DAC_OVERRIDE FOWNER FSETID KILL MKNOD NET_BIND_SERVICE NET_RAW SETFCAP SETGID SETPCAP SETUID SYS_CHROOT"

const allCaps = "ALL"

// capability returns a capability's name with CAP_, or ALL.
func capability(name string) (string, bool) {
	short := strings.TrimPrefix(strings.ToUpper(name), "CAP_")
	if short == allCaps {
		return allCaps, true
	}
	return "CAP_" + short, slices.Contains(strings.Fields(capNames), short)
}

func prefixed(names string) []string {
	out := strings.Fields(names)
	for i := range out {
		out[i] = "CAP_" + out[i]
	}
	return out
}

func allCapabilities() []string { return prefixed(capNames) }

// capabilities returns the set that a container has: the default one without those of drop and with those of add. ALL
// in add begins with all of them, ALL in drop with none. It is nil where nothing changes the default. The names were
// checked.
func capabilities(add, drop []string) []string {
	if len(add) == 0 && len(drop) == 0 {
		return nil
	}
	plus, addAll := capSet(add)
	minus, dropAll := capSet(drop)
	base := prefixed(defaultCaps)
	switch {
	case addAll:
		base = allCapabilities()
	case dropAll:
		base = nil
	}
	out := slices.DeleteFunc(base, func(c string) bool { return slices.Contains(minus, c) })
	out = append(out, plus...)
	slices.Sort(out)
	return append([]string{}, slices.Compact(out)...)
}

func capSet(names []string) (out []string, all bool) {
	for _, n := range names {
		c, _ := capability(n)
		if c == allCaps {
			all = true
			continue
		}
		out = append(out, c)
	}
	return out, all
}

// signalNames are the signals of Linux that have one; their numbers are the guest's matter.
const signalNames = "HUP INT QUIT ILL TRAP ABRT IOT BUS FPE KILL USR1 SEGV USR2 PIPE ALRM TERM STKFLT CHLD CLD CONT STOP TSTP TTIN TTOU " +
	"URG XCPU XFSZ VTALRM PROF WINCH IO POLL PWR SYS RTMIN RTMAX"

// maxSignal is the highest number of a signal.
const maxSignal = 64

// CheckSignal returns ErrInvalid for what is not a signal: a name with or without SIG in any case, RTMIN+n, RTMAX-n, or a
// number from 1 to 64.
func CheckSignal(text string) error {
	if n, err := strconv.Atoi(text); err == nil && n >= 1 && n <= maxSignal {
		return nil
	}
	name := signalName(text)
	if slices.Contains(strings.Fields(signalNames), name) {
		return nil
	}
	for _, p := range []string{"RTMIN+", "RTMAX-"} {
		if d, ok := strings.CutPrefix(name, p); ok {
			if n, err := strconv.ParseUint(d, 10, 8); err == nil && n <= maxSignal-34 {
				return nil
			}
		}
	}
	return fmt.Errorf("%w signal %q: use a name such as TERM or a number from 1 to %d", errs.ErrInvalid, clip(text), maxSignal)
}

func signalName(text string) string { return strings.TrimPrefix(strings.ToUpper(text), "SIG") }

// sameSignal tells that two texts name one signal. KILL and TERM are known by number too.
func sameSignal(a, b string) bool {
	norm := func(s string) string {
		switch n := signalName(s); n {
		case "9":
			return "KILL"
		case "15":
			return "TERM"
		default:
			return n
		}
	}
	return norm(a) == norm(b)
}
