//! Taking a command line apart: words, and flags among them in any order.

use crate::failure::tell_plain;
use crate::size::{self, SizeError};

/// Bytes that one request may have at most (QEMU's limit).
pub const REQUEST_LEN_MAX: u64 = 0x7fff_fe00;

/// The words of a command line; the first is the command's name.
pub fn words(line: &str) -> Vec<&str> {
    line.trim_end_matches('\n').split(' ').filter(|word| !word.is_empty()).collect()
}

/// A command's flags and the other words.
#[derive(Debug, Default)]
pub struct Arguments {
    flags: Vec<(char, Option<String>)>,
    /// What is left without the flags.
    pub operands: Vec<String>,
}

impl Arguments {
    /// Parses `words` behind the name of a command whose flags are `known`; a flag with a colon takes a value.
    /// Says what is wrong, if something is.
    pub fn parse(name: &str, words: &[&str], known: &str) -> Option<Self> {
        let mut parsed = Self::default();
        let mut words = words.iter();
        while let Some(word) = words.next() {
            if *word == "--" {
                parsed.operands.extend(words.map(|word| (*word).to_owned()));
                break;
            }
            let Some(flags) = word.strip_prefix('-').filter(|flags| !flags.is_empty()) else {
                parsed.operands.push((*word).to_owned());
                continue;
            };
            let mut flags = flags.chars();
            while let Some(flag) = flags.next() {
                let value = match takes_value(known, flag) {
                    None => {
                        tell_plain(&format!("{name}: invalid option -- '{flag}'"));
                        return None;
                    }
                    Some(false) => None,
                    Some(true) => {
                        let rest = flags.as_str();
                        flags = "".chars();
                        let value =
                            if rest.is_empty() { words.next().copied() } else { Some(rest) };
                        if value.is_none() {
                            let message =
                                format!("{name}: option requires an argument -- '{flag}'");
                            tell_plain(&message);
                            return None;
                        }
                        value.map(str::to_owned)
                    }
                };
                parsed.flags.push((flag, value));
            }
        }
        Some(parsed)
    }

    /// Whether `flag` was given.
    pub fn has(&self, flag: char) -> bool {
        self.flags.iter().any(|(other, _)| *other == flag)
    }

    /// All values that `flag` was given.
    pub fn values(&self, flag: char) -> impl Iterator<Item = &str> {
        let found = self.flags.iter().filter(move |(other, _)| *other == flag);
        found.filter_map(|(_, value)| value.as_deref())
    }

    /// The last value that `flag` was given.
    pub fn value(&self, flag: char) -> Option<&str> {
        let found = self.flags.iter().rev().find(|(other, _)| *other == flag);
        found.and_then(|(_, value)| value.as_deref())
    }
}

/// Whether `flag` takes a value; `None` if it is not among the `known` ones.
fn takes_value(known: &str, flag: char) -> Option<bool> {
    let at = known.find(flag).filter(|_| flag != ':')?;
    Some(known[at + flag.len_utf8()..].starts_with(':'))
}

/// The number that `text` stands for; the error is what to tell.
pub fn number(text: &str) -> Result<u64, String> {
    match size::parse(text) {
        Ok(value) if i64::try_from(value).is_ok() => Ok(value),
        Ok(_) | Err(SizeError::OutOfRange) => {
            Err(format!("Parsing error: argument too large -- {text}"))
        }
        Err(SizeError::Malformed) => Err(format!(
            "Parsing error: non-numeric argument, or extraneous/unrecognized suffix -- {text}"
        )),
    }
}

/// The whole number that `text` stands for in C: decimal, octal behind `0`, hexadecimal behind `0x`.
pub fn integer(text: &str) -> Option<u64> {
    match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None if text.len() > 1 && text.starts_with('0') => u64::from_str_radix(&text[1..], 8).ok(),
        None => text.parse().ok(),
    }
}

/// The length of a request that `text` stands for; the error is what to tell.
pub fn request_len(text: &str) -> Result<u64, String> {
    let len = number(text)?;
    match len > REQUEST_LEN_MAX {
        true => Err(format!("length cannot exceed {REQUEST_LEN_MAX}, given {text}")),
        false => Ok(len),
    }
}

/// The pattern byte that `text` stands for; the error is what to tell.
pub fn pattern_byte(text: &str) -> Result<u8, String> {
    let byte = integer(text).and_then(|number| u8::try_from(number).ok());
    byte.ok_or_else(|| format!("{text} is not a valid pattern byte"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_stand_anywhere_and_values_may_follow_closely() {
        let arguments = Arguments::parse("read", &words("0 -qP0x41 512 -s 3"), "qP:s:").unwrap();
        assert_eq!(arguments.operands, ["0", "512"]);
        assert!(arguments.has('q') && !arguments.has('z'));
        assert_eq!((arguments.value('P'), arguments.value('s')), (Some("0x41"), Some("3")));
    }

    #[test]
    fn unknown_flags_and_missing_values_are_refused() {
        assert!(Arguments::parse("read", &["-x"], "q").is_none());
        assert!(Arguments::parse("read", &["-P"], "P:").is_none());
        assert!(Arguments::parse("read", &["-1"], "P:").is_none());
    }

    #[test]
    fn pattern_bytes_have_three_bases() {
        assert_eq!(pattern_byte("0xcd"), Ok(0xcd));
        assert_eq!(pattern_byte("010"), Ok(8));
        assert_eq!(pattern_byte("255"), Ok(255));
        for wrong in ["256", "-1", "x", "", "0x"] {
            assert!(pattern_byte(wrong).is_err(), "{wrong:?}");
        }
    }
}
