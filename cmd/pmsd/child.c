#include <signal.h>
#include <stddef.h>

#include "options.h"
#include "pmsd.h"

void
child_begin(void)
{
	static const int changed[] = {SIGINT, SIGTERM, SIGHUP, SIGPIPE};
	sigset_t none;

	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	for (size_t i = 0; i < sizeof(changed) / sizeof(changed[0]); i++)
		signal(changed[i], SIG_DFL);
	options_give_back();
}
