//! `compact`: gives unused space back. Clusters move from the end of the file into free ones further down, the file is cut
//! off behind the last one in use, and free clusters that are left in front of it become holes.
//!
//! An image that is compacted is not in use. A check's [survey](super::check) says who points where, so that counts are
//! known and nothing has to be believed; the [`layout`] makes units of it, and the [`plan`] finds each a place. What moves:
//! data; compressed data with all clusters that it ties together, because it lies across their borders; L2 tables, L1
//! tables, the snapshot table, bitmaps with their tables and directory, refcount blocks and the refcount table. What stays:
//! the header with the LUKS header, and whatever this engine does not know. What LUKS encrypts by its place in the file is encrypted anew
//! on its way; that needs the key.
//!
//! Nothing needs a table that is switched to, because a pointer is eight bytes, which a sector holds whole, and both of its
//! values are right while both copies are there. So the order is, for as many clusters at a time as memory allows:
//!
//! 1. the counts of the new places are raised to those of the old ones, and data is copied; durable;
//! 2. pointers to data are changed where they are, and the tables that hold them are copied; durable; then the pointers to
//!    those tables, and so on up to the header;
//! 3. all of it durable, the counts of the old places are lowered.
//!
//! A cut in between leaves clusters that are counted and not used, and nothing else: no count is ever too low, and flags
//! agree with counts. Where a snapshot shares a cluster, its pointers may be divided among both copies; the counts that a
//! repair of leaks lowers may then ask for COPIED flags. So the close mark is *unsettled* meanwhile, which has the next open
//! repair both.
//!
//! Memory is what a check takes once more, and some bytes a cluster that moves in one go; time is a walk of the tables for
//! each go of a million clusters, and the copies.

use std::collections::BTreeSet;
use std::path::Path;

use super::check::{Crew, Repair, check_by};
use crate::crypt::Passphrase;
use crate::disk::Disk;
use crate::error::{Error, Result};

mod carry_out;
mod copy;
mod counts;
mod layout;
mod moves;
mod plan;
mod prepare;
mod shed;
mod tables;

use super::check::parts::{StoredCounts, set_clean, sync};
use layout::Layout;
use plan::Plan;

/// Clusters that move in one go. Each go costs a walk of all tables, and its moves memory.
const CLUSTERS_MAX: u64 = 1 << 20;

/// What a compaction has done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Compaction {
    /// Clusters that have moved.
    pub clusters_moved: u64,
    /// The file before.
    pub before: FileSize,
    /// The file now.
    pub after: FileSize,
}

/// How large a file is, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileSize {
    /// Its length.
    pub len: u64,
    /// What the host stores of it.
    pub allocated: u64,
}

impl FileSize {
    fn of<D: Disk>(disk: &D) -> Result<Self> {
        let len = disk.len().map_err(|e| Error::io("find the length", &e))?;
        let allocated = disk.allocated_len();
        let allocated = allocated.map_err(|e| Error::io("find the allocated length", &e))?;
        Ok(Self { len, allocated })
    }
}

/// How far a compaction has come, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// What has just been copied.
    pub copied: u64,
    /// What is to be copied in all, as far as that can be told.
    pub total: u64,
}

/// Gives back the unused space of the qcow2 image in `disk`, the file at `path`, which nobody else may use meanwhile; the
/// threads of `crew` look for it, and `key` opens it where it is encrypted. A crash leaves the same disk and the same snapshots, and perhaps clusters that are leaked,
/// which the next open for writing gives back.
///
/// # Errors
/// The image is encrypted and `key` missing or wrong (`Denied`), or something is wrong with it that a check tells (`Corrupt`): it is as it was. Or
/// the host failed: the image is sound, and what had moved by then has moved.
pub async fn compact<D: Disk>(
    crew: Crew,
    disk: &D,
    path: &Path,
    key: Option<&Passphrase>,
    progress: &mut dyn FnMut(Step),
) -> Result<Compaction> {
    compact_in_goes(crew, disk, path, key, CLUSTERS_MAX, progress).await
}

/// As [`compact`], with at most `clusters_max` clusters moving in one go. What moves as a whole and is larger stays.
///
/// # Errors
/// As [`compact`].
pub async fn compact_in_goes<D: Disk>(
    crew: Crew,
    disk: &D,
    path: &Path,
    key: Option<&Passphrase>,
    clusters_max: u64,
    progress: &mut dyn FnMut(Step),
) -> Result<Compaction> {
    let compacted = async {
        let before = FileSize::of(disk)?;
        let cipher = prepare::cipher(disk, key).await?;
        let survey = prepare::survey(crew, disk, path).await?;
        let layout = Layout::of(survey, cipher).await?;
        let mut run = Run { layout, clusters_max, announced: false, clusters_moved: 0, progress };
        if let Err(error) = run.run().await {
            if run.announced {
                // What is counted for nothing is worth giving back at once; if not even that can be done, the mark
                // tells of it.
                let _ = check_by(crew, disk, path, Repair::Leaks, &mut |_| ()).await;
            }
            return Err(error);
        }
        let clusters_moved = run.clusters_moved;
        Ok(Compaction { clusters_moved, before, after: FileSize::of(disk)? })
    };
    compacted.await.map_err(|e: Error| e.in_file(path))
}

struct Run<'r, 'd, D> {
    layout: Layout<'d, D>,
    /// Clusters that may move in one go.
    clusters_max: u64,
    /// Whether the header says that the image is being changed.
    announced: bool,
    clusters_moved: u64,
    progress: &'r mut dyn FnMut(Step),
}

impl<D: Disk> Run<'_, '_, D> {
    async fn run(&mut self) -> Result<()> {
        let total = self.bytes_to_move();
        while self.move_some(total).await? || self.shed_some().await? {}
        if self.announced {
            self.write_last_block().await?;
        }
        self.layout.cut_file().await?;
        self.layout.punch_free().await?;
        sync(&self.layout.target).await?;
        if self.announced {
            let target = &self.layout.target;
            let stored = StoredCounts::read_table(target).await?;
            set_clean(target, &stored, self.layout.counts.len()).await?;
        }
        Ok(())
    }

    /// Whatever lies where nothing would have to lie.
    fn bytes_to_move(&self) -> u64 {
        let counts = &self.layout.counts;
        let used = counts.used_in(0..counts.len()).count() as u64;
        let above = counts.used_in(used..counts.len()).count() as u64;
        self.layout.target.geometry.bytes(above)
    }

    /// Moves as many clusters as go at a time; whether there were any.
    async fn move_some(&mut self, total: u64) -> Result<bool> {
        let plan = Plan::make(&mut self.layout, self.clusters_max);
        let clusters: u64 = plan.all().map(|run| run.len).sum();
        if clusters == 0 {
            return Ok(false);
        }
        self.announce().await?;
        let progress = &mut self.progress;
        let mut done = |copied| progress(Step { copied, total });
        self.layout.carry_out(&plan, &mut done).await?;
        self.clusters_moved += clusters;
        Ok(true)
    }

    /// Gives up refcount structures that are not needed; whether there were any.
    async fn shed_some(&mut self) -> Result<bool> {
        let blocks = self.layout.needless_blocks();
        if !blocks.is_empty() {
            self.announce().await?;
            self.layout.drop_blocks(&blocks).await?;
            return Ok(true);
        }
        let clusters = self.layout.needless_table_clusters();
        if clusters > 0 {
            self.announce().await?;
            self.layout.shorten_table(clusters).await?;
        }
        Ok(clusters > 0)
    }

    /// Clusters behind the end of the file that are counted, which a crash can leave, count no longer.
    async fn write_last_block(&mut self) -> Result<()> {
        let last = self.layout.counts.len();
        let block: BTreeSet<u64> = self.layout.blocks_of(std::iter::once((last, 1)));
        self.layout.write_blocks(&block).await?;
        sync(&self.layout.target).await
    }

    async fn announce(&mut self) -> Result<()> {
        if !self.announced {
            self.layout.announce().await?;
            self.announced = true;
        }
        Ok(())
    }
}
