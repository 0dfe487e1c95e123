/* What a peer sends: headers in any state, calls that are to be executed, results of calls. */
#include "fuzz.h"
#include "calldata.h"
#include "msg.h"

static void
headers(const unsigned char *data, size_t len)
{
	for (enum msg_side side = SIDE_CKPT; side <= SIDE_HOME; side++) {
		enum msg_state state = STATE_START;
		struct msg_header h;

		for (size_t at = 0; at + MSG_HEADER <= len; at += MSG_HEADER)
			if (msg_get_header(&h, data + at) == 0 && msg_step(&state, side, &h) == 0 && h.length > 17 << 20)
				abort(); /* more than any message may have */
	}
}

/* Every byte that the kernel would be given for it must be there. */
static void
touch(const struct calldata *c)
{
	static volatile unsigned char sum;

	for (unsigned i = 0; i < c->nargs; i++)
		for (size_t k = 0; c->arg[i].is_data && k < c->arg[i].len; k++)
			sum ^= c->data.data[c->arg[i].value + k];
}

static void
fuzz_one(const unsigned char *data, size_t len)
{
	struct calldata c;
	struct buf out = {0};
	const void *tail;
	size_t tail_len;
	int64_t result;

	headers(data, len);
	if (len > 2 && calldata_get_call(&c, data + 2, len - 2) == 0 && calldata_native_room(&c) == 0) {
		struct calldata again;

		calldata_native(&c, (taddr)(uintptr_t)c.data.data);
		touch(&c);
		for (size_t i = 0; i < c.data.len && data[0] % 2 == 1; i++) /* what a kernel may leave there */
			c.data.data[i] ^= data[1];
		calldata_native_done(&c);
		calldata_put_call(&out, &c);
		if (calldata_get_call(&again, out.data, out.len) == 0)
			touch(&again);
		calldata_fini(&again);
		out.len = 0;
		calldata_put_result(&out, &c, (data[0] & 2) != 0 ? 0 : -22, &tail, &tail_len);
		buf_put(&out, tail, tail_len);
		if (data[0] % 2 == 0 && calldata_get_result(&c, out.data, out.len, &result) < 0)
			abort();
		calldata_get_result(&c, data, len, &result);
		buf_fini(&out);
	}
	if (len > 2)
		calldata_fini(&c);
}

static unsigned char *
fuzz_seed(unsigned n, size_t *len)
{
	static const struct {
		long nr;
		int arg; /* with data */
		const char *data;
		uint64_t length;
	} seeds[] = {{1, 1, "hello", 5}, {0, 1, NULL, 100}, {257, 1, "/etc/passwd", 12}, {4, 1, NULL, 144}, {46, 1, NULL, 64}, {47, 1, NULL, 300},
	    {19, 1, NULL, 64}, {20, 1, "abc", 3}, {7, 0, "\3\0\0\0\1\0\0\0", 8}, {43, 1, NULL, 16}, {55, 3, NULL, 4}, {42, 1, "\2\0\0\0", 16}};
	struct calldata c;
	struct buf b = {0};

	if (n >= sizeof(seeds) / sizeof(seeds[0]))
		return NULL;
	calldata_init(&c, seeds[n].nr);
	calldata_put(&c, (unsigned)seeds[n].arg, NULL, seeds[n].length);
	if (seeds[n].data != NULL)
		memcpy(c.data.data + c.arg[seeds[n].arg].value, seeds[n].data, strlen(seeds[n].data));
	for (unsigned i = 0; i < c.nargs; i++)
		if (!c.arg[i].is_data && c.arg[i].type[0] == 'u')
			c.arg[i].value = seeds[n].nr == 7 ? 1 : seeds[n].length;
	if (seeds[n].nr == 46 || seeds[n].nr == 47)
		memcpy(c.data.data, (uint32_t[]){16, 16, (uint32_t)seeds[n].length - 48, 0}, 16);
	buf_put(&b, "\4\0", 2);
	calldata_put_call(&b, &c);
	calldata_fini(&c);
	*len = b.len;
	return b.data;
}

