# pms: see README.md. `make`, `make demo`, `make check`, `make bench`, `make install`.
PREFIX ?= /usr/local
CC = gcc
ARCH := $(shell uname -m)
BUILD := build$(if $(SAN),-san)

CPPFLAGS += -D_GNU_SOURCE -Ilib/common -Ilib/arch/$(ARCH) -MMD -MP
WARN := -Wall -Wextra -Wshadow -Wstrict-prototypes -Wmissing-prototypes -Wpointer-arith -Wwrite-strings -Wformat=2 -Wno-format-nonliteral
CFLAGS ?= -O2 -g
ALL_CFLAGS := -std=gnu11 $(WARN) $(CFLAGS) -fno-strict-aliasing -pthread
ifdef SAN
ALL_CFLAGS += -fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer
endif
Q := $(if $(V),,@)
comma := ,
say = $(if $(V),,@printf '  %-7s %s\n' "$(1)" "$(2)")

COMMON_SRC := $(wildcard lib/common/*.c lib/arch/$(ARCH)/*.c)
COMMON_ASM := $(wildcard lib/arch/$(ARCH)/*.S)
COMMON_OBJ := $(COMMON_SRC:%.c=$(BUILD)/%.o) $(COMMON_ASM:%.S=$(BUILD)/%.o)
CKPT_OBJ := $(patsubst %.c,$(BUILD)/%.o,$(wildcard cmd/ckpt/*.c))
REXEC_OBJ := $(patsubst %.c,$(BUILD)/%.o,$(wildcard cmd/rexec-sys/*.c))
PMSD_OBJ := $(patsubst %.c,$(BUILD)/%.o,$(wildcard cmd/pmsd/*.c))
PAGESRV_OBJ := $(patsubst %.c,$(BUILD)/%.o,$(wildcard cmd/pagesrv/*.c))
RESTART_OBJ := $(patsubst %.c,$(BUILD)/%.o,$(wildcard cmd/restart/*.c))
UNIT := $(patsubst tests/unit/%.c,$(BUILD)/tests/unit/%,$(wildcard tests/unit/*_test.c))
FUZZ := $(patsubst tests/fuzz/%.c,$(BUILD)/tests/fuzz/%,$(wildcard tests/fuzz/*.c))
VICTIM := $(BUILD)/tests/victim/victim $(BUILD)/tests/victim/victim-static $(BUILD)/tests/victim/lazy $(BUILD)/tests/victim/writer
PROGRAMS := $(BUILD)/ckpt $(BUILD)/restart $(BUILD)/rexec-sys $(BUILD)/pagesrv $(BUILD)/pmsd

# Of the libraries only what is used: the shared libarchive brings an XML parser and Unicode tables, and a program that starts takes three times as long.
LIBS := -Wl,--gc-sections -Wl,-Bstatic -larchive -lzstd -ljansson -lxxhash -lbsd -lmd -Wl,-Bdynamic -lm
TLS_LIBS := -lssl -lcrypto
# restart is static: it is the stub in front of an executable image, wherever that is run.
RESTART_LINK := $(if $(SAN),,-static)
RESTART_LIBS := $(if $(SAN),$(LIBS),$(filter-out -Wl$(comma)-Bdynamic,$(LIBS)))

.PHONY: all deps demo check soak bench install uninstall clean
.DEFAULT_GOAL := all
all: deps-quiet
	$(Q)$(MAKE) --no-print-directory programs
.PHONY: programs deps-quiet
programs: $(PROGRAMS)

$(BUILD)/libcommon.a: $(COMMON_OBJ)
	$(call say,AR,$@)
	$(Q)rm -f $@ && ar rcs $@ $^

$(BUILD)/ckpt: $(CKPT_OBJ) $(BUILD)/libcommon.a
	$(call say,LINK,$@)
	$(Q)$(CC) $(ALL_CFLAGS) $(LDFLAGS) -o $@ $^ $(LIBS)

$(BUILD)/rexec-sys: $(REXEC_OBJ) $(BUILD)/libcommon.a
	$(call say,LINK,$@)
	$(Q)$(CC) $(ALL_CFLAGS) $(LDFLAGS) -o $@ $^ $(LIBS) $(TLS_LIBS)

$(BUILD)/pagesrv: $(PAGESRV_OBJ) $(BUILD)/libcommon.a
	$(call say,LINK,$@)
	$(Q)$(CC) $(ALL_CFLAGS) $(LDFLAGS) -o $@ $^ $(LIBS) $(TLS_LIBS)

$(BUILD)/pmsd: $(PMSD_OBJ) $(BUILD)/libcommon.a
	$(call say,LINK,$@)
	$(Q)$(CC) $(ALL_CFLAGS) $(LDFLAGS) -o $@ $^ -lsqlite3 $(LIBS) $(TLS_LIBS)

$(BUILD)/restart: $(RESTART_OBJ) $(BUILD)/libcommon.a
	$(call say,LINK,$@)
	$(Q)$(CC) $(ALL_CFLAGS) $(LDFLAGS) $(RESTART_LINK) -o $@ $^ $(RESTART_LIBS)

# libpms: one object with no names but its own, so that it can be linked to anything; and a shared library.
PMS_SRC := $(wildcard lib/pms/*.c) lib/arch/$(ARCH)/capture.S
PMS_START := $(BUILD)/pic/lib/pms/start.o
PMS_OBJ := $(filter-out $(PMS_START),$(patsubst %,$(BUILD)/pic/%.o,$(basename $(PMS_SRC))))
PMS_VERSION_MAJOR := 0
LIBPMS := $(BUILD)/libpms.a $(BUILD)/libpms.so.$(PMS_VERSION_MAJOR)
programs: $(LIBPMS)
PMS_CFLAGS := -std=gnu11 $(WARN) $(filter-out -fsanitize%,$(CFLAGS)) -fno-strict-aliasing -fvisibility=hidden -fPIC -fno-stack-protector

$(BUILD)/pic/%.o: %.c
	$(call say,CC,$<)
	$(Q)mkdir -p $(@D)
	$(Q)$(CC) $(CPPFLAGS) $(PMS_CFLAGS) -c -o $@ $<
$(BUILD)/pic/%.o: %.S
	$(call say,AS,$<)
	$(Q)mkdir -p $(@D)
	$(Q)$(CC) $(CPPFLAGS) -c -o $@ $<
$(BUILD)/pic/lib/pms/start_shared.o: lib/pms/start.c
	$(call say,CC,$<)
	$(Q)mkdir -p $(@D)
	$(Q)$(CC) $(CPPFLAGS) $(PMS_CFLAGS) -DPMS_SHARED -c -o $@ $<
$(BUILD)/libpms.a: $(PMS_OBJ) $(PMS_START)
	$(call say,AR,$@)
	$(Q)$(LD) -r -o $(BUILD)/pic/pms.o $(filter-out $(PMS_START),$^)
	$(Q)objcopy --localize-hidden $(BUILD)/pic/pms.o
	$(Q)rm -f $@ && ar rcs $@ $(BUILD)/pic/pms.o $(PMS_START)
$(BUILD)/libpms.so.$(PMS_VERSION_MAJOR): $(PMS_OBJ) $(BUILD)/pic/lib/pms/start_shared.o
	$(call say,LINK,$@)
	$(Q)$(CC) -shared -Wl,-soname,$(@F),-z,now $(LDFLAGS) -o $@ $^ -pthread
	$(Q)ln -sf $(@F) $(BUILD)/libpms.so

$(BUILD)/%.o: %.c
	$(call say,CC,$<)
	$(Q)mkdir -p $(@D)
	$(Q)$(CC) $(CPPFLAGS) $(ALL_CFLAGS) -c -o $@ $<

$(BUILD)/%.o: %.S
	$(call say,AS,$<)
	$(Q)mkdir -p $(@D)
	$(Q)$(CC) $(CPPFLAGS) -c -o $@ $<

deps deps-quiet:
	$(Q)tools/deps $(if $(filter deps,$@),-v)

clean:
	rm -rf build build-san

-include $(shell find build build-san -name '*.d' 2>/dev/null)

# --- tests

VICTIM_OBJ := $(patsubst %.c,$(BUILD)/%.o,$(addprefix tests/victim/,victim.c memory.c signals.c files.c threads.c process.c tree.c objects.c sockets.c sysv.c uring.c pty.c))
COOP := $(BUILD)/tests/victim/coop $(BUILD)/tests/victim/coop-shared
HELPERS := $(BUILD)/tests/await $(BUILD)/tests/spawn $(BUILD)/tests/contained

$(BUILD)/tests/victim/victim: $(VICTIM_OBJ)
	$(call say,LINK,$@)
	$(Q)$(CC) -pthread -o $@ $^
$(BUILD)/tests/victim/victim-static: $(VICTIM_OBJ)
	$(call say,LINK,$@)
	$(Q)$(CC) -pthread -static -o $@ $^
$(VICTIM_OBJ): ALL_CFLAGS := -std=gnu11 -Wall -Wextra -O1 -g -pthread
$(BUILD)/tests/victim/lazy $(BUILD)/tests/victim/writer: $(BUILD)/tests/victim/%: tests/victim/%.c
	$(call say,LINK,$@)
	$(Q)mkdir -p $(@D) && $(CC) -O2 -Wall -Wextra -pthread -o $@ $<
$(BUILD)/tests/victim/coop: tests/victim/coop.c $(BUILD)/libpms.a
	$(call say,LINK,$@)
	$(Q)mkdir -p $(@D) && $(CC) -O2 -g -Wall -Wextra -pthread -Ilib/pms -o $@ $^
$(BUILD)/tests/victim/coop-shared: tests/victim/coop.c $(BUILD)/libpms.so.$(PMS_VERSION_MAJOR)
	$(call say,LINK,$@)
	$(Q)mkdir -p $(@D) && $(CC) -O2 -g -Wall -Wextra -pthread -Ilib/pms -o $@ $< -L$(BUILD) -lpms -Wl,-rpath,'$$ORIGIN/../..'
$(BUILD)/tests/await: tests/victim/await.c
	$(call say,LINK,$@)
	$(Q)mkdir -p $(@D) && $(CC) -O1 -Wall -o $@ $<
$(BUILD)/tests/contained: tests/victim/contained.c
	$(call say,LINK,$@)
	$(Q)mkdir -p $(@D) && $(CC) -O1 -Wall -D_GNU_SOURCE -o $@ $<
$(BUILD)/tests/spawn: tests/victim/spawn.c
	$(call say,LINK,$@)
	$(Q)mkdir -p $(@D) && $(CC) -O1 -Wall -D_GNU_SOURCE -o $@ $<

$(BUILD)/tests/unit/%: tests/unit/%.c tests/unit/tap.h $(BUILD)/libcommon.a
	$(call say,LINK,$@)
	$(Q)mkdir -p $(@D) && $(CC) $(CPPFLAGS) $(ALL_CFLAGS) -Itests/unit -o $@ $< $(BUILD)/libcommon.a $(LIBS)
$(BUILD)/tests/fuzz/%: tests/fuzz/%.c tests/fuzz/fuzz.h $(BUILD)/libcommon.a
	$(call say,LINK,$@)
	$(Q)mkdir -p $(@D) && $(CC) $(CPPFLAGS) $(ALL_CFLAGS) -o $@ $< $(BUILD)/libcommon.a $(LIBS)

test-programs: $(PROGRAMS) $(VICTIM) $(COOP) $(HELPERS) $(UNIT) $(FUZZ)

check: deps-quiet
	$(Q)tools/deps test
	$(Q)$(MAKE) --no-print-directory test-programs
	$(Q)tests/run $(BUILD)

# What takes long: see tests/soak.
soak: deps-quiet
	$(Q)tools/deps test
	$(Q)$(MAKE) --no-print-directory test-programs
	$(Q)BATS_ONLY=1 tests/run $(BUILD) $(wildcard tests/soak/*.bats)

# Without processes: what sanitizers can watch.
check-unit: deps-quiet
	$(Q)tools/deps test
	$(Q)$(MAKE) --no-print-directory $(PROGRAMS) $(UNIT) $(FUZZ)
	$(Q)UNIT_ONLY=1 tests/run $(BUILD)

demo: all
	$(Q)$(MAKE) --no-print-directory $(HELPERS)
	$(Q)examples/demo $(abspath $(BUILD))

bench: all
	$(Q)tools/deps test
	$(Q)$(MAKE) --no-print-directory $(HELPERS) $(BUILD)/bench/limit $(BUILD)/bench/calls $(BUILD)/bench/lazy
	$(Q)bench/run $(BUILD)
	$(Q)bench/stop.sh $(BUILD)
	$(Q)bench/calls.sh $(BUILD)
	$(Q)bench/lazy.sh $(BUILD)
	$(Q)bench/paper.sh $(BUILD)
	$(Q)PATH="$(CURDIR)/$(BUILD)/tests:$$PATH" PMS_BIN="$(CURDIR)/$(BUILD)" bats bench/study.bats
$(BUILD)/bench/lazy: bench/lazy.c
	$(call say,LINK,$@)
	$(Q)mkdir -p $(@D) && $(CC) -O2 -Wall -Wextra -D_GNU_SOURCE -o $@ $<
$(BUILD)/bench/calls: bench/calls.c
	$(call say,LINK,$@)
	$(Q)mkdir -p $(@D) && $(CC) -O2 -Wall -Wextra -D_GNU_SOURCE -o $@ $<
$(BUILD)/bench/limit: bench/limit.c
	$(call say,LINK,$@)
	$(Q)mkdir -p $(@D) && $(CC) -O2 -Wall -Wextra -D_GNU_SOURCE -o $@ $<

PMS_VERSION = $(shell sed -n 's/^\#define PMS_VERSION "\(.*\)"/\1/p' lib/common/*.h)
MAN = $(DESTDIR)$(PREFIX)/share/man
LIBDIR ?= $(PREFIX)/lib
$(BUILD)/pms.pc: lib/pms/pms.pc.in Makefile
	$(Q)sed -e 's|@PREFIX@|$(PREFIX)|' -e 's|@LIBDIR@|$(LIBDIR)|' -e 's|@VERSION@|$(PMS_VERSION)|' $< >$@
install: all
	$(Q)rm -f $(BUILD)/pms.pc && $(MAKE) --no-print-directory $(BUILD)/pms.pc
	install -d $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(PREFIX)/include $(DESTDIR)$(LIBDIR)/pkgconfig $(MAN)/man1 $(MAN)/man3 $(MAN)/man5 $(MAN)/man7
	install -m 755 $(PROGRAMS) $(DESTDIR)$(PREFIX)/bin
	install -m 644 lib/pms/pms.h $(DESTDIR)$(PREFIX)/include
	install -m 644 $(BUILD)/libpms.a $(BUILD)/libpms.so.$(PMS_VERSION_MAJOR) $(DESTDIR)$(LIBDIR)
	ln -sf libpms.so.$(PMS_VERSION_MAJOR) $(DESTDIR)$(LIBDIR)/libpms.so
	install -m 644 $(BUILD)/pms.pc $(DESTDIR)$(LIBDIR)/pkgconfig
	install -d $(DESTDIR)$(PREFIX)/share/pms/policies
	install -m 755 share/policies/* $(DESTDIR)$(PREFIX)/share/pms/policies
	install -m 644 man/*.1 $(MAN)/man1
	install -m 644 man/*.3 $(MAN)/man3
	install -m 644 man/*.5 $(MAN)/man5
	install -m 644 man/*.7 $(MAN)/man7
uninstall:
	cd $(DESTDIR)$(PREFIX) && rm -rf share/pms include/pms.h $(patsubst %,bin/%,$(notdir $(PROGRAMS))) \
		$(foreach p,$(wildcard man/*.[1-9]),share/man/man$(subst .,,$(suffix $(p)))/$(notdir $(p)))
	rm -f $(DESTDIR)$(LIBDIR)/libpms.a $(DESTDIR)$(LIBDIR)/libpms.so* $(DESTDIR)$(LIBDIR)/pkgconfig/pms.pc
.PHONY: test-programs check-unit
