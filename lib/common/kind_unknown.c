/*
 * Everything else is refused by its name.
 */
#include <errno.h>
#include <string.h>

#include "kind.h"
#include "log.h"

static bool
match(const struct kind_save *s)
{
	(void)s;
	return true;
}

/* Those that have a name, with the way out. */
static const struct {
	const char *link, *what, *advice;
} known[] = {
    {"anon_inode:[userfaultfd]", "a userfaultfd", "have the program close it"},
    {"anon_inode:[perf_event]", "a performance counter", "end perf(1) or what else measures it"},
    {"anon_inode:[fanotify]", "a fanotify group", "have the program close it"},
    {"anon_inode:bpf", "a BPF object", "have the program close it"},
    {"anon_inode:kvm", "a virtual machine", "move the guest by the tools of its hypervisor"},
};

static const char *
type_name(const struct kind_save *s)
{
	switch (s->st.st_mode & S_IFMT) {
	case S_IFSOCK:
		return "a socket of a kind that cannot be moved (netlink, packet or raw)";
	case S_IFCHR:
		return "a device";
	case S_IFBLK:
		return "a block device";
	case S_IFLNK:
		return "a symbolic link";
	default:
		return "a kind of object that cannot be moved";
	}
}

static int
save(struct kind_save *s, struct ofd *ofd)
{
	(void)ofd;
	for (size_t i = 0; i < ARRAY_LEN(known); i++)
		if (strncmp(s->link, known[i].link, strlen(known[i].link)) == 0)
			return report_add(s->report, OBSTACLE, 69, s->object, known[i].advice, "%s cannot be carried",
			    known[i].what);
	return report_add(s->report, OBSTACLE, 69, s->object, "have the program close it",
	    "%s is %s", s->link, type_name(s));
}

static int
load(const struct kind_load *l, const struct ofd *ofd)
{
	(void)ofd;
	return fail(EBADMSG, "fd %d: a kind of object that no image has", l->lowest);
}

const struct kind kind_unknown = {.name = "unknown", .match = match, .save = save, .load = load};
