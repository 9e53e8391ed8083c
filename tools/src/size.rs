//! Sizes as people type and read them: `1.5G` in, `1.5 GiB` out, with QEMU's rounding.

/// Why a text is no size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SizeError {
    /// It is not a number with an optional suffix.
    Malformed,
    /// It is negative, or 2^64 or more.
    OutOfRange,
}

/// Bytes behind `text`: a decimal number, perhaps with a fraction, and one of the suffixes b, k, M, G, T, P, E in either
/// case (powers of 1024), or a hexadecimal number without a suffix.
pub fn parse(text: &str) -> Result<u64, SizeError> {
    let text = text.trim_start();
    if let Some(rest) = text.strip_prefix('-') {
        return match parse(rest) {
            Ok(_) | Err(SizeError::OutOfRange) => Err(SizeError::OutOfRange),
            malformed => malformed,
        };
    }
    let text = text.strip_prefix('+').unwrap_or(text);
    if let Some(digits) = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        return parse_digits(digits, 16);
    }
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let unit = unit(suffix).ok_or(SizeError::Malformed)?;
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty() {
        return Err(SizeError::Malformed);
    }
    let whole = if whole.is_empty() { 0 } else { parse_digits(whole, 10)? };
    let part = parse_fraction(fraction, unit)?;
    whole.checked_mul(unit).and_then(|bytes| bytes.checked_add(part)).ok_or(SizeError::OutOfRange)
}

fn parse_digits(digits: &str, radix: u32) -> Result<u64, SizeError> {
    if digits.is_empty() || !digits.chars().all(|c| c.is_digit(radix)) {
        return Err(SizeError::Malformed);
    }
    u64::from_str_radix(digits, radix).map_err(|_| SizeError::OutOfRange)
}

/// The bytes of what follows the decimal point, rounded down.
fn parse_fraction(digits: &str, unit: u64) -> Result<u64, SizeError> {
    if digits.is_empty() {
        return Ok(0);
    }
    let fraction: f64 = format!("0.{digits}").parse().map_err(|_| SizeError::Malformed)?;
    if unit == 1 && fraction > 0.0 {
        return Err(SizeError::Malformed);
    }
    Ok((fraction * unit as f64) as u64)
}

fn unit(suffix: &str) -> Option<u64> {
    let power = match suffix.to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" => 1,
        "m" => 2,
        "g" => 3,
        "t" => 4,
        "p" => 5,
        "e" => 6,
        _ => return None,
    };
    Some(1 << (10 * power))
}

/// `bytes` in the largest unit that leaves a number of at least one (or nearly so), to three digits: `1.56 MiB`.
pub fn human(bytes: u64) -> String {
    // From 1000 of a unit on, the next unit is used: "0.977 MiB" is easier to read than "1e+03 KiB".
    let scaled = bytes as f64 * 1.024;
    let log2 = if bytes == 0 { 0 } else { scaled.log2().floor() as u32 };
    let step = (log2 / 10) as usize;
    let prefixes = ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
    let value = bytes as f64 / (1_u64 << (10 * step)) as f64;
    format!("{} {}B", three_digits(value), prefixes[step])
}

/// `value` as C's `%.3g` writes it.
fn three_digits(value: f64) -> String {
    let scientific = format!("{value:.2e}");
    let (mantissa, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if !(-4..3).contains(&exponent) {
        return format!("{}e{exponent:+03}", trim_zeros(mantissa));
    }
    trim_zeros(&format!("{value:.*}", (2 - exponent) as usize)).to_owned()
}

fn trim_zeros(number: &str) -> &str {
    match number.contains('.') {
        true => number.trim_end_matches('0').trim_end_matches('.'),
        false => number,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_qemu_reads_them() {
        let cases = [
            ("1", Ok(1)),
            ("1k", Ok(1024)),
            ("1B", Ok(1)),
            (".5k", Ok(512)),
            ("5.", Ok(5)),
            ("5.k", Ok(5120)),
            (" 1", Ok(1)),
            ("+1", Ok(1)),
            ("010", Ok(10)),
            ("0x1b", Ok(27)),
            ("1.23456k", Ok(1264)),
            ("16383P", Ok(16383 << 50)),
            ("18446744073709551615", Ok(u64::MAX)),
            ("16E", Err(SizeError::OutOfRange)),
            ("18446744073709551616", Err(SizeError::OutOfRange)),
            ("-1", Err(SizeError::OutOfRange)),
            ("1.5", Err(SizeError::Malformed)),
            ("1kB", Err(SizeError::Malformed)),
            ("0x10k", Err(SizeError::Malformed)),
            ("0x", Err(SizeError::Malformed)),
            ("1e3", Err(SizeError::Malformed)),
            ("1 ", Err(SizeError::Malformed)),
            ("", Err(SizeError::Malformed)),
            ("-x", Err(SizeError::Malformed)),
            ("1.2.3k", Err(SizeError::Malformed)),
            (".", Err(SizeError::Malformed)),
        ];
        for (text, expected) in cases {
            assert_eq!(parse(text), expected, "{text:?}");
        }
    }

    #[test]
    fn sizes_are_written_as_qemu_writes_them() {
        let cases = [
            (0, "0 B"),
            (512, "512 B"),
            (1000, "0.977 KiB"),
            (1024, "1 KiB"),
            (1536, "1.5 KiB"),
            (197_120, "192 KiB"),
            (1_000_448, "977 KiB"),
            (1_024_000, "0.977 MiB"),
            (1_638_400, "1.56 MiB"),
            (10_737_418_240, "10 GiB"),
            (1 << 40, "1 TiB"),
            (u64::MAX, "16 EiB"),
        ];
        for (bytes, expected) in cases {
            assert_eq!(human(bytes), expected, "{bytes}");
        }
    }
}
