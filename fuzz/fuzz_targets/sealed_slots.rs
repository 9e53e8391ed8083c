//! Parses, unlocks and changes any bytes as key slots: no input may panic, hang, or ask for memory without bound.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| qcow_fuzz::sealed_slots::run(bytes));
