# Two commands matter: `make demo` and `make test`. Each target installs what it needs first, with
# apt-get as root or through a password-less sudo; otherwise it prints the one command to run.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help demo test lint bench fuzz soak clean deps

# How long `make fuzz` gives to each target, in seconds.
FUZZ_SECONDS ?= 60
# `make soak` multiplies the number of random cases in every randomised test by this.
SOAK_FACTOR ?= 20
# Where a test that hangs is ended sooner or later.
NEXTEST_PROFILE ?= default
# `make soak` boots this many guests, each with another seed.
SOAK_GUESTS ?= 5

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-6s  %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: deps ## boot a stock Linux from a qcow2 disk behind our daemon, and check the disk
	@cargo build --release
	@testbed/demo.sh

test: deps ## every test: unit, model, differential, and real guests (under 20 minutes on 2 cores)
	@cargo build --workspace --profile test
	@$(MAKE) --no-print-directory cargo-tests
	@$(MAKE) --no-print-directory seeded-bugs
	@BUILD=debug testbed/guest-test.sh
	@BUILD=debug testbed/nested-test.sh

# Programs are built once, as tests are: optimised, but with what only debug builds check. Guests use these.
# nextest runs the tests of all crates at once, but not the examples in the documentation.
.PHONY: cargo-tests
cargo-tests:
	@if cargo nextest --version >/dev/null 2>&1; then \
		cargo nextest run --workspace --no-fail-fast --profile $(NEXTEST_PROFILE); \
		cargo test --workspace --doc --quiet; \
	else \
		echo "cargo-nextest is not installed; cargo test does the same, more slowly"; \
		cargo test --workspace --no-fail-fast; \
	fi

# Bugs that engines have really had, put back one at a time: the tests must find each of them.
.PHONY: seeded-bugs
seeded-bugs:
	@cargo test -p qcow --features seeded-bugs --test simulation every_bug_is_found -- --nocapture
	@cargo test -p qcow --features seeded-bugs --test compact every_missing_barrier_is_found -- --nocapture

lint: deps ## formatting, clippy, dependencies and licences, documentation
	@cargo fmt --all --check
	@cargo clippy --workspace --all-targets -- -D warnings
	@cargo clippy -p qcow --all-targets --features seeded-bugs -- -D warnings
	@RUSTDOCFLAGS=-Dwarnings cargo doc --workspace --no-deps --document-private-items --quiet
	@duplicates=$$(cargo tree --workspace --duplicates --depth 0); \
	if grep '^vm-memory ' <<< "$$duplicates"; then \
		echo "lint: two versions of vm-memory: guest memory would not pass between crates" >&2; exit 1; \
	fi
	@for file in $$(git grep -l 'expect(.*unsafe_code\|^ *unsafe_code,' -- '*.rs'); do \
		grep -qF "$$file" docs/UNSAFE.md || { echo "lint: docs/UNSAFE.md does not name $$file" >&2; exit 1; }; \
	done
	@$(MAKE) --no-print-directory cargo-deny

# The advisories (and with them yanked versions) need RustSec's database, which not every network reaches.
.PHONY: cargo-deny
cargo-deny:
	@cargo deny --version >/dev/null 2>&1 || cargo install --quiet --locked cargo-deny || \
		{ echo "lint: cargo-deny cannot be installed here; dependencies and licences are not checked"; exit 0; }; \
	checks="bans licenses sources"; \
	if timeout 60 cargo deny --log-level off fetch db >/dev/null 2>&1; then \
		checks="advisories $$checks"; \
	else \
		echo "lint: RustSec's database cannot be reached; advisories and yanked versions are not checked"; \
	fi; \
	cargo deny --log-level error check $$checks

bench: deps ## ours, qemu-storage-daemon and a bare io_uring loop in turn; about half an hour; results go to docs/bench
	@cargo build --release
	@cargo bench --quiet -p benches --bench hot
	@target/release/blkbench --out docs/bench

fuzz: deps ## every fuzz target for FUZZ_SECONDS (60) each
	@cargo fuzz --version >/dev/null 2>&1 || cargo install --quiet --locked cargo-fuzz
	@for target in fuzz/fuzz_targets/*.rs; do \
		name=$$(basename "$$target" .rs); \
		echo "fuzz: $$name for $(FUZZ_SECONDS) s"; \
		fuzz/seed.sh "fuzz/corpus/$$name"; \
		RUSTC_BOOTSTRAP=1 cargo fuzz run "$$name" -- -max_total_time=$(FUZZ_SECONDS) -print_final_stats=1; \
	done

soak: deps ## hours: 200,000,000 crash states, all else SOAK_FACTOR (20) times as much, SOAK_GUESTS (5) guests
	@cargo build --workspace --profile test
	@SOAK_FACTOR=$(SOAK_FACTOR) $(MAKE) --no-print-directory NEXTEST_PROFILE=soak cargo-tests
	@for (( guest = 0; guest < $(SOAK_GUESTS); guest++ )); do BUILD=debug testbed/guest-test.sh; done

clean: ## remove everything that was built, the cached kernel too
	@cargo clean
	@rm -rf build

deps:
	@testbed/install.sh
