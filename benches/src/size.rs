//! Sizes and times on the command line: `512`, `4k`, `2M`; `5`, `0.5`.

use std::time::Duration;

/// Reads a number of bytes with an optional binary suffix k, M, G or T (any case).
pub fn parse_size(text: &str) -> Result<u64, String> {
    let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, suffix) = text.split_at(split);
    let shift = match suffix.to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        _ => return Err(format!("'{text}': give bytes, or a number with suffix k, M, G or T")),
    };
    let number: u64 = digits.parse().map_err(|e| format!("'{text}': {e}"))?;
    number.checked_mul(1 << shift).ok_or_else(|| format!("'{text}': too large"))
}

/// Reads a number of seconds, with a decimal fraction if need be.
pub fn parse_seconds(text: &str) -> Result<Duration, String> {
    let number: f64 = text.parse().map_err(|e| format!("'{text}': {e}"))?;
    Duration::try_from_secs_f64(number).map_err(|e| format!("'{text}': {e}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        assert_eq!(parse_size("512"), Ok(512));
        assert_eq!(parse_size("4k"), Ok(4096));
        assert_eq!(parse_size("2G"), Ok(2 << 30));
        for bad in ["", "k", "1.5G", "-1", "1KiBs", "99999999T"] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
    }
}
