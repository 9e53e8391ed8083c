//! Key material of one slot: a master key that a passphrase opens.

use super::af;
use super::header::{KeySlot, LuksHeader};
use crate::crypt::cipher::{SECTOR_LEN, SectorCipher};
use crate::crypt::locked::LockedBytes;
use crate::crypt::secret::Passphrase;

/// Puts `key` away for `passphrase`.
pub(super) fn seal(
    header: &LuksHeader,
    slot: &KeySlot,
    passphrase: &Passphrase,
    key: &[u8],
) -> LockedBytes {
    let stripes = af::split(header.hash(), key);
    let mut material = whole_sectors(&stripes);
    cipher(header, slot, passphrase).encrypt(0, &mut material);
    material.truncate(stripes.len());
    material
}

/// What `material` gives with `passphrase`: the master key, if that is right.
pub(super) fn unseal(
    header: &LuksHeader,
    slot: &KeySlot,
    passphrase: &Passphrase,
    material: &[u8],
) -> LockedBytes {
    let mut stripes = whole_sectors(material);
    cipher(header, slot, passphrase).decrypt(0, &mut stripes);
    stripes.truncate(material.len());
    af::merge(header.hash(), &stripes)
}

/// The cipher of the slot's key material.
fn cipher(header: &LuksHeader, slot: &KeySlot, passphrase: &Passphrase) -> SectorCipher {
    let mut key = LockedBytes::zeroed(header.cipher().key_len());
    header.hash().pbkdf2(passphrase.bytes(), &slot.salt, slot.iterations, &mut key);
    SectorCipher::new(header.cipher(), &key)
}

/// `bytes` with zeros up to the end of the last sector. With keys of AES-192 it is half a sector, and stays so: in either
/// mode no byte depends on one behind its block.
fn whole_sectors(bytes: &[u8]) -> LockedBytes {
    let mut whole = LockedBytes::zeroed(bytes.len().next_multiple_of(SECTOR_LEN));
    whole[..bytes.len()].copy_from_slice(bytes);
    whole
}
