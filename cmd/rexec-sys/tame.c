/*
 * What a caller's call must not ask of the one who executes it; and what he is told first.
 */
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <time.h>

#include "session.h"

/*
 * Options of sockets whose value has addresses in it, is counted in something else than bytes, or has the kernel use memory when the call is
 * long over. They do not exist here.
 */
bool
call_is_strange(const struct calldata *c)
{
	static const int options[] = {SO_ATTACH_FILTER, SO_ATTACH_REUSEPORT_CBPF, SO_ATTACH_BPF, SO_ATTACH_REUSEPORT_EBPF, SO_ZEROCOPY};
	int level = (int)c->arg[1].value, name = (int)c->arg[2].value;

	if (c->nr != SYS_setsockopt && c->nr != SYS_getsockopt)
		return false;
	for (size_t i = 0; i < ARRAY_LEN(options); i++)
		if (level == SOL_SOCKET && name == options[i])
			return true;
	return level == IPPROTO_TCP ? name == TCP_ZEROCOPY_RECEIVE
	    : level != SOL_SOCKET && level != IPPROTO_IP && level != IPPROTO_IPV6 && level != IPPROTO_UDP && level != IPPROTO_ICMP &&
		level != IPPROTO_ICMPV6 && level != SOL_NETLINK && level != IPPROTO_UDPLITE;
}

/* What the call must not ask of us. */
void
call_tame(struct calldata *c)
{
	switch (c->nr) {
	case SYS_ppoll: /* the mask is that of the caller's thread, and ours lets a cancel through */
		c->arg[3].is_data = false, c->arg[3].value = 0;
		break;
	case SYS_epoll_pwait:
	case SYS_epoll_pwait2:
		c->arg[4].is_data = false, c->arg[4].value = 0;
		break;
	case SYS_pselect6:
		c->arg[5].value = 0;
		break;
	case SYS_open: /* our buffers lie anywhere */
		c->arg[1].value &= ~(uint64_t)O_DIRECT;
		break;
	case SYS_openat:
		c->arg[2].value &= ~(uint64_t)O_DIRECT;
		break;
	case SYS_sendto:
		c->arg[3].value &= ~(uint64_t)MSG_ZEROCOPY;
		break;
	case SYS_sendmsg:
		c->arg[2].value &= ~(uint64_t)MSG_ZEROCOPY;
	}
}

void
put_facts(struct buf *out, const uint32_t uid[3], const uint32_t gid[3], const uint32_t *groups, size_t ngroups)
{
	struct utsname u;
	struct timespec now;

	msg_put_hello(out);
	for (size_t i = 0; i < 3; i++)
		buf_put_u32(out, uid[i]);
	for (size_t i = 0; i < 3; i++)
		buf_put_u32(out, gid[i]);
	buf_put_u32(out, (uint32_t)ngroups);
	for (size_t i = 0; i < ngroups; i++)
		buf_put_u32(out, groups[i]);
	uname(&u);
	buf_put(out, &u, sizeof(u));
	clock_gettime(CLOCK_REALTIME, &now);
	buf_put_u64(out, (uint64_t)now.tv_sec);
	buf_put_u64(out, (uint64_t)now.tv_nsec);
}
