//! What lies where in the file: the units that can move, and who they are.

use std::collections::BTreeMap;
use std::ops::Range;

use super::moves::{Move, Moves};
use super::tables::visit_l2_tables;
use crate::addr::{HostCluster, HostOffset};
use crate::crypt::SectorCipher;
use crate::disk::Disk;
use crate::engine::check::parts::{
    Bits, Claim, Counts, L2Format, LooseL2, Survey, Target, snapshot_l1, words,
};
use crate::error::{Error, Result};
use crate::format::bitmap::{BitmapCluster, parse_directory, parse_table_entry};

/// What a run of metadata is. Each has one pointer, but for L2 tables, which snapshots share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Metadata {
    L2Table {
        /// How many L1 entries name it.
        uses: u64,
    },
    ActiveL1,
    SnapshotL1,
    SnapshotTable,
    BitmapData,
    BitmapTable,
    BitmapDirectory,
    /// The one behind this entry of the refcount table.
    RefcountBlock(u64),
    RefcountTable,
}

/// What moves as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Unit {
    pub(super) first: u64,
    /// Clusters.
    pub(super) len: u64,
    pub(super) kind: Kind,
}

/// What a unit is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Data of the disk: one cluster, or several that compressed data ties together because it lies across their borders.
    Data,
    /// Data that is encrypted by its place: one cluster.
    EncryptedData,
    Metadata(Metadata),
    /// The header, and whatever else is counted: it stays where it is.
    Fixed,
}

/// The image, cluster by cluster.
pub(super) struct Layout<'d, D> {
    pub(super) target: Target<'d, D>,
    pub(super) format: L2Format,
    /// What data that is encrypted by its place is encrypted with.
    pub(super) cipher: Option<SectorCipher>,
    /// References to each cluster, which are also the stored counts.
    pub(super) counts: Counts,
    /// The places of refcount blocks, by table index.
    pub(super) blocks: Vec<Option<u64>>,
    /// How many of the references are L2 entries.
    data: Counts,
    /// Whether compressed data ties a cluster to the next one.
    ties: Bits,
    /// Whether a cluster has data that is encrypted by its place.
    encrypted: Bits,
    /// Runs of metadata, by their first clusters: how many bytes they have, and what they are.
    metadata: BTreeMap<u64, (u64, Metadata)>,
}

impl<'d, D: Disk> Layout<'d, D> {
    /// The layout of an image in which nothing is wrong.
    ///
    /// # Errors
    /// A cluster is two things at once, which nothing forbids where it is counted twice; or the file cannot be read.
    pub(super) async fn of(survey: Survey<'d, D>, cipher: Option<SectorCipher>) -> Result<Self> {
        let Survey { target, snapshots, references, stored, .. } = survey;
        let format = L2Format::of(&target);
        let blocks = (0..stored.table().len() as u64).map(|index| stored.block(index).place());
        let geometry = target.geometry;
        let blocks = blocks.map(|at| Some(target.cluster_at(at?).get())).collect();
        let clusters = references.counts.len();
        let mut layout = Self {
            format,
            cipher,
            blocks,
            data: Counts::new(clusters),
            ties: Bits::new(clusters),
            encrypted: Bits::new(clusters),
            metadata: BTreeMap::new(),
            counts: references.counts,
            target,
        };
        for (&at, uses) in &references.tables {
            let table = Metadata::L2Table { uses: uses.total };
            layout.add_metadata(at, geometry.cluster_size(), table);
        }
        layout.add_header_tables(snapshots.table_len);
        for snapshot in &snapshots.entries {
            let l1 = snapshot_l1(&layout.target, snapshot);
            let l1 = l1.map_err(|fault| Error::corrupt(fault.to_string()))?;
            layout.add_metadata(l1.start, l1.end - l1.start, Metadata::SnapshotL1);
        }
        layout.add_bitmaps().await?;
        if !format.data_file {
            layout.add_data().await?;
        }
        layout.refuse_double_uses()?;
        Ok(layout)
    }

    fn add_header_tables(&mut self, snapshot_table_len: u64) {
        let header = &self.target.header;
        let geometry = self.target.geometry;
        let l1 = (header.l1_table_offset.get(), u64::from(header.l1_size) * 8);
        let snapshots = (header.snapshots_offset.get(), snapshot_table_len);
        let refcounts = header.refcount_table_offset.get();
        let refcounts = (refcounts, geometry.bytes(header.refcount_table_clusters.into()));
        self.add_metadata(l1.0, l1.1, Metadata::ActiveL1);
        self.add_metadata(snapshots.0, snapshots.1, Metadata::SnapshotTable);
        self.add_metadata(refcounts.0, refcounts.1, Metadata::RefcountTable);
        for index in 0..self.blocks.len() {
            if let Some(cluster) = self.blocks[index] {
                let len = geometry.cluster_size();
                self.metadata.insert(cluster, (len, Metadata::RefcountBlock(index as u64)));
            }
        }
    }

    fn add_metadata(&mut self, at: u64, len: u64, what: Metadata) {
        if len > 0 {
            let first = self.target.cluster_at(at);
            self.metadata.insert(first.get(), (len, what));
        }
    }

    async fn add_bitmaps(&mut self) -> Result<()> {
        let Some(bitmaps) = self.target.header.extensions.bitmaps else { return Ok(()) };
        let (at, len) = (bitmaps.directory_offset.get(), bitmaps.directory_size);
        self.add_metadata(at, len, Metadata::BitmapDirectory);
        let geometry = self.target.geometry;
        let directory = self.target.read(at, len, "bitmap directory").await?;
        for bitmap in parse_directory(&directory, bitmaps.count, geometry, u64::MAX)? {
            let (at, len) = (bitmap.table_offset.get(), u64::from(bitmap.table_size) * 8);
            self.add_metadata(at, len, Metadata::BitmapTable);
            self.refuse_double_use(self.target.cluster_at(at).get(), len, 1)?;
            let table = self.target.read(at, len, "bitmap table").await?;
            for entry in words(&table) {
                if let BitmapCluster::Data(cluster) = parse_table_entry(entry, geometry)? {
                    let what = (geometry.cluster_size(), Metadata::BitmapData);
                    self.metadata.insert(cluster.get(), what);
                }
            }
        }
        Ok(())
    }

    /// Walks all L2 tables for the clusters that they name.
    async fn add_data(&mut self) -> Result<()> {
        let tables = self.l2_tables();
        let uses: BTreeMap<u64, u64> = self.metadata.iter().filter_map(uses_of).collect();
        let (format, data, ties) = (self.format, &self.data, &mut self.ties);
        let (by_place, encrypted) = (self.cipher.is_some(), &mut self.encrypted);
        visit_l2_tables(&self.target, &tables, |table, words| {
            let uses = uses.get(&table).copied().unwrap_or(0);
            for entry in format.entries(words) {
                let clusters = clusters_of(entry, format);
                for cluster in clusters.clone() {
                    data.add(HostCluster::new(cluster), uses, u64::MAX);
                }
                // Compressed data is never encrypted, and nobody reads what is only kept in reserve.
                if by_place && matches!(entry.claim(format), Claim::Cluster { reserve: false, .. })
                {
                    clusters.clone().for_each(|cluster| encrypted.set(cluster, true));
                }
                clusters.skip(1).for_each(|tied| ties.set(tied - 1, true));
            }
        })
        .await
    }

    /// Makes sure that each cluster is one thing: a move changes the pointers of one kind.
    fn refuse_double_uses(&self) -> Result<()> {
        for (&first, &(len, what)) in &self.metadata {
            let uses = if let Metadata::L2Table { uses } = what { uses } else { 1 };
            self.refuse_double_use(first, len, uses)?;
        }
        let cluster_size = self.target.geometry.cluster_size();
        let mut data = self.data.used_in(0..self.data.len());
        data.try_for_each(|cluster| {
            self.refuse_double_use(cluster.get(), cluster_size, self.data.get(cluster))
        })
    }

    /// Makes sure that each of the clusters that `len` bytes from `first` on take is used so often.
    fn refuse_double_use(&self, first: u64, len: u64, uses: u64) -> Result<()> {
        let mut clusters = first..first + self.target.geometry.clusters_for(len);
        match clusters.find(|&cluster| self.count(cluster) != uses) {
            Some(cluster) => {
                let at = self.target.geometry.host_start(HostCluster::new(cluster));
                Err(Error::corrupt(format!("the cluster at {at} is two things at once")))
            }
            None => Ok(()),
        }
    }

    /// How often `cluster` is used.
    pub(super) fn count(&self, cluster: u64) -> u64 {
        self.counts.get(HostCluster::new(cluster))
    }

    /// The cluster behind the last one in use.
    pub(super) fn end(&self) -> u64 {
        self.counts.last_used_before(self.counts.len()).map_or(0, |last| last.get() + 1)
    }

    /// The places of all L2 tables, by cluster.
    pub(super) fn l2_tables(&self) -> Vec<u64> {
        self.metadata.iter().filter_map(uses_of).map(|(at, _)| at).collect()
    }

    /// The bytes of all metadata of these kinds.
    pub(super) fn bytes_of(&self, kinds: &[Metadata]) -> Vec<Range<u64>> {
        let tables = self.metadata.iter().filter(|(_, (_, what))| kinds.contains(what));
        let start = |&first: &u64| self.start_of(first);
        tables.map(|(first, &(len, _))| start(first)..start(first) + len).collect()
    }

    /// The first byte of a cluster.
    pub(super) fn start_of(&self, cluster: u64) -> u64 {
        self.target.geometry.host_start(HostCluster::new(cluster)).get()
    }

    /// What `cluster`, which is in use, is a part of.
    pub(super) fn unit_at(&self, cluster: u64) -> Unit {
        if let Some((&first, &(len, what))) = self.metadata.range(..=cluster).next_back()
            && let len = self.target.geometry.clusters_for(len)
            && cluster < first + len
        {
            return Unit { first, len, kind: Kind::Metadata(what) };
        }
        if self.data.get(HostCluster::new(cluster)) == 0 {
            return Unit { first: cluster, len: 1, kind: Kind::Fixed };
        }
        let (mut first, mut end) = (cluster, cluster + 1);
        while first > 0 && self.ties.get(first - 1) {
            first -= 1;
        }
        while self.ties.get(end - 1) {
            end += 1;
        }
        let kind = if self.encrypted.get(cluster) { Kind::EncryptedData } else { Kind::Data };
        Unit { first, len: end - first, kind }
    }

    /// Data has moved.
    pub(super) fn move_data(&mut self, run: Move) {
        for (from, to) in (run.from..run.from + run.len).zip(run.to..) {
            let (old, new) = (HostCluster::new(from), HostCluster::new(to));
            self.data.add(new, self.data.get(old), u64::MAX);
            self.data.clear(old);
            self.ties.set(to, self.ties.get(from));
            self.ties.set(from, false);
            self.encrypted.set(to, self.encrypted.get(from));
            self.encrypted.set(from, false);
        }
    }

    /// Metadata has moved. What lies side by side moves as one run.
    pub(super) fn move_metadata(&mut self, moves: &Moves) {
        for run in moves.iter() {
            let units = self.metadata.range(run.from..run.from + run.len);
            let units: Vec<(u64, (u64, Metadata))> = units.map(|(&at, &unit)| (at, unit)).collect();
            for (first, unit) in units {
                self.metadata.remove(&first);
                self.metadata.insert(run.to + (first - run.from), unit);
            }
        }
    }

    /// The metadata at `first` is there no longer.
    pub(super) fn remove_metadata(&mut self, first: u64) {
        self.metadata.remove(&first);
    }

    /// The metadata at `first` has `len` bytes now.
    pub(super) fn resize_metadata(&mut self, first: u64, len: u64) {
        if let Some((old, _)) = self.metadata.get_mut(&first) {
            *old = len;
        }
    }

    /// A new refcount block lies at `cluster`, behind entry `index` of the table.
    pub(super) fn add_block(&mut self, index: u64, cluster: u64) {
        self.blocks[index as usize] = Some(cluster);
        let len = self.target.geometry.cluster_size();
        self.metadata.insert(cluster, (len, Metadata::RefcountBlock(index)));
    }
}

/// The cluster of an L2 table and how often it is named, if that is what this is.
fn uses_of((&first, &(_, what)): (&u64, &(u64, Metadata))) -> Option<(u64, u64)> {
    match what {
        Metadata::L2Table { uses } => Some((first, uses)),
        _ => None,
    }
}

/// The clusters that an entry names: none, one, or those that compressed data touches.
fn clusters_of(entry: LooseL2, format: L2Format) -> Range<u64> {
    let (offset, len) = match entry.claim(format) {
        Claim::Nothing => return 0..0,
        Claim::Cluster { offset, .. } => (offset, format.geometry.cluster_size()),
        Claim::Compressed { offset, len } => (offset, len),
    };
    let (first, count) = format.geometry.host_span(HostOffset::new(offset), len);
    first.get()..first.get() + count
}
