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

# A machine: sets HOSTh to its first process. Its monotonic clock is this many seconds ahead.
make_host() { # NAME OFFSET
	: >"host$1"
	unshare --net --mount --uts --ipc --time --monotonic "$2" --pid --fork --kill-child --mount-proc sh -c "
		hostname host$1; mount -t tmpfs tmpfs /mnt; ip link set lo up; echo host$1 >/mnt/name; echo up; exec sleep 100000" \
		>"host$1" 2>&1 </dev/null 3>&- &
	echo $! >>pids
	await "host$1" up 20
	declare -g "HOST$1=$(pgrep -P $!)" "OUTER$1=$!"
}

# What sshd and ssh need. SSHD_ENV: more of the environment that sshd gives.
ssh_keys() {
	[ "$(id -u)" = 0 ] || skip "only root may lay a cable"
	SSHD=$(PATH=$PATH:/usr/sbin:/sbin command -v sshd) || skip "no sshd"
	mkdir -p /run/sshd
	ssh-keygen -q -t ed25519 -N '' -f host_key
	ssh-keygen -q -t ed25519 -N '' -f key
	cp key.pub authorized
	chmod 700 .
}

sshd_conf() { # ADDRESS FILE
	# What the user's own files have a shell do at login is no part of this, and may take its time.
	printf '%s\n' "HostKey $T/host_key" "AuthorizedKeysFile $T/authorized" "StrictModes no" "UsePAM no" "PermitRootLogin yes" \
		"PidFile none" "SetEnv PATH=$PATH HOME=$T ${SSHD_ENV-}" "ListenAddress $1" >"$2"
}

ssh_host() { # NAME ADDRESS
	printf '%s\n' "Host $1" "HostName $2" "User root" "IdentityFile $T/key" "StrictHostKeyChecking no" "UserKnownHostsFile /dev/null" \
		"LogLevel ERROR" "ServerAliveInterval 2" "ServerAliveCountMax 2" >>ssh.conf
}

# Two machines and a cable, for root: B has sshd at 10.77.0.2, and is known as hostB to `on A ssh`.
two_hosts() {
	ssh_keys
	make_host A 0
	make_host B 5000
	ip link add "pmsA$$" netns "$HOSTA" type veth peer name "pmsB$$" netns "$HOSTB" || skip "no virtual cable here"
	on A ip addr add 10.77.0.1/24 dev "pmsA$$"
	on B ip addr add 10.77.0.2/24 dev "pmsB$$"
	on A ip link set "pmsA$$" up
	on B ip link set "pmsB$$" up
	sshd_conf 10.77.0.2 sshd.conf
	ssh_host hostB 10.77.0.2
	on B "$SSHD" -f "$T/sshd.conf" -E "$T/sshd.log"
	until_true 'on A ssh -F ssh.conf hostB true 2>/dev/null'
	export PMS_SSH="ssh -F $T/ssh.conf"
}

# Three machines, at a switch, for root: each has sshd, and is known to the others as hostA, hostB, hostC. What a job started by ssh finds
# in its environment is PMSD_STATE=$T/state.NAME.
three_hosts() {
	local h
	ssh_keys
	unshare --net sleep 100000 </dev/null >/dev/null 2>&1 3>&- &
	SWITCH=$!
	echo $SWITCH >>pids
	until_true '[ "$(readlink /proc/$SWITCH/ns/net)" != "$(readlink /proc/self/ns/net)" ]'
	nsenter -t $SWITCH --net ip link add br0 type bridge || skip "no virtual switch here"
	nsenter -t $SWITCH --net ip link set br0 up
	for h in A B C; do
		ssh_host "host$h" "$(address_of $h)"
	done
	export PMS_SSH="ssh -F $T/ssh.conf"
	for h in A B C; do
		boot $h
	done
	for h in A B C; do
		until_true "on A ssh -F ssh.conf host$h true 2>/dev/null"
	done
}

address_of() {
	printf '10.77.0.%d' "$(printf '%d' "'$1")"
}

# One of the three is switched on.
boot() { # A|B|C
	make_host "$1" $(($(printf '%d' "'$1") * 1000))
	local pid=HOST$1
	ip link add "pms$1$$" netns "${!pid}" type veth peer name "port$1$$" netns $SWITCH
	on "$1" ip addr add "$(address_of "$1")/24" dev "pms$1$$"
	on "$1" ip link set "pms$1$$" up
	nsenter -t $SWITCH --net ip link set "port$1$$" master br0
	nsenter -t $SWITCH --net ip link set "port$1$$" up
	SSHD_ENV="PMSD_STATE=$T/state.$1" sshd_conf "$(address_of "$1")" "sshd.$1"
	on "$1" "$SSHD" -f "$T/sshd.$1" -E "$T/sshd.log"
}

# And off, with everything on it.
power_off() { # A|B|C
	local pid=HOST$1
	kill -KILL "${!pid}"
	until_true "gone ${!pid}"
	# Its end of the cable may take its time.
	nsenter -t $SWITCH --net ip link del "port$1$$" 2>/dev/null || :
}

# on A|B|C COMMAND...
on() {
	local pid=HOST$1
	nsenter -t "${!pid}" --net --mount --uts --ipc --time --pid --wd="$PWD" "${@:2}"
}
