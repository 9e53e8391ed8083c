//! A new header: a random master key, and a passphrase for it in the first slot.

use super::af::STRIPES;
use super::cost::Cost;
use super::header::{DIGEST_LEN, LuksHeader, Parts, SALT_LEN};
use super::slots::SlotChange;
use super::unlock::MasterKey;
use crate::crypt::cipher::{CipherSpec, SECTOR_LEN};
use crate::crypt::fill_random;
use crate::crypt::hash::Hash;
use crate::crypt::secret::Passphrase;
use crate::error::{Error, Result};

/// What a new header is to be like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NewLuks {
    /// How the disk is encrypted.
    pub cipher: CipherSpec,
    /// The hash of PBKDF2 and of the splitter.
    pub hash: Hash,
    /// What a guess of the passphrase is to cost.
    pub cost: Cost,
}

impl Default for NewLuks {
    /// As QEMU.
    fn default() -> Self {
        Self { cipher: CipherSpec::DEFAULT, hash: Hash::Sha256, cost: Cost::default() }
    }
}

impl NewLuks {
    /// Fails where other programs could not open such a header.
    ///
    /// # Errors
    /// The key material would end with half a sector, over which QEMU ends with a broken assertion.
    pub fn check(&self) -> Result<()> {
        if (self.cipher.key_len() * STRIPES).is_multiple_of(SECTOR_LEN) {
            return Ok(());
        }
        let (aes, mode) = (self.cipher.aes(), self.cipher.mode());
        Err(Error::unsupported(format!(
            "no LUKS header with {aes} in {mode} mode: QEMU cannot open it"
        )))
    }

    /// Bytes up to the payload: header and room for the key material of all slots.
    pub fn payload_offset(&self) -> u64 {
        self.header(&[0; DIGEST_LEN], &[0; SALT_LEN], 1, "").payload_offset()
    }

    fn header(
        &self,
        digest: &[u8; DIGEST_LEN],
        salt: &[u8; SALT_LEN],
        iterations: u32,
        uuid: &str,
    ) -> LuksHeader {
        let Self { cipher, hash, .. } = *self;
        LuksHeader::new(&Parts { cipher, hash, digest, salt, iterations, uuid })
    }
}

/// Makes a header for a new master key; what has to be written, and the key.
pub fn create(new: &NewLuks, passphrase: &Passphrase) -> (SlotChange, MasterKey) {
    let key = MasterKey::random(new.cipher.key_len());
    let mut salt = [0; SALT_LEN];
    fill_random(&mut salt);
    // As QEMU and cryptsetup: an eighth of what a slot takes.
    let iterations = new.cost.divided(8).iterations(new.hash, DIGEST_LEN);
    let uuid = random_uuid();
    let without = new.header(&[0; DIGEST_LEN], &salt, iterations, &uuid);
    let header = new.header(&key.digest(&without), &salt, iterations, &uuid);
    (header.with_key(0, &key, passphrase, new.cost), key)
}

/// A random UUID (RFC 9562, version 4).
fn random_uuid() -> String {
    let mut bytes = [0; 16];
    fill_random(&mut bytes);
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-")
}
