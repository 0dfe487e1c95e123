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
	.globl	arch_copy, arch_copy_end, arch_ask, arch_ask_told, arch_ask_end

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
 * r15: the first call, nr and six arguments, where nr gives way to the result; r14: behind the last. Then a signal to itself, r13, that only a tracer notices.
 * If it has none any more: munmap(2) of the page that this is in, rbx, by the call at r12, whose `ret` leads back.
 */
	.balign	16
arch_ask:
1:	call_at_r15
	mov	%rax, (%r15)
	add	$56, %r15
	cmp	%r14, %r15
	jne	1b
	mov	$186, %eax		# gettid
	syscall
	mov	%eax, %edi
	mov	%r13d, %esi
	mov	$200, %eax		# tkill
	syscall
arch_ask_told:
	mov	%rbx, %rdi
	mov	$4096, %esi
	mov	$11, %eax		# munmap
	jmp	*%r12
arch_ask_end:

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
 * A clone(2) with CLONE_VM at the beginning makes the one in between, which makes the copy by another and ends; then whoever was asked waits
 * for it and returns. The copy gives up its session and its open files, and ends. No stack is used but for that return.
 */
	.balign	16
arch_copy:
	syscall
	test	%rax, %rax
	jz	2f
	js	1f
	mov	%rax, %rdi
	xor	%esi, %esi
	mov	$0x40000000, %edx	# __WALL
	xor	%r10d, %r10d
	mov	$61, %eax		# wait4
	syscall
1:	ret
2:	xor	%edi, %edi
	xor	%esi, %esi
	xor	%edx, %edx
	xor	%r10d, %r10d
	xor	%r8d, %r8d
	mov	$56, %eax		# clone, as fork(2) but for the signal
	syscall
	test	%rax, %rax
	jz	4f
	xor	%edi, %edi
	test	%rax, %rax
	jns	3f
	mov	%rax, %rdi		# it ends with the error
	neg	%rdi
3:	mov	$231, %eax		# exit_group
	syscall
	jmp	3b
4:	mov	$112, %eax		# setsid
	syscall
	xor	%edi, %edi
	mov	$-1, %esi
	xor	%edx, %edx
	mov	$436, %eax		# close_range
	syscall
	xor	%edi, %edi
	jmp	3b
arch_copy_end:

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

/*
 * A thread that is being built without a tracer: it takes scripts through memory that it shares with whoever builds it. r13: its struct arch_slot;
 * r12: the word that lets all go on. Entries are as above, from first to before end, but that clone3(2) makes a thread whose slot
 * is its sixth argument. Whoever waits in vain looks whether its parent is still there.
 */
	.balign	16
	.globl	arch_obey, arch_obey_end
arch_obey:
1:	movl	$1, 4(%r13)
	lea	4(%r13), %rdi
	mov	$1, %esi		# FUTEX_WAKE
	mov	$1, %edx
	mov	$202, %eax
	syscall
2:	cmpl	$0, (%r13)
	jne	4f
	cmpl	$0, (%r12)
	jne	7f
	mov	%r13, %rdi		# FUTEX_WAIT, with a timeout
	xor	%esi, %esi
	xor	%edx, %edx
	lea	120(%r13), %r10
	mov	$202, %eax
	syscall
	cmp	$-110, %rax		# ETIMEDOUT
	jne	2b
	cmpl	$0, (%r13)
	jne	4f
	cmpl	$0, (%r12)
	jne	7f
	mov	$110, %eax		# getppid
	syscall
	cmp	24(%r13), %eax
	je	2b
	cmpl	$0, (%r12)		# whoever lets go may end then
	jne	7f
3:	mov	$137, %edi
	mov	$231, %eax		# exit_group
	syscall
	jmp	3b
4:	movl	$0, (%r13)
	mov	8(%r13), %r15
	mov	16(%r13), %r14
5:	cmp	%r14, %r15
	je	1b
	call_at_r15
	cmpq	$435, (%r15)		# clone3
	jne	6f
	test	%rax, %rax
	jnz	6f
	mov	48(%r15), %r13
	jmp	1b
6:	mov	%rax, 56(%r15)
	lea	72(%r15), %rdx
	cmp	$-4096, %rax
	jbe	8f
	cmpq	$0, 64(%r15)
	je	1b
8:	mov	%rdx, %r15
	jmp	5b
7:	mov	$0x1002, %edi		# ARCH_SET_FS
	mov	96(%r13), %rsi
	mov	$158, %eax		# arch_prctl
	syscall
	mov	$0x1001, %edi		# ARCH_SET_GS
	mov	104(%r13), %rsi
	mov	$158, %eax
	syscall
	mov	32(%r13), %rbx
	mov	40(%r13), %rbp
	mov	48(%r13), %r12
	mov	64(%r13), %r14
	mov	72(%r13), %r15
	mov	80(%r13), %rsp
	mov	88(%r13), %rcx
	mov	112(%r13), %rax
	mov	56(%r13), %r13
	jmp	*%rcx
arch_obey_end:

/* arch_obey_at(code, slot, go): there is no way back. */
	.text
	.globl	arch_obey_at
arch_obey_at:
	mov	%rsi, %r13
	mov	%rdx, %r12
	jmp	*%rdi

	.section .note.GNU-stack, "", @progbits
