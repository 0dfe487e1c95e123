# For tests of memory that comes when it is touched.
# shellcheck shell=bash

# May we wait for pages, also those that the kernel touches, and follow forks?
can_wait() {
	grep -q '^CapEff:.*[0-9a-f]' /proc/self/status && [ $((0x$(awk '/^CapEff/ { print $2 }' /proc/self/status) >> 19 & 1)) = 1 ] && [ -z "${PMS_WITHOUT-}" ]
}

need_waiting() {
	can_wait || skip "only who has CAP_SYS_PTRACE may wait for pages"
}

# The program of that name, with so many MiB, as PID.
start_lazy() {
	rm -f commands out
	: >commands
	start lazy "${1:-64}"
	await out ready 60
	SAID=1
}

# It does this, and finds nothing wrong.
says() {
	echo "$1" >>commands
	until_true '[ "$(wc -l <out)" -ge '$((SAID + 1))' ]'
	SAID=$((SAID + 1))
	[ "$(sed -n ${SAID}p out)" = "$1 ok" ] || {
		cat out
		return 1
	}
}

# What pagesrv says of this, of the first session.
told() {
	pagesrv stat "$ADDRESS" | awk -F'\t' -v what="$1" '$1 == what { print $2; exit }'
}

# A server of an image, whose pid is SERVER.
serve() {
	ADDRESS=unix:$T/pages.sock
	: >serve.out
	pagesrv serve -l "$ADDRESS" "$@" >serve.out 2>serve.err </dev/null 3>&- &
	SERVER=$!
	echo "$SERVER" >>pids
	await serve.out unix: 20
}

# Through ckpt -m into a restart; sets NEW.
leave_memory() {
	ADDRESS=${ADDRESS:-unix:$T/pages.sock}
	ckpt -m "$ADDRESS" "$@" -p "$PID" 2>ckpt.err | restart -d - 2>restart.err >new
	NEW=$(cat new)
	[ -n "$NEW" ] || {
		cat ckpt.err restart.err
		return 1
	}
	echo "$NEW" >>pids
}

# Processes of ours, whose working directory is that of the test, with this command line.
ours() {
	local p
	for p in $(pgrep -f "$1"); do
		[ "$(readlink "/proc/$p/cwd")" = "$T" ] && echo "$p"
	done
	return 0
}

# Nobody is left who serves or fetches.
nobody_left() {
	until_true '[ -z "$(ours "^pagesrv (source|fetch|serve) ")" ]'
}

# KiB of memory of its own that a process has.
resident() { awk '/^RssAnon/ { print $2 }' "/proc/$1/status"; }
