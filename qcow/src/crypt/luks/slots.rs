//! Passphrases that come and go.
//!
//! Key material goes to an inactive slot and is durable before the header says that the slot is active. What goes is made
//! inactive first, its salt wiped with it, and then overwritten. The header has two sectors: a power cut between them leaves
//! at worst slot 6 half described, which then opens with no passphrase.

use super::cost::Cost;
use super::header::{KeySlot, LuksHeader};
use super::material;
use super::unlock::MasterKey;
use crate::crypt::fill_random;
use crate::crypt::locked::LockedBytes;
use crate::crypt::secret::Passphrase;

/// A header that is to be written, and the key material of the one slot in which it differs.
#[derive(Debug)]
pub struct SlotChange {
    /// The header.
    pub header: LuksHeader,
    /// Where in the header the key material goes, in bytes.
    pub material_at: u64,
    /// The key material; random bytes where there is no key any more.
    pub material: LockedBytes,
}

impl LuksHeader {
    /// The header with `key` put away for `passphrase` in a slot.
    pub fn with_key(
        &self,
        slot: usize,
        key: &MasterKey,
        passphrase: &Passphrase,
        cost: Cost,
    ) -> SlotChange {
        let mut header = self.clone();
        let mut salt = [0; 32];
        fill_random(&mut salt);
        let iterations = cost.iterations(self.hash(), self.cipher().key_len());
        let sector = self.slots()[slot].sector;
        *header.slot_mut(slot) = KeySlot { active: true, iterations, salt, sector };
        let slot = header.slots()[slot];
        let material = material::seal(&header, &slot, passphrase, key.bytes());
        key.remember(passphrase, &header, &slot, &material);
        SlotChange { material_at: slot.offset(), header, material }
    }

    /// The header without what a slot has.
    pub fn without_key(&self, slot: usize) -> SlotChange {
        let mut header = self.clone();
        let sector = self.slots()[slot].sector;
        *header.slot_mut(slot) = KeySlot { active: false, iterations: 0, salt: [0; 32], sector };
        let material = LockedBytes::random(self.material_len());
        SlotChange { material_at: header.slots()[slot].offset(), header, material }
    }

    /// The first slot that is not in use.
    pub fn free_slot(&self) -> Option<usize> {
        self.slots().iter().position(|slot| !slot.active)
    }

    /// How many slots are in use.
    pub fn active_count(&self) -> usize {
        self.slots().iter().filter(|slot| slot.active).count()
    }
}
