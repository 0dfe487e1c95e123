/*
 * calldata: a system call with the data that its pointers lead to, as syscall.def describes them: out of the memory of a
 * thread that makes it, on the wire, in the memory of one that executes it, and all the way back. Pure.
 *
 * Data is flat: the pieces of an array of struct iovec are one; a struct msghdr is CALLDATA_MSG (four 32-bit numbers: length of the name,
 * of the control data, of the data; flags) and these three, 16-aligned each.
 */
#ifndef PMS_CALLDATA_H
#define PMS_CALLDATA_H

#include "buf.h"
#include "call.h"

struct calldata_arg {
	const char *type; /* of syscall.def; ends at a space */
	size_t type_len;
	bool is_data;     /* value is an offset into data */
	uint64_t value;
	size_t len;       /* of the data */
	size_t native;    /* where in data the struct with addresses is */
};

struct calldata {
	long nr;
	struct calldata_arg arg[6];
	unsigned nargs;  /* as the table has it */
	unsigned shown;  /* of a call as text: those that were given, or follow from them */
	struct buf data; /* what the pointers lead to; 16-aligned each */
	bool parts;      /* what it reads may come in several pieces */
	uint32_t rooms[2]; /* of a struct msghdr that is to be filled: for the name, and for control data */
};

enum {
	CALLDATA_MAX = 16 << 20,
	CALLDATA_PATH_MAX = 4096, /* of a string, with its NUL */
	CALLDATA_ADDRESS_MAX = 128,
	CALLDATA_CONTROL_MAX = 64 << 10,
	CALLDATA_MSG = 16
};

void calldata_fini(struct calldata *c);

/* Types of the arguments of call nr; values 0. Returns 0; -ENOSYS: no such call, -ENOTSUP: its arguments are not described. */
int calldata_init(struct calldata *c, long nr);
/* What the last argument of ioctl(2) and fcntl(2) is follows from the one before, which has its value. -ENOTSUP: not known. */
int calldata_resolve(struct calldata *c);
bool calldata_is(const struct calldata_arg *a, const char *type);
/* K of a type that ends in one. */
unsigned calldata_other(const struct calldata_arg *a);
/* Is it a pointer to something? To data that the call is given, and that it gives? */
bool calldata_pointer(const struct calldata_arg *a);
bool calldata_gives(const struct calldata_arg *a);
bool calldata_takes(const struct calldata_arg *a);
bool calldata_is_iov(const struct calldata_arg *a);
bool calldata_is_msg(const struct calldata_arg *a);

/* What is where behind CALLDATA_MSG. */
struct calldata_parts {
	uint32_t name, control, data, flags;
	size_t control_at, data_at, all;
};
struct calldata_parts calldata_parts(const unsigned char *head);
/* Bytes that the kernel may touch behind argument i, which is neither a string nor one of several pieces; or -EINVAL. */
int calldata_wanted(const struct calldata *c, unsigned i, uint64_t *len);
/* Is there as much data as the kernel will touch? Returns 0 or -EPROTO. */
int calldata_check(const struct calldata *c);
/* How much of what argument i has room for was given. */
size_t calldata_given(const struct calldata *c, unsigned i, int64_t result);

/* Room for data of argument i; NULL: zeroes, or (rK, iovrK) anything. -ENOMEM: memory, or more than CALLDATA_MAX. */
int calldata_put(struct calldata *c, unsigned i, const void *data, size_t len);

/* Memory of the thread that makes the call. Returns 0, or a negative errno. */
typedef int calldata_copy(void *ctx, taddr at, void *data, size_t len);

/*
 * Returns 0, or what the call is to return: -EFAULT, -ENAMETOOLONG, -EINVAL, -ENOMEM; -ENOSYS, -ENOTSUP as above. What reads or
 * writes more than CALLDATA_MAX is made to take less.
 */
int calldata_from_memory(struct calldata *c, const struct arch_call *call, calldata_copy *read, void *ctx);
int calldata_to_memory(const struct calldata *c, const struct arch_call *call, int64_t result, calldata_copy *read, calldata_copy *write,
    void *ctx);

/* Body of CALL behind the number of the thread, and of RESULT. */
void calldata_put_call(struct buf *out, const struct calldata *c);
/* tail: what is behind out, if there is much at the end: data of c. */
void calldata_put_result(struct buf *out, const struct calldata *c, int64_t result, const void **tail, size_t *tail_len);
/* From a peer: everything is checked, so that the kernel touches nothing beside the data. Returns 0, -EPROTO, -ENOSYS, -ENOTSUP, -ENOMEM. */
int calldata_get_call(struct calldata *c, const unsigned char *body, size_t len);
int calldata_get_result(struct calldata *c, const unsigned char *body, size_t len, int64_t *result);

/*
 * For the one that executes it. First room for structs with addresses is added behind the data, whose length is then what has to lie at
 * base; then the call is made, with these filled in. After the call, and with the data as it is then, done.
 */
int calldata_native_room(struct calldata *c);
struct arch_call calldata_native(struct calldata *c, taddr base);
void calldata_native_done(struct calldata *c);

#endif
