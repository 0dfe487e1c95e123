/* buf, base, size, call, msg, frame: the small codecs, at their limits. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base.h"
#include "buf.h"
#include "call.h"
#include "digest.h"
#include "frame.h"
#include "msg.h"
#include "pages.h"
#include "size.h"
#include "tap.h"

static void
test_buf(void)
{
	struct buf b = {0};
	struct rbuf r;

	buf_put_u8(&b, 0xab);
	buf_put_u32(&b, 0x01020304);
	buf_put_u64(&b, 0x1122334455667788);
	r = (struct rbuf){b.data, b.len, 0, false};
	ok(rbuf_get_u8(&r) == 0xab && rbuf_get_u32(&r) == 0x01020304 &&
		rbuf_get_u64(&r) == 0x1122334455667788 && !r.failed && rbuf_left(&r) == 0,
	    "integers come back");
	ok(b.data[1] == 4 && b.data[4] == 1, "little-endian");
	ok(rbuf_get_u8(&r) == 0 && r.failed && rbuf_get(&r, 0) == NULL, "the error is sticky");
	buf_fini(&b);
}

static void
test_text(void)
{
	unsigned char bytes[4];
	char hex[9], *text;
	uint64_t n;

	hex_encode(hex, "\x00\xff\x10\x7f", 4);
	ok(strcmp(hex, "00ff107f") == 0, "hex");
	ok(hex_decode(bytes, 4, hex) && memcmp(bytes, "\x00\xff\x10\x7f", 4) == 0, "hex back");
	ok(!hex_decode(bytes, 4, "00ff10") && !hex_decode(bytes, 4, "00ff10zz") &&
		!hex_decode(bytes, 4, "00FF107F"), "malformed hex is refused");
	text = percent_encode("a%b\n\xc3\xa9", false);
	ok(strcmp(text, "a%25b%0a\xc3\xa9") == 0 && percent_decode(text) &&
		strcmp(text, "a%b\n\xc3\xa9") == 0, "names survive");
	free(text);
	text = percent_encode("\xff\xfe", true);
	ok(strcmp(text, "%ff%fe") == 0, "bytes that are not UTF-8");
	strcpy(text, "%0");
	ok(!percent_decode(text), "a cut escape is refused");
	strcpy(text, "%00");
	ok(!percent_decode(text), "NUL is refused");
	free(text);
	ok(size_parse("4M", &n) && n == 4 << 20 && size_parse("0", &n) && n == 0 &&
		size_parse("3k", &n) && n == 3072 && size_parse("2G", &n) && n == 2ULL << 30, "sizes");
	ok(!size_parse("", &n) && !size_parse("M", &n) && !size_parse("4X", &n) && !size_parse("-1", &n) &&
		!size_parse("4MM", &n) && !size_parse("99999999999999999999", &n) &&
		!size_parse("18446744073709551615K", &n), "bad sizes");
}

static void
test_frames(void)
{
	struct frame *f = malloc(sizeof(*f));
	unsigned char *out = malloc(FRAME_RAW_MAX), *bad = malloc(FRAME_PACKED_MAX);
	const unsigned char *content;
	uint32_t skippable;
	int good = 1, caught = 1, lengths = 1;

	for (int level = 0; level <= 3; level += 3)
		for (size_t n = 1; n <= FRAME_RAW_MAX; n = n * 5 + 1) {
			for (size_t i = 0; i < n; i++)
				frame_raw(f)[i] = (unsigned char)(i * i >> 7);
			f->raw_len = n;
			good &= frame_pack(f, level) == 0 &&
			    frame_unpack(f->packed, f->packed_len, out, &content) == (int64_t)n &&
			    memcmp(content, frame_raw(f), n) == 0 &&
			    frame_content_length(f->packed, f->packed_len) == n;
			lengths &= frame_length(f->packed, f->packed_len, &skippable) ==
			    (int64_t)f->packed_len && skippable == 0 &&
			    frame_length(f->packed, f->packed_len - 1, &skippable) == 0;
			memcpy(bad, f->packed, f->packed_len);
			bad[f->packed_len / 2] ^= 4;
			caught &= frame_unpack(bad, f->packed_len, out, &content) < 0 ||
			    memcmp(content, frame_raw(f), n) == 0;
			caught &= frame_unpack(f->packed, f->packed_len - 1, out, &content) < 0;
		}
	ok(good, "frames come back, stored and packed, of every size");
	ok(lengths, "their length is told, and that a byte is missing");
	ok(caught, "damaged and cut frames are refused");
	f->raw_len = FRAME_RAW_MAX;
	memset(frame_raw(f), 7, FRAME_RAW_MAX);
	ok(frame_pack(f, 0) == 0 && frame_unpack(f->packed, f->packed_len, out, &content) == FRAME_RAW_MAX,
	    "the largest frame");
	ok(frame_length((const unsigned char *)"garbage!", 8, &skippable) == -EBADMSG, "no frame");
	free(f);
	free(out);
	free(bad);
}

static void
test_control(void)
{
	struct buf b = {0};
	uint32_t magic;

	control_put(&b, CONTROL_TAIL, 1000);
	ok(control_get(b.data, b.len) == CONTROL_TAIL &&
		frame_length(b.data, b.len, &magic) == CONTROL_HEADER + 1000 && magic == CONTROL_MAGIC,
	    "control frames");
	b.data[12] = 9;
	ok(control_get(b.data, b.len) < 0 && control_get(b.data, 15) < 0, "bad control frames");
	buf_fini(&b);
}

static void
test_chunks(void)
{
	struct page_run runs[CHUNK_PAGES], back[CHUNK_PAGES];
	struct buf b = {0};
	struct rbuf r;
	size_t n;
	uint64_t pages;

	for (size_t i = 0; i < CHUNK_PAGES; i++)
		runs[i] = (struct page_run){0x10000 + i * 2 * PAGE_BYTES, 1};
	chunk_header_put(&b, runs, CHUNK_PAGES);
	r = (struct rbuf){b.data, b.len, 0, false};
	ok(chunk_header_get(&r, back, &n, &pages) == 0 && n == CHUNK_PAGES && pages == CHUNK_PAGES &&
		memcmp(runs, back, sizeof(runs)) == 0, "the fullest chunk");
	r = (struct rbuf){b.data, b.len - 1, 0, false};
	ok(chunk_header_get(&r, back, &n, &pages) == -EBADMSG, "a cut one");
	buf_fini(&b);
	static const struct page_run wrong[][2] = {
	    {{0x1001, 1}, {0x3000, 1}}, {{0x3000, 1}, {0x1000, 1}}, {{0x1000, 3}, {0x3000, 1}},
	    {{0x1000, 0}, {0x3000, 1}}, {{0x1000, 1}, {0x3000, 256}},
	    {{0x1000, 1}, {0x7ffffffff000, 1}}, {{0x1000, 1}, {0xfffffffffffff000, 1}},
	    {{0x1000, 1}, {0x3000, UINT64_MAX}},
	};
	int refused = 1;
	for (size_t i = 0; i < ARRAY_LEN(wrong); i++) {
		b = (struct buf){0};
		chunk_header_put(&b, wrong[i], 2);
		r = (struct rbuf){b.data, b.len, 0, false};
		refused &= chunk_header_get(&r, back, &n, &pages) == -EBADMSG;
		buf_fini(&b);
	}
	ok(refused, "runs that overlap, descend, are empty, or lie outside");
}

static void
test_messages(void)
{
	enum msg_state state = STATE_START;
	struct msg_header h = {MSG_HELLO, 0, 0, 16};
	struct buf b = {0};

	ok(msg_step(&state, SIDE_RESTART, &h) < 0 && state == STATE_START, "the wrong side");
	ok(msg_step(&state, SIDE_CKPT, &h) == 0 && state == STATE_HELLO_SENT, "HELLO");
	ok(msg_step(&state, SIDE_CKPT, &h) < 0, "HELLO twice");
	h.type = MSG_GO;
	ok(msg_step(&state, SIDE_CKPT, &h) < 0, "GO too early");
	h = (struct msg_header){MSG_WELCOME, 0, 0, 65};
	ok(msg_step(&state, SIDE_RESTART, &h) < 0, "one byte too long");
	h.length = 64;
	ok(msg_step(&state, SIDE_RESTART, &h) == 0, "as long as may be");
	h = (struct msg_header){MSG_FAILED, 0, 0, 5};
	ok(msg_step(&state, SIDE_RESTART, &h) == 0 && state == STATE_DONE, "FAILED at any time");
	ok(msg_step(&state, SIDE_RESTART, &h) < 0, "nothing after it");
	h.type = 60000;
	state = STATE_IMAGE;
	ok(msg_step(&state, SIDE_CKPT, &h) < 0, "an unknown message");
	msg_put_header(&b, MSG_DATA, 7, 123456789012);
	ok(msg_get_header(&h, b.data) == 0 && h.type == MSG_DATA && h.id == 7 && h.length == 123456789012,
	    "headers come back");
	ok(!msg_is_hello(b.data, b.len), "is not mistaken for HELLO");
	buf_fini(&b);
}

static void
test_scripts(void)
{
	struct script s = {0};
	uint64_t at = script_data(&s, "abc", 4);

	script_add(&s, "first", 1, 7, at);
	script_data_arg(&s, 1);
	script_may_fail(&s);
	ok(s.ncalls == 1 && s.calls[0].data_args == 2 && s.calls[0].call.arg[0] == 7, "a script");
	ok(script_first_error(&s) == &s.calls[0], "not run is an error");
	s.calls[0].result = -22;
	ok(script_first_error(&s) == NULL, "a call that may fail");
	script_fini(&s);
	ok(strcmp(syscall_name(0), "read") == 0 && syscall_name(-1) == NULL && syscall_name(9999) == NULL &&
		syscall_eintr_restarts(232) && !syscall_eintr_restarts(3), "names of calls");
}

/* Registers, mask and extended state through a signal frame and back, as they are read of a process that is asked. */
static void
test_frame_of_handler(void)
{
	unsigned char xstate[832] = {0}, *frame = NULL;
	uint64_t features = 7, mask = 0, in_use = 3;
	struct arch_regs regs = {.rip = 0x1234, .rsp = 0x7000, .rbx = 5, .eflags = 0x202, .cs = 0x33, .ss = 0x2b, .orig_rax = UINT64_MAX}, back = {0};
	struct arch_capture there = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10};
	taddr at = 0, xstate_at = 0;
	size_t n, len;

	xstate[100] = 77;
	memcpy(xstate + 464, &features, 8);
	memcpy(xstate + 512, &in_use, 8);
	n = arch_sigframe(&regs, 0x42, xstate, sizeof(xstate), 0x9999, 0x100000, &frame, &at);
	ok(n > ARCH_SIGFRAME_BYTES && arch_sigframe_read(frame, n, &back, &mask, &xstate_at) && back.rip == 0x1234 && back.rbx == 5 && mask == 0x42, "a frame");
	len = arch_sigframe_xstate(frame + (xstate_at - at), n - (xstate_at - at));
	ok(len >= 576 && len <= sizeof(xstate) && arch_xstate_xcr0(frame + (xstate_at - at), len) == 7 && frame[xstate_at - at + 100] == 77, "its extended state");
	ok(arch_sigframe_xstate(frame + (xstate_at - at), len) == 0, "what is none any more");
	ok(arch_sigframe_xstate(xstate, 575) == 0 && !arch_sigframe_read(frame, ARCH_SIGFRAME_BYTES - 1, &back, &mask, &xstate_at), "frames that are too short");
	arch_set_captured(&back, &there, 1);
	ok(back.rbx == 1 && back.r15 == 6 && back.rsp == 7 && back.rip == 8 && back.fs_base == 9 && back.gs_base == 10 && back.rax == 1, "where a thread stands");
	free(frame);
}

int
main(void)
{
	test_buf();
	test_text();
	test_frames();
	test_control();
	test_chunks();
	test_messages();
	test_scripts();
	test_frame_of_handler();
	return done();
}
