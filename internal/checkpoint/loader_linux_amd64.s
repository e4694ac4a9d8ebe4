#include "go_asm.h"
#include "textflag.h"

// func loaderCode() unsafe.Pointer
TEXT ·loaderCode(SB), NOSPLIT, $0-8
	LEAQ loader<>(SB), AX
	MOVQ AX, ret+0(FP)
	RET

// loader runs the steps of a script, of which BX points to the first, as the first and only code of a new process. It is
// copied into the image, uses no stack, and ends with four UNDEF, by which its end is found.
//
// R12 is the mode, R13 argv, R14 the address of the new process's vDSO, R15 what a step has saved.
TEXT loader<>(SB), NOSPLIT|NOFRAME, $0-0
	MOVQ 0(SP), CX
	LEAQ 8(SP), R13
	MOVQ $-22, DX // EINVAL
	CMPQ CX, $3   // the path, the name and the mode
	JNE  fail
	MOVQ 16(R13), R12
	MOVBQZX (R12), R12
	LEAQ 8(R13)(CX*8), CX
environment:
	MOVQ (CX), AX
	ADDQ $8, CX
	TESTQ AX, AX
	JNE  environment
auxiliary:
	MOVQ (CX), AX
	CMPQ AX, $33 // AT_SYSINFO_EHDR
	JEQ  found
	MOVQ $-38, DX // ENOSYS
	TESTQ AX, AX
	JEQ  fail
	ADDQ $16, CX
	JMP  auxiliary
found:
	MOVQ 8(CX), R14

step:
	MOVQ step_flags(BX), BP
	TESTQ $const_ifShared, BP
	JEQ  private
	TESTQ $const_modeShared, R12
	JEQ  next
private:
	TESTQ $const_unlessShared, BP
	JEQ  eager
	TESTQ $const_modeShared, R12
	JNE  next
eager:
	TESTQ $const_ifEager, BP
	JEQ  jump
	TESTQ $const_modeEager, R12
	JEQ  next
jump:
	TESTQ $const_jumps, BP
	JEQ  arguments
	MOVQ step_child(BX), BX
	JMP  step
arguments:
	MOVQ (step_args+0)(BX), DI
	MOVQ (step_args+8)(BX), SI
	MOVQ (step_args+16)(BX), DX
	MOVQ (step_args+24)(BX), R10
	MOVQ (step_args+32)(BX), R8
	MOVQ (step_args+40)(BX), R9
	TESTQ $const_ofVDSO, BP
	JEQ  first
	ADDQ R14, DI
first:
	TESTQ $const_savedFirst, BP
	JEQ  fifth
	MOVQ R15, DI
fifth:
	TESTQ $const_savedFifth, BP
	JEQ  name
	MOVQ R15, R8
name:
	TESTQ $const_named, BP
	JEQ  stack
	MOVQ 8(R13), SI
stack:
	TESTQ $const_resumes, BP
	JEQ  call
	MOVQ DI, SP
call:
	MOVQ step_nr(BX), AX
	SYSCALL
	MOVQ AX, DX
	CMPQ AX, $0xfffffffffffff001
	JCS  success
	TESTQ $const_mayFail, BP
	JNE  next
	JMP  fail
success:
	TESTQ $const_forks, BP
	JEQ  same
	TESTQ AX, AX
	JNE  same
	MOVQ step_child(BX), BX
	JMP  step
same:
	TESTQ $const_saves, BP
	JEQ  store
	MOVQ AX, R15
store:
	MOVQ step_store(BX), CX
	TESTQ CX, CX
	JEQ  next
	MOVL AX, (CX)
next:
	ADDQ $step__size, BX
	JMP  step

fail: // with the number of the error, negative, in DX
	MOVQ DX, DI
	NEGQ DI
	MOVQ $231, AX // exit_group
	SYSCALL
	UNDEF
	UNDEF
	UNDEF
	UNDEF
