//! Changes an authenticated image behind its checksums and uses it: no input may panic, hang, or ask for memory without bound.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| qcow_fuzz::authenticated_image::run(bytes));
