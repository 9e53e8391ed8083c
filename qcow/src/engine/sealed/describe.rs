//! What an authenticated image says about itself without being opened.

use super::parts::{read_details, read_key_slots, read_roots, read_sealed_header, sealer_of};
use crate::crypt::Passphrase;
use crate::crypt::seal::SealKind;
use crate::crypt::sealed_slots::{SLOT_COUNT, SlotState};
use crate::disk::Disk;
use crate::error::Result;
use crate::format::sealed::details::Details;
use crate::format::sealed::header::SealedHeader;
use crate::format::sealed::root::RootTag;
use crate::format::snapshot::SnapshotEntry;

/// What an authenticated image says about itself.
#[derive(Debug)]
pub struct SealedInfo {
    /// Its header.
    pub header: SealedHeader,
    /// Its key slots, of an image that has a key.
    pub key_slots: Vec<SlotState>,
    /// What only the key tells, where that is at hand or none is needed.
    pub state: Option<SealedState>,
}

/// What the newest root of an image says.
#[derive(Debug)]
pub struct SealedState {
    /// Which root that is.
    pub root: RootTag,
    /// Bytes of the disk.
    pub size: u64,
    /// Whether the image was closed with it.
    pub is_closed: bool,
    /// Backing file and snapshots.
    pub details: Details,
}

impl SealedInfo {
    /// The internal snapshots, as far as they are known.
    pub fn snapshots(&self) -> Vec<SnapshotEntry> {
        let details = self.state.as_ref().map(|state| &state.details.snapshots);
        details.into_iter().flatten().map(|snapshot| snapshot.entry.clone()).collect()
    }

    /// Reads what the image in `disk` says, with `key` if there is one.
    ///
    /// # Errors
    /// The image is damaged, the key is wrong, or the host failed.
    pub async fn read<D: Disk>(disk: &D, key: Option<&Passphrase>) -> Result<Self> {
        let header = read_sealed_header(disk).await?;
        let mut info = Self { header, key_slots: Vec::new(), state: None };
        if header.kind == SealKind::Aes256Gcm {
            let slots = read_key_slots(disk, &header).await?;
            info.key_slots = (0..SLOT_COUNT).map(|slot| slots.state(slot)).collect();
            if key.is_none() {
                return Ok(info);
            }
        }
        let sealer = sealer_of(disk, &header, key).await?;
        let (root, tag) = read_roots(disk, &sealer).await?.newest()?;
        let details = read_details(disk, &sealer, &header, &root).await?;
        let (size, is_closed) = (root.size, !root.space.is_void());
        info.state = Some(SealedState { root: tag, size, is_closed, details });
        Ok(info)
    }
}
