//! Passphrases of an image that is encrypted with LUKS: which there are, another one, one less.
//!
//! The image is open, and so unlocked or not; slots are changed with a passphrase that opens one. What may be taken away is
//! the caller's to decide: without any slot left nobody ever reads the disk again.

use super::Image;
use super::encryption::luks_volume;
use super::layer::{Layer, Qcow2};
use crate::crypt::Passphrase;
use crate::crypt::luks::{Cost, LuksHeader, Unlock};
use crate::disk::Disk;
use crate::encrypted::LuksVolume;
use crate::error::{Error, Result};
use crate::foreign::luks::Luks;
use crate::format::header::{CryptMethod, Header};
use crate::meta::regions::Kind;
use crate::sync::lock;

impl<D: Disk> Image<D> {
    /// The LUKS header of the top image.
    ///
    /// # Errors
    /// The image has none (`Unsupported`), it is damaged, or the host failed.
    pub async fn luks_header(&self) -> Result<LuksHeader> {
        let home = self.luks_home()?;
        let volume = home.volume().await;
        Ok(volume.map_err(|e| home.named(e))?.header)
    }

    /// The key slots that `passphrase` opens.
    ///
    /// # Errors
    /// As [`Self::luks_header`]; or the slots ask for too much work.
    pub async fn slots_of(&self, passphrase: &Passphrase) -> Result<Vec<usize>> {
        let home = self.luks_home()?;
        let found = async {
            let volume = home.volume().await?;
            let mut found = Vec::new();
            for (index, _) in volume.header.slots().iter().enumerate().filter(|(_, s)| s.active) {
                let unlock = Unlock::one(&volume.header, passphrase, index);
                if volume.attempt(unlock).await?.is_some() {
                    found.push(index);
                }
            }
            Ok(found)
        };
        found.await.map_err(|e: Error| home.named(e))
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
        let home = self.changeable_luks_home().await?;
        let added = async {
            let volume = home.volume().await?;
            let (_, key) = volume.unlock(passphrase).await?;
            let change = volume.header.with_key(slot, &key, new, cost);
            home.write(change.material_at, &change.material).await?;
            home.barrier().await?;
            home.write(0, &change.header.encode()).await?;
            home.barrier().await
        };
        added.await.map_err(|e| home.named(e))
    }

    /// Empties the key slot `slot`: what opened it opens nothing any more. Durable once it succeeds.
    ///
    /// # Errors
    /// As [`Self::add_key`], but for the passphrase.
    pub async fn erase_key(&self, slot: usize) -> Result<()> {
        let home = self.changeable_luks_home().await?;
        let erased = async {
            let change = home.volume().await?.header.without_key(slot);
            home.write(0, &change.header.encode()).await?;
            home.barrier().await?;
            home.write(change.material_at, &change.material).await?;
            home.barrier().await
        };
        erased.await.map_err(|e| home.named(e))
    }

    fn luks_home(&self) -> Result<Home<'_, D>> {
        let without = |path| Err(Error::unsupported("the image has no LUKS header").in_file(path));
        let qcow2 = match self.top() {
            Layer::Qcow2(qcow2) => qcow2,
            Layer::Luks(luks) => return Ok(Home::File(luks)),
            Layer::Sealed(_) | Layer::Raw(_) => return without(self.top().path()),
        };
        let header = lock(&qcow2.header).clone();
        match header.crypt_method {
            CryptMethod::Luks => Ok(Home::Qcow2(qcow2, Box::new(header))),
            CryptMethod::None | CryptMethod::Aes => without(&qcow2.path),
        }
    }

    async fn changeable_luks_home(&self) -> Result<Home<'_, D>> {
        self.check_change(0, 0)?;
        if let Home::Qcow2(qcow2, _) = self.luks_home()? {
            qcow2.guarded(qcow2.prepare_header()).await?;
        }
        self.luks_home()
    }
}

/// What has a LUKS header.
enum Home<'a, D: Disk> {
    /// A qcow2 image, and its own header, which says where.
    Qcow2(&'a Qcow2<D>, Box<Header>),
    /// A file that starts with it.
    File(&'a Luks<D>),
}

impl<D: Disk> Home<'_, D> {
    async fn volume(&self) -> Result<LuksVolume<'_, D>> {
        match self {
            Self::Qcow2(qcow2, header) => luks_volume(&qcow2.disk, header).await,
            Self::File(luks) => luks.volume().await,
        }
    }

    /// Writes `bytes` at byte `at` of the LUKS header.
    async fn write(&self, at: u64, bytes: &[u8]) -> Result<()> {
        match self {
            Self::Qcow2(qcow2, header) => {
                let Some(place) = header.extensions.encryption_header else {
                    unreachable!("an image with LUKS names its header")
                };
                let at = place.offset.plus(at);
                qcow2.write_metadata(Kind::EncryptionHeader, at, bytes).await
            }
            Self::File(luks) => luks.write_header(at, bytes).await,
        }
    }

    async fn barrier(&self) -> Result<()> {
        match self {
            Self::Qcow2(qcow2, _) => qcow2.barrier().await,
            Self::File(luks) => luks.raw().flush().await,
        }
    }

    fn named(&self, error: Error) -> Error {
        match self {
            Self::Qcow2(qcow2, _) => qcow2.named(error),
            Self::File(luks) => error.in_file(luks.raw().path()),
        }
    }
}
