package engine

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
)

// signalNames has the signals of Linux by number; it is the same for amd64 and arm64.
const signalNames = "HUP INT QUIT ILL TRAP ABRT BUS FPE KILL USR1 SEGV USR2 PIPE ALRM TERM STKFLT CHLD CONT STOP TSTP TTIN TTOU URG XCPU XFSZ VTALRM PROF WINCH IO PWR SYS"

const (
	sigrtMin = 34 // as the C libraries count: they keep 32 and 33 for themselves
	sigrtMax = 64
)

// ParseSignal returns the Linux number of a signal: a name with or without SIG in any case, RTMIN+n, RTMAX-n, or a
// number from 1 to 64. Another text is ErrInvalid.
func ParseSignal(text string) (int, error) {
	bad := fmt.Errorf("signal %.40q: %w: want a name such as TERM or a number from 1 to %d", text, errs.ErrInvalid, sigrtMax)
	if n, err := strconv.Atoi(text); err == nil {
		if n < 1 || n > sigrtMax {
			return 0, bad
		}
		return n, nil
	}
	name := strings.TrimPrefix(strings.ToUpper(text), "SIG")
	for i, s := range strings.Fields(signalNames) {
		if s == name {
			return i + 1, nil
		}
	}
	switch name {
	case "POLL":
		return ParseSignal("IO")
	case "CLD":
		return ParseSignal("CHLD")
	case "IOT":
		return ParseSignal("ABRT")
	case "RTMIN":
		return sigrtMin, nil
	case "RTMAX":
		return sigrtMax, nil
	}
	if d, ok := strings.CutPrefix(name, "RTMIN+"); ok {
		if n, err := strconv.ParseUint(d, 10, 8); err == nil && sigrtMin+int(n) <= sigrtMax {
			return sigrtMin + int(n), nil
		}
	}
	if d, ok := strings.CutPrefix(name, "RTMAX-"); ok {
		if n, err := strconv.ParseUint(d, 10, 8); err == nil && sigrtMax-int(n) >= sigrtMin {
			return sigrtMax - int(n), nil
		}
	}
	return 0, bad
}

// SignalName returns the name of a signal without SIG, or its number where it has none.
func SignalName(n int) string {
	names := strings.Fields(signalNames)
	switch {
	case n >= 1 && n <= len(names):
		return names[n-1]
	case n == sigrtMin:
		return "RTMIN"
	case n > sigrtMin && n <= sigrtMax:
		return "RTMIN+" + strconv.Itoa(n-sigrtMin)
	}
	return strconv.Itoa(n)
}
