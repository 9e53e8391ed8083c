//! Parses and unlocks any bytes as a LUKS header: no input may panic, hang, or ask for memory without bound.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| qcow_fuzz::luks_header::run(bytes));
