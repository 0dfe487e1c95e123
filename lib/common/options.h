/*
 * options: what the command lines of all programs have in common: numbers, misuse, -F, -q, -v, -V, and what a program
 * does before anything else.
 */
#ifndef PMS_OPTIONS_H
#define PMS_OPTIONS_H

/* First of all: name of the program, and its usage, printed when it is misused. */
void options_begin(const char *program, const char *usage);

/* One line that says what is wrong, the usage, and the end with EX_USAGE. what may be NULL. */
_Noreturn void options_misused(const char *what);

/* A decimal number in [min, max], or options_misused(). */
int options_number(const char *text, int min, int max, const char *what);

/* -F, -q, -v, -V, or options_misused(). */
void options_common(int opt, const char *argument);

/* When all have been read: how much is to be said. Signals for waiting, PMS_WITHOUT. */
void options_end(void);

/* In a child that is to be another program: mask and SIGPIPE as they were before options_end(). */
void options_give_back(void);

/* The exit status of one that works for others over a connection, of sysexits(3): err is 0 or a negative errno. */
int options_exit_status(int err);

/* SIGINT, SIGTERM and SIGHUP lead to handler; what nohup(1) ignores stays ignored. */
void options_catch(void (*handler)(int sig));

#define OPTIONS_COMMON                                                                          \
	{"fault", required_argument, NULL, 'F'}, {"quiet", no_argument, NULL, 'q'},                  \
	    {"verbose", no_argument, NULL, 'v'}, {"version", no_argument, NULL, 'V'}, {NULL, 0, NULL, 0}

#endif
