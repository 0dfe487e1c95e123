# A system call that a signal handler can end at any instant: if it has not begun, it does not; if it waits, it returns EINTR.
# int64_t arch_interruptible_call(const volatile int *cancelled, const struct arch_call *call)
	.text
	.globl arch_interruptible_call
	.type arch_interruptible_call, @function
arch_interruptible_call:
	mov %rdi, %rcx
	mov %rsi, %r11
	mov (%r11), %rax
	mov 8(%r11), %rdi
	mov 16(%r11), %rsi
	mov 24(%r11), %rdx
	mov 32(%r11), %r10
	mov 40(%r11), %r8
	mov 48(%r11), %r9
	.globl arch_interruptible_begin
arch_interruptible_begin:
	cmpl $0, (%rcx)
	jne arch_interruptible_out
	syscall
	.globl arch_interruptible_end
arch_interruptible_end:
	ret
	.globl arch_interruptible_out
arch_interruptible_out:
	mov $-513, %rax # -ERESTARTNOINTR
	ret
	.section .note.GNU-stack, "", @progbits
