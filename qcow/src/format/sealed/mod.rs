//! Authenticated images, *sealed* for short: a qcow2 header that says so, and behind it a tree of seals in place of tables.
//!
//! ```text
//! block 0       header                                    one sector, a checksum of its own
//! block 1..=4   roots: two pairs, each with two copies    one sector each
//! block 5       key slots                                 eight sectors, with a key
//! block 8..     data, nodes, details, the map of blocks   wherever there is room
//!
//! root -> node -> node -> data
//!      -> details            backing file, snapshots
//!      -> map of blocks      which are in use; only of an image that was closed
//! ```
//!
//! An [`entry::Entry`] says where something lies and has the seal that it must open with. So whoever has the root can tell
//! every bit that it leads to. Nothing that a root leads to is ever overwritten; [`root`] says how one root follows another.
//! The bytes stand in `docs/FORMAT-EXTENSIONS.md`.

pub mod details;
pub mod entry;
pub mod header;
pub mod root;

use crate::addr::{HostBlock, HostOffset};
use crate::error::{Error, Result};
use crate::limits::{SEALED_DISK_BYTES_MAX, SEALED_FILE_BYTES_MAX};

/// log2 of the bytes of a block, the unit of the file.
pub const BLOCK_BITS: u32 = 12;
/// Bytes of a block.
pub const BLOCK_LEN: u64 = 1 << BLOCK_BITS;
/// The first block that an entry may name.
pub const FIRST_BLOCK: HostBlock = HostBlock::new(8);
/// Blocks that an entry can name.
pub const BLOCKS_MAX: u64 = SEALED_FILE_BYTES_MAX >> BLOCK_BITS;
/// Where the key slots lie.
pub const KEY_SLOTS_BLOCK: HostBlock = HostBlock::new(5);

/// What a label says of a root, in place of the level of a node.
pub const ROOT_LEVEL: u8 = 255;
/// What a label says of details.
pub const DETAILS_LEVEL: u8 = 254;
/// What a label says of a map of blocks.
pub const SPACE_LEVEL: u8 = 253;

/// Which root comes after which: a root has a higher one than all before it.
pub type Generation = u64;

/// Checks that a disk of so many bytes is not larger than any can be.
///
/// # Errors
/// It is (`Limit`).
pub fn check_disk_size(size: u64) -> Result<()> {
    match size <= SEALED_DISK_BYTES_MAX {
        true => Ok(()),
        false => Err(Error::limit(format!(
            "a disk of {size} bytes: an authenticated image has {SEALED_DISK_BYTES_MAX} at most"
        ))),
    }
}

/// Where a block starts.
pub fn start_of(block: HostBlock) -> HostOffset {
    HostOffset::new(block.get() << BLOCK_BITS)
}

/// Blocks that so many bytes take.
pub fn blocks_for(len: u64) -> u64 {
    len.div_ceil(BLOCK_LEN)
}
