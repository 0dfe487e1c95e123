/*
 * model: what a process is, as plain data. Filled by ckpt from a stopped process and by
 * the record codec from an image; read by restart. Knows no system calls and no file format.
 *
 * PIDs, user IDs and paths are those that the program itself sees. Strings and lists are
 * owned by the struct that holds them; record_free() of the right table releases them.
 */
#ifndef PMS_MODEL_H
#define PMS_MODEL_H

#include "arch.h"
#include "base.h"

struct bytes {
	unsigned char *p;
	size_t n;
};

/* A set of CPU features by the names of /proc/cpuinfo, and the layout of saved registers. */
struct cpu_id {
	char **flags;
	size_t nflags;
	uint64_t xcr0;       /* enabled state components */
	uint64_t xsave_size; /* bytes of an XSAVE area of these, standard format */
};

struct image_header {
	uint64_t version;
	char *arch;
	char **features; /* every one must be known to the reader */
	size_t nfeatures;
	char *id;        /* 32 hex digits, unique */
	char *host, *kernel, *boot_id, *program;
	uint64_t page_bytes;
	int64_t pid;             /* of the first task, as the program sees it */
	int64_t host_pid;        /* the same as ckpt saw it, for messages */
	uint64_t realtime_ns;    /* when the task was stopped */
	uint64_t monotonic_ns;   /* the task's CLOCK_MONOTONIC then */
	uint64_t boottime_ns;    /* the task's CLOCK_BOOTTIME then */
	int64_t *tasks;          /* PIDs, parents before their children */
	size_t ntasks;
	struct cpu_id cpu;
	char *home;              /* where its files have stayed and its calls are executed: addr.h; NULL: nowhere */
	char *pages;             /* where the pages of task.lazy are: addr.h; NULL: there are none such */
	bool rounds;             /* memory that is sent while it is in use follows, and then a header once more */
	char *parent;            /* id of the image that has the pages of task.earlier; NULL: they came in rounds */
};

/* A file that is mapped, executed or open: how to find the same one again. */
struct file_ref {
	char *path;
	uint64_t size, mode;
	int64_t mtime_ns;
	char *build_id; /* hex, NULL where the file has none */
	char *hash;     /* XXH3-128 of the content, hex; NULL where a build-id says enough */
	char *sample;   /* the same of the first and last 64 KiB, for open files */
	char *member;   /* content in the image, NULL where it is not embedded */
	bool gone;      /* not at its path when the image was made: use the embedded content */
	uint64_t seals; /* F_SEAL_* of a memfd, and SEALABLE */
	bool partial;   /* the member holds the mapped parts alone */
};

enum vma_kind { VMA_ANON, VMA_FILE, VMA_SHM, VMA_AIO, VMA_URING };

struct vma {
	taddr start, end;
	int64_t prot; /* PROT_* */
	bool shared;
	int64_t kind;  /* enum vma_kind */
	int64_t ref;   /* index of a file (VMA_FILE), of a shm object (VMA_SHM), of the task's aios
			* (VMA_AIO), of an ofd (VMA_URING), else -1 */
	uint64_t offset;
	uint64_t huge; /* bytes of its pages, where these are of hugetlbfs, else 0 */
	char *flags;   /* VmFlags of smaps, two letters each: "rd wr mr mw me ac sd" */
	char *name;    /* PR_SET_VMA_ANON_NAME, or NULL */
};

/* Shared anonymous memory, or a segment of System V. */
struct shm_ref {
	uint64_t size;
	bool sysv;
	int64_t id, key, mode; /* of a segment */
	int64_t uid, gid;
	bool removed; /* it goes with the last that has it attached */
	uint64_t huge; /* as in struct vma */
};

/* A program that decides on system calls: struct sock_filter of linux/filter.h. */
struct filter_ref {
	struct bytes code;
	uint64_t flags; /* SECCOMP_FILTER_FLAG_* */
};

/* A set of semaphores of System V. */
struct sem_ref {
	int64_t id, key, mode, uid, gid;
	int64_t *values;
	size_t nvalues;
};

struct sysv_message {
	int64_t type;
	struct bytes data;
};

/* A message queue of System V. */
struct msgq_ref {
	int64_t id, key, mode, uid, gid;
	uint64_t limit; /* msg_qbytes */
	struct sysv_message *messages; /* oldest first */
	size_t nmessages;
};

/* What becomes of something whose other end is outside. */
enum external_policy { EXTERNAL_INHERIT, EXTERNAL_DROP, EXTERNAL_REOPEN };

/* An open file description; several fds may refer to one. */
struct ofd {
	int64_t kind;  /* a row of kind.def */
	int64_t ref;   /* into the list of its kind; -1 where there is none */
	uint64_t flags; /* O_* as fdinfo shows them, without O_CLOEXEC */
	int64_t pos;
	uint64_t rdev;
	char *path;     /* of a device or an external object: "pipe:[1234]", "/dev/pts/3" */
	struct bytes termios; /* struct termios2, as the kernel gives it */
	uint64_t rows, cols;
	int64_t policy; /* of an external object: enum external_policy */
	int64_t owner, owner_type, sig; /* F_SETOWN_EX, F_SETSIG */
};

struct fd_slot {
	int64_t fd;
	int64_t ofd; /* index */
	bool cloexec;
};

enum lock_kind { LOCK_POSIX, LOCK_FLOCK, LOCK_OFD, LOCK_LEASE };

/* A lock on an open file. */
struct file_lock {
	int64_t fd;
	int64_t kind; /* enum lock_kind */
	bool write;
	int64_t start, end; /* inclusive; end -1: to the end of the file */
};

struct sig_action {
	int64_t sig;
	taddr handler, restorer;
	uint64_t flags, mask;
};

struct itimer {
	int64_t which;
	int64_t value_us, interval_us;
};

struct posix_timer {
	int64_t id, clock, notify, sig;
	int64_t tid;      /* SIGEV_THREAD_ID */
	uint64_t sigval;
	int64_t value_ns, interval_ns, overrun;
};

struct rlimit_pair {
	uint64_t soft, hard;
};

struct creds {
	int64_t uid[4], gid[4]; /* real, effective, saved, file system */
	int64_t *groups;
	size_t ngroups;
	uint64_t cap_inh, cap_prm, cap_eff, cap_bnd, cap_amb;
};

/* One value that prctl(2) can tell and set; see prctl.def. */
struct prctl_value {
	char *name;
	int64_t value;
};

struct sched {
	int64_t policy, nice, priority;
	uint64_t flags, runtime, deadline, period;
	int64_t ioprio;
	struct bytes affinity; /* empty: every CPU of its host */
};

struct page_range {
	taddr start, end;
};

struct thread {
	int64_t tid;
	char *comm;
	struct arch_regs regs;
	struct bytes xstate;
	uint64_t sigmask;
	bool no_new_privs; /* each thread has its own */
	bool strict;       /* seccomp(2): only read, write, exit and sigreturn */
	int64_t *filters;  /* of seccomp(2): indices, oldest first */
	size_t nfilters;
	taddr altstack_sp;
	uint64_t altstack_flags, altstack_size;
	taddr tid_address, robust_head;
	uint64_t robust_len;
	taddr rseq;
	uint64_t rseq_size, rseq_sig;
	struct bytes pending; /* siginfo_t, 128 bytes each, oldest first */
	struct sched sched;
	struct prctl_value *prctls;
	size_t nprctls;
};

/* The fields of struct prctl_mm_map, and the registers of the address space. */
struct mm_layout {
	taddr start_code, end_code, start_data, end_data, start_brk, brk, start_stack;
	taddr arg_start, arg_end, env_start, env_end;
	struct bytes auxv;
	taddr vdso;        /* 0: none */
	uint64_t vdso_size;
	taddr vvar;        /* lowest of the areas that belong to the vDSO */
	char *vdso_hash;   /* of its code pages */
	char *vdso_member; /* these pages in the image */
	bool in_vdso;      /* a thread stands inside it: only the very same vDSO will do */
};

/* A ring of asynchronous I/O, idle: aio.h. */
struct aio_ref {
	uint64_t nr, head, tail;
	struct bytes events; /* not yet fetched: struct io_event, oldest first */
};

struct task {
	int64_t pid, pgid, sid;
	int64_t ppid;        /* a task of the image; 0 for the first */
	int64_t exit_signal; /* what its parent gets when it ends, mostly SIGCHLD */
	bool zombie;         /* it has ended, and its parent has not waited for it: only these matter: */
	int64_t status;      /* as waitpid(2) gives it */
	bool forked;         /* it is a copy of its parent: pages of `inherits` are shared */
	bool shares_files;   /* its table of open files is its parent's: it has no list of its own */
	bool shares_fs;      /* its working directory and umask are its parent's */
	bool session_leader, group_leader;
	int64_t tty;        /* of a session leader: controlling terminal, in ptys; -1: none, or outside */
	int64_t foreground; /* of a session leader: process group in the foreground there, or 0 */
	char *comm, *cwd;
	int64_t exe; /* file */
	int64_t umask, stop_signal, oom_score_adj;
	uint64_t personality, coredump_filter, membarrier;
	uint64_t note;   /* it was asked for itself (coop.h): address of its struct coop_note; or 0 */
	uint64_t cpu_ns; /* CPU time used so far */
	struct creds creds;
	struct rlimit_pair *rlimits;
	size_t nrlimits;
	struct mm_layout mm;
	struct sig_action *actions;
	size_t nactions;
	struct itimer *itimers;
	size_t nitimers;
	struct posix_timer *timers;
	size_t ntimers;
	struct bytes pending; /* of the process */
	struct prctl_value *prctls;
	size_t nprctls;
	struct vma *vmas;
	size_t nvmas;
	struct aio_ref *aios;
	size_t naios;
	struct fd_slot *fds;
	size_t nfds;
	struct file_lock *locks;
	size_t nlocks;
	struct page_range *guards; /* MADV_GUARD_INSTALL */
	size_t nguards;
	struct page_range *earlier; /* pages that came before: in rounds, or in the image header.parent */
	size_t nearlier;
	struct page_range *inherits; /* pages that are those of the parent at the same place */
	size_t ninherits;
	struct page_range *lazy;     /* memory that is not in the image, but at header.pages */
	size_t nlazy;
	struct thread *threads;
	size_t nthreads;
};

#define SEALABLE (1ULL << 32) /* file_ref.seals: of a memfd to which seals can be added */

/* A pipe with both ends inside, or a FIFO. */
struct pipe_ref {
	uint64_t id; /* its inode, where it was */
	char *path;  /* of a FIFO, else NULL */
	uint64_t size;
	struct bytes data; /* in it, unread */
};

struct eventfd_ref {
	uint64_t count;
	bool semaphore;
};

struct timerfd_ref {
	int64_t clock, flags; /* TFD_TIMER_* of timerfd_settime(2) */
	uint64_t ticks;       /* expirations that have not been read */
	int64_t value_ns, interval_ns;
};

struct signalfd_ref {
	uint64_t mask; /* what it takes */
};

struct epoll_item {
	int64_t fd;  /* the number by which it was added */
	int64_t ofd; /* index */
	uint64_t events, data;
};

struct epoll_ref {
	struct epoll_item *items;
	size_t nitems;
};

struct inotify_watch {
	int64_t wd;
	uint64_t mask;
	char *path;
};

struct inotify_ref {
	struct inotify_watch *watches;
	size_t nwatches;
};

struct pidfd_ref {
	int64_t pid;   /* 0: of a process that is no more */
};

/* A pseudoterminal with its master inside. */
struct pty_ref {
	int64_t number; /* of /dev/pts/N */
	struct bytes termios; /* struct termios2, as the kernel gives it */
	uint64_t rows, cols;
	bool locked, packet, exclusive;
	struct bytes output, input; /* written by the slave, to it; not yet read */
};

/* A message in the queue of a socket; of a stream, all of it up to one with fds. */
struct packet {
	struct bytes data;
	int64_t *ofds; /* SCM_RIGHTS: indices */
	size_t nofds;
};

struct socket_option {
	int64_t level, name;
	struct bytes value;
};

/* An io_uring; words are those of its memory (io_uring_setup(2)). */
struct uring_ref {
	uint64_t sq_entries, cq_entries;
	uint64_t sq_head, sq_tail, cq_head, cq_tail;
	uint64_t array_at, cqes_at; /* offsets in its memory */
	bool no_array;  /* requests are taken in order */
	struct bytes array, cqes, sqes;
};

/* A TCP connection to somebody outside, as TCP_REPAIR tells it: tcp(7), linux/tcp.h. */
struct tcp_ref {
	int64_t socket;      /* its addresses, options, and what it has received */
	bool closed;         /* only the socket is carried: the connection has been reset */
	uint64_t send_seq, recv_seq; /* of what is next to be acknowledged, to be read */
	uint64_t mss, timestamp;
	int64_t snd_wscale, rcv_wscale; /* -1: windows are not scaled */
	bool sack, timestamps;
	bool sent_fin, got_fin;
	uint64_t snd_wl1, snd_wnd, max_window, rcv_wnd, rcv_wup;
	struct packet *out;  /* not yet acknowledged */
	size_t nout;
	uint64_t unsent;     /* bytes at its end */
};

enum socket_state { SOCKET_OPEN, SOCKET_LISTENING, SOCKET_CONNECTED };

struct socket_ref {
	uint64_t id; /* its inode, where it was */
	int64_t family, type, protocol;
	int64_t state;      /* enum socket_state */
	struct bytes local; /* struct sockaddr, empty: not bound */
	struct bytes remote;
	int64_t peer;       /* socket of the image that it is connected to, or -1 */
	bool accepted;      /* it was the other one that called connect(2) */
	bool waiting;       /* nobody has accepted it yet */
	uint64_t mode;      /* of the file that it is bound to; 0: it has been removed */
	char *dir;          /* where its path begins, if that is relative */
	int64_t backlog;
	uint64_t shutdown;  /* 1: reads, 2: writes */
	struct packet *queue; /* not yet read */
	size_t nqueue;
	struct socket_option *options;
	size_t noptions;
};

/* What tasks share. */
struct objects {
	struct file_ref *files;
	size_t nfiles;
	struct shm_ref *shms;
	size_t nshms;
	struct ofd *ofds;
	size_t nofds;
	struct pipe_ref *pipes;
	size_t npipes;
	struct eventfd_ref *eventfds;
	size_t neventfds;
	struct timerfd_ref *timerfds;
	size_t ntimerfds;
	struct signalfd_ref *signalfds;
	size_t nsignalfds;
	struct epoll_ref *epolls;
	size_t nepolls;
	struct inotify_ref *inotifies;
	size_t ninotifies;
	struct pidfd_ref *pidfds;
	size_t npidfds;
	struct socket_ref *sockets;
	size_t nsockets;
	struct pty_ref *ptys;
	size_t nptys;
	struct uring_ref *urings;
	size_t nurings;
	struct tcp_ref *tcps;
	size_t ntcps;
	struct filter_ref *filters;
	size_t nfilters;
	struct sem_ref *sems;
	size_t nsems;
	struct msgq_ref *msgqs;
	size_t nmsgqs;
};

struct image_end {
	uint64_t members;  /* in front of this one */
	uint64_t pages;
	char *digest;      /* XXH3-128 of everything in front of this member, hex */
	uint64_t index;    /* number of the frame with which the member pages.index begins; 0: it has none */
};

struct model {
	struct image_header header;
	struct task *tasks; /* as many as header.ntasks; zeroed until they are read */
	struct objects objects;
};

#define SIGINFO_BYTES 128

#endif
