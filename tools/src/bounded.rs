//! Numbers on the command line that have bounds, and what is said about wrong ones.

use std::ops::RangeInclusive;

use crate::failure::{Failure, Outcome};
use crate::size::{self, SizeError};

/// The most bytes that sizes and offsets have in QEMU.
pub const SIZE_MAX: u64 = i64::MAX as u64;
/// The most that counts and lengths of single requests have in QEMU.
pub const INT_MAX: u64 = i32::MAX as u64;

/// The size `text`, called `name`, with an optional suffix.
pub fn parse_size(name: &str, text: &str, bounds: RangeInclusive<u64>) -> Outcome<u64> {
    check(name, text, size::parse(text), &bounds)
}

/// The size of a disk.
pub fn parse_image_size(text: &str) -> Outcome<u64> {
    parse_size("image size", text, 0..=SIZE_MAX)
}

/// The number `text`, called `name`: decimal, hexadecimal (`0x10`) or octal (`010`).
pub fn parse_number(name: &str, text: &str, bounds: RangeInclusive<u64>) -> Outcome<u64> {
    check(name, text, parse_as_c(text), &bounds)
}

fn check(
    name: &str,
    text: &str,
    parsed: Result<u64, SizeError>,
    bounds: &RangeInclusive<u64>,
) -> Outcome<u64> {
    match parsed {
        Ok(number) if bounds.contains(&number) => Ok(number),
        Ok(_) | Err(SizeError::OutOfRange) => {
            let (min, max) = (bounds.start(), bounds.end());
            let wanted = format!("Must be between {min} and {max}.");
            Err(Failure::new(format!("Invalid {name} specified. {wanted}")))
        }
        Err(SizeError::Malformed) => {
            Err(Failure::new(format!("Invalid {name} specified: '{text}'.")))
        }
    }
}

fn parse_as_c(text: &str) -> Result<u64, SizeError> {
    let text = text.trim_start();
    let negative = text.starts_with('-');
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text).to_ascii_lowercase();
    let (digits, radix) = match (digits.strip_prefix("0x"), digits.strip_prefix('0')) {
        (Some(hex), _) => (hex, 16),
        (None, Some(octal)) if !octal.is_empty() => (octal, 8),
        _ => (digits.as_str(), 10),
    };
    if digits.is_empty() || !digits.chars().all(|c| c.is_digit(radix)) {
        return Err(SizeError::Malformed);
    }
    let number = u64::from_str_radix(digits, radix).map_err(|_| SizeError::OutOfRange)?;
    if negative && number > 0 { Err(SizeError::OutOfRange) } else { Ok(number) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_as_c_reads_them() {
        let read = |text| parse_number("it", text, 1..=100).map_err(|e| e.to_string());
        for (text, number) in [("7", 7), ("0x10", 16), ("010", 8), (" 9", 9), ("+1", 1)] {
            assert_eq!(read(text), Ok(number), "{text:?}");
        }
        let outside = Err("Invalid it specified. Must be between 1 and 100.".to_owned());
        for text in ["0", "-1", "-0", "101", "99999999999999999999"] {
            assert_eq!(read(text), outside, "{text:?}");
        }
        for text in ["", "1k", "0x", "09", "1 ", "++1", "x"] {
            assert_eq!(read(text), Err(format!("Invalid it specified: '{text}'.")), "{text:?}");
        }
    }
}
