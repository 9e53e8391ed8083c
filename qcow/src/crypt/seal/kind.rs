//! How an image is sealed, by name and by number.

use std::fmt;
use std::str::FromStr;

/// How an authenticated image is sealed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SealKind {
    /// A checksum: finds accidents.
    Crc32c,
    /// Encryption with XAES-256-GCM: finds any change.
    Aes256Gcm,
}

/// All of them, by their number in an image and by name.
const KINDS: [(SealKind, u8, &str); 2] =
    [(SealKind::Crc32c, 1, "crc32c"), (SealKind::Aes256Gcm, 2, "aes-256-gcm")];

impl SealKind {
    /// Its number in an image.
    pub fn to_byte(self) -> u8 {
        self.row().1
    }

    /// The one with that number.
    pub fn from_byte(byte: u8) -> Option<Self> {
        KINDS.iter().find(|(_, number, _)| *number == byte).map(|(kind, ..)| *kind)
    }

    fn row(self) -> (Self, u8, &'static str) {
        match self {
            Self::Crc32c => KINDS[0],
            Self::Aes256Gcm => KINDS[1],
        }
    }
}

impl fmt::Display for SealKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.row().2)
    }
}

impl FromStr for SealKind {
    type Err = ();

    fn from_str(name: &str) -> Result<Self, ()> {
        KINDS.iter().find(|(.., known)| *known == name).map(|(kind, ..)| *kind).ok_or(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_come_back() {
        for (kind, number, name) in KINDS {
            assert_eq!((kind.to_byte(), kind.to_string().as_str()), (number, name));
            assert_eq!((SealKind::from_byte(number), name.parse()), (Some(kind), Ok(kind)));
        }
        assert_eq!((SealKind::from_byte(0), SealKind::from_byte(3)), (None, None));
        assert!("crc32".parse::<SealKind>().is_err() && "".parse::<SealKind>().is_err());
    }
}
