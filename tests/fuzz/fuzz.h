/*
 * A fuzz target: fuzz_one() takes any bytes and must neither crash nor hang. Linked with
 * libFuzzer (clang -fsanitize=fuzzer -DLIBFUZZER) or with the small driver in here, which for
 * some seconds mutates the target's own seeds: TAP, argument: seconds.
 */
#ifndef FUZZ_H
#define FUZZ_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* Give the target's seeds one by one; NULL when there are no more. */
static unsigned char *fuzz_seed(unsigned n, size_t *len);
static void fuzz_one(const unsigned char *data, size_t len);

#ifdef LIBFUZZER
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);
int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
	fuzz_one(data, len);
	return 0;
}
#else
static uint64_t fuzz_state = 0x9e3779b97f4a7c15;

static uint64_t
fuzz_random(void)
{
	fuzz_state ^= fuzz_state << 13;
	fuzz_state ^= fuzz_state >> 7;
	fuzz_state ^= fuzz_state << 17;
	return fuzz_state;
}

static size_t
fuzz_mutate(unsigned char *p, size_t len, size_t cap)
{
	for (unsigned n = 1 + fuzz_random() % 4; n > 0 && len > 0; n--) {
		size_t at = fuzz_random() % len, some = 1 + fuzz_random() % 16;

		switch (fuzz_random() % 6) {
		case 0:
			p[at] ^= (unsigned char)(1u << fuzz_random() % 8);
			break;
		case 1:
			p[at] = (unsigned char)fuzz_random();
			break;
		case 2: /* cut */
			len = at;
			break;
		case 3: /* drop some */
			if (at + some < len) {
				memmove(p + at, p + at + some, len - at - some);
				len -= some;
			}
			break;
		case 4: /* double some */
			if (at + some < len && len + some <= cap) {
				memmove(p + at + some, p + at, len - at);
				len += some;
			}
			break;
		default: /* a digit becomes another: numbers in text */
			for (size_t i = at; i < len; i++)
				if (p[i] >= '0' && p[i] <= '9') {
					p[i] = (unsigned char)('0' + fuzz_random() % 10);
					break;
				}
		}
	}
	return len;
}

int
main(int argc, char **argv)
{
	time_t end = time(NULL) + (argc > 1 ? atoi(argv[1]) : 2);
	unsigned long rounds = 0;
	unsigned nseeds = 0;
	unsigned char *seeds[64], *work;
	size_t lens[64], cap = 0;

	if (getenv("FUZZ_SEED") != NULL)
		fuzz_state ^= strtoull(getenv("FUZZ_SEED"), NULL, 0);
	while (nseeds < 64 && (seeds[nseeds] = fuzz_seed(nseeds, &lens[nseeds])) != NULL) {
		cap = lens[nseeds] > cap ? lens[nseeds] : cap;
		fuzz_one(seeds[nseeds], lens[nseeds]);
		nseeds++;
	}
	cap += 4096;
	work = malloc(cap);
	while (nseeds > 0 && time(NULL) < end)
		for (int i = 0; i < 50; i++, rounds++) {
			unsigned s = (unsigned)(fuzz_random() % nseeds);
			size_t len;

			memcpy(work, seeds[s], lens[s]);
			len = fuzz_mutate(work, lens[s], cap);
			fuzz_one(work, len);
		}
	printf("%sok 1 %lu inputs from %u seeds\n1..1\n", rounds > 0 ? "" : "not ", rounds, nseeds);
	free(work);
	while (nseeds > 0)
		free(seeds[--nseeds]);
	return rounds == 0;
}
#endif

#endif
