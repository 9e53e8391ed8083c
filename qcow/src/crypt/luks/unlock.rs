//! From a passphrase to the master key.
//!
//! Which slot a passphrase belongs to, nothing says: active slots are tried one after the other. [`Unlock`] does no I/O; it
//! says which key material it wants, and gets it.

use std::ops::Range;
use std::sync::Arc;

use super::header::{DIGEST_LEN, KeySlot, LuksHeader, SLOT_COUNT};
use super::material;
use crate::crypt::cipher::SectorCipher;
use crate::crypt::locked::LockedBytes;
use crate::crypt::secret::Passphrase;
use crate::error::{Error, Result};
use crate::limits::UNLOCK_WORK_MAX;

/// The key that the disk is encrypted with.
#[derive(Debug)]
pub struct MasterKey {
    bytes: Arc<LockedBytes>,
}

impl MasterKey {
    pub(super) fn random(len: usize) -> Self {
        Self { bytes: Arc::new(LockedBytes::random(len)) }
    }

    /// Lets `passphrase` remember that a slot gives it this key.
    pub(super) fn remember(
        &self,
        passphrase: &Passphrase,
        header: &LuksHeader,
        slot: &KeySlot,
        material: &[u8],
    ) {
        let slot = header.slot_fingerprint(slot, material);
        passphrase.remember(slot, Some(Arc::clone(&self.bytes)));
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The cipher of the disk that `header` is of.
    pub fn cipher(&self, header: &LuksHeader) -> SectorCipher {
        SectorCipher::new(header.cipher(), &self.bytes)
    }

    /// The digest that a header has of it.
    pub(super) fn digest(&self, header: &LuksHeader) -> [u8; DIGEST_LEN] {
        let mut digest = [0; DIGEST_LEN];
        let (salt, iterations) = (header.master_key_salt(), header.master_key_iterations());
        header.hash().pbkdf2(&self.bytes, salt, iterations, &mut digest);
        digest
    }
}

/// An attempt to unlock a header with a passphrase.
#[derive(Debug)]
pub struct Unlock<'a> {
    header: &'a LuksHeader,
    passphrase: &'a Passphrase,
    /// The slot to try next.
    next: usize,
    /// The last slot that is tried, and one more.
    end: usize,
    /// HMACs that may still be computed.
    work_left: u64,
}

impl<'a> Unlock<'a> {
    /// Tries all active slots.
    pub fn any(header: &'a LuksHeader, passphrase: &'a Passphrase) -> Self {
        Self { header, passphrase, next: 0, end: SLOT_COUNT, work_left: UNLOCK_WORK_MAX }
    }

    /// Tries one slot, if it is active.
    pub fn one(header: &'a LuksHeader, passphrase: &'a Passphrase, slot: usize) -> Self {
        let end = SLOT_COUNT.min(slot + 1);
        Self { header, passphrase, next: slot, end, work_left: UNLOCK_WORK_MAX }
    }

    /// The slot that is tried next, and which bytes from the start of the header on its key material is; `None` where none is
    /// left: the passphrase is wrong, or the header damaged.
    ///
    /// # Errors
    /// The slots ask for too much work.
    pub fn wanted(&mut self) -> Result<Option<(usize, Range<u64>)>> {
        let slots = &self.header.slots()[..self.end];
        let found = slots.iter().enumerate().skip(self.next).find(|(_, slot)| slot.active);
        let Some((index, slot)) = found else { return Ok(None) };
        self.next = index;
        self.work_left = self.work_left.checked_sub(self.work(slot)).ok_or_else(|| {
            Error::limit(format!("the key slots ask for more than {UNLOCK_WORK_MAX} computations"))
        })?;
        let start = slot.offset();
        Ok(Some((index, start..start + self.header.material_len() as u64)))
    }

    /// HMACs that it takes to try `slot`.
    fn work(&self, slot: &KeySlot) -> u64 {
        let (hash, key_len) = (self.header.hash(), self.header.cipher().key_len());
        hash.pbkdf2_work(slot.iterations, key_len)
            + hash.pbkdf2_work(self.header.master_key_iterations(), DIGEST_LEN)
    }

    /// Tries the slot that has been wanted with its key material. Without a result, the next one is to be tried.
    pub fn attempt(&mut self, material: &[u8]) -> Option<MasterKey> {
        let slot = &self.header.slots()[self.next];
        self.next += 1;
        let fingerprint = self.header.slot_fingerprint(slot, material);
        let found = self.passphrase.recall(&fingerprint).unwrap_or_else(|| {
            let found = self.compute(slot, material);
            self.passphrase.remember(fingerprint, found.clone());
            found
        });
        found.map(|bytes| MasterKey { bytes })
    }

    fn compute(&self, slot: &KeySlot, material: &[u8]) -> Option<Arc<LockedBytes>> {
        let key = material::unseal(self.header, slot, self.passphrase, material);
        let key = MasterKey { bytes: Arc::new(key) };
        // What the digest is compared with stands in the header: there is nothing to learn from how long it takes.
        (key.digest(self.header) == self.header.master_key_digest()).then_some(key.bytes)
    }
}
