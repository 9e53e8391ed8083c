//! Holes of the file inside of data clusters: where an image was laid out in advance, most of its clusters were never written
//! to, and only the host can tell which.

use super::layer::Qcow2;
use super::load::read_words;
use crate::addr::HostOffset;
use crate::disk::{Buffer, Disk, FileExtent};
use crate::error::{Error, Result};
use crate::format::entry::RefcountTableEntry;
use crate::meta::refs::read_count;
use crate::sync::lock;

impl<D: Disk> Qcow2<D> {
    /// What the host stores of `len` bytes of data at `at`, or of the first part of them: all of it, unless the image looks
    /// laid out in advance. May block: for tools.
    ///
    /// # Errors
    /// The host failed.
    pub(super) async fn stored_extent(&self, at: HostOffset, len: u64) -> Result<FileExtent> {
        // Counts tell of the image's own file alone.
        if self.data.is_some() || !self.looks_laid_out().await {
            return Ok(FileExtent { len, data: true });
        }
        let failed = |e: std::io::Error| self.named(Error::io(format!("find data at {at}"), &e));
        let file_len = self.disk.len().map_err(failed)?;
        if file_len <= at.get() {
            return Ok(FileExtent { len, data: false });
        }
        let extent = self.disk.extent_at(at).map_err(failed)?;
        let at_end = !extent.data && file_len <= at.get() + extent.len;
        // Behind the end of the file nothing is stored either.
        Ok(FileExtent { len: if at_end { len } else { extent.len.min(len) }, ..extent })
    }

    /// Whether far more clusters are in use than the host stores, as QEMU judges it: once, the first time it is asked. Where
    /// that cannot be told, as counts are damaged, it is not.
    async fn looks_laid_out(&self) -> bool {
        if let Some(&known) = self.laid_out.get() {
            return known;
        }
        let found = self.has_more_in_use_than_stored().await.unwrap_or(false);
        *self.laid_out.get_or_init(|| found)
    }

    async fn has_more_in_use_than_stored(&self) -> Result<bool> {
        let failed = |e: std::io::Error| self.named(Error::io("find the length", &e));
        let stored = self.disk.allocated_len().map_err(failed)? / self.geometry.cluster_size();
        let enough = (stored * 10 / 9).max(stored + 2);
        let end = self.geometry.clusters_for(self.disk.len().map_err(failed)?);
        Ok(enough <= end && self.has_in_use(enough, end).await?)
    }

    /// Whether `wanted` clusters below `end` or more count as in use, on disk: an image that is only read has its counts
    /// nowhere else.
    async fn has_in_use(&self, wanted: u64, end: u64) -> Result<bool> {
        let (at, entries) = {
            let header = lock(&self.header);
            let bytes = self.geometry.bytes(header.refcount_table_clusters.into());
            (header.refcount_table_offset, bytes / 8)
        };
        let table = read_words(&self.disk, at, entries, "Refcount table").await?;
        let per_block = self.geometry.refcounts_per_block();
        let mut block = Buffer::zeroed(self.geometry.cluster_size() as usize);
        let mut found = 0;
        for (first, raw) in (0..end).step_by(per_block as usize).zip(table) {
            let Some(cluster) = RefcountTableEntry(raw).parse(self.geometry)? else { continue };
            let read = self.disk.read(self.geometry.host_start(cluster), &block.payload()).await;
            read.map_err(|e| Error::io("read a refcount block", &e))?;
            let (bytes, order) = (block.make_mut(), self.geometry.refcount_order());
            let counts = 0..per_block.min(end - first) as usize;
            found += counts.filter(|&at| read_count(bytes, order, at) > 0).count() as u64;
            if found >= wanted {
                return Ok(true);
            }
        }
        Ok(false)
    }
}
