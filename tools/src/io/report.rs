//! Telling how a transfer went: how much, how fast; and what it read.

use std::time::{Duration, Instant};

use crate::output::say;

/// Bytes that one line of a dump shows.
const DUMP_LINE_LEN: usize = 16;

/// How to tell of a transfer.
#[derive(Clone, Copy, Debug)]
pub struct Style {
    /// Not at all.
    pub quiet: bool,
    /// For programs: `bytes,operations,time,bytes per second,operations per second`.
    pub machine: bool,
}

/// Tells that the transfer `what` of `len` bytes at `at`, begun at `started`, has succeeded.
pub fn transfer(what: &str, at: u64, len: u64, started: Instant, style: Style) {
    let taken = started.elapsed();
    if style.quiet {
        return;
    }
    let seconds = taken.as_secs_f64().max(1e-9);
    let (bytes_rate, rate) = (len as f64 / seconds, 1.0 / seconds);
    if style.machine {
        say!("{len},1,{},{bytes_rate:.3},{rate:.3}", time(taken, true));
        return;
    }
    say!("{what} {len}/{len} bytes at offset {at}");
    let (total, time) = (size(len as f64), time(taken, false));
    say!("{total}, 1 ops; {time} ({}/sec and {rate:.4} ops/sec)", size(bytes_rate));
}

/// `bytes` in the largest fitting unit, to three decimals unless they are all zero.
pub fn size(bytes: f64) -> String {
    let units = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let step = (1..=units.len()).rev().find(|&step| bytes >= (1_u64 << (10 * step)) as f64);
    let (number, unit) = match step {
        Some(step) => (format!("{:.3}", bytes / (1_u64 << (10 * step)) as f64), units[step - 1]),
        None => (format!("{bytes:.6}"), "bytes"),
    };
    let number = number.split_once(".000").map_or(number.as_str(), |(whole, _)| whole);
    format!("{number} {unit}")
}

fn time(taken: Duration, full: bool) -> String {
    let seconds = taken.as_secs_f64();
    if !full && taken.as_secs() == 0 {
        return format!("{seconds:05.2} sec");
    }
    let whole = taken.as_secs();
    let (hours, minutes) = (whole / 3600, whole / 60 % 60);
    format!("{hours}:{minutes:02}:{:05.2}", seconds - (hours * 3600 + minutes * 60) as f64)
}

/// Shows `bytes`, which lie at `at`, as hexadecimal numbers and as text.
pub fn dump(bytes: &[u8], at: u64) {
    for (number, line) in bytes.chunks(DUMP_LINE_LEN).enumerate() {
        let numbers: String = line.iter().map(|byte| format!("{byte:02x} ")).collect();
        let text: String = line.iter().copied().map(printable).collect();
        say!("{:08x}:  {numbers} {text}", at + (number * DUMP_LINE_LEN) as u64);
    }
}

fn printable(byte: u8) -> char {
    if byte.is_ascii_alphanumeric() { char::from(byte) } else { '.' }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_look_like_qemu_io_s() {
        let cases = [
            (0.0, "0 bytes"),
            (512.0, "512 bytes"),
            (1536.0, "1.500 KiB"),
            (65536.0, "64 KiB"),
            (919.848_961, "919.848961 bytes"),
            (1_048_576.0, "1 MiB"),
        ];
        for (bytes, expected) in cases {
            assert_eq!(size(bytes), expected);
        }
    }

    #[test]
    fn times_look_like_qemu_io_s() {
        assert_eq!(time(Duration::from_millis(10), false), "00.01 sec");
        assert_eq!(time(Duration::ZERO, true), "0:00:00.00");
        assert_eq!(time(Duration::from_millis(2_188_580), false), "0:36:28.58");
    }
}
