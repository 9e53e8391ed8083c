//! Passphrases of an image that is encrypted with LUKS: which there are, another one, one less.
//!
//! The image is open, and so unlocked or not; slots are changed with a passphrase that opens one. What may be taken away is
//! the caller's to decide: without any slot left nobody ever reads the disk again.

use super::Image;
use super::encryption::LuksVolume;
use super::layer::{Layer, Qcow2};
use crate::crypt::Passphrase;
use crate::crypt::luks::{Cost, LuksHeader, SlotChange, Unlock};
use crate::disk::Disk;
use crate::error::{Error, Result};
use crate::format::header::{CryptMethod, Header};
use crate::meta::regions::Kind;
use crate::sync::lock;

impl<D: Disk> Image<D> {
    /// The LUKS header of the top image.
    ///
    /// # Errors
    /// The image has none (`Unsupported`), it is damaged, or the host failed.
    pub async fn luks_header(&self) -> Result<LuksHeader> {
        let (qcow2, header) = self.luks_image()?;
        let volume = LuksVolume::of_image(&qcow2.disk, &header).await;
        Ok(volume.map_err(|e| qcow2.named(e))?.header)
    }

    /// The key slots that `passphrase` opens.
    ///
    /// # Errors
    /// As [`Self::luks_header`]; or the slots ask for too much work.
    pub async fn slots_of(&self, passphrase: &Passphrase) -> Result<Vec<usize>> {
        let (qcow2, header) = self.luks_image()?;
        let found = async {
            let volume = LuksVolume::of_image(&qcow2.disk, &header).await?;
            let mut found = Vec::new();
            for (index, _) in volume.header.slots().iter().enumerate().filter(|(_, s)| s.active) {
                let unlock = Unlock::one(&volume.header, passphrase, index);
                if volume.attempt(unlock).await?.is_some() {
                    found.push(index);
                }
            }
            Ok(found)
        };
        found.await.map_err(|e: Error| qcow2.named(e))
    }

    /// Lets `new` open the image, too, in the key slot `slot`, over what that has. `passphrase` opens it now. Durable once it
    /// succeeds.
    ///
    /// # Errors
    /// `passphrase` opens no slot (`Denied`), the image is read-only or has no LUKS header, or the host failed.
    pub async fn add_key(
        &self,
        slot: usize,
        passphrase: &Passphrase,
        new: &Passphrase,
        cost: Cost,
    ) -> Result<()> {
        let (qcow2, header) = self.changeable_luks_image().await?;
        let added = async {
            let volume = LuksVolume::of_image(&qcow2.disk, &header).await?;
            let (_, key) = volume.unlock(passphrase).await?;
            let change = volume.header.with_key(slot, &key, new, cost);
            qcow2.write_key_material(&header, &change).await?;
            qcow2.barrier().await?;
            qcow2.write_luks_header(&header, &change).await?;
            qcow2.barrier().await
        };
        added.await.map_err(|e| qcow2.named(e))
    }

    /// Empties the key slot `slot`: what opened it opens nothing any more. Durable once it succeeds.
    ///
    /// # Errors
    /// As [`Self::add_key`], but for the passphrase.
    pub async fn erase_key(&self, slot: usize) -> Result<()> {
        let (qcow2, header) = self.changeable_luks_image().await?;
        let erased = async {
            let volume = LuksVolume::of_image(&qcow2.disk, &header).await?;
            let change = volume.header.without_key(slot);
            qcow2.write_luks_header(&header, &change).await?;
            qcow2.barrier().await?;
            qcow2.write_key_material(&header, &change).await?;
            qcow2.barrier().await
        };
        erased.await.map_err(|e| qcow2.named(e))
    }

    fn luks_image(&self) -> Result<(&Qcow2<D>, Header)> {
        let without = |path| Err(Error::unsupported("the image has no LUKS header").in_file(path));
        let Layer::Qcow2(qcow2) = self.top() else { return without(self.top().path()) };
        let header = lock(&qcow2.header).clone();
        match header.crypt_method {
            CryptMethod::Luks => Ok((qcow2, header)),
            CryptMethod::None | CryptMethod::Aes => without(&qcow2.path),
        }
    }

    async fn changeable_luks_image(&self) -> Result<(&Qcow2<D>, Header)> {
        self.check_change(0, 0)?;
        let (qcow2, _) = self.luks_image()?;
        qcow2.guarded(qcow2.prepare_header()).await?;
        self.luks_image()
    }
}

impl<D: Disk> Qcow2<D> {
    async fn write_luks_header(&self, header: &Header, change: &SlotChange) -> Result<()> {
        let Some(place) = header.extensions.encryption_header else {
            unreachable!("an image with LUKS names its header")
        };
        let bytes = change.header.encode();
        self.write_metadata(Kind::EncryptionHeader, place.offset, &bytes).await
    }

    async fn write_key_material(&self, header: &Header, change: &SlotChange) -> Result<()> {
        let Some(place) = header.extensions.encryption_header else {
            unreachable!("an image with LUKS names its header")
        };
        let at = place.offset.plus(change.material_at);
        self.write_metadata(Kind::EncryptionHeader, at, &change.material).await
    }
}
