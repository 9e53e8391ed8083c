//! The image under test.

use super::CLUSTERS_MAX;
use crate::addr::{ClusterCount, Geometry, HostCluster, HostOffset, sector_ceil};
use crate::disk::Disk;
use crate::engine::load::{read_bytes, read_header_cluster};
use crate::error::{Error, Result};
use crate::format::feature::Incompatible;
use crate::format::header::Header;

/// The image under test. Its header may name tables that lie anywhere.
pub(in crate::engine) struct Target<'d, D> {
    pub(in crate::engine) disk: &'d D,
    pub(in crate::engine) header: Header,
    pub(in crate::engine) geometry: Geometry,
    /// Bytes, in whole sectors.
    pub(in crate::engine) file_len: u64,
    /// Whether a table that the host calls a hole is taken for zeros without a look. Not where clusters become free on the
    /// strength of that: hosts have been known to call data a hole that was just being written.
    pub(in crate::engine) skip_holes: bool,
}

impl<'d, D: Disk> Target<'d, D> {
    pub(in crate::engine) async fn open(disk: &'d D, skip_holes: bool) -> Result<Self> {
        let (cluster0, file_len) = read_header_cluster(disk).await?;
        Self::of(disk, Header::parse_damaged(&cluster0, file_len)?, file_len, skip_holes)
    }

    /// The image that `header` describes, in a file of `file_len` bytes.
    pub(in crate::engine) fn of(
        disk: &'d D,
        header: Header,
        file_len: u64,
        skip_holes: bool,
    ) -> Result<Self> {
        let geometry = header.geometry();
        let file_len = sector_ceil(file_len).unwrap_or(file_len);
        let clusters = geometry.clusters_for(file_len);
        if clusters > CLUSTERS_MAX {
            return Err(Error::limit(format!(
                "the file has {clusters} clusters, and check handles at most {CLUSTERS_MAX}"
            )));
        }
        Ok(Self { disk, header, geometry, file_len, skip_holes })
    }

    /// Clusters of the file, the last one perhaps in part.
    pub(in crate::engine) fn clusters(&self) -> ClusterCount {
        self.geometry.clusters_for(self.file_len)
    }

    /// The cluster that holds byte `offset`, aligned or not.
    pub(in crate::engine) fn cluster_at(&self, offset: u64) -> HostCluster {
        self.geometry.host_cluster(HostOffset::new(offset))
    }

    /// Whether L2 entries are 16 bytes wide.
    pub(in crate::engine) fn has_extended_l2(&self) -> bool {
        self.header.incompatible.contains(Incompatible::EXTENDED_L2)
    }

    /// Whether guest data lies in a file of its own, whose clusters nobody counts.
    pub(in crate::engine) fn has_data_file(&self) -> bool {
        self.header.has_external_data()
    }

    /// Whether something that ends at byte `end` ends too far behind the end of the file: the last cluster may be there in
    /// part, but no more than that.
    pub(in crate::engine) fn is_past_end(&self, end: u64) -> bool {
        end.saturating_sub(self.file_len) >= self.geometry.cluster_size()
    }

    /// The `len` bytes of `what` at byte `at`, which may lie behind the end of the file and reads as zeros there.
    pub(in crate::engine) async fn read(&self, at: u64, len: u64, what: &str) -> Result<Vec<u8>> {
        let stored = self.file_len.saturating_sub(at).min(len);
        let mut bytes = match stored {
            0 => Vec::new(),
            stored => read_bytes(self.disk, HostOffset::new(at), stored, what).await?,
        };
        bytes.resize(len as usize, 0);
        Ok(bytes)
    }
}
