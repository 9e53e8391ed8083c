//! Refuses what a disk cannot do, before anything is written to it.

use std::ops::Range;

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_WRITE_ZEROES,
};

use super::Job;
use crate::config::SECTOR;
use crate::frontend::Connection;
use crate::{Error, Result};

/// Largest request in bytes.
const MAX_BLOCK: u64 = 1 << 30;

/// Whether the device has what the job's requests need.
pub fn supported(job: &Job, connection: &Connection) -> Result<()> {
    let (mix, config) = (&job.mix, connection.config());
    if mix.modifies() && connection.has(VIRTIO_BLK_F_RO) {
        return Err(Error::Invalid("the disk is read-only".to_owned()));
    }
    let needs = [
        (mix.flush > 0 || job.flush_every > 0, VIRTIO_BLK_F_FLUSH, "VIRTIO_BLK_F_FLUSH"),
        (mix.discard > 0, VIRTIO_BLK_F_DISCARD, "VIRTIO_BLK_F_DISCARD"),
        (mix.write_zeroes > 0, VIRTIO_BLK_F_WRITE_ZEROES, "VIRTIO_BLK_F_WRITE_ZEROES"),
    ];
    for (needed, bit, name) in needs {
        if needed && !connection.has(bit) {
            return Err(Error::NotOffered(name));
        }
    }
    let limits = [
        (mix.discard > 0, config.max_discard_sectors, "discards"),
        (mix.write_zeroes > 0, config.max_write_zeroes_sectors, "zeroes"),
    ];
    for (used, limit, verb) in limits {
        if used && job.block_size / SECTOR > limit.into() {
            let text = format!("the disk {verb} at most {limit} sectors at once");
            return Err(Error::Invalid(text));
        }
    }
    Ok(())
}

/// The blocks that the job uses, by their number on a disk of `disk` bytes in blocks of `logical`.
pub fn blocks(job: &Job, disk: u64, logical: u64) -> Result<Range<u64>> {
    let (offset, size) = (job.offset, job.block_size);
    if job.queues == 0 || job.depth == 0 {
        return Err(Error::Invalid("there must be a queue and a request in flight".to_owned()));
    }
    if size == 0 || size % logical != 0 || size > MAX_BLOCK {
        return Err(Error::Invalid(format!(
            "block size {size}: must be a multiple of the disk's {logical} bytes, at most 1 GiB"
        )));
    }
    let stretch = job.stretch.unwrap_or(size);
    if stretch == 0 || !stretch.is_multiple_of(size) {
        return Err(Error::Invalid(format!(
            "stretch {stretch}: must be a multiple of the block size {size}"
        )));
    }
    let rest = disk.saturating_sub(offset);
    let range = job.range.unwrap_or(rest).min(rest);
    if offset % size != 0 || range / stretch < job.queues.into() {
        return Err(Error::Invalid(format!(
            "offset {offset}, range {range} on a disk of {disk} bytes: must start at a multiple of \
             the block size {size}, and hold {stretch} bytes for each queue"
        )));
    }
    Ok(offset / size..(offset + range) / size)
}
