/*
 * plot: loads over time, as the daemon has stored them.
 */
#ifndef PLOT_H
#define PLOT_H

/* since: a number with s, m, h or d, or NULL for a day; file: a .png or .svg that gnuplot(1) draws, or NULL for a picture of letters. Returns the exit status. */
int plot_loads(const char *since, const char *file);

#endif
