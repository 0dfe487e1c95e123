#!/usr/bin/env bats
# Real programs as Debian ships them, in the middle of their work. After the move the output
# is that of an uninterrupted run, and they have gone on, not begun again.

load common

# The program runs until its output has its COUNT-th line with STRING, is moved by file and by pipe,
# and ends by itself.
move_at() {
	await out "$1" 60 "${2:-1}"
	ckpt -p "$PID" -o image
	gone "$PID"
	restart_as_new image
}

# Wait until NEW has ended.
finish() {
	timeout 120 tail --pid="$NEW" -f /dev/null
}

@test "python3: a long computation, with a nonce from before" {
	cat >job.py <<'P'
import hashlib, os, time
nonce = os.urandom(16).hex()
print("nonce", nonce, flush=True)
h = hashlib.sha256()
for i in range(300):
    for j in range(2000):
        h.update(b"%d" % (i * j))
    if i % 10 == 0:
        print("step", i, flush=True)
    if i == 100:
        time.sleep(1)
print("result", h.hexdigest())
print("again", nonce)
P
	/usr/bin/python3 job.py >whole
	start /usr/bin/python3 job.py
	move_at "step 100"
	await out again 60
	finish
	grep -v -e nonce -e again whole >want
	grep -v -e nonce -e again out | diff want -
	[ "$(grep -c nonce out)" = 1 ]
	[ "$(sed -n 's/nonce //p' out)" = "$(sed -n 's/again //p' out)" ]
	# The first part was not done twice: each step was taken once, after it those that were left.
	[ "$(grep -c '^step ' out)" = 30 ]
}

@test "python3 holding 200 MB of objects" {
	cat >job.py <<'P'
import os, time, hashlib
data = {i: os.urandom(1000) + b"x" * 1000 for i in range(100000)}
def digest():
    h = hashlib.sha256()
    for i in sorted(data): h.update(data[i])
    return h.hexdigest()
print("before", digest(), flush=True)
time.sleep(1)
print("after", digest(), flush=True)
P
	start /usr/bin/python3 job.py
	move_at before
	await out after 60
	[ "$(sed -n 's/before //p' out)" = "$(sed -n 's/after //p' out)" ]
}

@test "gawk reading a file" {
	seq 400000 >numbers
	cat >job.awk <<'A'
BEGIN { srand(1) }
{ s = (s * 31 + $1) % 1000003; a[$1 % 1000] += s }
NR == 200000 { print "half"; fflush(); system(""); t = systime(); while (systime() < t + 2); }
END { for (i = 0; i < 1000; i++) print i, a[i] }
A
	gawk -f job.awk numbers >want
	start gawk -f job.awk "$T/numbers"
	move_at half
	await out "999 " 60
	finish
	diff want out
}

@test "perl in a loop with a regular expression" {
	# shellcheck disable=SC2016
	job='$| = 1; my $s = "a"; for my $i (1 .. 60) { $s =~ s/(.)$/$1 . chr(97 + $i % 26)/e for 1 .. 500;
		$s =~ tr/a-y/b-z/; print "$i ", length($s), " ", unpack("%32C*", $s), "\n"; select(undef, undef, undef, 0.02) }'
	perl -e "$job" >want
	start perl -e "$job"
	move_at "20 "
	await out "60 " 60
	finish
	diff want out
}

@test "sqlite3 in the middle of a transaction" {
	mkfifo commands
	sqlite3 base.db 'create table t (a, b); insert into t values (1, "before");'
	# Its input is a pipe: restart gives it another one, with what had not been read.
	spawn out sh -c 'exec sqlite3 -batch base.db <commands' >pid
	PID=$(cat pid)
	echo "$PID" >>pids
	exec 7>commands
	echo 'begin immediate; insert into t values (2, "inside"); select "in", count(*) from t;' >&7
	await out "in|2" 20
	ckpt -p "$PID" -o image
	# In between nobody else sees the transaction.
	exec 7>&-
	echo 'insert into t values (3, "moved"); commit; select "end", count(*) from t;' |
		restart image
	grep -q "end|3" out
	[ "$(sqlite3 base.db 'select group_concat(b) from t')" = before,inside,moved ]
}

@test "xz compressing, input and output redirected" {
	seq 1500000 >plain
	spawn out sh -c "exec xz -T1 -6 -c <plain >plain.xz" >pid
	PID=$(cat pid)
	echo "$PID" >>pids
	# Some way into its input.
	until_true '[ "$(sed -n "s/^pos:\t//p" "/proc/$PID/fdinfo/0")" -gt 3000000 ]'
	ckpt -p "$PID" -o image
	! gone "$PID" && return 1
	[ "$(jq -r '.ofds[0].pos' <(bsdtar -xOf image objects.json))" -gt 3000000 ]
	restart image
	xz -dc plain.xz | cmp - plain
}

@test "a program that was upgraded under the running job" {
	cp "$(command -v gawk)" ./job
	start ./job 'BEGIN { for (;;) { n++; print n, PROCINFO["pid"]; fflush(); t = systime(); while (systime() == t); } }'
	await out "2 " 20
	cp "$(command -v perl)" ./new && mv ./new ./job
	ckpt -p "$PID" -o image
	restart_as_new image
	lines=$(wc -l <out)
	await out " $PID" 20 $((lines + 2))
	# And once more, from a program that is nowhere any more.
	ckpt -p "$NEW" -o image
	restart_as_new image
	lines=$(wc -l <out)
	await out " $PID" 20 $((lines + 2))
}

@test "a program that is not there at all, with its libraries in the image" {
	mkdir lib
	cp "$(command -v gawk)" ./job
	start ./job 'BEGIN { for (;;) { n++; print n; fflush(); t = systime(); while (systime() == t); } }'
	await out 2 20
	ckpt -e -p "$PID" -o image
	rm ./job
	bsdtar -tf image | grep -q '^file/'
	restart_as_new image
	lines=$(wc -l <out)
	await out "" 20 $((lines + 2))
}
