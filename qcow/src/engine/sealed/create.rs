//! Making a new, empty authenticated image.

use super::parts::write;
use crate::addr::{HostBlock, HostOffset};
use crate::crypt::seal::{DataKey, ImageId, Label, SealKind, Sealer};
use crate::crypt::sealed_slots::KeySlots;
use crate::disk::Disk;
use crate::engine::options::{CreateOptions, NewIntegrity};
use crate::error::{Error, Result};
use crate::format::sealed::details::Details;
use crate::format::sealed::entry::{Entry, Stored};
use crate::format::sealed::header::SealedHeader;
use crate::format::sealed::root::Root;
use crate::format::sealed::{
    BLOCK_LEN, DETAILS_LEVEL, FIRST_BLOCK, KEY_SLOTS_BLOCK, SPACE_LEVEL, blocks_for,
    check_disk_size, start_of,
};
use crate::meta::sealed::BlockRun;
use crate::meta::sealed::blocks::Blocks;
use crate::seeded_bugs::Bug;

/// The generation of a new image's root.
const FIRST_GENERATION: u64 = 2;

/// Makes `disk`, which is empty, an authenticated image.
pub(in crate::engine) async fn create_sealed<D: Disk>(
    disk: &D,
    options: &CreateOptions,
    integrity: &NewIntegrity,
) -> Result<()> {
    check_disk_size(options.size)?;
    let image = ImageId::random();
    let (sealer, slots) = match integrity {
        NewIntegrity::Crc32c => (Sealer::crc32c(image), None),
        NewIntegrity::Aes256Gcm(passphrase, cost) => {
            let key = DataKey::random();
            let mut slots = KeySlots::empty(image);
            slots.add(Some(0), &key, passphrase, *cost)?;
            (Sealer::aes_256_gcm(image, &key), Some(slots))
        }
    };
    let header = SealedHeader {
        size: options.size,
        cluster_bits: options.cluster_bits,
        kind: if slots.is_some() { SealKind::Aes256Gcm } else { SealKind::Crc32c },
        compression: options.compression,
        image,
    };
    let mut used = Blocks::default();
    let mut next = FIRST_BLOCK;
    let put = async |level: u8, bytes: &[u8], next: &mut HostBlock| {
        let stored = write_blob(disk, &sealer, level, bytes, *next).await?;
        *next = next.plus(stored.blocks());
        Ok::<_, Error>(Entry::Stored(stored))
    };
    let details = Details { backing: options.backing.clone(), snapshots: Vec::new() };
    let details = match details.is_empty() {
        true => Entry::Unallocated,
        false => put(DETAILS_LEVEL, &details.encode()?, &mut next).await?,
    };
    // Two blocks for the map itself, of which one chunk has some blocks.
    used.add(BlockRun { first: FIRST_BLOCK, count: next.distance_from(FIRST_BLOCK) + 2 });
    let space = put(SPACE_LEVEL, &used.encode(), &mut next).await?;
    let end = next;
    let size = options.size;
    let newest = Root {
        generation: FIRST_GENERATION,
        size,
        cluster_bits: options.cluster_bits,
        levels: Root::levels_for(size.div_ceil(header.cluster_len())),
        end,
        newest_snapshot: 0,
        has_older: false,
        top: Entry::Unallocated,
        details,
        space,
    };
    for root in [newest, Root { generation: FIRST_GENERATION - 1, ..newest }] {
        for at in root.places() {
            write(disk, at, &root.encode(&sealer).0).await?;
        }
    }
    if let Some(slots) = slots {
        write(disk, start_of(KEY_SLOTS_BLOCK), slots.bytes()).await?;
    }
    // The header last: until then nobody can take it for a whole image.
    if !Bug::NoBarrierBeforeNewHeader.is_seeded() {
        disk.sync().await.map_err(|e| Error::io("flush the new image", &e))?;
    }
    write(disk, HostOffset::new(0), &header.encode()).await?;
    disk.sync().await.map_err(|e| Error::io("flush the new image", &e))
}

async fn write_blob<D: Disk>(
    disk: &D,
    sealer: &Sealer,
    level: u8,
    bytes: &[u8],
    place: HostBlock,
) -> Result<Stored> {
    let len = bytes.len() as u32;
    let mut sealed = bytes.to_vec();
    let seal = sealer.seal(Label { level, index: 0, len }, &mut sealed);
    sealed.resize((blocks_for(len.into()) * BLOCK_LEN) as usize, 0);
    write(disk, start_of(place), &sealed).await?;
    Ok(Stored { place, len, compressed: false, born: FIRST_GENERATION, seal })
}
