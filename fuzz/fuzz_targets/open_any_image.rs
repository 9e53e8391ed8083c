//! Opens any bytes as an image and uses it as a program would: no input may panic, hang or hurt a backing file.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| qcow_fuzz::open_any_image::run(bytes));
