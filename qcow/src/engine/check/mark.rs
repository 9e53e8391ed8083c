//! The close mark before and after a repair.

use super::repair::{sync, write};
use super::stored::StoredCounts;
use super::tables::TableReader;
use super::target::Target;
use crate::addr::{ClusterCount, HostOffset};
use crate::disk::Disk;
use crate::engine::load::read_bytes;
use crate::error::Result;
use crate::format::header::Header;
use crate::format::mark::{Mark, MarkState};
use crate::meta::refs::read_count;

/// Makes the mark say that nobody knows which session changed the image last, because a change is about to come that no redo
/// log of an earlier session goes with. What a log does after a power cut does not matter: it is gone.
pub(in crate::engine) async fn forget_session<D: Disk>(target: &Target<'_, D>) -> Result<()> {
    let mark = target.header.extensions.mark.clone();
    let Some(mut mark) = mark.filter(|mark| mark.session().is_some()) else { return Ok(()) };
    mark.set_session(None);
    write_mark(target, &mark).await
}

/// Sets the mark of an image in which nothing is wrong any more to clean. `clusters` are those that were checked; where
/// clusters behind them are counted, too, which a crash can leave and a check does not judge, the mark stays.
pub(in crate::engine) async fn set_clean<D: Disk>(
    target: &Target<'_, D>,
    stored: &StoredCounts,
    clusters: ClusterCount,
) -> Result<()> {
    let Some(mut mark) = target.header.extensions.mark.clone() else { return Ok(()) };
    if !mark.set(MarkState::Clean) || counts_any_from(target, stored, clusters).await? {
        return Ok(());
    }
    mark.set_session(None);
    write_mark(target, &mark).await?;
    sync(target).await
}

async fn write_mark<D: Disk>(target: &Target<'_, D>, mark: &Mark) -> Result<()> {
    let len = target.geometry.cluster_size();
    let cluster0 = read_bytes(target.disk, HostOffset::new(0), len, "header").await?;
    match Header::find_mark(&cluster0)? {
        Some(at) => write(target, at, mark.head(), "close mark").await,
        None => Ok(()),
    }
}

/// Whether any cluster from `first` on is counted.
async fn counts_any_from<D: Disk>(
    target: &Target<'_, D>,
    stored: &StoredCounts,
    first: ClusterCount,
) -> Result<bool> {
    let geometry = target.geometry;
    let per_block = geometry.refcounts_per_block();
    let mut reader = TableReader::new(target);
    for index in first / per_block..stored.table().len() as u64 {
        let Some(place) = stored.block(index).place() else { continue };
        let read = reader.read(&[place], geometry.cluster_size()).await?;
        let start = first.saturating_sub(index * per_block).min(per_block);
        for block in read.into_iter().flatten() {
            let order = geometry.refcount_order();
            if (start..per_block).any(|at| read_count(&block, order, at as usize) != 0) {
                return Ok(true);
            }
        }
    }
    Ok(false)
}
