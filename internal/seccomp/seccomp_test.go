package seccomp

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/net/bpf"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
)

// What the filter of a call returns.
const (
	allow  = uint32(actAllow)
	eperm  = uint32(actErrno | ePerm)
	enosys = uint32(actErrno | 38)
)

// machine runs a compiled program as the kernel would.
func machine(t testing.TB, prog []byte) func(audit, nr uint32, args ...uint64) uint32 {
	require.Zero(t, len(prog)%8)
	var raw []bpf.RawInstruction
	for b := range slices.Chunk(prog, 8) {
		raw = append(raw, bpf.RawInstruction{Op: binary.LittleEndian.Uint16(b), Jt: b[2], Jf: b[3], K: binary.LittleEndian.Uint32(b[4:])})
	}
	list, ok := bpf.Disassemble(raw)
	require.True(t, ok)
	vm, err := bpf.NewVM(list)
	require.NoError(t, err)
	return func(audit, nr uint32, args ...uint64) uint32 {
		data := make([]byte, 64)
		word := func(off int, v uint32) { binary.BigEndian.PutUint32(data[off:], v) } // the interpreter reads so
		word(0, nr)
		word(4, audit)
		for i, a := range args {
			word(16+8*i, uint32(a))
			word(20+8*i, uint32(a>>32))
		}
		got, err := vm.Run(data)
		require.NoError(t, err)
		return uint32(got)
	}
}

func number(t testing.TB, goarch string, i int, name string) (audit, nr uint32) {
	all, err := tables(goarch)
	require.NoError(t, err)
	nr, ok := all[i].number(name)
	require.True(t, ok, "%s of %s", name, all[i].profile)
	return all[i].audit, nr
}

func TestDefault(t *testing.T) {
	const namespaces = 0x7e020000
	for _, tc := range []struct {
		name string
		args []uint64
		caps string
		want uint32
	}{
		{"read", nil, "", allow}, {"write", nil, "", allow}, {"execve", nil, "", allow}, {"exit_group", nil, "", allow},
		{"openat", nil, "", allow}, {"futex", nil, "", allow}, {"ptrace", nil, "", allow}, {"faccessat2", nil, "", allow},
		{"mount", nil, "", eperm}, {"unshare", nil, "", eperm}, {"keyctl", nil, "", eperm}, {"setns", nil, "", eperm},
		{"bpf", nil, "", eperm}, {"init_module", nil, "", eperm}, {"reboot", nil, "", eperm}, {"kexec_load", nil, "", eperm},
		{"mount", nil, "CAP_SYS_ADMIN", allow}, {"unshare", nil, "CAP_SYS_ADMIN", allow}, {"keyctl", nil, "CAP_SYS_ADMIN", eperm},
		{"bpf", nil, "CAP_BPF", allow}, {"reboot", nil, "CAP_SYS_BOOT", allow}, {"chroot", nil, "", eperm},
		{"chroot", nil, "CAP_SYS_CHROOT", allow}, {"clock_settime", nil, "CAP_CHOWN CAP_SYS_TIME", allow},
		{"clone3", nil, "", enosys}, {"clone3", nil, "CAP_SYS_ADMIN", allow},
		{"clone", []uint64{17}, "", allow}, {"clone", []uint64{0x3d0f00}, "", allow}, {"clone", []uint64{0x10000000 | 17}, "", eperm},
		{"clone", []uint64{namespaces}, "", eperm}, {"clone", []uint64{1<<32 | 17}, "", allow}, {"clone", []uint64{namespaces}, "CAP_SYS_ADMIN", allow},
		{"socket", []uint64{1}, "", allow}, {"socket", []uint64{2}, "", allow}, {"socket", []uint64{16}, "", allow},
		{"socket", []uint64{38}, "", eperm}, {"socket", []uint64{40}, "", eperm}, {"socket", []uint64{46}, "", eperm},
		{"socket", []uint64{1 << 32}, "", eperm}, {"socket", []uint64{39}, "", allow},
		{"personality", []uint64{0}, "", allow}, {"personality", []uint64{0xffffffff}, "", allow}, {"personality", []uint64{4}, "", eperm},
	} {
		for _, goarch := range []string{"amd64", "arm64"} {
			prog, err := Default(goarch, strings.Fields(tc.caps))
			require.NoError(t, err)
			audit, nr := number(t, goarch, 0, tc.name)
			require.Equal(t, tc.want, machine(t, prog)(audit, nr, tc.args...), "%s: %+v", goarch, tc)
		}
	}
}

func TestDefaultOfOlderModes(t *testing.T) {
	for _, goarch := range []string{"amd64", "arm64"} {
		prog, err := Default(goarch, nil)
		require.NoError(t, err)
		run := machine(t, prog)
		for name, want := range map[string]uint32{"read": allow, "mount": eperm, "clone3": enosys, "fstatat64": allow, "clock_gettime64": allow} {
			audit, nr := number(t, goarch, 1, name)
			require.Equal(t, want, run(audit, nr), "%s %s", goarch, name)
		}
		require.Equal(t, eperm, run(0xc0de, 0), "an architecture of which the profile knows nothing")
		audit, nr := number(t, goarch, 0, "read")
		require.Equal(t, eperm, run(audit, nr|0x40000000), "x32")
	}
	prog, err := Default("amd64", nil)
	require.NoError(t, err)
	run := machine(t, prog)
	audit, nr := number(t, "amd64", 0, "arch_prctl")
	require.Equal(t, allow, run(audit, nr))
	prog, err = Default("arm64", nil)
	require.NoError(t, err)
	audit, _ = number(t, "arm64", 0, "read")
	require.Equal(t, allow, machine(t, prog)(audit, 79), "newfstatat has another name in the table")
}

// Every call of the profile has the same meaning in the program as in the rules read one by one.
func TestProgramAgreesWithTheRules(t *testing.T) {
	var p profile
	require.NoError(t, json.Unmarshal(defaultProfile, &p))
	for _, goarch := range []string{"amd64", "arm64"} {
		all, err := tables(goarch)
		require.NoError(t, err)
		for _, caps := range [][]string{nil, {"CAP_SYS_ADMIN"}, {"CAP_SYS_PTRACE", "CAP_SYSLOG"}} {
			prog, err := Default(goarch, caps)
			require.NoError(t, err)
			run := machine(t, prog)
			for _, tab := range all {
				calls, err := p.calls(tab, goarch, caps)
				require.NoError(t, err)
				require.Greater(t, len(calls), 250)
				for nr := range uint32(600) {
					want, c := eperm, calls[nr]
					switch {
					case c == nil:
					case c.always != nil:
						want = *c.always
					default:
						continue // TestDefault and TestOperators have them
					}
					require.Equal(t, want, run(tab.audit, nr), "%s %d", tab.profile, nr)
				}
			}
		}
	}
}

func TestOperators(t *testing.T) {
	values := []uint64{0, 1, 5, 6, 7, 1<<32 - 1, 1 << 32, 1<<32 | 6, 3 << 32, 1<<64 - 1}
	holds := map[string]func(x, v, v2 uint64) bool{
		"SCMP_CMP_EQ": func(x, v, _ uint64) bool { return x == v }, "SCMP_CMP_NE": func(x, v, _ uint64) bool { return x != v },
		"SCMP_CMP_LT": func(x, v, _ uint64) bool { return x < v }, "SCMP_CMP_LE": func(x, v, _ uint64) bool { return x <= v },
		"SCMP_CMP_GT": func(x, v, _ uint64) bool { return x > v }, "SCMP_CMP_GE": func(x, v, _ uint64) bool { return x >= v },
		"SCMP_CMP_MASKED_EQ": func(x, v, v2 uint64) bool { return x&v == v2 },
	}
	audit, nr := number(t, "amd64", 0, "read")
	for op, want := range holds {
		for _, v := range values {
			text := fmt.Sprintf(`{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{"names":["read"],"action":"SCMP_ACT_LOG",
				"args":[{"index":5,"value":7,"op":"SCMP_CMP_EQ"},{"index":1,"value":%d,"valueTwo":%d,"op":"%s"},{"index":0,"value":9,"op":"SCMP_CMP_NE"}]}]}`, v, v&6, op)
			prog, err := Compile("amd64", nil, []byte(text))
			require.NoError(t, err)
			run := machine(t, prog)
			for _, x := range values {
				expect := eperm
				if want(x, v, v&6) {
					expect = actLog
				}
				require.Equal(t, expect, run(audit, nr, 1, x, 0, 0, 0, 7), "%d %s %d", x, op, v)
				require.Equal(t, eperm, run(audit, nr, 1, x, 0, 0, 0, 8))
				require.Equal(t, eperm, run(audit, nr, 9, x, 0, 0, 0, 7))
			}
		}
	}
}

func TestCompile(t *testing.T) {
	audit, read := number(t, "amd64", 0, "read")
	_, write := number(t, "amd64", 0, "write")
	for name, tc := range map[string]struct {
		rules           string
		onRead, onWrite uint32
	}{
		"none":               {``, allow, allow},
		"old form":           {`{"name":"read","action":"SCMP_ACT_KILL"}`, actKillThread, allow},
		"errno":              {`{"names":["read"],"action":"SCMP_ACT_ERRNO","errnoRet":38}`, enosys, allow},
		"trap and process":   {`{"names":["read"],"action":"SCMP_ACT_TRAP"},{"names":["write"],"action":"SCMP_ACT_KILL_PROCESS"}`, actTrap, actKillProcess},
		"unknown call":       {`{"names":["nosuch","write"],"action":"SCMP_ACT_ERRNO"}`, allow, eperm},
		"twice the same":     {`{"names":["read"],"action":"SCMP_ACT_LOG"},{"names":["read"],"action":"SCMP_ACT_LOG"}`, actLog, allow},
		"always wins":        {`{"names":["read"],"action":"SCMP_ACT_LOG","args":[{"op":"SCMP_CMP_EQ"}]},{"names":["read"],"action":"SCMP_ACT_ERRNO"}`, eperm, allow},
		"first one counts":   {`{"names":["read"],"action":"SCMP_ACT_LOG","args":[{"op":"SCMP_CMP_EQ"}]},{"names":["read"],"action":"SCMP_ACT_ERRNO","args":[{"op":"SCMP_CMP_LE","value":1}]}`, actLog, allow},
		"an argument twice":  {`{"names":["read"],"action":"SCMP_ACT_LOG","args":[{"op":"SCMP_CMP_EQ","value":4},{"op":"SCMP_CMP_EQ"}]}`, actLog, allow},
		"of another machine": {`{"names":["read"],"action":"SCMP_ACT_LOG","includes":{"arches":["arm64"]}},{"names":["write"],"action":"SCMP_ACT_LOG","excludes":{"arches":["amd64"]}}`, allow, allow},
		"for capabilities":   {`{"names":["read"],"action":"SCMP_ACT_LOG","includes":{"caps":["CAP_A","CAP_B"]}},{"names":["write"],"action":"SCMP_ACT_LOG","excludes":{"caps":["CAP_A"]}}`, allow, allow},
	} {
		t.Run(name, func(t *testing.T) {
			prog, err := Compile("amd64", []string{"CAP_A"}, []byte(`{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[`+tc.rules+`]}`))
			require.NoError(t, err)
			run := machine(t, prog)
			require.Equal(t, tc.onRead, run(audit, read))
			require.Equal(t, tc.onWrite, run(audit, write))
		})
	}
}

func TestCompileRefuses(t *testing.T) {
	rule := func(s string) string { return `{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[` + s + `]}` }
	many := make([]string, 700)
	for i := range many {
		many[i] = `{"names":["read"],"action":"SCMP_ACT_LOG","args":[{"op":"SCMP_CMP_MASKED_EQ"}]}`
	}
	for name, tc := range map[string]struct {
		text string
		err  error
	}{
		"no JSON":             {`{`, errs.ErrInvalid},
		"empty":               {`{}`, errs.ErrInvalid},
		"too large":           {strings.Repeat(" ", MaxProfile+1), errs.ErrInvalid},
		"unknown action":      {rule(`{"names":["read"],"action":"SCMP_ACT_FLY"}`), errs.ErrInvalid},
		"unknown operator":    {rule(`{"names":["read"],"action":"SCMP_ACT_LOG","args":[{"op":"SCMP_CMP_IS"}]}`), errs.ErrInvalid},
		"seventh argument":    {rule(`{"names":["read"],"action":"SCMP_ACT_LOG","args":[{"index":6,"op":"SCMP_CMP_EQ"}]}`), errs.ErrInvalid},
		"many conditions":     {rule(`{"names":["read"],"action":"SCMP_ACT_LOG","args":[` + strings.Repeat(`{"op":"SCMP_CMP_EQ"},`, 16) + `{"op":"SCMP_CMP_EQ"}]}`), errs.ErrInvalid},
		"errno out of range":  {rule(`{"names":["read"],"action":"SCMP_ACT_ERRNO","errnoRet":4096}`), errs.ErrInvalid},
		"name and names":      {rule(`{"name":"read","names":["read"],"action":"SCMP_ACT_LOG"}`), errs.ErrInvalid},
		"against itself":      {rule(`{"names":["read"],"action":"SCMP_ACT_LOG"},{"names":["read"],"action":"SCMP_ACT_KILL"}`), errs.ErrInvalid},
		"too long":            {rule(strings.Join(many, ",")), errs.ErrInvalid},
		"notify":              {rule(`{"names":["read"],"action":"SCMP_ACT_NOTIFY"}`), errs.ErrUnsupported},
		"listener":            {`{"defaultAction":"SCMP_ACT_ALLOW","listenerPath":"/x"}`, errs.ErrUnsupported},
		"even in an idle one": {rule(`{"names":["read"],"action":"SCMP_ACT_FLY","includes":{"caps":["CAP_X"]}}`), errs.ErrInvalid},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Compile("amd64", nil, []byte(tc.text))
			require.ErrorIs(t, err, tc.err)
			require.Less(t, len(err.Error()), 300)
		})
	}
	_, err := Default("riscv64", nil)
	require.ErrorIs(t, err, errs.ErrUnsupported)
}

func FuzzCompile(f *testing.F) {
	f.Add(defaultProfile)
	f.Add([]byte(`{"defaultAction":"SCMP_ACT_ALLOW","architectures":["SCMP_ARCH_X86"],"syscalls":[{"names":["read"],"action":"SCMP_ACT_LOG","args":[{"index":1,"value":1,"op":"SCMP_CMP_GT"}]}]}`))
	f.Fuzz(func(t *testing.T, in []byte) {
		prog, err := Compile("amd64", []string{"CAP_SYS_ADMIN"}, in)
		if err != nil {
			return
		}
		require.LessOrEqual(t, len(prog), 8*maxProgram)
		machine(t, prog)(0xc000003e, 0) // the kernel's checks and more
	})
}

func BenchmarkDefault(b *testing.B) {
	for b.Loop() {
		prog, err := Default("amd64", nil)
		require.NoError(b, err)
		b.ReportMetric(float64(len(prog)/8), "instructions")
	}
}
