# Bulkhead: `make help` lists what there is to make.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
MAKEFLAGS += --no-builtin-rules

# Where downloads and tools are kept, for every clone on this machine.
BULKHEAD_CACHE ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/bulkhead
export BULKHEAD_CACHE

# What the environment says of builds for other projects would change where ours is, or how the agent is linked.
unexport RUSTFLAGS CARGO_ENCODED_RUSTFLAGS CARGO_BUILD_TARGET
export CARGO_TARGET_DIR := $(CURDIR)/target

# cargo and the kernel's make use all processors by themselves, and nothing can be built before `setup` is done.
.NOTPARALLEL:

PREFIX ?= /usr/local
SYSCONFDIR ?= /etc
DESTDIR ?=

# The profile of shim and tool that the tests run; what is installed and measured is always a static release
# build: each sandbox starts the shim three times, and loading libraries is half of what a start costs.
PROFILE ?= dev
built := target/$(if $(filter dev,$(PROFILE)),debug,$(PROFILE))
guest := target/guest
programs := containerd-shim-bulkhead-v2 bulkhead
# What a sandbox needs besides, and not every distribution has: `make setup` has built it then.
helpers := virtiofsd vhost-device-vsock
packages := -p bulkhead-shim -p bulkhead-ctl
triple = $(shell rustc -vV 2>/dev/null | sed -n 's/^host: //p')
release = target/static/$(triple)/release
build-release = cargo build --locked --release --target-dir target/static --target $(triple) \
    --config 'target.$(triple).rustflags=["-Ctarget-feature=+crt-static"]' $(packages)

.PHONY: help
help: ## List the targets.
	@sed -nE 's/^([a-z-]+):.*## (.*)/  make \1\t\2/p' Makefile | expand -t 22

.PHONY: setup
setup: ## Install and fetch what building and testing need. Quick when it is there.
	@tests/setup.sh

.PHONY: build
build: setup host guest ## Build shim, tool, tests, agent, guest kernel and initramfs into target/.

# All of it at once, as `make test` and `make lint` have it: for other packages cargo would choose other features of
# their dependencies, and build those again.
.PHONY: host
host:
	cargo build --locked --workspace
	$(if $(filter dev,$(PROFILE)),,cargo build --locked --profile $(PROFILE) $(packages))

.PHONY: guest
guest: $(guest)/vmlinux $(guest)/initramfs.cpio

.PHONY: kernel
kernel: setup $(guest)/vmlinux ## Build the guest kernel alone.

# The script knows best what it is to be built from, and whether it has been: it leaves an equal one as it is.
.PHONY: $(guest)/vmlinux
$(guest)/vmlinux:
	@guest-kernel/build.sh $(guest)

# cargo knows best whether the agent is up to date; the script leaves an equal one as it is.
.PHONY: agent
agent:
	agent/build.sh $(guest)/bulkhead-agent

$(guest)/bulkhead-agent: agent
	@:

$(guest)/initramfs.cpio: $(guest)/bulkhead-agent guest-kernel/initramfs.sh
	guest-kernel/initramfs.sh $(guest)/bulkhead-agent $@

.PHONY: demo
demo: build ## Run a container in a microVM of its own, on a containerd that goes away again.
	@PROFILE=$(notdir $(built)) tests/demo.sh

# For the tests: a guest in an attacker's hands, and a program that asks file systems what they are.
.PHONY: guest-programs
guest-programs:
	agent/build.sh $(guest)/bulkhead-hostile bulkhead-hostile
	agent/build.sh $(guest)/bulkhead-probe bulkhead-probe

.PHONY: test
test: build guest-programs ## Run every test. What can't run here is reported as skipped.
	@PROFILE=$(notdir $(built)) tests/run-all.sh

.PHONY: test-bed
test-bed: build guest-programs ## Run the end-to-end tests with cloud-hypervisor, in a nested machine.
	@PROFILE=$(notdir $(built)) tests/test-bed/run-tests.sh

.PHONY: bench
bench: setup host guest ## Measure start, exec and memory against runc; target/bench/bench.json.
	$(build-release)
	@PROFILE=$(release:target/%=%) tests/bench.sh

# The last of cargo's: what is installed is built by itself, with fewer features of its dependencies.
.PHONY: lint
lint: ## Check formatting, lints, licences and sources of dependencies.
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets -- -D warnings
	cargo check --locked $(packages)
	@tests/deny.sh

.PHONY: install
install: setup guest ## Install under PREFIX (/usr/local); DESTDIR is put before every path.
	$(build-release)
	install -d $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(PREFIX)/share/bulkhead $(DESTDIR)$(SYSCONFDIR)/bulkhead
	install -m 755 $(addprefix $(release)/,$(programs)) $(DESTDIR)$(PREFIX)/bin
	install -m 644 $(guest)/vmlinux $(guest)/initramfs.cpio $(DESTDIR)$(PREFIX)/share/bulkhead
	rm -rf $(DESTDIR)$(PREFIX)/libexec/bulkhead
	@for program in $(helpers); do \
	    built=$(BULKHEAD_CACHE)/tools/bin/$$program; \
	    if [[ -x $$built ]]; then install -D -m 755 $$built $(DESTDIR)$(PREFIX)/libexec/bulkhead/$$program; fi; \
	done
	@config=$(DESTDIR)$(SYSCONFDIR)/bulkhead/config.toml; \
	if [[ -e $$config ]] && ! cmp -s deploy/config.toml $$config; then \
	    echo "$$config has been changed: kept; the new default is $$config.new"; config=$$config.new; \
	fi; \
	install -m 644 deploy/config.toml $$config

.PHONY: uninstall
uninstall: ## Take away what install put there; a changed configuration stays.
	-@[[ -n "$(DESTDIR)" || ! -x $(PREFIX)/bin/bulkhead ]] || $(PREFIX)/bin/bulkhead gc --spares
	rm -f $(addprefix $(DESTDIR)$(PREFIX)/bin/,$(programs))
	rm -rf $(DESTDIR)$(PREFIX)/share/bulkhead $(DESTDIR)$(PREFIX)/libexec/bulkhead
	@dir=$(DESTDIR)$(SYSCONFDIR)/bulkhead; rm -f $$dir/config.toml.new; \
	if cmp -s deploy/config.toml $$dir/config.toml; then rm $$dir/config.toml; fi; \
	if [[ -d $$dir ]] && ! rmdir $$dir 2>/dev/null; then echo "$$dir holds changes: kept"; fi
