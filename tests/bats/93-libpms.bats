#!/usr/bin/env bats
# libpms: programs that answer for themselves. Many tests run everything where nobody may trace, as in a container: contained -t.
load common

VICTIM=coop

teardown() {
	victims coop >>pids
	victims coop-shared >>pids
	while read -r p; do
		kill -KILL "$p" 2>/dev/null || :
	done <pids
	cd /
	rm -rf "$T"
}

begin() { # ARGUMENT...
	start_victim "$@"
}

# The same under a filter, which whatever is to look after it has to be under as well.
begin_contained() {
	start contained -t coop "$@"
	await out ready 20
	CHECKS=0
	check_victim "$PID"
}

restarted() { # ARGUMENT...: of restart
	NEW=$(contained -t restart -d "$@")
	echo "$NEW" >>pids
}

# Ends as it should: all of its threads have found all that they checked right.
ends_well() { # PID
	touch stop
	timeout 20 tail --pid="$1" -f /dev/null
	rm stop
	[ "$(tail -n 1 coop.log)" = "check $CHECKS" ]
}

# It runs as before, and nothing else does.
original_runs() {
	check_victim "$PID"
	[ "$(victims coop)" = "$PID" ]
}

@test "it answers for itself: twenty generations, by files and pipes, with callbacks" {
	begin threads=3 callbacks
	for n in 1 2 3 4 5 6 7 8 9 10; do
		ckpt -q -p "$PID" -o image
		gone "$PID"
		restart_as_new image
		await out "after 1" 20 $((2 * n - 1))
		check_victim "$NEW"
		ckpt -q -p "$NEW" | restart -d - >new
		PID=$(cat new)
		echo "$PID" >>pids
		await out "after 1" 20 $((2 * n))
		check_victim "$PID"
		[ "$n" = 2 ] && size=$(stat -c %s image)
	done
	[ "$(stat -c %s image)" -le $((size + size / 20)) ]
	[ "$(grep -c before out)" = 20 ]
	ends_well "$PID"
}

@test "a copy: it goes on, and says so; nothing is left in it" {
	begin callbacks
	snapshot "$PID" | grep -v -e '^[0-9a-f]*-' >before
	for n in 1 2 3 4 5; do
		ckpt -q -c -p "$PID" -o image
		await out "after 0" 20 "$n"
	done
	until_true 'snapshot "$PID" | grep -v -e "^[0-9a-f]*-" | diff -q before - >/dev/null'
	original_runs
	restart --check image
	ends_well "$PID"
}

@test "shared library: the same" {
	# shellcheck disable=SC2034
	VICTIM=coop-shared
	[ -x "$BIN/coop-shared" ]
	begin threads=2
	for n in 1 2 3; do
		ckpt -q -p "$PID" -o image
		restart_as_new image
		PID=$NEW
		check_victim "$PID"
	done
	ends_well "$PID"
}

@test "where nobody may trace: saved and restarted, ten generations" {
	begin_contained threads=4 callbacks
	# So it is; and one that does not answer for itself cannot be moved.
	start contained -t sleep 1000
	SLEEP=$PID
	run -77 contained -t ckpt -p "$SLEEP" -o image
	PID=$(one_victim coop)
	exe=$(readlink "/proc/$PID/exe")
	for n in 1 2 3 4 5 6 7 8 9 10; do
		contained -t ckpt -q -p "$PID" -o image
		gone "$PID"
		restarted image
		PID=$NEW
		await out "after 1" 20 "$n"
		check_victim "$PID"
		[ "$(readlink "/proc/$PID/exe")" = "$exe" ]
		[ "$(sed -n 's/^TracerPid:\t//p' "/proc/$PID/status")" = 0 ]
		# Of what it took to build it nothing is left.
		[ "$(grep -c 'memfd:pms (' "/proc/$PID/maps")" = 0 ]
		[ "$(grep -c 'memfd:pms-can' "/proc/$PID/maps")" = 1 ]
		[ "$(ls "/proc/$PID/fd" | tr '\n' ' ')" = "0 1 2 3 " ]
	done
	ends_well "$PID"
}

@test "where nobody may trace: by a pipe, by a channel, with a child" {
	begin_contained threads=2 fork
	contained -t ckpt -q -p "$PID" | contained -t restart -d - >new
	NEW=$(cat new)
	echo "$NEW" >>pids
	check_victim "$NEW"
	[ "$(victims coop | wc -l)" = 2 ]
	contained -t ckpt -q -p "$NEW" --to 'restart -d -'
	gone "$NEW"
	until_true '[ "$(victims coop | wc -l)" = 2 ]'
	for p in $(victims coop); do
		[ -z "$(pgrep -P "$p" -x coop)" ] || NEW=$p
	done
	echo "$NEW" >>pids
	check_victim "$NEW"
	# It waits for its child, and says what that has ended with.
	ends_well "$NEW"
	until_true '[ -z "$(victims coop)" ]'
}

@test "where nobody may trace: an image that is a program" {
	begin_contained
	contained -t ckpt -q -x -p "$PID" -o job
	contained -t ./job -d >new
	NEW=$(cat new)
	echo "$NEW" >>pids
	check_victim "$NEW"
	ends_well "$NEW"
}

@test "the exit status is its own, in the foreground" {
	begin_contained
	contained -t ckpt -q -p "$PID" -o image
	touch stop
	run -3 contained -t restart image
}

@test "pms_disable: ckpt waits for it; status 75 where it has waited for long enough" {
	start coop busy
	await out ready 20
	CHECKS=0
	run -75 ckpt -p "$PID" --stop-timeout 1 -c -o image
	[[ $output == *"must not be interrupted"* ]]
	[ ! -e image ]
	: >err
	ckpt -q -p "$PID" --stop-timeout 60 -c -o image 2>err &
	echo $! >>pids
	C=$!
	touch enable
	wait $C
	restart --check image
	original_runs
}

@test "a thread that blocks the signal: traced instead; where that is forbidden, said" {
	begin blocked
	ckpt -q -p "$PID" -o image
	restart_as_new image
	check_victim "$NEW"
	ends_well "$NEW"
	rm image
	: >out
	begin_contained blocked
	run -75 contained -t ckpt -p "$PID" -o image
	[[ $output == *"signal 23"*"may not be traced"* ]]
	[ ! -e image ]
	original_runs
}

@test "pms_checkpoint: 0 here, 1 in the copy" {
	start coop save=saved
	await out "saved 0" 20
	restart --check saved
	kill -KILL "$PID"
	restart_as_new saved
	await out "saved 1" 20
	CHECKS=1
	kill -USR2 "$NEW"
	until_true 'grep -q "check 1" coop.log'
	ends_well "$NEW"
}

@test "pms_checkpoint: no ckpt, no directory, not now" {
	start env PATH=/usr/bin:/bin "$BIN/coop" save=saved
	until_true 'grep -q "saved -1 No such file" out'
	kill -KILL "$PID"
	: >out
	start coop save=no/such/directory
	until_true 'grep -q "saved -1 Input/output error" out'
	kill -KILL "$PID"
	: >out
	touch enable
	start coop busy save=saved
	await out "saved 0" 20
}

@test "-S: it stands, --list shows it, --resume lets it go on, --end ends it" {
	begin_contained
	contained -t ckpt -q -p "$PID" -S -o image
	ckpt --list | grep -q "^$PID	"
	kill -CONT "$PID"
	contained -t ckpt --resume "$PID"
	[ -z "$(ckpt --list | grep "^$PID	")" ]
	original_runs
	contained -t ckpt -q -p "$PID" -S -o image
	contained -t ckpt --end "$PID"
	gone "$PID"
	restarted image
	check_victim "$NEW"
}

@test "ckpt is killed, and fails, at every site: it goes on, or ends and a complete image is named" {
	begin_contained threads=3
	for site in frozen collected header_out page_out image_out synced before_end; do
		for act in kill fail; do
			rm -f image
			contained -t ckpt -q -p "$PID" -o image -F "$site:$act" 2>/dev/null || :
			[ ! -e image ] || restart --check image
			if [ "$site:$act" = before_end:kill ]; then
				until_true 'gone "$PID"'
				restarted image
				PID=$NEW
			fi
			original_runs
		done
	done
	ends_well "$PID"
}

@test "restart is killed, and fails, at every site: the original goes on" {
	begin_contained threads=3
	for site in read_header execed mapped filled parked; do
		for act in kill fail; do
			run bash -c "contained -t ckpt -q -p $PID | contained -t restart -q -d -F $site:$act -; exit \${PIPESTATUS[0]}"
			[ "$status" = 74 ]
			until_true '[ "$(victims coop)" = "$PID" ]'
			original_runs
			run contained -t ckpt -q -p "$PID" --to "restart -q -d -F $site:$act -"
			[ "$status" = 76 ]
			until_true '[ "$(victims coop)" = "$PID" ]'
			original_runs
		done
	done
	ends_well "$PID"
}

@test "restart is killed when it has let them go: they run" {
	begin_contained threads=3
	contained -t ckpt -q -p "$PID" -o image
	# Where it makes namespaces its own end is that of whoever is in them.
	if [ "$(id -u)" = 0 ]; then
		# Until nobody has its number any more.
		until_true 'contained -t restart -q -d --pid=same -F released:kill image 2>/dev/null; [ $? = 137 ]'
		NEW=$(one_victim coop)
		check_victim "$NEW"
		ends_well "$NEW"
	fi
}

@test "ckpt is killed at a hundred moments: it goes on, and can be asked again" {
	begin_contained threads=4
	for n in $(seq 100); do
		contained -t ckpt -q -c -p "$PID" -o image 2>/dev/null &
		C=$!
		perl -e "select undef, undef, undef, $n / 8000"
		kill -KILL $C 2>/dev/null || :
		wait $C 2>/dev/null || :
	done
	original_runs
	contained -t ckpt -q -p "$PID" -o image
	restarted image
	check_victim "$NEW"
	ends_well "$NEW"
}

@test "C++, static, and a program with a main() of its own" {
	LIB=${PMS_LIB:?where libpms is}
	cat >plus.cc <<-'P'
		#include <atomic>
		#include <cstdio>
		#include <string>
		#include <thread>
		#include <unistd.h>
		#include <pms.h>
		int pms_main(int argc, char **argv)
		{
			std::atomic<bool> over{false};
			std::thread t([&] { while (!over) std::this_thread::yield(); });
			FILE *f = pms_fopen("plus.out", "a");
			std::string s = argc > 1 ? argv[1] : "none";
			std::fprintf(f, "begins %s\n", s.c_str());
			std::fflush(f);
			while (access("stop", F_OK) != 0)
				usleep(1000);
			over = true;
			t.join();
			std::fprintf(f, "ends %s\n", s.c_str());
			return pms_fclose(f);
		}
	P
	cat >own.c <<-'P'
		#include <pms.h>
		#include <unistd.h>
		int main(void)
		{
			if (pms_init() < 0 || pms_init() < 0)
				return 1;
			while (access("stop", F_OK) != 0)
				usleep(1000);
			return 4;
		}
	P
	g++ -Wall -Wextra -Werror -I"$LIB" -o plus plus.cc -L"$LIB" -l:libpms.a -pthread
	cc -Wall -Wextra -Werror -static -I"$LIB" -o own own.c -L"$LIB" -l:libpms.a -pthread
	: >plus.out
	start ./plus word
	await plus.out begins 20
	ckpt -q -p "$PID" -o image
	(PMS_WITHOUT=ptrace restart -d image) >new
	cat new >>pids
	touch stop
	until_true 'grep -q "ends word" plus.out'
	rm stop
	start ./own
	until_true 'grep -q pms-can-be-asked "/proc/$PID/maps"'
	ckpt -q -p "$PID" -o image
	touch stop
	run -4 env PMS_WITHOUT=ptrace restart image
}

@test "the example: what it computes while it is moved is what it computes otherwise" {
	cc -O2 -Wall -Wextra -Werror -I"${PMS_LIB:?where libpms is}" -o integral "$PMS_LIB/integral.c" -L"$PMS_LIB" -l:libpms.a -pthread
	./integral 24 alone
	start ./integral 40 moved
	for n in 1 2 3 4 5; do
		until_true '[ "$(wc -l <moved)" -ge '$((n * 4))' ]'
		ckpt -q -p "$PID" -o image
		restart_as_new image
		PID=$NEW
	done
	until_true '[ "$(wc -l <moved)" -ge 24 ]'
	head -n 24 moved | cmp - alone
}

# A program of C, linked with libpms; its text is standard input.
build() { # NAME
	cat >"$1.c"
	cc -O1 -Wall -Wextra -Werror -D_GNU_SOURCE -I"${PMS_LIB:?where libpms is}" -o "$1" "$1.c" -L"$PMS_LIB" -l:libpms.a -pthread
}

@test "a child that has given up its handlers, and one that executes another program, are not harmed" {
	build parent <<-'C'
		#include <pms.h>
		#include <signal.h>
		#include <stdio.h>
		#include <sys/wait.h>
		#include <unistd.h>
		int pms_main(int argc, char **argv)
		{
			int status;
			(void)argc, (void)argv;
			if (fork() == 0) {
				for (int sig = 1; sig < 65; sig++)
					signal(sig, SIG_DFL);
				while (access("stop", F_OK) != 0)
					usleep(1000);
				_exit(5);
			}
			puts("ready");
			fflush(stdout);
			while (access("stop", F_OK) != 0) {
				pid_t pid = fork();
				if (pid == 0)
					execl("/bin/true", "true", (char *)NULL);
				if (waitpid(pid, &status, 0) != pid || status != 0)
					return 1;
			}
			if (wait(&status) < 0 || WEXITSTATUS(status) != 5)
				return 2;
			return 3;
		}
	C
	PARENT=$(spawn out sh -c './parent; echo "status $?"')
	echo "$PARENT" >>pids
	await out ready 20
	P=$(pgrep -P "$PARENT")
	for n in $(seq 60); do
		ckpt -q -c -p "$P" -o image || [ $? = 75 ]
	done
	touch stop
	await out "status 3" 20
}

@test "a sandbox of its own: not asked, as it might end for what it answers" {
	build sandbox <<-'C'
		#include <linux/filter.h>
		#include <linux/seccomp.h>
		#include <pms.h>
		#include <stddef.h>
		#include <stdio.h>
		#include <sys/prctl.h>
		#include <sys/syscall.h>
		#include <unistd.h>
		int pms_main(int argc, char **argv)
		{
			struct sock_filter f[] = {
			    BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
			    BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_socket, 0, 1),
			    BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
			    BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
			};
			struct sock_fprog p = {4, f};
			(void)argc, (void)argv;
			if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0 || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &p) < 0)
				return 1;
			puts("ready");
			fflush(stdout);
			while (access("stop", F_OK) != 0)
				usleep(1000);
			return 3;
		}
	C
	start ./sandbox
	await out ready 20
	if [ "$(id -u)" = 0 ]; then
		ckpt -q -p "$PID" -o image
		touch stop
		run -3 restart image
	else
		run -77 ckpt -p "$PID" -o image
		! gone "$PID"
	fi
}

@test "a thread in the vDSO, and another kernel's there" {
	build clock <<-'C'
		#include <pms.h>
		#include <stdio.h>
		#include <time.h>
		#include <unistd.h>
		int pms_main(int argc, char **argv)
		{
			struct timespec ts;
			(void)argc, (void)argv;
			puts("ready");
			fflush(stdout);
			for (long n = 0; n % 1000 != 0 || access("stop", F_OK) != 0; n++)
				if (clock_gettime(CLOCK_MONOTONIC, &ts) != 0)
					return 1;
			return 3;
		}
	C
	start ./clock
	await out ready 20
	for n in 1 2 3 4 5; do
		ckpt -q -p "$PID" -o image
		NEW=$(PMS_WITHOUT=same_vdso restart -d image)
		echo "$NEW" >>pids
		PID=$NEW
	done
	ckpt -q -p "$PID" -o image
	touch stop
	run -3 env PMS_WITHOUT=same_vdso restart image
}

@test "while one ckpt saves it another is told so: never two" {
	begin
	mkfifo slow
	ckpt -q -p "$PID" >slow &
	FIRST=$!
	echo $FIRST >>pids
	exec 8<slow
	until_true 'grep -q "memfd:pms-asked" "/proc/$PID/maps"'
	run -75 ckpt -p "$PID" -o image
	[[ $output == *"another ckpt"* ]]
	[ ! -e image ]
	exec 8<&-
	wait $FIRST || :
	original_runs
}

@test "signals that are pending when it is parked are in every image that is made of it" {
	build pending <<-'C'
		#include <pms.h>
		#include <signal.h>
		#include <stdio.h>
		#include <unistd.h>
		int pms_main(int argc, char **argv)
		{
			sigset_t set;
			siginfo_t si;
			int sum = 0, own = 0;
			(void)argc, (void)argv;
			sigemptyset(&set);
			sigaddset(&set, 40);
			sigaddset(&set, 41);
			sigprocmask(SIG_BLOCK, &set, NULL);
			for (int i = 1; i <= 5; i++)
				sigqueue(getpid(), 40, (union sigval){.sival_int = i});
			raise(41);
			puts("ready");
			fflush(stdout);
			while (access("stop", F_OK) != 0)
				usleep(1000);
			for (int i = 0; i < 6; i++) {
				int sig = sigwaitinfo(&set, &si);

				if (sig == 40)
					sum = sum * 10 + si.si_value.sival_int;
				own += sig == 41;
			}
			/* In order, and each once. */
			return sum == 12345 && own == 1 ? 3 : 2;
		}
	C
	start ./pending
	await out ready 20
	ckpt -q -S -p "$PID" -o first
	ckpt -q -S -p "$PID" -o second
	ckpt --resume "$PID"
	ckpt -q -c -p "$PID" -o third
	touch stop
	timeout 20 tail --pid="$PID" -f /dev/null
	for image in first second third; do
		run -3 restart $image
		run -3 env PMS_WITHOUT=ptrace restart $image
	done
}

@test "a thousand threads" {
	build many <<-'C'
		#include <pms.h>
		#include <pthread.h>
		#include <stdio.h>
		#include <unistd.h>
		static void *wait_for(void *arg)
		{
			while (access("stop", F_OK) != 0)
				usleep(100000);
			return arg;
		}
		int pms_main(int argc, char **argv)
		{
			pthread_t t[1000];
			pthread_attr_t a;
			void *p;
			(void)argc, (void)argv;
			pthread_attr_init(&a);
			pthread_attr_setstacksize(&a, 65536);
			for (long i = 0; i < 1000; i++)
				if (pthread_create(&t[i], &a, wait_for, (void *)i) != 0)
					return 1;
			puts("ready");
			fflush(stdout);
			for (long i = 0; i < 1000; i++)
				if (pthread_join(t[i], &p) != 0 || p != (void *)i)
					return 2;
			return 3;
		}
	C
	start ./many
	await out ready 60
	ckpt -q -c -p "$PID" -o image
	ckpt -q -p "$PID" -o image
	touch stop
	run -3 restart image
	run -3 env PMS_WITHOUT=ptrace restart image
}

@test "with rights that its caller has not it cannot be asked" {
	[ "$(id -u)" = 0 ] || skip "only root can give such rights"
	build trusted <<-'C'
		#include <errno.h>
		#include <pms.h>
		int main(void)
		{
			return pms_init() < 0 && errno == EPERM ? 3 : 1;
		}
	C
	chmod 4755 trusted
	chmod 711 .
	run -3 setpriv --reuid=65534 --regid=65534 --clear-groups ./trusted
}

@test "a queue that is full, and somebody who sends on: nothing is lost where it may be traced" {
	build queue <<-'C'
		#include <pms.h>
		#include <signal.h>
		#include <stdio.h>
		#include <sys/resource.h>
		#include <unistd.h>
		int pms_main(int argc, char **argv)
		{
			struct rlimit r = {40, 40};
			sigset_t set;
			siginfo_t si;
			int next = 1;
			(void)argc, (void)argv;
			setrlimit(RLIMIT_SIGPENDING, &r);
			sigemptyset(&set);
			sigaddset(&set, 40);
			sigprocmask(SIG_BLOCK, &set, NULL);
			puts("ready");
			fflush(stdout);
			while (next <= 20000)
				if (sigwaitinfo(&set, &si) == 40 && si.si_value.sival_int != next++)
					return 1;
			return 3;
		}
	C
	cat >send.py <<-'P'
		import ctypes, sys, time
		libc = ctypes.CDLL(None, use_errno=True)
		for i in range(1, 20001):
		    while libc.sigqueue(int(sys.argv[1]), 40, ctypes.c_void_p(i)) != 0:
		        if ctypes.get_errno() != 11:
		            sys.exit(1)
		        time.sleep(0.0002)
	P
	PARENT=$(spawn out sh -c './queue; echo "status $?"')
	echo "$PARENT" >>pids
	await out ready 20
	P=$(pgrep -P "$PARENT")
	python3 send.py "$P" &
	S=$!
	echo $S >>pids
	n=0
	while kill -0 $S 2>/dev/null && [ $n -lt 200 ]; do
		n=$((n + 1))
		ckpt -q -c -p "$P" -o image || [ $? = 66 ] # it has ended
	done
	[ $n -ge 3 ]
	await out "status 3" 60
}

@test "parked and then stopped: --resume lets it go on all the same" {
	begin
	ckpt -q -S -p "$PID" -o image
	kill -STOP "$PID"
	until_true 'ckpt --list | grep -q "^$PID	"'
	ckpt --resume "$PID"
	original_runs
}
