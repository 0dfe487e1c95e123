#!/usr/bin/env bats
# make bench: a parameter study of 30 jobs, all started on one of two hosts that have one processor each, without a policy and with balance. Takes root, two
# processors, and sshd. Writes bench/study.tsv: what was tried, how long it took, how many jobs moved.
load ../tests/bats/common
load ../tests/bats/hosts

@test "30 jobs on two hosts of one processor each" {
	[ "$(nproc)" -ge 2 ] || skip "one processor"
	# What ssh runs there finds its state by this.
	SSHD_ENV=PMSD_STATE=$T/state.B two_hosts
	taskset -a -p -c 1 "$(pgrep -f "sshd.*$T/sshd.conf" | head -n 1)" >/dev/null
	printf 'hostA via:false\nhostB ssh:hostB\n' >hosts
	for h in A B; do
		: >"serve.$h"
		PMSD_STAY=1 PMSD_STATE=$T/state.$h on $h taskset -c "$([ $h = A ] && echo 0 || echo 1)" pmsd serve --hosts hosts --period 1 >"serve.$h" 2>"err.$h" </dev/null 3>&- &
		echo $! >>pids
		await "serve.$h" socket 20
	done
	export PMSD_STATE=$T/state.A
	until_true 'on A pmsd peers | grep -q "^hostB	up"'
	printf 'policy\tseconds\tmoved\tratio\n' >table
	for policy in none balance; do
		on A pmsd policy $policy
		mkdir $policy
		begin=$(date +%s%N)
		for n in $(seq 30); do
			on A taskset -c 0 pmsd run -n study -- awk -v n="$n" -v out="$T/$policy/$n" 'BEGIN { for (i = 0; i < 24000000; i++) s += i % n; print s >out }' >>$policy.jobs
		done
		while read -r job; do
			run on A pmsd wait "$job"
			[ "$status" = 0 ]
		done <$policy.jobs
		took=$((($(date +%s%N) - begin) / 1000000))
		[ "$policy" != none ] || first=$took
		moved=$(sqlite3 state.A/history.db "select count(*) from jobs where state = 'moved'")
		awk -v p=$policy -v t=$took -v m="$moved" -v f="$first" 'BEGIN { printf "%s\t%.1f\t%d\t%.2f\n", p, t / 1000, m, t / f }' >>table
	done
	diff -r none balance
	cp table "$BATS_TEST_DIRNAME/study.tsv"
	column -t -s "$(printf '\t')" table >&3
}
