//! Ciphers of sectors: which there are, and one with its key.

use std::fmt;

use aes::cipher::array::Array;
use aes::cipher::array::typenum::U16;
use aes::cipher::{BlockCipherEncrypt, KeyInit};
use aes::{Aes128, Aes192, Aes256};

use super::cbc::Cbc;
use super::hash::{DIGEST_BYTES_MAX, Hash};
use super::locked::{Locked, scrubbing};
use super::xts::Xts;
use crate::error::{Error, Result};
use crate::limits::SECTOR_BYTES;
use zeroize::Zeroize;

/// Bytes that are encrypted under one initialization vector.
pub const SECTOR_LEN: usize = SECTOR_BYTES as usize;
/// Bytes that go through a cipher at a time.
pub const PAGE_LEN: usize = 4096;
/// Longest key in bytes: two of AES-256.
pub const KEY_BYTES_MAX: usize = 64;

pub(super) const BLOCK_LEN: usize = 16;
pub(super) const BLOCKS_PER_SECTOR: usize = SECTOR_LEN / BLOCK_LEN;
pub(super) const PAGE_BLOCKS: usize = PAGE_LEN / BLOCK_LEN;
pub(super) const PAGE_SECTORS: usize = PAGE_LEN / SECTOR_LEN;

/// What AES takes at a time.
pub(super) type Block = Array<u8, U16>;

/// The key length of AES.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "their names say it")]
pub enum Aes {
    Aes128,
    Aes192,
    Aes256,
}

/// How blocks of a sector hang together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "their names say it")]
pub enum Mode {
    Xts,
    Cbc,
}

/// How a sector's number becomes its initialization vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Iv {
    /// The lower 32 bits of the number.
    Plain,
    /// The number.
    Plain64,
    /// The number, encrypted with the hash of the key.
    Essiv(Hash),
}

/// A cipher of sectors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CipherSpec {
    aes: Aes,
    mode: Mode,
    iv: Iv,
}

impl Aes {
    /// Bytes of a key.
    pub fn key_len(self) -> usize {
        match self {
            Self::Aes128 => 16,
            Self::Aes192 => 24,
            Self::Aes256 => 32,
        }
    }

    fn with_key_len(len: usize) -> Option<Self> {
        [Self::Aes128, Self::Aes192, Self::Aes256].into_iter().find(|aes| aes.key_len() == len)
    }
}

impl fmt::Display for Aes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "aes-{}", self.key_len() * 8)
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Xts => "xts",
            Self::Cbc => "cbc",
        })
    }
}

impl Mode {
    /// The mode called `name`.
    pub fn named(name: &str) -> Option<Self> {
        [Self::Xts, Self::Cbc].into_iter().find(|mode| mode.to_string() == name)
    }
}

impl Iv {
    /// Its name, without that of its hash.
    pub fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Plain64 => "plain64",
            Self::Essiv(_) => "essiv",
        }
    }

    /// The hash that it takes.
    pub fn hash(self) -> Option<Hash> {
        match self {
            Self::Essiv(hash) => Some(hash),
            Self::Plain | Self::Plain64 => None,
        }
    }
}

impl CipherSpec {
    /// AES-256 in XTS by the sector's number: what QEMU makes unless told otherwise.
    pub const DEFAULT: Self = Self { aes: Aes::Aes256, mode: Mode::Xts, iv: Iv::Plain64 };
    /// What `encrypt.format=aes` stands for, weak by design.
    pub const LEGACY: Self = Self { aes: Aes::Aes128, mode: Mode::Cbc, iv: Iv::Plain64 };

    /// A cipher put together.
    ///
    /// # Errors
    /// The hash of the initialization vectors gives no key of AES.
    pub fn new(aes: Aes, mode: Mode, iv: Iv) -> Result<Self> {
        match iv {
            Iv::Essiv(hash) if hash != Hash::Sha256 => {
                let what = format!("No AES cipher with key size {} available", hash.digest_len());
                Err(Error::unsupported(what))
            }
            _ => Ok(Self { aes, mode, iv }),
        }
    }

    /// The cipher that a LUKS header names `name` and `mode`, with keys of `key_len` bytes.
    ///
    /// # Errors
    /// There is none of that name, or none with such keys.
    pub fn parse(name: &str, mode: &str, key_len: usize) -> Result<Self> {
        let unsupported = |what: &str, name: &str| {
            Error::unsupported(format!("{what} '{}' is not supported", printable(name)))
        };
        let Some((mode_name, iv_name)) = mode.split_once('-') else {
            let mode = printable(mode);
            return Err(Error::corrupt(format!("Unexpected cipher mode string format '{mode}'")));
        };
        let (iv_name, iv_hash) = match iv_name.split_once(':') {
            Some((name, hash)) => (name, Some(hash)),
            None => (iv_name, None),
        };
        let mode = Mode::named(mode_name).ok_or_else(|| unsupported("Cipher mode", mode_name))?;
        let one_key_len = if mode == Mode::Xts { key_len / 2 } else { key_len };
        let aes = Aes::with_key_len(one_key_len)
            .filter(|_| name == "aes" && (mode != Mode::Xts || key_len.is_multiple_of(2)));
        let aes = aes.ok_or_else(|| {
            let name = printable(name);
            let what =
                format!("Algorithm '{name}' with key size {one_key_len} bytes not supported");
            Error::unsupported(what)
        })?;
        let iv = match (iv_name, iv_hash) {
            // As dm-crypt: a hash is of no interest here.
            ("plain", _) => Iv::Plain,
            ("plain64", _) => Iv::Plain64,
            ("essiv", None) => {
                return Err(Error::corrupt("Missing IV generator hash specification"));
            }
            ("essiv", Some(hash)) => {
                Iv::Essiv(hash.parse().map_err(|()| unsupported("Hash algorithm", hash))?)
            }
            (other, _) => return Err(unsupported("IV generator", other)),
        };
        Self::new(aes, mode, iv)
    }

    /// What a LUKS header calls its mode.
    pub fn mode_name(self) -> String {
        let (mode, iv) = (self.mode, self.iv.name());
        match self.iv.hash() {
            Some(hash) => format!("{mode}-{iv}:{hash}"),
            None => format!("{mode}-{iv}"),
        }
    }

    /// Bytes of a key.
    pub fn key_len(self) -> usize {
        match self.mode {
            Mode::Xts => self.aes.key_len() * 2,
            Mode::Cbc => self.aes.key_len(),
        }
    }

    /// The key length.
    pub fn aes(self) -> Aes {
        self.aes
    }

    /// The mode.
    pub fn mode(self) -> Mode {
        self.mode
    }

    /// Where initialization vectors come from.
    pub fn iv(self) -> Iv {
        self.iv
    }
}

/// `text` out of a header, for a message.
pub(super) fn printable(text: &str) -> String {
    text.escape_debug().to_string()
}

/// A cipher with its key, in memory that is locked.
pub struct SectorCipher(Locked<Keyed>);

/// No block of a page is ever alone, and which cipher it is, is asked once per page.
struct Keyed {
    data: Data,
    iv: KeyedIv,
}

enum Data {
    Xts128(Xts<Aes128>),
    Xts192(Xts<Aes192>),
    Xts256(Xts<Aes256>),
    Cbc128(Cbc<Aes128>),
    Cbc192(Cbc<Aes192>),
    Cbc256(Cbc<Aes256>),
}

#[expect(clippy::large_enum_variant, reason = "a box would not lie in locked memory")]
enum KeyedIv {
    Plain,
    Plain64,
    Essiv(Aes256),
}

impl fmt::Debug for SectorCipher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

/// The direction.
#[derive(Clone, Copy)]
enum Way {
    Encrypt,
    Decrypt,
}

impl SectorCipher {
    /// The cipher `spec` with `key`, which has the length that it asks for.
    pub fn new(spec: CipherSpec, key: &[u8]) -> Self {
        assert_eq!(key.len(), spec.key_len(), "a key of the cipher's length");
        scrubbing(|| Self(Locked::new(Keyed::new(spec, key))))
    }

    /// Encrypts whole sectors, of which the first has the number `sector`.
    pub fn encrypt(&self, sector: u64, bytes: &mut [u8]) {
        self.apply(Way::Encrypt, sector, bytes);
    }

    /// Decrypts whole sectors, of which the first has the number `sector`.
    pub fn decrypt(&self, sector: u64, bytes: &mut [u8]) {
        self.apply(Way::Decrypt, sector, bytes);
    }

    fn apply(&self, way: Way, sector: u64, bytes: &mut [u8]) {
        let (blocks, rest) = Block::slice_as_chunks_mut(bytes);
        assert!(
            rest.is_empty() && blocks.len().is_multiple_of(BLOCKS_PER_SECTOR),
            "whole sectors are encrypted"
        );
        for (page, first) in blocks.chunks_mut(PAGE_BLOCKS).zip((sector..).step_by(PAGE_SECTORS)) {
            self.0.apply(way, first, page);
        }
    }
}

impl Keyed {
    fn new(spec: CipherSpec, key: &[u8]) -> Self {
        let data = match (spec.mode, spec.aes) {
            (Mode::Xts, Aes::Aes128) => Data::Xts128(Xts::new(key)),
            (Mode::Xts, Aes::Aes192) => Data::Xts192(Xts::new(key)),
            (Mode::Xts, Aes::Aes256) => Data::Xts256(Xts::new(key)),
            (Mode::Cbc, Aes::Aes128) => Data::Cbc128(Cbc::new(key)),
            (Mode::Cbc, Aes::Aes192) => Data::Cbc192(Cbc::new(key)),
            (Mode::Cbc, Aes::Aes256) => Data::Cbc256(Cbc::new(key)),
        };
        let iv = match spec.iv {
            Iv::Plain => KeyedIv::Plain,
            Iv::Plain64 => KeyedIv::Plain64,
            Iv::Essiv(hash) => {
                let mut salt = [0; DIGEST_BYTES_MAX];
                hash.digest(&[key], &mut salt);
                let salted = Aes256::new_from_slice(&salt[..hash.digest_len()]);
                salt.zeroize();
                // The length of the hash, and not that of the data's key, says which AES it is: as dm-crypt.
                KeyedIv::Essiv(salted.expect("a hash as long as the key"))
            }
        };
        Self { data, iv }
    }

    fn apply(&self, way: Way, first: u64, page: &mut [Block]) {
        let mut ivs = [Block::default(); PAGE_SECTORS];
        let ivs = &mut ivs[..page.len() / BLOCKS_PER_SECTOR];
        self.iv.fill(first, ivs);
        match way {
            Way::Encrypt => match &self.data {
                Data::Xts128(cipher) => cipher.encrypt(ivs, page),
                Data::Xts192(cipher) => cipher.encrypt(ivs, page),
                Data::Xts256(cipher) => cipher.encrypt(ivs, page),
                Data::Cbc128(cipher) => cipher.encrypt(ivs, page),
                Data::Cbc192(cipher) => cipher.encrypt(ivs, page),
                Data::Cbc256(cipher) => cipher.encrypt(ivs, page),
            },
            Way::Decrypt => match &self.data {
                Data::Xts128(cipher) => cipher.decrypt(ivs, page),
                Data::Xts192(cipher) => cipher.decrypt(ivs, page),
                Data::Xts256(cipher) => cipher.decrypt(ivs, page),
                Data::Cbc128(cipher) => cipher.decrypt(ivs, page),
                Data::Cbc192(cipher) => cipher.decrypt(ivs, page),
                Data::Cbc256(cipher) => cipher.decrypt(ivs, page),
            },
        }
    }
}

impl KeyedIv {
    /// The initialization vectors of the sectors from number `first` on.
    fn fill(&self, first: u64, ivs: &mut [Block]) {
        for (iv, sector) in ivs.iter_mut().zip(first..) {
            let number = match self {
                Self::Plain => sector & u64::from(u32::MAX),
                Self::Plain64 | Self::Essiv(_) => sector,
            };
            iv[..8].copy_from_slice(&number.to_le_bytes());
        }
        if let Self::Essiv(cipher) = self {
            cipher.encrypt_blocks(ivs);
        }
    }
}

#[cfg(test)]
mod tests;
