//! Reading and writing the parts of an authenticated image that have a place of their own, without opening the image: header, key
//! slots, roots; and what a root leads to beside its tree.

use crate::addr::HostOffset;
use crate::crypt::Passphrase;
use crate::crypt::seal::{DataKey, Label, SealKind, Sealer};
use crate::crypt::sealed_slots::{KeySlots, SLOTS_LEN};
use crate::disk::{Buffer, Disk};
use crate::engine::load::read_bytes;
use crate::error::{Error, ErrorKind, Result};
use crate::format::sealed::details::Details;
use crate::format::sealed::entry::Entry;
use crate::format::sealed::header::{HEADER_LEN, SealedHeader};
use crate::format::sealed::root::{COPY_COUNT, ROOT_LEN, Root, Roots, place_of};
use crate::format::sealed::{DETAILS_LEVEL, KEY_SLOTS_BLOCK, start_of};
use crate::limits::SEALED_BLOB_BYTES_MAX;

/// Whether the file is an authenticated image, as far as its first bytes tell.
pub(in crate::engine) async fn is_sealed<D: Disk>(disk: &D) -> Result<bool> {
    let prefix = read_bytes(disk, HostOffset::new(0), HEADER_LEN as u64, "header").await?;
    Ok(SealedHeader::is_at(&prefix))
}

/// The header of an authenticated image.
pub(in crate::engine) async fn read_sealed_header<D: Disk>(disk: &D) -> Result<SealedHeader> {
    let bytes = read_bytes(disk, HostOffset::new(0), HEADER_LEN as u64, "header").await?;
    SealedHeader::parse(&bytes)
}

/// The key slots of an image with `header`.
pub(in crate::engine) async fn read_key_slots<D: Disk>(
    disk: &D,
    header: &SealedHeader,
) -> Result<KeySlots> {
    let at = start_of(KEY_SLOTS_BLOCK);
    let bytes = read_bytes(disk, at, SLOTS_LEN as u64, "key slots").await?;
    KeySlots::parse(header.image, &bytes)
}

/// The key that `passphrase` unlocks.
pub(in crate::engine) async fn unlock<D: Disk>(
    disk: &D,
    header: &SealedHeader,
    passphrase: Option<&Passphrase>,
) -> Result<DataKey> {
    let missing = || {
        let what = "Parameter 'encrypt.key-secret' is required for cipher";
        Error::new(ErrorKind::Denied, what)
    };
    let passphrase = passphrase.ok_or_else(missing)?;
    read_key_slots(disk, header).await?.unlock(passphrase).map(|(_, key)| key)
}

pub(super) async fn sealer_of<D: Disk>(
    disk: &D,
    header: &SealedHeader,
    passphrase: Option<&Passphrase>,
) -> Result<Sealer> {
    Ok(match header.kind {
        SealKind::Crc32c => Sealer::crc32c(header.image),
        SealKind::Aes256Gcm => {
            Sealer::aes_256_gcm(header.image, &unlock(disk, header, passphrase).await?)
        }
    })
}

/// All copies of roots.
pub(super) async fn read_roots<D: Disk>(disk: &D, sealer: &Sealer) -> Result<Roots> {
    let mut sectors: [Vec<u8>; COPY_COUNT] = Default::default();
    for (index, sector) in sectors.iter_mut().enumerate() {
        *sector = read_bytes(disk, place_of(index), ROOT_LEN as u64, "root").await?;
    }
    Ok(Roots::parse(sectors, sealer))
}

/// The details that `root` leads to.
pub(super) async fn read_details<D: Disk>(
    disk: &D,
    sealer: &Sealer,
    header: &SealedHeader,
    root: &Root,
) -> Result<Details> {
    let Entry::Stored(stored) = &root.details else { return Ok(Details::default()) };
    let len = u64::from(stored.len);
    if len > SEALED_BLOB_BYTES_MAX {
        return Err(Error::limit(format!("{len} bytes of details")));
    }
    let at = start_of(stored.place);
    let mut bytes = read_bytes(disk, at, len, "details").await?;
    let label = Label { level: DETAILS_LEVEL, index: 0, len: stored.len };
    if !sealer.open(label, &stored.seal, &mut bytes) {
        return Err(Error::corrupt(format!(
            "the details of the image, stored at {at}, are not what was written there"
        )));
    }
    Details::parse(&bytes, header.cluster_len(), root.end)
}

/// Writes `bytes` at `at`.
pub(super) async fn write<D: Disk>(disk: &D, at: HostOffset, bytes: &[u8]) -> Result<()> {
    let written = disk.write(at, &Buffer::from_bytes(bytes).payload()).await;
    written.map_err(|e| Error::io(format!("write at {at}"), &e))
}
