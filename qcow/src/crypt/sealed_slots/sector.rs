//! One key slot as its sector has it.

use std::sync::Arc;

use super::argon::{Argon, SALT_LEN};
use crate::crypt::fill_random;
use crate::crypt::hash::{DIGEST_BYTES_MAX, Hash};
use crate::crypt::locked::LockedBytes;
use crate::crypt::seal::checksum::crc32c;
use crate::crypt::seal::key::KEY_LEN;
use crate::crypt::seal::xaes::Xaes;
use crate::crypt::seal::{DataKey, ImageId, NONCE_LEN, TAG_LEN};
use crate::crypt::secret::{Fingerprint, Passphrase, SlotKey};
use crate::error::Result;
use crate::limits::SECTOR_BYTES;

/// Bytes of a slot.
pub(super) const SLOT_LEN: usize = SECTOR_BYTES as usize;

const MAGIC: [u8; 8] = *b"qcowslot";
const VERSION: [u8; 2] = [0, 1];
const EMPTY: [u8; 2] = [0, 0];
const ACTIVE: [u8; 2] = [0, 1];
/// What tells the associated data from all other.
const DOMAIN: [u8; 16] = *b"qcow sealed slot";

/// Where the parts of a slot start.
mod at {
    pub const VERSION: usize = 8;
    pub const STATE: usize = 10;
    pub const MEMORY: usize = 12;
    pub const PASSES: usize = 16;
    pub const LANES: usize = 20;
    pub const SALT: usize = 24;
    pub const NONCE: usize = 56;
    pub const KEY: usize = 80;
    pub const TAG: usize = 112;
    pub const ZERO: usize = 128;
    pub const CHECKSUM: usize = 508;
}

/// What a slot is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlotState {
    /// Without a key.
    Empty,
    /// It has the data key, under a passphrase of which a guess costs this.
    Active(Argon),
    /// Nothing that this engine has written: damaged, of a later version, or with parameters beyond a limit.
    Damaged,
}

/// Which slot of which image.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub image: ImageId,
    pub slot: usize,
}

/// A slot's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SlotSector(pub [u8; SLOT_LEN]);

impl SlotSector {
    /// Without a key.
    pub fn empty() -> Self {
        Self::with_state(EMPTY).checksummed()
    }

    /// With `key` under `passphrase`.
    ///
    /// # Errors
    /// `argon` is beyond a limit, or there is not that much memory.
    pub fn sealed(
        place: Place,
        key: &DataKey,
        passphrase: &Passphrase,
        argon: Argon,
    ) -> Result<Self> {
        let mut sector = Self::with_state(ACTIVE);
        sector.put(at::MEMORY, &argon.memory_kib.to_be_bytes());
        sector.put(at::PASSES, &argon.passes.to_be_bytes());
        sector.put(at::LANES, &argon.lanes.to_be_bytes());
        fill_random(&mut sector.0[at::SALT..at::KEY]);
        let (nonce, associated) = (*sector.part::<NONCE_LEN>(at::NONCE), sector.associated(place));
        let xaes = sector.xaes(argon, passphrase)?;
        sector.put(at::KEY, key.bytes());
        let tag = xaes.seal(&nonce, &associated, &mut sector.0[at::KEY..at::TAG]);
        sector.put(at::TAG, &tag);
        let sector = sector.checksummed();
        passphrase.remember(sector.fingerprint(place), Some(key.share()));
        Ok(sector)
    }

    /// What it is.
    pub fn state(&self) -> SlotState {
        let checksum = crc32c(&[&self.0[..at::CHECKSUM]]).to_be_bytes();
        let whole = *self.part(at::CHECKSUM) == checksum
            && *self.part(0) == MAGIC
            && *self.part(at::VERSION) == VERSION
            && is_zero(&self.0[at::ZERO..at::CHECKSUM]);
        let (state, argon) = (*self.part(at::STATE), self.argon());
        match state {
            EMPTY if whole && is_zero(&self.0[at::MEMORY..at::ZERO]) => SlotState::Empty,
            ACTIVE if whole && argon.check().is_ok() => SlotState::Active(argon),
            _ => SlotState::Damaged,
        }
    }

    /// The data key, if `passphrase` is that of this slot, which is active with that `argon`.
    ///
    /// # Errors
    /// There is not that much memory.
    pub fn open(
        &self,
        place: Place,
        argon: Argon,
        passphrase: &Passphrase,
    ) -> Result<Option<DataKey>> {
        let fingerprint = self.fingerprint(place);
        let found = match passphrase.recall(&fingerprint) {
            Some(found) => found,
            None => {
                let found = self.compute(place, argon, passphrase)?;
                passphrase.remember(fingerprint, found.clone());
                found
            }
        };
        Ok(found.map(DataKey::from_bytes))
    }

    fn compute(&self, place: Place, argon: Argon, passphrase: &Passphrase) -> Result<SlotKey> {
        let xaes = self.xaes(argon, passphrase)?;
        let mut key = LockedBytes::zeroed(KEY_LEN);
        key.copy_from_slice(self.part::<KEY_LEN>(at::KEY));
        let (nonce, tag) = (self.part(at::NONCE), self.part::<TAG_LEN>(at::TAG));
        let opened = xaes.open(nonce, &self.associated(place), &mut key, tag);
        Ok(opened.then(|| Arc::new(key)))
    }

    /// What the data key is sealed with.
    fn xaes(&self, argon: Argon, passphrase: &Passphrase) -> Result<Xaes> {
        let key = argon.key(passphrase, self.part::<SALT_LEN>(at::SALT))?;
        Ok(Xaes::new(key.first_chunk().expect("a key's length")))
    }

    fn associated(&self, place: Place) -> Vec<u8> {
        let slot = u8::try_from(place.slot).expect("one of eight");
        [&DOMAIN[..], &place.image.0, &[slot], &self.0[..at::NONCE]].concat()
    }

    fn fingerprint(&self, place: Place) -> Fingerprint {
        let mut fingerprint = [0; DIGEST_BYTES_MAX];
        Hash::Sha256.digest(&[&self.associated(place), &self.0], &mut fingerprint);
        fingerprint
    }

    fn argon(&self) -> Argon {
        let number = |at| u32::from_be_bytes(*self.part(at));
        let (memory_kib, passes, lanes) =
            (number(at::MEMORY), number(at::PASSES), number(at::LANES));
        Argon { memory_kib, passes, lanes }
    }

    fn with_state(state: [u8; 2]) -> Self {
        let mut sector = Self([0; SLOT_LEN]);
        sector.put(0, &MAGIC);
        sector.put(at::VERSION, &VERSION);
        sector.put(at::STATE, &state);
        sector
    }

    pub(super) fn checksummed(mut self) -> Self {
        let checksum = crc32c(&[&self.0[..at::CHECKSUM]]);
        self.put(at::CHECKSUM, &checksum.to_be_bytes());
        self
    }

    fn part<const N: usize>(&self, at: usize) -> &[u8; N] {
        self.0[at..].first_chunk().expect("a part of the slot")
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
    }
}

fn is_zero(bytes: &[u8]) -> bool {
    bytes.iter().all(|byte| *byte == 0)
}
