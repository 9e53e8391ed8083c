//! Passphrases.
//!
//! They come out of a file or a descriptor as they are: as for QEMU's `secret` objects, a line feed at the end belongs to
//! the passphrase (`printf %s` makes a file without), and the bytes are UTF-8 text without a NUL. So one file opens an image
//! here and there.
//!
//! What a key slot gives with a passphrase takes seconds to compute, and images are opened more than once: made and then
//! filled, each of a chain, closed and read back. So a passphrase remembers it, for as long as it is there itself.

use std::collections::VecDeque;
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::{Arc, Mutex};

use super::hash::DIGEST_BYTES_MAX;
use super::locked::LockedBytes;
use crate::error::{Error, Result};
use crate::limits::{PASSPHRASE_BYTES_MAX, REMEMBERED_SLOTS_MAX};
use crate::sync::lock;

/// A passphrase.
pub struct Passphrase {
    bytes: LockedBytes,
    /// What key slots have given with it, the latest last.
    remembered: Mutex<VecDeque<(Fingerprint, SlotKey)>>,
}

/// A digest of all but the passphrase on which it depends what a key slot gives.
pub(super) type Fingerprint = [u8; DIGEST_BYTES_MAX];

/// The master key that a slot has given; none where the passphrase is not that slot's.
pub(super) type SlotKey = Option<Arc<LockedBytes>>;

impl fmt::Debug for Passphrase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

impl Passphrase {
    /// Reads all that the file at `path` has.
    ///
    /// # Errors
    /// It cannot be opened or read, is too long, or no text.
    pub fn from_file(path: &Path) -> Result<Self> {
        let opened = File::open(path).map_err(|e| Error::io("open the passphrase", &e));
        opened.and_then(Self::read).map_err(|e| e.in_file(path))
    }

    /// Reads all that `source` has, which keeps no copy of it.
    ///
    /// # Errors
    /// It cannot be read, is too long, or no text.
    pub fn read(source: impl Read) -> Result<Self> {
        Self::checked(read_all(source)?)
    }

    /// As [`Self::read`], of base64 text, in which line feeds mean nothing.
    ///
    /// # Errors
    /// As [`Self::read`]; or it is not base64.
    pub fn read_base64(source: impl Read) -> Result<Self> {
        let mut bytes = read_all(source)?;
        let len = decode_base64(&mut bytes)
            .ok_or_else(|| Error::invalid("the passphrase is not base64, as its format says"))?;
        bytes.truncate(len);
        Self::checked(bytes)
    }

    fn checked(bytes: LockedBytes) -> Result<Self> {
        match std::str::from_utf8(&bytes) {
            Ok(text) if !text.contains('\0') => Ok(Self { bytes, remembered: Mutex::default() }),
            _ => Err(Error::invalid("the passphrase is not valid UTF-8")),
        }
    }

    /// Copies its first bytes, as many as there are, to the start of `into`.
    pub(crate) fn copy_start(&self, into: &mut [u8]) {
        let len = self.bytes.len().min(into.len());
        into[..len].copy_from_slice(&self.bytes[..len]);
    }

    /// What it is.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// What the key slot with this fingerprint gives, where that is known.
    pub(super) fn recall(&self, slot: &Fingerprint) -> Option<SlotKey> {
        let remembered = lock(&self.remembered);
        remembered.iter().find(|(known, _)| known == slot).map(|(_, key)| key.clone())
    }

    /// Remembers what the key slot with this fingerprint gives.
    pub(super) fn remember(&self, slot: Fingerprint, key: SlotKey) {
        let mut remembered = lock(&self.remembered);
        remembered.push_back((slot, key));
        if remembered.len() > REMEMBERED_SLOTS_MAX {
            remembered.pop_front();
        }
    }
}

fn read_all(mut source: impl Read) -> Result<LockedBytes> {
    let mut bytes = LockedBytes::zeroed(PASSPHRASE_BYTES_MAX + 1);
    let mut len = 0;
    while len < bytes.len() {
        match source.read(&mut bytes[len..]) {
            Ok(0) => break,
            Ok(count) => len += count,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(Error::io("read the passphrase", &e)),
        }
    }
    if len > PASSPHRASE_BYTES_MAX {
        let what = format!("the passphrase is longer than {PASSPHRASE_BYTES_MAX} bytes");
        return Err(Error::limit(what));
    }
    bytes.truncate(len);
    Ok(bytes)
}

/// Decodes base64 in place; how many bytes came of it.
fn decode_base64(text: &mut [u8]) -> Option<usize> {
    let (mut bits, mut count, mut padding, mut len) = (0_u32, 0, 0, 0);
    for at in 0..text.len() {
        let value = match text[at] {
            b'\n' => continue,
            b'=' => {
                padding += 1;
                continue;
            }
            _ if padding > 0 => return None,
            c @ b'A'..=b'Z' => c - b'A',
            c @ b'a'..=b'z' => c - b'a' + 26,
            c @ b'0'..=b'9' => c - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = bits << 6 | u32::from(value);
        count += 1;
        if count % 4 != 1 {
            // Never behind what has been read.
            text[len] = (bits >> (6 - 2 * ((count - 1) % 4))) as u8;
            len += 1;
        }
    }
    ((count + padding) % 4 == 0 && padding <= 2).then_some(len)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    #[test]
    fn a_passphrase_is_all_that_is_in_the_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key");
        std::fs::write(&path, "one two\n").unwrap();
        let passphrase = Passphrase::from_file(&path).unwrap();
        assert_eq!(passphrase.bytes(), b"one two\n");
        assert!(!format!("{passphrase:?}").contains("one"));
    }

    #[test]
    fn what_qemu_cannot_take_is_refused() {
        for bytes in [&b"a\0b"[..], &[0xff, 0xfe]] {
            assert_eq!(Passphrase::read(bytes).unwrap_err().kind(), ErrorKind::Invalid);
        }
        let long = vec![b'x'; PASSPHRASE_BYTES_MAX + 1];
        assert_eq!(Passphrase::read(&long[..]).unwrap_err().kind(), ErrorKind::Limit);
        assert!(Passphrase::read(&long[1..]).is_ok() && Passphrase::read(&b""[..]).is_ok());
    }

    #[test]
    fn base64_is_decoded() {
        let cases = [
            ("", ""),
            ("Zg==", "f"),
            ("Zm8=", "fo"),
            ("Zm9v", "foo"),
            ("Zm9v\nYmFy\n", "foobar"),
            ("c2VjcmV0IHBocmFzZQ==\n", "secret phrase"),
        ];
        for (text, plain) in cases {
            let passphrase = Passphrase::read_base64(text.as_bytes()).unwrap();
            assert_eq!(passphrase.bytes(), plain.as_bytes(), "{text}");
        }
        for text in ["Zg", "Z===", "Zm9v!", "Zg==Zg=="] {
            let refused = Passphrase::read_base64(text.as_bytes()).unwrap_err();
            assert!(!refused.to_string().contains("Zg"), "{refused}");
        }
    }
}
