/*
 * Code that runs inside a process: position independent, reads no memory but its script.
 */
	.macro	call_at_r15		# nr and six arguments stand there
	mov	(%r15), %rax
	mov	8(%r15), %rdi
	mov	16(%r15), %rsi
	mov	24(%r15), %rdx
	mov	32(%r15), %r10
	mov	40(%r15), %r8
	mov	48(%r15), %r9
	syscall
	.endm

	.section .rodata
	.globl	arch_loop, arch_loop_end, arch_park, arch_park_end, arch_guest, arch_guest_end

/*
 * r15: the entry; r14: the last one. An entry is nr, six arguments, result, may_fail:
 * nine words. Registers that `syscall` spoils (rcx, r11) hold nothing here.
 */
	.balign	16
arch_loop:
1:	call_at_r15
	mov	%rax, 56(%r15)
	cmp	%r14, %r15
	je	3f
	cmp	$-4096, %rax
	jbe	2f
	cmpq	$0, 64(%r15)
	jne	2f
	mov	%r14, %r15
	jmp	1b
2:	add	$72, %r15
	jmp	1b
3:	pause
	jmp	3b
arch_loop_end:

/*
 * rdi, rsi: process and thread; rdx: SIGSTOP. All signals are blocked but SIGKILL and
 * SIGSTOP, so every return from the call is a stray SIGCONT: stop again.
 */
	.balign	16
arch_park:
	.ascii	"pms-park"
	.quad	0
1:	mov	%r12, %rdi
	mov	%r13, %rsi
	mov	$19, %edx
	mov	$234, %eax
	syscall
	jmp	1b
arch_park_end:

/*
 * A guest thread: made by a clone(2) here, whose caller returns as from any borrowed call. r9: its block, which is nr and result, six
 * arguments, an fd. It takes calls from the fd and gives back results, until there is none any more. No stack is used.
 */
	.balign	16
arch_guest:
	syscall
	test	%rax, %rax
	jz	1f
	ret
1:	mov	%r9, %r15
2:	xor	%eax, %eax		# read
	mov	56(%r15), %rdi
	mov	%r15, %rsi
	mov	$56, %edx
	syscall
	cmp	$56, %rax
	jne	3f
	call_at_r15
	mov	%rax, (%r15)
	mov	$1, %eax		# write
	mov	56(%r15), %rdi
	mov	%r15, %rsi
	mov	$8, %edx
	syscall
	cmp	$8, %rax
	je	2b
3:	mov	$3, %eax		# close
	mov	56(%r15), %rdi
	syscall
	xor	%edi, %edi
	mov	$60, %eax		# exit, of this thread
	syscall
	jmp	3b
arch_guest_end:

	.section .note.GNU-stack, "", @progbits
