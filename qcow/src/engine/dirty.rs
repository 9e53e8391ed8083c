//! An image that was not closed cleanly: the dirty bit says that its counts may be wrong, and the format asks for their
//! repair before the image is written to.
//!
//! This engine sets the bit while a snapshot comes or goes, and never else; images with lazy refcounts come with it after a
//! crash of whoever wrote them. In version 2, which has no such bit, our own mark sends an image here after a crash while a
//! snapshot came or went. Reading needs no counts, so who only reads leaves such an image alone.

use std::path::Path;

use super::check::{Finding, Repair, check};
use super::load::read_header;
use crate::disk::Disk;
use crate::error::{Error, Result};
use crate::format::feature::Incompatible;
use crate::format::header::Header;

/// Repairs the dirty image in `disk`, the file at `path`, which is open for writing; returns its header as it is now.
///
/// # Errors
/// More is wrong than counts and flags, and nothing was changed; or the repair itself failed, and the image is still dirty.
pub(super) async fn repair_dirty<D: Disk>(disk: &D, path: &Path) -> Result<Header> {
    let file = path.display();
    tracing::warn!("{file}: the image was not closed cleanly; repairing its reference counts");
    let mut log = |finding: &Finding| tracing::debug!("{file}: {finding}");
    let checked = check(disk, path, Repair::Counts, &mut log).await;
    let summary = checked.map_err(|e| {
        e.context(
            "not closed cleanly (dirty bit), and its repair failed; try 'qemu-img check -r all'",
        )
    })?;
    let header = read_header(disk).await?;
    if !summary.is_clean() || header.incompatible.contains(Incompatible::DIRTY) {
        return Err(Error::corrupt(
            "the image was not closed cleanly (dirty bit), and more is wrong than its reference counts, so nothing was \
             repaired: see 'qemu-img check', and repair it with 'qemu-img check -r all'",
        ));
    }
    let (corruptions, leaks) = (summary.corruptions_fixed, summary.leaks_fixed);
    tracing::info!("{file}: repaired {corruptions} counts and flags and {leaks} leaked clusters");
    Ok(header)
}
