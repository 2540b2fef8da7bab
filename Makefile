# The two that matter: `make demo` shows a dump and a restore, `make test` runs every check.
.PHONY: demo test test-long build fuzz bench

demo:
	@scripts/demo

test:
	@scripts/test

# With the tests that take minutes.
test-long:
	@scripts/test --long

build:
	cargo build --release --bin pgkeep

# Each target for PGKEEP_FUZZ_SECONDS (600).
fuzz:
	@scripts/fuzz

bench:
	@bench/dump
