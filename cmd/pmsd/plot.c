#include "plot.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <sysexits.h>
#include <unistd.h>

#include "log.h"
#include "options.h"
#include "pmsd.h"

enum { COLUMNS = 64, HOSTS_MAX = 256 };

/* What is to be drawn of a host: means over equal parts of the time. */
struct curve {
	char host[HOST_MAX];
	double sum[COLUMNS], most;
	int n[COLUMNS];
};

struct picture {
	int64_t from, to;
	struct curve *curves;
	size_t ncurves;
	FILE *data; /* or NULL */
};

static int64_t
seconds(const char *text)
{
	char *unit;
	double n = strtod(text, &unit);
	static const struct {
		char letter;
		int64_t seconds;
	} units[] = {{'s', 1}, {'m', 60}, {'h', 3600}, {'d', 86400}, {'\0', 1}};

	for (size_t i = 0; unit != text && n >= 0 && n < 1e9 && i < ARRAY_LEN(units); i++)
		if (unit[0] == units[i].letter && (unit[0] == '\0' || unit[1] == '\0'))
			return (int64_t)(n * (double)units[i].seconds);
	options_misused("--since takes a number with s, m, h or d");
}

static struct curve *
curve_of(struct picture *p, const char *host)
{
	struct curve *c;

	for (size_t i = 0; i < p->ncurves; i++)
		if (strcmp(p->curves[i].host, host) == 0)
			return &p->curves[i];
	c = p->ncurves < HOSTS_MAX ? ARRAY_ADD(p->curves, p->ncurves) : NULL;
	if (c != NULL) {
		*c = (struct curve){.most = 0};
		snprintf(c->host, sizeof(c->host), "%s", host);
	}
	return c;
}

static void
add(void *arg, int64_t at, const char *host, double load, int cpus, int jobs)
{
	struct picture *p = arg;
	struct curve *c = curve_of(p, host);
	int64_t column = (at - p->from) * COLUMNS / (p->to - p->from + 1);

	(void)cpus, (void)jobs;
	if (c == NULL || column < 0 || column >= COLUMNS)
		return;
	c->sum[column] += load;
	c->n[column]++;
	c->most = load > c->most ? load : c->most;
}

static void
put_data(void *arg, int64_t at, const char *host, double load, int cpus, int jobs)
{
	struct picture *p = arg;

	(void)cpus, (void)jobs;
	fprintf(p->data, "%" PRId64 "\t%s\t%.3f\n", at, host, load);
}

/* One line a host, the height of each column in eight steps. */
static void
print_picture(const struct picture *p)
{
	static const char *const steps[] = {" ", "▁", "▂", "▃", "▄", "▅", "▆", "▇", "█"};
	double most = 1;

	for (size_t i = 0; i < p->ncurves; i++)
		most = p->curves[i].most > most ? p->curves[i].most : most;
	for (size_t i = 0; i < p->ncurves; i++) {
		const struct curve *c = &p->curves[i];

		printf("%-16s |", c->host);
		for (size_t k = 0; k < COLUMNS; k++) {
			double mean = c->n[k] > 0 ? c->sum[k] / c->n[k] : 0;

			fputs(c->n[k] == 0 ? "." : steps[(int)(mean / most * 8 + 0.5)], stdout);
		}
		printf("| to %.1f\n", c->most);
	}
	printf("%-16s  %-*s now; %.1f is as high as a line\n", "", COLUMNS - 3, "", most);
}

static int
draw(struct picture *p, struct store *s, const char *file)
{
	const char *kind = strrchr(file, '.');
	FILE *f;
	int status;

	if (kind == NULL || (strcmp(kind, ".png") != 0 && strcmp(kind, ".svg") != 0))
		options_misused("--plot takes a .png or .svg file");
	if (strpbrk(file, "'\"\\\n") != NULL)
		options_misused("--plot: no quotes in the name, please");
	store_loads(s, p->from, add, p);
	f = popen("gnuplot", "w");
	if (f == NULL)
		return fail_errno("gnuplot");
	fprintf(f, "set terminal %s size 1000,400\nset output '%s'\nset xdata time\nset timefmt '%%s'\nset format x '%%d.%%m. %%H:%%M'\n", kind + 1, file);
	fprintf(f, "set ylabel 'runnable threads'\nset yrange [0:*]\nset key outside\nset datafile separator '\\t'\n$data << END\n");
	p->data = f;
	store_loads(s, p->from, put_data, p);
	fprintf(f, "END\nplot ");
	for (size_t i = 0; i < p->ncurves; i++)
		fprintf(f, "%s$data using (strcol(2) eq '%s' ? $1 : NaN):3 with lines title '%s'", i > 0 ? ", " : "", p->curves[i].host, p->curves[i].host);
	fprintf(f, "%s\n", p->ncurves == 0 ? "[0:1] 0 title 'no samples'" : "");
	status = pclose(f);
	if (!WIFEXITED(status) || WEXITSTATUS(status) != 0)
		return fail(ENOENT, "gnuplot has drawn nothing (is it installed?)");
	return 0;
}

int
plot_loads(const char *since, const char *file)
{
	struct picture p = {.to = (int64_t)time(NULL)};
	const char *state = place_state();
	struct store *s = NULL;
	char *path = NULL;
	int err = state == NULL || asprintf(&path, "%s/history.db", state) < 0 ? -ENOENT : 0;

	p.from = p.to - seconds(since != NULL ? since : "24h");
	if (err == 0 && access(path, R_OK) < 0)
		err = fail(ENOENT, "%s: no daemon has measured anything here", path);
	if (err == 0)
		err = store_open(&s, path);
	if (err == 0 && file != NULL)
		err = draw(&p, s, file);
	else if (err == 0 && (err = store_loads(s, p.from, add, &p)) == 0)
		print_picture(&p);
	store_close(s);
	free(p.curves);
	free(path);
	return err == 0 ? 0 : err == -ENOENT ? EX_NOINPUT : EX_IOERR;
}
