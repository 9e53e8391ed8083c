//! Another width of counts for an image that is not open: refcount structures of that width are written beside the old ones
//! and taken over by one sector of the header, as in a [`super::rebuild`].

use std::path::Path;

use super::crew::Crew;
use super::rebuild;
use super::survey::Survey;
use super::tally::Tally;
use super::{Finding, Repair, check};
use crate::addr::{Geometry, HostCluster};
use crate::disk::Disk;
use crate::engine::load::see_medium;
use crate::error::{Error, Result};
use crate::format::feature::Autoclear;
use crate::format::header::Version;

/// Makes the counts of the qcow2 image in `disk`, the file at `path`, `1 << order` bits wide. A crash leaves the old width or
/// the new one; clusters may be leaked then.
///
/// # Errors
/// A count does not fit, or the version has one width only (`Invalid`); something is wrong with the image, which `check` tells
/// (`Corrupt`); or the host failed.
pub async fn change_refcount_width<D: Disk>(disk: &D, path: &Path, order: u32) -> Result<()> {
    change(disk, path, order).await.map_err(|e| e.in_file(path))
}

async fn change<D: Disk>(disk: &D, path: &Path, order: u32) -> Result<()> {
    see_medium(disk).await?;
    let mut silent = |_: &Finding| ();
    let mut tally = Tally::new(&mut silent);
    let survey = Survey::make(disk, Crew::ALONE, Repair::Counts, &mut tally).await?;
    let Some(survey) = survey.filter(|_| tally.summary.is_clean()) else {
        return Err(Error::corrupt("the image is not clean: see 'qemu-img check'"));
    };
    let mut header = survey.target.header.clone();
    if header.version == Version::V2 {
        return Err(Error::invalid(
            "Refcount widths other than 16 bits require compatibility level 1.1 or above (use compat=1.1 or greater)",
        ));
    }
    let counts = survey.references.counts;
    let wanted = Geometry::new(header.cluster_bits, order);
    let mut used = counts.used_in(0..counts.len());
    if let Some(cluster) = used.find(|&cluster| counts.get(cluster) > wanted.refcount_max()) {
        return Err(Error::invalid(format!(
            "Cannot decrease refcount entry width to {} bits: Cluster at offset {:#x} has a refcount of {}",
            wanted.refcount_bits(),
            wanted.host_start(cluster).get(),
            counts.get(cluster)
        )));
    }
    drop(used);
    header.refcount_order = order;
    // Bits that are not known vouch for what is about to change.
    header.autoclear = Autoclear(header.autoclear.0 & !header.autoclear.unknown().0);
    rebuild::rebuild(&survey.target, header, counts, HostCluster::new(0), &mut tally).await?;
    // The old structures are leaks now.
    check(disk, path, Repair::Leaks, &mut |_| ()).await.map(drop)
}
