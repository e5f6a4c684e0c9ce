# The two commands of the README are `make demo` and `make test`; both install what is missing first.

CARGO ?= cargo
PREFIX ?= /usr/local
export PATH := $(PATH):$(HOME)/.cargo/bin

.PHONY: build demo test check bench install deb clean help

help:
	@echo 'make build     target/release/bhatti'
	@echo 'make demo      prepare this host, then create, run, sleep and wake a sandbox'
	@echo 'make test      all tests, on ext4, btrfs and xfs, and the package (needs root; NO_ROOT=1 for the rest)'
	@echo 'make check     the house rules: format, lints, docs, crate graph, sizes'
	@echo 'make bench     the measured tables, into docs/performance.md'
	@echo 'make install   into PREFIX ($(PREFIX))'
	@echo 'make deb       a Debian package, in target/debian'
	@echo 'make clean     everything built; data directories stay'

build:
	$(CARGO) build --release --locked --package bhatti

demo:
	@scripts/host-deps.sh
	@$(MAKE) --no-print-directory build
	@scripts/demo.sh

test:
	@scripts/test-deps.sh
	@$(CARGO) xtask test $(if $(NO_ROOT),--no-root)

check:
	@$(CARGO) xtask check

bench:
	@scripts/host-deps.sh --bench
	@$(MAKE) --no-print-directory build
	@target/release/bhatti setup --data-dir target/bench-data
	@rm -rf target/bench
	@target/release/bhatti bench --data-dir target/bench-data --suite all --out target/bench
	@rm -rf docs/plots && mkdir docs/plots
	@cp target/bench/plots/*.svg docs/plots/ && cp target/bench/performance.md docs/performance.md

# The program, its manual pages, completions for three shells, and a unit that is not enabled. BUILT=1 takes the
# program as it lies in target/release.
install: $(if $(BUILT),,build)
	install -D -m 755 target/release/bhatti '$(DESTDIR)$(PREFIX)/bin/bhatti'
	install -d '$(DESTDIR)$(PREFIX)/share/man/man1' '$(DESTDIR)$(PREFIX)/lib/systemd/system' \
		'$(DESTDIR)$(PREFIX)/share/bash-completion/completions' '$(DESTDIR)$(PREFIX)/share/zsh/site-functions' \
		'$(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d'
	target/release/bhatti docs man '$(DESTDIR)$(PREFIX)/share/man/man1'
	sed 's|@BINDIR@|$(PREFIX)/bin|' packaging/bhatti.service > '$(DESTDIR)$(PREFIX)/lib/systemd/system/bhatti.service'
	target/release/bhatti completion bash > '$(DESTDIR)$(PREFIX)/share/bash-completion/completions/bhatti'
	target/release/bhatti completion zsh > '$(DESTDIR)$(PREFIX)/share/zsh/site-functions/_bhatti'
	target/release/bhatti completion fish > '$(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d/bhatti.fish'

# What `make install` would put in place, as a package. cargo-deb is installed when it is missing.
deb:
	@command -v cargo-deb > /dev/null || $(CARGO) install --locked --quiet cargo-deb
	@rm -rf target/deb
	@$(MAKE) --no-print-directory install DESTDIR=target/deb PREFIX=/usr
	@mkdir target/deb/scripts
	$(CARGO) deb --package bhatti --no-build --locked

# The loop mounts of an interrupted test run lie below target/: they go first.
clean:
	@if [ -d target/fs ]; then $(CARGO) xtask test --sweep; fi
	$(CARGO) clean
