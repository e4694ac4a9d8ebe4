package seccomp

import (
	"encoding/binary"
	"fmt"
	"maps"
	"slices"

	"github.com/elastic/go-seccomp-bpf/arch"
	"golang.org/x/net/bpf"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
)

// maxProgram is the largest filter in instructions that the kernel takes.
const maxProgram = 4096

// table is the system calls of one architecture.
type table struct {
	profile string // the profile's name of the architecture
	audit   uint32 // the kernel's number of it
	calls   map[string]int
	extra   map[string]int // calls that calls does not have, or under another name
}

// tables returns those for a guest's architecture, its own first, then those of its processor's older modes.
func tables(goarch string) ([]table, error) {
	of := func(name string, a *arch.Info, extra map[string]int) table {
		return table{name, uint32(a.ID), a.SyscallNames, extra}
	}
	switch goarch {
	case "amd64":
		return []table{
			of("SCMP_ARCH_X86_64", arch.X86_64, map[string]int{"uretprobe": 335}),
			of("SCMP_ARCH_X86", arch.I386, nil),
		}, nil
	case "arm64":
		return []table{
			of("SCMP_ARCH_AARCH64", arch.AARCH64, map[string]int{"newfstatat": 79}),
			of("SCMP_ARCH_ARM", arch.ARM, nil),
		}, nil
	}
	return nil, fmt.Errorf("architecture %.40q: %w: want amd64 or arm64", goarch, errs.ErrUnsupported)
}

func (t table) number(name string) (uint32, bool) {
	n, ok := t.calls[name]
	if !ok {
		n, ok = t.extra[name]
	}
	return uint32(n), ok
}

// call is what the rules of a profile say about one system call. An unconditional rule counts alone, wherever it stands;
// otherwise the first one whose conditions hold does.
type call struct {
	always *uint32 // action
	rules  []conditional
}

// conditional is an action under conditions, of which all must hold.
type conditional struct {
	args   []arg
	action uint32
}

func (p *profile) compile(goarch string, caps []string) ([]byte, error) {
	all, err := tables(goarch)
	if err != nil {
		return nil, err
	}
	if p.ListenerPath != "" {
		return nil, fmt.Errorf("listenerPath: %w: there is no listener in the guest", errs.ErrUnsupported)
	}
	deny, err := action(p.DefaultAction, p.DefaultErrnoRet)
	if err != nil {
		return nil, fmt.Errorf("default: %w", err)
	}
	subs := p.subArches(all[0].profile)
	// struct seccomp_data: number of the call, architecture, instruction pointer, six arguments.
	prog := []bpf.Instruction{bpf.LoadAbsolute{Off: 4, Size: 4}}
	for i, t := range all {
		if i > 0 && !slices.Contains(subs, t.profile) {
			continue
		}
		calls, err := p.calls(t, goarch, caps)
		if err != nil {
			return nil, err
		}
		body := append([]bpf.Instruction{bpf.LoadAbsolute{Off: 0, Size: 4}}, dispatch(ranges(calls, deny))...)
		prog = append(prog, bpf.JumpIf{Cond: bpf.JumpEqual, Val: t.audit, SkipTrue: 1}, bpf.Jump{Skip: uint32(len(body))})
		prog = append(prog, body...)
	}
	return assemble(append(prog, bpf.RetConstant{Val: deny}))
}

func assemble(prog []bpf.Instruction) ([]byte, error) {
	if len(prog) > maxProgram {
		return nil, fmt.Errorf("%w: it needs %d instructions, and the kernel takes %d: use fewer conditions", errs.ErrInvalid, len(prog), maxProgram)
	}
	raw, err := bpf.Assemble(prog)
	if err != nil {
		return nil, fmt.Errorf("assemble: %w", err)
	}
	out := make([]byte, 0, 8*len(raw))
	for _, r := range raw {
		out = append(binary.LittleEndian.AppendUint16(out, r.Op), r.Jt, r.Jf)
		out = binary.LittleEndian.AppendUint32(out, r.K)
	}
	return out, nil
}

// calls returns what the profile says about the calls of an architecture, by number.
func (p *profile) calls(t table, goarch string, caps []string) (map[uint32]*call, error) {
	calls := make(map[uint32]*call)
	for i := range p.Syscalls {
		r := &p.Syscalls[i]
		names, err := r.names()
		if err != nil {
			return nil, err
		}
		act, err := action(r.Action, r.ErrnoRet)
		if err != nil {
			return nil, fmt.Errorf("rule %d: %w", i, err)
		}
		if err := checkArgs(r.Args); err != nil {
			return nil, fmt.Errorf("rule %d: %w", i, err)
		}
		if !r.applies(goarch, caps) {
			continue
		}
		for _, name := range names {
			n, ok := t.number(name)
			if !ok {
				continue
			}
			c := calls[n]
			if c == nil {
				c = &call{}
				calls[n] = c
			}
			if err := c.add(r.Args, act); err != nil {
				return nil, fmt.Errorf("rule %d: %s: %w", i, name, err)
			}
		}
	}
	return calls, nil
}

// add adds a rule. As runc has it, conditions that name one argument twice are rules of their own, of which one is enough.
func (c *call) add(args []arg, act uint32) error {
	if len(args) == 0 {
		if c.always != nil && *c.always != act {
			return fmt.Errorf("%w: two rules without conditions have different actions", errs.ErrInvalid)
		}
		c.always = &act
		return nil
	}
	var seen [maxArgs]bool
	apart := false
	for _, a := range args {
		apart = apart || seen[a.Index]
		seen[a.Index] = true
	}
	if !apart {
		c.rules = append(c.rules, conditional{args, act})
		return nil
	}
	for _, a := range args {
		c.rules = append(c.rules, conditional{[]arg{a}, act})
	}
	return nil
}

// span is a range of calls with one meaning. It goes to the next span's first number.
type span struct {
	first uint32
	code  []bpf.Instruction // ends in a return on every path
	plain bool              // code is one return, of act
	act   uint32
}

// ranges returns the whole range of numbers in spans.
func ranges(calls map[uint32]*call, deny uint32) []span {
	var out []span
	add := func(s span) {
		if n := len(out); n > 0 && out[n-1].first == s.first {
			out = out[:n-1]
		}
		if n := len(out); n > 0 && out[n-1].plain && s.plain && out[n-1].act == s.act {
			return
		}
		out = append(out, s)
	}
	plain := func(first, act uint32) span {
		return span{first, []bpf.Instruction{bpf.RetConstant{Val: act}}, true, act}
	}
	add(plain(0, deny))
	for _, n := range slices.Sorted(maps.Keys(calls)) {
		c := calls[n]
		if c.always != nil {
			add(plain(n, *c.always))
		} else {
			add(span{first: n, code: conditions(c.rules, deny)})
		}
		add(plain(n+1, deny))
	}
	return out
}

// dispatch returns a program that finds the span of the call whose number is in the register, by halving.
func dispatch(spans []span) []bpf.Instruction {
	if len(spans) == 1 {
		return spans[0].code
	}
	half := len(spans) / 2
	low, high := dispatch(spans[:half]), dispatch(spans[half:])
	test := []bpf.Instruction{bpf.JumpIf{Cond: bpf.JumpGreaterOrEqual, Val: spans[half].first, SkipTrue: uint8(min(len(low), 255))}}
	if len(low) > 255 {
		test = []bpf.Instruction{
			bpf.JumpIf{Cond: bpf.JumpGreaterOrEqual, Val: spans[half].first, SkipFalse: 1},
			bpf.Jump{Skip: uint32(len(low))},
		}
	}
	return slices.Concat(test, low, high)
}
