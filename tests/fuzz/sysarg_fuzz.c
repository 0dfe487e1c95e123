/* Calls as text: any words, and any result and data of the one that executed them. */
#include "fuzz.h"
#include "sysarg.h"

static void
print(struct calldata *c, uint64_t noise)
{
	static const int64_t results[] = {0, 1, -1, -22, 4096, INT64_MAX, INT64_MIN};
	struct buf out = {0};

	/* What a kernel would not write, but the peer of a call might. */
	for (size_t i = 0; i < c->data.len; i++)
		c->data.data[i] ^= (unsigned char)(noise >> i % 57);
	for (size_t i = 0; i < sizeof(results) / sizeof(results[0]); i++)
		syscall_text_put(&out, c, results[i]);
	syscall_text_put(&out, c, (int64_t)noise);
	buf_fini(&out);
}

static void
fuzz_one(const unsigned char *data, size_t len)
{
	static const int64_t results[] = {3, -1, INT64_MAX};
	char *text = malloc(len + 1), *words[8], *save = NULL, why[200];
	struct calldata c;
	size_t n = 0;

	memcpy(text, data, len);
	text[len] = '\0';
	/* Not files: what @ names would be read. */
	for (char *p = text; *p != '\0'; p++)
		*p = *p == '@' ? '$' : *p;
	for (char *w = strtok_r(text, "\n", &save); w != NULL && n < 8; w = strtok_r(NULL, "\n", &save))
		words[n++] = w;
	if (n > 0 && syscall_text_parse(&c, words[0], words + 1, n - 1, results, 3, why) == 0) {
		calldata_native_room(&c), calldata_native(&c, 0x1000);
		print(&c, 0);
		print(&c, 0xfedcba9876543210 ^ len);
	}
	if (n > 0)
		calldata_fini(&c);
	free(text);
}

static unsigned char *
fuzz_seed(unsigned n, size_t *len)
{
	static const char *const seeds[] = {"open\n\"/tmp/x\\n\\101\"\nO_RDWR|O_CREAT|0x10\n0644", "read\n0\n_\n100",
	    "write\n$1\n\"abc\\0\"\n5", "poll\n[{0,1},{fd=3,events=4}]\n2\n-1", "connect\n3\ninet:127.0.0.1:80\n16",
	    "bind\n3\nunix:/a/b", "getsockname\n3\n_\n128", "getsockopt\n3\nSOL_SOCKET\nSO_TYPE\n_\n4",
	    "fcntl\n3\nF_GETLK\n{1,2,3,4}", "ioctl\n0\nTIOCGWINSZ\n_", "getgroups\n16\n_", "epoll_wait\n3\n_\n16\n0",
	    "statx\nAT_FDCWD\nx\n0\n0xfff\n_", "nanosleep\n{1,tv_nsec=2}\nNULL", "rt_sigaction\nSIGTERM\nNULL\n_\n8",
	    "mmap\nNULL\n4096\nPROT_READ\nMAP_PRIVATE\n-1\n0", "capget\n{0x20080522,0}\n_", "uname\n_", "getcwd\n_\n10"};

	if (n >= sizeof(seeds) / sizeof(seeds[0]))
		return NULL;
	*len = strlen(seeds[n]);
	return (unsigned char *)strdup(seeds[n]);
}
