//! Passphrases of an authenticated image: which there are, another one, one less.

use super::Sealed;
use super::parts::{read_key_slots, write};
use crate::crypt::Passphrase;
use crate::crypt::seal::SealKind;
use crate::crypt::sealed_slots::{KeySlots, SlotCost};
use crate::disk::Disk;
use crate::engine::Image;
use crate::engine::layer::Layer;
use crate::error::{Error, Result};
use crate::format::sealed::{KEY_SLOTS_BLOCK, start_of};

impl<D: Disk> Image<D> {
    /// The key slots of the top image, an authenticated one with a key.
    ///
    /// # Errors
    /// It is no such image (`Unsupported`), or the host failed.
    pub async fn sealed_slots(&self) -> Result<KeySlots> {
        let sealed = self.sealed_with_key()?;
        read_key_slots(&sealed.disk, &sealed.header).await.map_err(|e| sealed.named(e))
    }

    /// Lets `new` open the image, too, in the key slot `slot`, or the first one that is empty. `passphrase` opens it now.
    /// Durable once it succeeds.
    ///
    /// # Errors
    /// `passphrase` opens no slot (`Denied`), the slot is active or none is left, the image is read-only or no authenticated one
    /// with a key, or the host failed.
    pub async fn add_sealed_key(
        &self,
        slot: Option<usize>,
        passphrase: &Passphrase,
        new: &Passphrase,
        cost: SlotCost,
    ) -> Result<usize> {
        self.check_change(0, 0)?;
        let sealed = self.sealed_with_key()?;
        let added = async {
            let mut slots = read_key_slots(&sealed.disk, &sealed.header).await?;
            let (_, key) = slots.unlock(passphrase)?;
            let slot = slots.add(slot, &key, new, cost)?;
            sealed.write_slot(&slots, slot).await?;
            Ok(slot)
        };
        added.await.map_err(|e| sealed.named(e))
    }

    /// Empties the key slot `slot`: what opened it opens nothing any more. Durable once it succeeds.
    ///
    /// # Errors
    /// It is empty or the only active one, the image is read-only or no authenticated one with a key, or the host failed.
    pub async fn erase_sealed_key(&self, slot: usize) -> Result<()> {
        self.check_change(0, 0)?;
        let sealed = self.sealed_with_key()?;
        let erased = async {
            let mut slots = read_key_slots(&sealed.disk, &sealed.header).await?;
            slots.erase(slot)?;
            sealed.write_slot(&slots, slot).await
        };
        erased.await.map_err(|e| sealed.named(e))
    }

    fn sealed_with_key(&self) -> Result<&Sealed<D>> {
        match self.top() {
            Layer::Sealed(sealed) if sealed.header.kind == SealKind::Aes256Gcm => Ok(sealed),
            layer => {
                let what = "the image is no authenticated one with a key";
                Err(Error::unsupported(what).in_file(layer.path()))
            }
        }
    }
}

impl<D: Disk> Sealed<D> {
    /// Writes one slot, which is a sector.
    async fn write_slot(&self, slots: &KeySlots, slot: usize) -> Result<()> {
        let sector = slots.sector(slot);
        let at = start_of(KEY_SLOTS_BLOCK).plus((slot * sector.len()) as u64);
        write(&self.disk, at, sector).await?;
        self.barrier().await
    }
}
