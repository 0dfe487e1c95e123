#include "lazy_control.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>

int
lazy_tell(int fd, char what, const void *data, size_t len, const int *fds, size_t nfds)
{
	char control[CMSG_SPACE(LAZY_FDS * sizeof(int))] = {0};
	struct iovec iov[2] = {{&what, 1}, {(void *)data, min_u64(len, LAZY_TEXT)}};
	struct msghdr m = {.msg_iov = iov, .msg_iovlen = 2};

	if (nfds > 0) {
		struct cmsghdr *c;

		m.msg_control = control;
		m.msg_controllen = CMSG_SPACE(nfds * sizeof(int));
		c = CMSG_FIRSTHDR(&m);
		c->cmsg_level = SOL_SOCKET;
		c->cmsg_type = SCM_RIGHTS;
		c->cmsg_len = CMSG_LEN(nfds * sizeof(int));
		memcpy(CMSG_DATA(c), fds, nfds * sizeof(int));
	}
	return sendmsg(fd, &m, MSG_NOSIGNAL) < 0 ? -errno : 0;
}

int
lazy_hear(int fd, struct lazy_message *msg)
{
	char control[CMSG_SPACE(LAZY_FDS * sizeof(int))] = {0};
	struct iovec iov[2] = {{&msg->what, 1}, {msg->text, LAZY_TEXT}};
	struct msghdr m = {.msg_iov = iov, .msg_iovlen = 2, .msg_control = control, .msg_controllen = sizeof(control)};
	struct cmsghdr *c;
	ssize_t n;

	do
		n = recvmsg(fd, &m, MSG_CMSG_CLOEXEC);
	while (n < 0 && errno == EINTR);
	if (n <= 0)
		return n < 0 ? -errno : 0;
	msg->text[n - 1] = '\0';
	msg->value = 0;
	if (n == 1 + sizeof(msg->value))
		memcpy(&msg->value, msg->text, sizeof(msg->value));
	c = CMSG_FIRSTHDR(&m);
	msg->nfds = c != NULL && c->cmsg_type == SCM_RIGHTS ? (c->cmsg_len - CMSG_LEN(0)) / sizeof(int) : 0;
	if (msg->nfds > 0)
		memcpy(msg->fds, CMSG_DATA(c), msg->nfds * sizeof(int));
	return 1;
}
