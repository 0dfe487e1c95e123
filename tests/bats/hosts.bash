# Machines made of namespaces: each has its own network, mounts, host name, processes, IPC, users and clock.
# shellcheck shell=bash

# One machine, for anybody: its /mnt is its own, its user is 0 there whoever is asked, its monotonic clock is a day ahead. Its rexec-sys serves at
# $THERE, with these options; SERVER is its process, as we see it.
there() {
	THERE=unix:$T/there.sock
	cat >there.sh <<-'S'
		mount -t tmpfs tmpfs /mnt
		hostname there
		ip link set lo up
		mount -t proc proc /proc
		mkdir -p /mnt/home && cd /mnt/home
		echo "of there" >file
		echo "$1" >started
		exec rexec-sys serve "${@:2}" 2>>"$1/there.err"
	S
	: >there.out
	unshare --user --map-root-user --mount --uts --ipc --net --time --monotonic 86400 --pid --fork --kill-child \
		bash there.sh "$T" -l "$THERE" "$@" >there.out 2>there.err </dev/null 3>&- &
	echo $! >>pids
	await there.out unix: 20 || skip "no user namespaces here: $(tail -n 1 there.err)"
	export SERVER
	SERVER=$(pgrep -P "$(pgrep -P "$!" 2>/dev/null || echo "$!")" -x rexec-sys || pgrep -P "$!" -x rexec-sys)
}

# A command whose files are there.
away() {
	rexec-sys run -H "$THERE" "$@"
}

# Two machines and a cable, for root: B has sshd at 10.77.0.2, and is known as hostB to `on A ssh`.
two_hosts() {
	local h
	[ "$(id -u)" = 0 ] || skip "only root may lay a cable"
	SSHD=$(PATH=$PATH:/usr/sbin:/sbin command -v sshd) || skip "no sshd"
	mkdir -p /run/sshd
	for h in A B; do
		: >"host$h"
		unshare --net --mount --uts --ipc --time --monotonic $((h == A ? 0 : 5000)) --pid --fork --kill-child --mount-proc sh -c "
			hostname host$h; mount -t tmpfs tmpfs /mnt; ip link set lo up; echo host$h >/mnt/name; echo up; exec sleep 100000" \
			>"host$h" 2>&1 </dev/null 3>&- &
		echo $! >>pids
		await "host$h" up 20
		declare -g "HOST$h=$(pgrep -P $!)"
	done
	ip link add "pmsA$$" netns "$HOSTA" type veth peer name "pmsB$$" netns "$HOSTB" || skip "no virtual cable here"
	on A ip addr add 10.77.0.1/24 dev "pmsA$$"
	on B ip addr add 10.77.0.2/24 dev "pmsB$$"
	on A ip link set "pmsA$$" up
	on B ip link set "pmsB$$" up
	ssh-keygen -q -t ed25519 -N '' -f host_key
	ssh-keygen -q -t ed25519 -N '' -f key
	cp key.pub authorized
	chmod 700 .
	printf '%s\n' "HostKey $T/host_key" "AuthorizedKeysFile $T/authorized" "StrictModes no" "UsePAM no" "PermitRootLogin yes" \
		"PidFile none" "SetEnv PATH=$PATH" "ListenAddress 10.77.0.2" >sshd.conf
	printf '%s\n' "Host hostB" "HostName 10.77.0.2" "User root" "IdentityFile $T/key" "StrictHostKeyChecking no" "UserKnownHostsFile /dev/null" \
		"LogLevel ERROR" "ServerAliveInterval 2" "ServerAliveCountMax 2" >ssh.conf
	on B "$SSHD" -f "$T/sshd.conf" -E "$T/sshd.log"
	until_true 'on A ssh -F ssh.conf hostB true 2>/dev/null'
	export PMS_SSH="ssh -F $T/ssh.conf"
}

# on A|B COMMAND...
on() {
	local pid=HOST$1
	nsenter -t "${!pid}" --net --mount --uts --ipc --time --pid --wd="$PWD" "${@:2}"
}
