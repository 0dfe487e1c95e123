/*
 * A numerical program that can be moved: pi as an integral, by more and more points, for as long as you like.
 *
 *     cc -O2 -o integral examples/integral.c $(pkg-config --cflags --libs pms)
 *     ./integral 36 result &
 *     pmsd migrate hostA.1 hostB
 */
#include <stdio.h>
#include <stdlib.h>

#include <pms.h>

static double
midpoints(long n)
{
	double sum = 0, h = 1.0 / (double)n;

	for (long i = 0; i < n; i++) {
		double x = ((double)i + 0.5) * h;

		sum += 4.0 / (1.0 + x * x);
	}
	return sum * h;
}

int
pms_main(int argc, char **argv)
{
	int most = argc > 1 ? atoi(argv[1]) : 30;
	FILE *out = pms_fopen(argc > 2 ? argv[2] : "result", "w");

	if (out == NULL) {
		perror(argc > 2 ? argv[2] : "result");
		return 1;
	}
	for (int k = 1; k <= most; k++) {
		fprintf(out, "%2d  %.15f\n", k, midpoints(1L << k));
		fflush(out);
	}
	return pms_fclose(out) == 0 ? 0 : 1;
}
