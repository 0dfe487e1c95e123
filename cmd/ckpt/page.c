/*
 * Pages of ours in the process, with code that threads of it are to execute. Should ckpt die meanwhile, the way back of the first thread leads through munmap(2).
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#include "ckpt.h"
#include "fault.h"
#include "io.h"
#include "log.h"

taddr
free_pages(const struct member *who, size_t npages)
{
	const struct proc_maps *maps = &who->target.maps;
	taddr at = 0x10000000;

	for (size_t i = 0; i < maps->n && at + (npages + 1) * PAGE_BYTES > maps->map[i].start; i++)
		if (maps->map[i].end > at)
			at = maps->map[i].end + PAGE_BYTES;
	return at;
}

/* A second frame, below the first: it leads to that call, whose `ret` leads to the first. */
static int
put_way_back(struct member *who, const struct arch_call *undo, taddr *sp)
{
	struct tracee *th = &who->target.threads[0];
	struct arch_regs regs = th->regs;
	unsigned char *frame;
	size_t n;
	int err;

	regs.rsp = th->frame_at;
	arch_set_call(&regs, who->target.gadget, undo);
	n = arch_sigframe(&regs, ALL_SIGNALS, th->xstate, th->xstate_len, who->target.restorer, th->frame_at, &frame, sp);
	if (n == 0)
		return -ENOMEM;
	err = mem_write(th->mem, *sp, frame, n);
	free(frame);
	return err < 0 ? fail(-err, "pid %d: write below its stack: %s", th->tid, strerror(-err)) : 0;
}

int
call_undone(struct member *who, const struct arch_call *call, const struct arch_call *undo, int64_t *result, taddr *sp)
{
	struct tracee *th = &who->target.threads[0];
	struct arch_regs regs = th->regs;
	int err = put_way_back(who, undo, sp);

	regs.rsp = *sp;
	return err < 0 ? err : tracee_call_at(th, &regs, who->target.gadget, call, result);
}

int
unmap_pages(struct tracee *th, taddr at, size_t npages)
{
	struct arch_call unmap = {SYS_munmap, {at, npages * PAGE_BYTES}};
	int64_t result;

	return tracee_call(th, &unmap, &result);
}

void
take_page_back(struct member *who)
{
	if (who->page.at != 0 && !who->target.threads[0].dead)
		unmap_pages(&who->target.threads[0], who->page.at, who->page.n);
	who->page.at = 0;
}

int
lend_pages(struct member *who, size_t npages, const unsigned char *code, size_t len)
{
	struct tracee *th = &who->target.threads[0];
	taddr at = free_pages(who, npages), sp = 0;
	struct arch_call map = {SYS_mmap, {at, npages * PAGE_BYTES, PROT_READ | PROT_EXEC,
	    MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, (uint64_t)-1, 0}};
	struct arch_call unmap = {SYS_munmap, {at, npages * PAGE_BYTES}};
	int64_t result = 0;
	int err = call_undone(who, &map, &unmap, &result, &sp);

	if (err == 0 && result != (int64_t)at)
		err = fail(ENOMEM, "pid %d: no page can be mapped in it: %s", th->tid, strerror((int)-result));
	if (err < 0)
		return err;
	who->page = (struct lent_page){at, npages, sp};
	fault(FAULT_page_lent);
	for (size_t i = 0; i < npages && err == 0; i++)
		err = mem_write(who->target.mem, at + i * PAGE_BYTES, code, len);
	if (err < 0) {
		take_page_back(who);
		return fail(-err, "pid %d: write to a page of ours in it: %s", th->pid, strerror(-err));
	}
	return 0;
}
