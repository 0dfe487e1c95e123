#!/usr/bin/env bats
# To another machine by a real ssh and sshd. They speak over a pipe instead of a network, so that
# this needs no address and no privilege; the windows and buffers are ssh's own.

load common

setup_ssh() {
	SSHD=$(PATH=$PATH:/usr/sbin:/sbin command -v sshd) || skip "no sshd"
	[ "$(id -u)" != 0 ] || mkdir -p /run/sshd
	getent passwd "$(id -u)" | grep -qv nologin || [ "$(id -u)" = 0 ] || skip "this user may not log in"
	ssh-keygen -q -t ed25519 -N '' -f host
	ssh-keygen -q -t ed25519 -N '' -f key
	cp key.pub authorized
	chmod 700 .
	cat >sshd.conf <<-C
		HostKey $T/host
		AuthorizedKeysFile $T/authorized
		StrictModes no
		UsePAM no
		PermitRootLogin yes
		PidFile none
		SetEnv PATH=$PATH HOME=$T
	C
	cat >ssh.conf <<-C
		Host hostB
		ProxyCommand $SSHD -i -f $T/sshd.conf -E $T/sshd.log
		IdentityFile $T/key
		StrictHostKeyChecking no
		UserKnownHostsFile /dev/null
		LogLevel ERROR
	C
	ssh -F ssh.conf hostB true || skip "sshd does not work here: $(tail -n 1 sshd.log)"
}

@test "ckpt | ssh hostB restart" {
	setup_ssh
	start_victim anon hundred handlers
	ckpt -p "$PID" | ssh -F ssh.conf hostB "cd $T && restart -d -" >new
	gone "$PID"
	cat new >>pids
	check_victim "$(cat new)"
}

@test "ckpt | ssh -C hostB: a restart that refuses leaves the original, with the image long sent" {
	setup_ssh
	start_victim anon hundred
	snapshot "$PID" >before
	run bash -c "ckpt -q -p $PID | ssh -C -F ssh.conf hostB 'restart -d --chdir /nonexistent -'; exit \${PIPESTATUS[0]}"
	[ "$status" = 74 ]
	as_found "$PID"
	check_victim "$PID"
	# It builds everything, and dies before it has read the tail.
	run bash -c "ckpt -q -p $PID | ssh -F ssh.conf hostB 'restart -d -F parked -'; exit \${PIPESTATUS[0]}"
	[ "$status" = 74 ]
	as_found "$PID"
	check_victim "$PID"
}

@test "ckpt --to 'ssh hostB restart'" {
	setup_ssh
	start_victim anon hundred
	ckpt -p "$PID" --to "ssh -F ssh.conf hostB 'cd $T && restart -d -'"
	gone "$PID"
	NEW=$(one_victim)
	check_victim "$NEW"
}
