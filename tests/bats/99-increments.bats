# ckpt -i, --every, --merge; restart --parent.
load common

# The image is run beside the original, and is right.
image_is_right() {
	cp out out.before
	restart_as_new "$@" 2>restart.err
	kill -USR2 "$NEW"
	until_true '[ "$(wc -l <out)" -gt "$(wc -l <out.before)" ]'
	tail -n 1 out | grep -q "^ok "
	kill -KILL "$NEW"
	until_true "gone $NEW"
	cp out.before out
}

@test "a chain of increments: each of them is what the process was then" {
	start_writer 32 8 2
	ckpt -c -p "$PID" -o job.0.ckpt
	for n in 1 2 3 4 5 6; do
		ckpt -c -i job.$((n - 1)).ckpt -p "$PID" -o job.$n.ckpt
	done
	kill -STOP "$PID"
	ckpt -c -i job.6.ckpt -p "$PID" -o job.7.ckpt
	kill -CONT "$PID"
	bsdtar -xOf job.7.ckpt header.json | grep -q '"parent"'
	for n in 6 3 0; do
		image_is_right job.$n.ckpt
	done
	check_victim "$PID"
}

@test "what has not changed is not in it, what has become zero is not either" {
	start lazy 16
	await out ready 20
	ckpt -c -p "$PID" -o a.ckpt
	ckpt -c -i a.ckpt -p "$PID" -o b.ckpt
	echo dontneed >>commands
	await out "dontneed ok" 20
	ckpt -c -i b.ckpt -p "$PID" -o c.ckpt
	[ "$(stat -c %s b.ckpt)" -lt $(($(stat -c %s a.ckpt) / 20)) ]
	[ "$(stat -c %s c.ckpt)" -lt $(($(stat -c %s a.ckpt) / 20)) ]
	kill -KILL "$PID"
	echo all >>commands
	restart_as_new c.ckpt
	await out "all ok" 20
}

@test "a move with a parent at the other end" {
	start_writer 16
	ckpt -c -p "$PID" -o job.ckpt
	mkdir there
	cp job.ckpt there
	ckpt -i job.ckpt -p "$PID" | restart -d --parent there/job.ckpt - >new
	gone "$PID" || [ "$(cat new)" = "$PID" ]
	PID=$(cat new)
	echo "$PID" >>pids
	check_victim "$PID"
	# It is still the same program: the next increment is one of the same chain.
	ckpt -i job.ckpt -p "$PID" -o next.ckpt
	restart_as_new next.ckpt
	check_victim "$NEW"
}

@test "a parent that is missing, wrong, damaged or of somebody else is named, and nothing happens" {
	start_writer 8
	until_true 'snapshot "$PID" >before && snapshot "$PID" >after && diff -q before after >/dev/null'
	ckpt -c -p "$PID" -o a.ckpt
	ckpt -c -i a.ckpt -p "$PID" -o b.ckpt
	ckpt -c -i b.ckpt -p "$PID" -o c.ckpt
	mkdir away
	mv a.ckpt away
	run restart --check c.ckpt
	[ "$status" = 66 ]
	[[ "$output" == *"b.ckpt: its parent, image "*", is not beside it"* ]]
	run restart --check --parent c.ckpt b.ckpt
	[ "$status" = 66 ]
	[[ "$output" == *"c.ckpt: is not the parent that b.ckpt names"* ]]
	restart --check --parent away/a.ckpt b.ckpt
	run ckpt -c -i c.ckpt -p "$PID" -o d.ckpt
	[ "$status" = 66 ]
	[ ! -e d.ckpt ]
	run ckpt -c -i nowhere -p "$PID" -o d.ckpt
	[ "$status" = 66 ]
	[[ "$output" == *"nowhere: no image is there"* ]]
	start sleep 1000
	ckpt -c -p "$PID" -o other.ckpt
	mv away/a.ckpt .
	run ckpt -c -i a.ckpt -p "$PID" -o d.ckpt
	[ "$status" = 73 ]
	[[ "$output" == *"a.ckpt: is an image of other processes"* ]]
	# Bytes of the parent's pages, all of which are still so.
	start lazy 8
	until_true 'grep -q ready out'
	ckpt -c -p "$PID" -o old.ckpt
	ckpt -c -i old.ckpt -p "$PID" -o new.ckpt
	size=$(stat -c %s old.ckpt)
	for at in 3 5 7; do
		cp old.ckpt kept
		printf 'xxxxxxxx' | dd of=old.ckpt bs=1 seek=$((size * at / 10)) conv=notrunc status=none
		run timeout 20 restart --check new.ckpt
		[ "$status" = 65 ]
		run timeout 20 restart new.ckpt
		[ "$status" = 65 ]
		mv kept old.ckpt
	done
	run timeout 20 pagesrv serve -l "unix:$T/sock" b.ckpt
	[ "$status" = 69 ]
	[[ "$output" == *"ckpt --merge b.ckpt"* ]]
}

@test "--merge: an increment becomes whole, and stays the parent of its children" {
	start_writer 16
	ckpt -c -p "$PID" -o a.ckpt
	ckpt -c -i a.ckpt -p "$PID" -o b.ckpt
	ckpt -c -i b.ckpt -p "$PID" -o c.ckpt
	for site in header_out page_out image_out synced; do
		cp b.ckpt before.b
		ckpt --merge b.ckpt -F "$site" 2>/dev/null || :
		restart --check c.ckpt
		mv before.b b.ckpt
	done
	ckpt --merge b.ckpt
	rm a.ckpt
	run ! grep -q parent <(bsdtar -xOf b.ckpt header.json)
	image_is_right b.ckpt
	image_is_right c.ckpt
	ckpt --merge c.ckpt
	rm b.ckpt
	image_is_right c.ckpt
	cp c.ckpt same
	ckpt --merge c.ckpt
	cmp c.ckpt same
	run ckpt --merge nowhere
	[ "$status" = 66 ]
	check_victim "$PID"
}

@test "--every: a chain that is kept short, until the process ends" {
	start_writer 8
	ckpt --every 0.2 --keep 3 -p "$PID" -o 'job.%n.ckpt' 2>ckpt.err &
	c=$!
	echo $c >>pids
	until_true '[ -e job.6.ckpt ]'
	kill -KILL "$PID"
	wait $c
	[ "$(ls job.*.ckpt | wc -l)" = 3 ]
	[ ! -e job.1.ckpt ]
	for f in job.*.ckpt; do
		image_is_right "$f"
	done
	# Those that are there are not written over.
	ls job.* >names
	start_writer 8
	ckpt --every 10m --keep 3 -p "$PID" -o 'job.%n.ckpt' 2>ckpt.err &
	c=$!
	echo $c >>pids
	until_true '[ "$(ls job.*.ckpt | wc -l)" = 4 ]' || { cat ckpt.err names; ls -l job.*; return 1; }
	kill -TERM $c
	wait $c
	[ "$(ls job.* | head -n 3)" = "$(cat names)" ]
	run ckpt --every 10m -p "$PID" -o job.ckpt
	[ "$status" = 64 ]
	run ckpt --every soon -p "$PID" -o job.%n.ckpt
	[ "$status" = 64 ]
}
