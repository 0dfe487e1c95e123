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
say = $(if $(V),,@printf '  %-7s %s\n' "$(1)" "$(2)")

COMMON_SRC := $(wildcard lib/common/*.c lib/arch/$(ARCH)/*.c)
COMMON_ASM := $(wildcard lib/arch/$(ARCH)/*.S)
COMMON_OBJ := $(COMMON_SRC:%.c=$(BUILD)/%.o) $(COMMON_ASM:%.S=$(BUILD)/%.o)
CKPT_OBJ := $(patsubst %.c,$(BUILD)/%.o,$(wildcard cmd/ckpt/*.c))
REXEC_OBJ := $(patsubst %.c,$(BUILD)/%.o,$(wildcard cmd/rexec-sys/*.c))
RESTART_OBJ := $(patsubst %.c,$(BUILD)/%.o,$(wildcard cmd/restart/*.c))
UNIT := $(patsubst tests/unit/%.c,$(BUILD)/tests/unit/%,$(wildcard tests/unit/*_test.c))
FUZZ := $(patsubst tests/fuzz/%.c,$(BUILD)/tests/fuzz/%,$(wildcard tests/fuzz/*.c))
VICTIM := $(BUILD)/tests/victim/victim $(BUILD)/tests/victim/victim-static
PROGRAMS := $(BUILD)/ckpt $(BUILD)/restart $(BUILD)/rexec-sys

LIBS := -larchive -lzstd -ljansson -lxxhash -lbsd
TLS_LIBS := -lssl -lcrypto
# restart is static: it is the stub in front of an executable image, wherever that is run.
RESTART_LINK := $(if $(SAN),,-static)

.PHONY: all deps demo check bench install uninstall clean
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

$(BUILD)/restart: $(RESTART_OBJ) $(BUILD)/libcommon.a
	$(call say,LINK,$@)
	$(Q)$(CC) $(ALL_CFLAGS) $(LDFLAGS) $(RESTART_LINK) -Wl,--gc-sections -o $@ $^ $(LIBS)

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
HELPERS := $(BUILD)/tests/await $(BUILD)/tests/spawn $(BUILD)/tests/contained

$(BUILD)/tests/victim/victim: $(VICTIM_OBJ)
	$(call say,LINK,$@)
	$(Q)$(CC) -pthread -o $@ $^
$(BUILD)/tests/victim/victim-static: $(VICTIM_OBJ)
	$(call say,LINK,$@)
	$(Q)$(CC) -pthread -static -o $@ $^
$(VICTIM_OBJ): ALL_CFLAGS := -std=gnu11 -Wall -Wextra -O1 -g -pthread
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

test-programs: $(PROGRAMS) $(VICTIM) $(HELPERS) $(UNIT) $(FUZZ)

check: deps-quiet
	$(Q)tools/deps test
	$(Q)$(MAKE) --no-print-directory test-programs
	$(Q)tests/run $(BUILD)

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
	$(Q)$(MAKE) --no-print-directory $(HELPERS) $(BUILD)/bench/limit $(BUILD)/bench/calls
	$(Q)bench/run $(BUILD)
	$(Q)bench/calls.sh $(BUILD)
$(BUILD)/bench/calls: bench/calls.c
	$(call say,LINK,$@)
	$(Q)mkdir -p $(@D) && $(CC) -O2 -Wall -Wextra -D_GNU_SOURCE -o $@ $<
$(BUILD)/bench/limit: bench/limit.c
	$(call say,LINK,$@)
	$(Q)mkdir -p $(@D) && $(CC) -O2 -Wall -Wextra -D_GNU_SOURCE -o $@ $<

install: all
	install -d $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(PREFIX)/share/man/man1 $(DESTDIR)$(PREFIX)/share/man/man5 $(DESTDIR)$(PREFIX)/share/man/man7
	install -m 755 $(PROGRAMS) $(DESTDIR)$(PREFIX)/bin
	install -m 644 man/*.1 $(DESTDIR)$(PREFIX)/share/man/man1
	install -m 644 man/*.5 $(DESTDIR)$(PREFIX)/share/man/man5
	install -m 644 man/*.7 $(DESTDIR)$(PREFIX)/share/man/man7
uninstall:
	cd $(DESTDIR)$(PREFIX) && rm -f bin/ckpt bin/restart bin/rexec-sys share/man/man1/ckpt.1 share/man/man1/restart.1 share/man/man1/rexec-sys.1 share/man/man5/pms-image.5 share/man/man7/pms-wire.7
.PHONY: test-programs check-unit
