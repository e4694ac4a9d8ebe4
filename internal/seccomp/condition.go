package seccomp

import (
	"fmt"
	"slices"

	"golang.org/x/net/bpf"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
)

// maxArgs is how many arguments a system call has.
const maxArgs = 6

// maxConditions bounds the conditions of one rule, so that jumps over them fit into a byte.
const maxConditions = 16

func checkArgs(args []arg) error {
	if len(args) > maxConditions {
		return fmt.Errorf("%w: %d conditions, want at most %d", errs.ErrInvalid, len(args), maxConditions)
	}
	for _, a := range args {
		if a.Index >= maxArgs {
			return fmt.Errorf("argument %d: %w: want 0 to %d", a.Index, errs.ErrInvalid, maxArgs-1)
		}
		if a.test(0) == nil {
			return fmt.Errorf("operator %.40q: %w: want SCMP_CMP_EQ, _NE, _LT, _LE, _GT, _GE or _MASKED_EQ", a.Op, errs.ErrInvalid)
		}
	}
	return nil
}

// conditions returns the program for the rules of one call: the first whose conditions hold decides, else deny.
func conditions(rules []conditional, deny uint32) []bpf.Instruction {
	var out []bpf.Instruction
	for _, r := range rules {
		code := []bpf.Instruction{bpf.RetConstant{Val: r.action}}
		for _, a := range slices.Backward(r.args) {
			code = append(a.test(uint8(len(code))), code...)
		}
		out = append(out, code...)
	}
	return append(out, bpf.RetConstant{Val: deny})
}

// test returns instructions that go on after themselves where the condition holds, and skip that many more where it does
// not. It is nil for an unknown operator. Values have 64 bits and are compared by halves, the high one first.
func (a arg) test(skip uint8) []bpf.Instruction {
	low := bpf.LoadAbsolute{Off: uint32(16 + 8*a.Index), Size: 4}
	high := bpf.LoadAbsolute{Off: low.Off + 4, Size: 4}
	hi, lo := uint32(a.Value>>32), uint32(a.Value)
	order := func(c bpf.JumpTest) []bpf.Instruction { // greater, or greater or equal
		return []bpf.Instruction{
			high,
			bpf.JumpIf{Cond: bpf.JumpGreaterThan, Val: hi, SkipTrue: 3},
			bpf.JumpIf{Cond: bpf.JumpEqual, Val: hi, SkipFalse: skip + 2},
			low,
			bpf.JumpIf{Cond: c, Val: lo, SkipFalse: skip},
		}
	}
	not := func(c bpf.JumpTest) []bpf.Instruction { // less or equal, or less
		return []bpf.Instruction{
			high,
			bpf.JumpIf{Cond: bpf.JumpGreaterThan, Val: hi, SkipTrue: skip + 3},
			bpf.JumpIf{Cond: bpf.JumpEqual, Val: hi, SkipFalse: 2},
			low,
			bpf.JumpIf{Cond: c, Val: lo, SkipTrue: skip},
		}
	}
	switch a.Op {
	case "SCMP_CMP_EQ":
		return []bpf.Instruction{
			high, bpf.JumpIf{Cond: bpf.JumpEqual, Val: hi, SkipFalse: skip + 2},
			low, bpf.JumpIf{Cond: bpf.JumpEqual, Val: lo, SkipFalse: skip},
		}
	case "SCMP_CMP_NE":
		return []bpf.Instruction{
			high, bpf.JumpIf{Cond: bpf.JumpEqual, Val: hi, SkipFalse: 2},
			low, bpf.JumpIf{Cond: bpf.JumpEqual, Val: lo, SkipTrue: skip},
		}
	case "SCMP_CMP_MASKED_EQ": // Value is the mask, ValueTwo what must be left
		mask := func(m uint32) bpf.Instruction { return bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: m} }
		return []bpf.Instruction{
			high, mask(hi), bpf.JumpIf{Cond: bpf.JumpEqual, Val: uint32(a.ValueTwo >> 32), SkipFalse: skip + 3},
			low, mask(lo), bpf.JumpIf{Cond: bpf.JumpEqual, Val: uint32(a.ValueTwo), SkipFalse: skip},
		}
	case "SCMP_CMP_GT":
		return order(bpf.JumpGreaterThan)
	case "SCMP_CMP_GE":
		return order(bpf.JumpGreaterOrEqual)
	case "SCMP_CMP_LE":
		return not(bpf.JumpGreaterThan)
	case "SCMP_CMP_LT":
		return not(bpf.JumpGreaterOrEqual)
	}
	return nil
}
