/*
 * What libpms needs of the CPU, without libc: it runs in a signal handler.
 * arch_capture(): where a thread stands, as setjmp(3). In whoever is made after that it returns once more.
 * arch_raw_call(): a system call, its result as the kernel gives it.
 */
	.text
	.globl	arch_capture
	.hidden	arch_capture
	.type	arch_capture, @function
	.balign	16
arch_capture:
	mov	%rbx, (%rdi)
	mov	%rbp, 8(%rdi)
	mov	%r12, 16(%rdi)
	mov	%r13, 24(%rdi)
	mov	%r14, 32(%rdi)
	mov	%r15, 40(%rdi)
	lea	8(%rsp), %rax
	mov	%rax, 48(%rdi)
	mov	(%rsp), %rax
	mov	%rax, 56(%rdi)
	mov	%fs:0, %rax		# the ABI has it so
	mov	%rax, 64(%rdi)
	lea	72(%rdi), %rsi
	mov	$0x1004, %edi		# ARCH_GET_GS
	mov	$158, %eax		# arch_prctl
	syscall
	xor	%eax, %eax
	ret
	.size	arch_capture, . - arch_capture

	.globl	arch_raw_call
	.hidden	arch_raw_call
	.type	arch_raw_call, @function
	.balign	16
arch_raw_call:
	mov	%rdi, %rax
	mov	%rsi, %rdi
	mov	%rdx, %rsi
	mov	%rcx, %rdx
	mov	%r8, %r10
	mov	%r9, %r8
	mov	8(%rsp), %r9
	syscall
	ret
	.size	arch_raw_call, . - arch_raw_call

	.section .note.GNU-stack, "", @progbits
