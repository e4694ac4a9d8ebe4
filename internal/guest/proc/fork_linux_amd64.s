#include "go_asm.h"
#include "textflag.h"

// func clone(args *cloneArgs, size uintptr, p *Program, report uintptr) (pid uintptr, e syscall.Errno)
//
// In the child: R12 is p, R13 report, BX the step, R14 its index, BP how many there are.
TEXT ·clone(SB), NOSPLIT, $0-48
	MOVQ args+0(FP), DI
	MOVQ size+8(FP), SI
	MOVQ p+16(FP), R12
	MOVQ report+24(FP), R13
	MOVQ $435, AX // clone3
	SYSCALL
	TESTQ AX, AX
	JEQ  child
	MOVQ $0, pid+32(FP)
	MOVQ $0, e+40(FP)
	CMPQ AX, $0xfffffffffffff001
	JLS  parent
	NEGQ AX
	MOVQ AX, e+40(FP)
	RET
parent:
	MOVQ AX, pid+32(FP)
	RET

child:
	MOVQ Program_ops(R12), BX
	MOVQ (Program_ops+8)(R12), BP
	XORQ R14, R14
step:
	CMPQ R14, BP
	JGE  over
	MOVBLZX op_fromRg(BX), AX
	LEAQ op_args(BX), CX
arg: // replaces those that are registers
	TESTQ AX, AX
	JEQ  call
	TESTQ $1, AX
	JEQ  next
	MOVQ (CX), DX
	ANDQ $(const_maxRegs-1), DX
	MOVQ Program_regs(R12)(DX*8), DX
	MOVQ DX, (CX)
next:
	SHRQ $1, AX
	ADDQ $8, CX
	JMP  arg
call:
	MOVQ op_nr(BX), AX
	MOVQ (op_args+0)(BX), DI
	MOVQ (op_args+8)(BX), SI
	MOVQ (op_args+16)(BX), DX
	MOVQ (op_args+24)(BX), R10
	MOVQ (op_args+32)(BX), R8
	MOVQ (op_args+40)(BX), R9
	SYSCALL
	CMPQ AX, $0xfffffffffffff001
	JLS  result
	MOVQ AX, CX
	NEGQ CX
	JMP  failed
result:
	MOVQ $125, CX // ECANCELED
	MOVQ op_want(BX), DX
	TESTQ DX, DX
	JEQ  save
	CMPQ AX, DX
	JNE  failed
save:
	MOVBLZX op_save(BX), DX
	TESTQ DX, DX
	JEQ  done
	DECQ DX
	ANDQ $(const_maxRegs-1), DX
	MOVQ AX, Program_regs(R12)(DX*8)
	JMP  done
failed:
	CMPQ CX, op_accept(BX)
	JEQ  done
	MOVBLZX op_kind(BX), DX
	CMPQ DX, $const_try
	JEQ  done
	CMPQ DX, $const_exec
	JNE  end
	CMPQ CX, $2 // ENOENT
	JEQ  done
	CMPQ CX, $20 // ENOTDIR
	JEQ  done
	CMPQ CX, $13 // EACCES
	JNE  end
	MOVL CX, (Program_report+4)(R12)
done:
	ADDQ $op__size, BX
	INCQ R14
	JMP  step

end:
	MOVL R14, Program_report(R12)
	MOVL CX, (Program_report+4)(R12)
over:
	MOVQ $1, AX // write
	MOVQ R13, DI
	LEAQ Program_report(R12), SI
	MOVQ $const_reportSize, DX
	SYSCALL
	MOVQ $231, AX // exit_group
	MOVQ $127, DI
	SYSCALL
	// A seccomp filter of the program may forbid even that. Nothing forbids a fault, and no handler is there to take it.
	XORL AX, AX
	MOVQ AX, (AX)
	UNDEF
