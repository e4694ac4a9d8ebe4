#include "go_asm.h"
#include "textflag.h"

// func clone(args *cloneArgs, size uintptr, p *Program, report uintptr) (pid uintptr, e syscall.Errno)
//
// In the child: R19 is p, R20 report, R21 the step, R22 its index, R23 how many there are.
TEXT ·clone(SB), NOSPLIT, $0-48
	MOVD args+0(FP), R0
	MOVD size+8(FP), R1
	MOVD p+16(FP), R19
	MOVD report+24(FP), R20
	MOVD $435, R8 // clone3
	SVC
	CBZ  R0, child
	MOVD ZR, pid+32(FP)
	MOVD ZR, e+40(FP)
	CMN  $4095, R0
	BCC  parent
	NEG  R0, R0
	MOVD R0, e+40(FP)
	RET
parent:
	MOVD R0, pid+32(FP)
	RET

child:
	MOVD Program_ops(R19), R21
	MOVD (Program_ops+8)(R19), R23
	MOVD ZR, R22
step:
	CMP  R23, R22
	BGE  over
	MOVBU op_fromRg(R21), R9
	ADD  $op_args, R21, R10
	ADD  $Program_regs, R19, R11
arg: // replaces those that are registers
	CBZ  R9, call
	TBZ  $0, R9, next
	MOVD (R10), R12
	AND  $(const_maxRegs-1), R12
	MOVD (R11)(R12<<3), R12
	MOVD R12, (R10)
next:
	LSR  $1, R9
	ADD  $8, R10
	B    arg
call:
	MOVD op_nr(R21), R8
	MOVD (op_args+0)(R21), R0
	MOVD (op_args+8)(R21), R1
	MOVD (op_args+16)(R21), R2
	MOVD (op_args+24)(R21), R3
	MOVD (op_args+32)(R21), R4
	MOVD (op_args+40)(R21), R5
	SVC
	CMN  $4095, R0
	BCC  result
	NEG  R0, R9
	B    failed
result:
	MOVD $125, R9 // ECANCELED
	MOVD op_want(R21), R10
	CBZ  R10, save
	CMP  R10, R0
	BNE  failed
save:
	MOVBU op_save(R21), R10
	CBZ  R10, done
	SUB  $1, R10
	AND  $(const_maxRegs-1), R10
	ADD  $Program_regs, R19, R11
	MOVD R0, (R11)(R10<<3)
	B    done
failed:
	MOVD op_accept(R21), R10
	CMP  R10, R9
	BEQ  done
	MOVBU op_kind(R21), R10
	CMP  $const_try, R10
	BEQ  done
	CMP  $const_exec, R10
	BNE  end
	CMP  $2, R9 // ENOENT
	BEQ  done
	CMP  $20, R9 // ENOTDIR
	BEQ  done
	CMP  $13, R9 // EACCES
	BNE  end
	MOVW R9, (Program_report+4)(R19)
done:
	ADD  $op__size, R21
	ADD  $1, R22
	B    step

end:
	MOVW R22, Program_report(R19)
	MOVW R9, (Program_report+4)(R19)
over:
	MOVD $64, R8 // write
	MOVD R20, R0
	ADD  $Program_report, R19, R1
	MOVD $const_reportSize, R2
	SVC
	MOVD $94, R8 // exit_group
	MOVD $127, R0
	SVC
	// A seccomp filter of the program may forbid even that. Nothing forbids a fault, and no handler is there to take it.
	MOVD ZR, R0
	MOVD R0, (R0)
	UNDEF
