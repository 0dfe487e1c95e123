/*
 * What each struct of the model looks like in an image: pms-image(5) in tables.
 */
#include "handover.h"
#include "model.h"
#include "page_plan.h"
#include "record.h"

#define AT(st, m) offsetof(struct st, m)
#define INT(st, m) {#m, FIELD_INT, AT(st, m), 0, NULL, false}
#define UINT(st, m) {#m, FIELD_UINT, AT(st, m), 0, NULL, false}
#define OPT_UINT(st, m) {#m, FIELD_UINT, AT(st, m), 0, NULL, true} /* absent when 0 */
#define HEX(st, m) {#m, FIELD_HEX, AT(st, m), 0, NULL, false}
#define BOOL(st, m) {#m, FIELD_BOOL, AT(st, m), 0, NULL, true}
#define STR(st, m) {#m, FIELD_STR, AT(st, m), 0, NULL, true}
#define BYTES(st, m) {#m, FIELD_BYTES, AT(st, m), 0, NULL, true}
#define REC(st, m, table) {#m, FIELD_REC, AT(st, m), 0, &(table), false}
#define LIST(st, m, table) {#m, FIELD_LIST, AT(st, m), AT(st, n##m), &(table), true}
#define STRS(st, m) {#m, FIELD_STRS, AT(st, m), AT(st, n##m), NULL, true}
#define INTS(st, m) {#m, FIELD_INTS, AT(st, m), AT(st, n##m), NULL, true}
#define INT4(st, m) {#m, FIELD_INT4, AT(st, m), 0, NULL, false}

#define RECORD(name, st, fields)                                                               \
	const struct record record_##name = {#name, sizeof(struct st), fields, ARRAY_LEN(fields)}

static const struct field regs_fields[] = {
#define R(name) HEX(arch_regs, name),
    ARCH_REGS(R)
#undef R
};
static RECORD(regs, arch_regs, regs_fields);

static const struct field cpu_fields[] = {
    STRS(cpu_id, flags), HEX(cpu_id, xcr0), UINT(cpu_id, xsave_size),
};
static RECORD(cpu, cpu_id, cpu_fields);

static const struct field header_fields[] = {
    UINT(image_header, version), STR(image_header, arch), STRS(image_header, features),
    STR(image_header, id), STR(image_header, host), STR(image_header, kernel),
    STR(image_header, boot_id), STR(image_header, program), UINT(image_header, page_bytes),
    INT(image_header, pid), INT(image_header, host_pid), UINT(image_header, realtime_ns),
    UINT(image_header, monotonic_ns), UINT(image_header, boottime_ns),
    INTS(image_header, tasks), REC(image_header, cpu, record_cpu), STR(image_header, home),
    STR(image_header, pages), BOOL(image_header, rounds), STR(image_header, parent),
};
RECORD(header, image_header, header_fields);

static const struct field file_fields[] = {
    STR(file_ref, path), UINT(file_ref, size), UINT(file_ref, mode), INT(file_ref, mtime_ns),
    STR(file_ref, build_id), STR(file_ref, hash), STR(file_ref, sample),
    STR(file_ref, member), BOOL(file_ref, gone), BOOL(file_ref, partial), HEX(file_ref, seals),
};
static RECORD(file, file_ref, file_fields);

static const struct field shm_fields[] = {
    UINT(shm_ref, size), BOOL(shm_ref, sysv), INT(shm_ref, id), INT(shm_ref, key), INT(shm_ref, mode),
    INT(shm_ref, uid), INT(shm_ref, gid), BOOL(shm_ref, removed),
    OPT_UINT(shm_ref, huge),
};
static RECORD(shm, shm_ref, shm_fields);

static const struct field ofd_fields[] = {
    INT(ofd, kind), INT(ofd, ref), UINT(ofd, flags), INT(ofd, pos), UINT(ofd, rdev),
    STR(ofd, path), BYTES(ofd, termios), UINT(ofd, rows), UINT(ofd, cols), INT(ofd, policy), INT(ofd, owner),
    INT(ofd, owner_type), INT(ofd, sig),
};
static RECORD(ofd, ofd, ofd_fields);

static const struct field pipe_fields[] = {
    UINT(pipe_ref, id), STR(pipe_ref, path), UINT(pipe_ref, size), BYTES(pipe_ref, data),
};
static RECORD(pipe, pipe_ref, pipe_fields);

static const struct field eventfd_fields[] = {HEX(eventfd_ref, count), BOOL(eventfd_ref, semaphore)};
static RECORD(eventfd, eventfd_ref, eventfd_fields);

static const struct field timerfd_fields[] = {
    INT(timerfd_ref, clock), INT(timerfd_ref, flags), UINT(timerfd_ref, ticks), INT(timerfd_ref, value_ns),
    INT(timerfd_ref, interval_ns),
};
static RECORD(timerfd, timerfd_ref, timerfd_fields);

static const struct field signalfd_fields[] = {HEX(signalfd_ref, mask)};
static RECORD(signalfd, signalfd_ref, signalfd_fields);

static const struct field item_fields[] = {
    INT(epoll_item, fd), INT(epoll_item, ofd), HEX(epoll_item, events), HEX(epoll_item, data),
};
static RECORD(item, epoll_item, item_fields);

static const struct field epoll_fields[] = {LIST(epoll_ref, items, record_item)};
static RECORD(epoll, epoll_ref, epoll_fields);

static const struct field watch_fields[] = {
    INT(inotify_watch, wd), HEX(inotify_watch, mask), STR(inotify_watch, path),
};
static RECORD(watch, inotify_watch, watch_fields);

static const struct field inotify_fields[] = {LIST(inotify_ref, watches, record_watch)};
static RECORD(inotify, inotify_ref, inotify_fields);

static const struct field pidfd_fields[] = {INT(pidfd_ref, pid)};
static RECORD(pidfd, pidfd_ref, pidfd_fields);

static const struct field packet_fields[] = {BYTES(packet, data), INTS(packet, ofds)};
static RECORD(packet, packet, packet_fields);

static const struct field option_fields[] = {
    INT(socket_option, level), INT(socket_option, name), BYTES(socket_option, value),
};
static RECORD(option, socket_option, option_fields);

static const struct field pty_fields[] = {
    INT(pty_ref, number), BYTES(pty_ref, termios), UINT(pty_ref, rows), UINT(pty_ref, cols),
    BOOL(pty_ref, locked), BOOL(pty_ref, packet), BOOL(pty_ref, exclusive), BYTES(pty_ref, output),
    BYTES(pty_ref, input),
};
static RECORD(pty, pty_ref, pty_fields);

static const struct field socket_fields[] = {
    UINT(socket_ref, id), INT(socket_ref, family), INT(socket_ref, type), INT(socket_ref, protocol),
    INT(socket_ref, state), BYTES(socket_ref, local), BYTES(socket_ref, remote), INT(socket_ref, peer),
    BOOL(socket_ref, accepted), BOOL(socket_ref, waiting), UINT(socket_ref, mode), STR(socket_ref, dir), INT(socket_ref, backlog), UINT(socket_ref, shutdown),
    LIST(socket_ref, queue, record_packet), LIST(socket_ref, options, record_option),
};
static RECORD(socket, socket_ref, socket_fields);

static const struct field tcp_fields[] = {
    INT(tcp_ref, socket), BOOL(tcp_ref, closed), UINT(tcp_ref, send_seq), UINT(tcp_ref, recv_seq), UINT(tcp_ref, mss),
    UINT(tcp_ref, timestamp), INT(tcp_ref, snd_wscale), INT(tcp_ref, rcv_wscale), BOOL(tcp_ref, sack),
    BOOL(tcp_ref, timestamps), BOOL(tcp_ref, sent_fin), BOOL(tcp_ref, got_fin), UINT(tcp_ref, snd_wl1),
    UINT(tcp_ref, snd_wnd), UINT(tcp_ref, max_window), UINT(tcp_ref, rcv_wnd), UINT(tcp_ref, rcv_wup),
    LIST(tcp_ref, out, record_packet), UINT(tcp_ref, unsent),
};
static RECORD(tcp, tcp_ref, tcp_fields);

static const struct field uring_fields[] = {
    UINT(uring_ref, sq_entries), UINT(uring_ref, cq_entries), UINT(uring_ref, sq_head), UINT(uring_ref, sq_tail),
    UINT(uring_ref, cq_head), UINT(uring_ref, cq_tail), UINT(uring_ref, array_at), UINT(uring_ref, cqes_at), BOOL(uring_ref, no_array),
    BYTES(uring_ref, array), BYTES(uring_ref, cqes), BYTES(uring_ref, sqes),
};
static RECORD(uring, uring_ref, uring_fields);

static const struct field filter_fields[] = {BYTES(filter_ref, code), HEX(filter_ref, flags)};
static RECORD(filter, filter_ref, filter_fields);

static const struct field sem_fields[] = {
    INT(sem_ref, id), INT(sem_ref, key), INT(sem_ref, mode), INT(sem_ref, uid), INT(sem_ref, gid),
    INTS(sem_ref, values),
};
static RECORD(sem, sem_ref, sem_fields);

static const struct field message_fields[] = {INT(sysv_message, type), BYTES(sysv_message, data)};
static RECORD(message, sysv_message, message_fields);

static const struct field msgq_fields[] = {
    INT(msgq_ref, id), INT(msgq_ref, key), INT(msgq_ref, mode), INT(msgq_ref, uid), INT(msgq_ref, gid),
    UINT(msgq_ref, limit), LIST(msgq_ref, messages, record_message),
};
static RECORD(msgq, msgq_ref, msgq_fields);

static const struct field objects_fields[] = {
    LIST(objects, files, record_file), LIST(objects, shms, record_shm),
    LIST(objects, ofds, record_ofd), LIST(objects, pipes, record_pipe),
    LIST(objects, eventfds, record_eventfd), LIST(objects, timerfds, record_timerfd),
    LIST(objects, signalfds, record_signalfd), LIST(objects, epolls, record_epoll),
    LIST(objects, inotifies, record_inotify), LIST(objects, pidfds, record_pidfd),
    LIST(objects, sockets, record_socket), LIST(objects, ptys, record_pty),
    LIST(objects, urings, record_uring), LIST(objects, tcps, record_tcp), LIST(objects, filters, record_filter), LIST(objects, sems, record_sem), LIST(objects, msgqs, record_msgq),
};
RECORD(objects, objects, objects_fields);

static const struct field vma_fields[] = {
    HEX(vma, start), HEX(vma, end), INT(vma, prot), BOOL(vma, shared), INT(vma, kind),
    INT(vma, ref), HEX(vma, offset), OPT_UINT(vma, huge), STR(vma, flags), STR(vma, name),
};
static RECORD(vma, vma, vma_fields);

static const struct field fd_fields[] = {
    INT(fd_slot, fd), INT(fd_slot, ofd), BOOL(fd_slot, cloexec),
};
static RECORD(fd, fd_slot, fd_fields);

static const struct field lock_fields[] = {
    INT(file_lock, fd), INT(file_lock, kind), BOOL(file_lock, write), INT(file_lock, start),
    INT(file_lock, end),
};
static RECORD(lock, file_lock, lock_fields);

static const struct field range_fields[] = {HEX(page_range, start), HEX(page_range, end)};
static RECORD(range, page_range, range_fields);

static const struct field action_fields[] = {
    INT(sig_action, sig), HEX(sig_action, handler), HEX(sig_action, restorer),
    HEX(sig_action, flags), HEX(sig_action, mask),
};
static RECORD(action, sig_action, action_fields);

static const struct field itimer_fields[] = {
    INT(itimer, which), INT(itimer, value_us), INT(itimer, interval_us),
};
static RECORD(itimer, itimer, itimer_fields);

static const struct field timer_fields[] = {
    INT(posix_timer, id), INT(posix_timer, clock), INT(posix_timer, notify),
    INT(posix_timer, sig), INT(posix_timer, tid), HEX(posix_timer, sigval),
    INT(posix_timer, value_ns), INT(posix_timer, interval_ns), INT(posix_timer, overrun),
};
static RECORD(timer, posix_timer, timer_fields);

static const struct field rlimit_fields[] = {HEX(rlimit_pair, soft), HEX(rlimit_pair, hard)};
static RECORD(rlimit, rlimit_pair, rlimit_fields);

static const struct field creds_fields[] = {
    INT4(creds, uid), INT4(creds, gid), INTS(creds, groups), HEX(creds, cap_inh),
    HEX(creds, cap_prm), HEX(creds, cap_eff), HEX(creds, cap_bnd), HEX(creds, cap_amb),
};
static RECORD(creds, creds, creds_fields);

static const struct field prctl_fields[] = {STR(prctl_value, name), INT(prctl_value, value)};
static RECORD(prctl, prctl_value, prctl_fields);

static const struct field sched_fields[] = {
    INT(sched, policy), INT(sched, nice), INT(sched, priority), UINT(sched, flags),
    UINT(sched, runtime), UINT(sched, deadline), UINT(sched, period), INT(sched, ioprio),
    BYTES(sched, affinity),
};
static RECORD(sched, sched, sched_fields);

static const struct field thread_fields[] = {
    INT(thread, tid), STR(thread, comm), REC(thread, regs, record_regs), BYTES(thread, xstate),
    HEX(thread, sigmask), BOOL(thread, no_new_privs), BOOL(thread, strict), INTS(thread, filters), HEX(thread, altstack_sp), HEX(thread, altstack_flags),
    UINT(thread, altstack_size), HEX(thread, tid_address), HEX(thread, robust_head),
    UINT(thread, robust_len), HEX(thread, rseq), UINT(thread, rseq_size),
    HEX(thread, rseq_sig), BYTES(thread, pending), REC(thread, sched, record_sched),
    LIST(thread, prctls, record_prctl),
};
static RECORD(thread, thread, thread_fields);

static const struct field mm_fields[] = {
    HEX(mm_layout, start_code), HEX(mm_layout, end_code), HEX(mm_layout, start_data),
    HEX(mm_layout, end_data), HEX(mm_layout, start_brk), HEX(mm_layout, brk),
    HEX(mm_layout, start_stack), HEX(mm_layout, arg_start), HEX(mm_layout, arg_end),
    HEX(mm_layout, env_start), HEX(mm_layout, env_end), BYTES(mm_layout, auxv),
    HEX(mm_layout, vdso), UINT(mm_layout, vdso_size), HEX(mm_layout, vvar),
    STR(mm_layout, vdso_hash), STR(mm_layout, vdso_member), BOOL(mm_layout, in_vdso),
};
static RECORD(mm, mm_layout, mm_fields);

static const struct field aio_fields[] = {UINT(aio_ref, nr), UINT(aio_ref, head), UINT(aio_ref, tail), BYTES(aio_ref, events)};
static RECORD(aio, aio_ref, aio_fields);

static const struct field task_fields[] = {
    INT(task, pid), INT(task, pgid), INT(task, sid), INT(task, ppid), INT(task, exit_signal),
    BOOL(task, zombie), INT(task, status), BOOL(task, forked), BOOL(task, shares_files),
    BOOL(task, shares_fs), BOOL(task, session_leader),
    BOOL(task, group_leader), INT(task, tty), INT(task, foreground), STR(task, comm),
    STR(task, cwd), INT(task, exe), INT(task, umask), INT(task, stop_signal),
    INT(task, oom_score_adj), HEX(task, personality), HEX(task, coredump_filter),
    HEX(task, membarrier), OPT_UINT(task, note), UINT(task, cpu_ns), REC(task, creds, record_creds),
    LIST(task, rlimits, record_rlimit), REC(task, mm, record_mm),
    LIST(task, actions, record_action), LIST(task, itimers, record_itimer),
    LIST(task, timers, record_timer), BYTES(task, pending),
    LIST(task, prctls, record_prctl), LIST(task, vmas, record_vma), LIST(task, aios, record_aio),
    LIST(task, fds, record_fd), LIST(task, locks, record_lock),
    LIST(task, guards, record_range), LIST(task, inherits, record_range), LIST(task, lazy, record_range), LIST(task, earlier, record_range),
    LIST(task, threads, record_thread),
};
RECORD(task, task, task_fields);

static const struct field end_fields[] = {
    UINT(image_end, members), UINT(image_end, pages), STR(image_end, digest), OPT_UINT(image_end, index),
};
RECORD(end, image_end, end_fields);

static const struct field handover_thread_fields[] = {INT(handover_thread, tid), INT(handover_thread, number)};
static RECORD(handover_thread, handover_thread, handover_thread_fields);

static const struct field handover_fd_fields[] = {INT(handover_fd, fd), BOOL(handover_fd, epoll)};
static RECORD(handover_fd, handover_fd, handover_fd_fields);

static const struct field handover_process_fields[] = {
    INT(handover_process, pid), STR(handover_process, program), LIST(handover_process, threads, record_handover_thread),
    LIST(handover_process, fds, record_handover_fd), INT(handover_process, listener), INTS(handover_process, pending),
};
static RECORD(handover_process, handover_process, handover_process_fields);

static const struct field handover_fields[] = {
    STR(handover, id), STR(handover, address), STR(handover, key), INT(handover, listen), INT(handover, in), INT(handover, out), INT(handover, image),
    INT(handover, report), BOOL(handover, detached), LIST(handover, processes, record_handover_process),
};
RECORD(handover, handover, handover_fields);

static const struct field part_fields[] = {HEX(page_part, start), HEX(page_part, end), INT(page_part, task)};
static RECORD(part, page_part, part_fields);

static const struct field page_task_fields[] = {
    INT(page_task, pid), INT(page_task, number), INT(page_task, memory), INT(page_task, pagemap), LIST(page_task, parts, record_part),
};
static RECORD(page_task, page_task, page_task_fields);

static const struct field page_plan_fields[] = {
    STR(page_plan, id), STR(page_plan, address), STR(page_plan, key), STR(page_plan, image), INT(page_plan, listen), INT(page_plan, in),
    INT(page_plan, out), INT(page_plan, control), INT(page_plan, retry), BOOL(page_plan, eager), BOOL(page_plan, demand_only), LIST(page_plan, tasks, record_page_task),
};
RECORD(page_plan, page_plan, page_plan_fields);
