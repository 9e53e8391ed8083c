//! Checking an authenticated image: all nodes of the disk and its snapshots, with a scrub all data, too; and whether the map of
//! blocks agrees with them.

use std::sync::atomic::AtomicBool;

use super::parts::read_roots;
use super::{Sealed, Stored, what_is};
use crate::addr::HostBlock;
use crate::disk::Disk;
use crate::engine::Image;
use crate::engine::check::{CheckSummary, Finding, Severity};
use crate::engine::layer::Layer;
use crate::engine::recover::Recovery;
use crate::error::{Error, ErrorKind, Result};
use crate::exec::join_all;
use crate::format::sealed::entry::{Entry, NODE_ENTRIES};
use crate::format::sealed::root::{Root, RootTag};
use crate::format::sealed::{FIRST_BLOCK, SPACE_LEVEL, start_of};
use crate::limits::IN_FLIGHT_MAX;
use crate::meta::sealed::BlockRun;
use crate::meta::sealed::blocks::Blocks;
use crate::sync::lock;

impl<D: Disk> Image<D> {
    /// Whether the top image is an authenticated one.
    pub fn is_authenticated(&self) -> bool {
        matches!(self.top(), Layer::Sealed(_))
    }

    /// Which root the top image has, the newest durable one of this session's; `None` where it is no authenticated image.
    pub fn root_tag(&self) -> Option<RootTag> {
        match self.top() {
            Layer::Sealed(sealed) => Some(lock(&sealed.state).root),
            _ => None,
        }
    }

    /// Gives back all blocks of the top image, an authenticated one, that are in use for nothing.
    ///
    /// # Errors
    /// It is no authenticated image (`Unsupported`), something does not open, or the host failed.
    pub async fn sweep_authenticated(&self) -> Result<Recovery> {
        self.check_change(0, 0)?;
        match self.top() {
            Layer::Sealed(sealed) => sealed.sweep(&AtomicBool::new(false)).await,
            layer => Err(Error::unsupported("no authenticated image").in_file(layer.path())),
        }
    }

    /// Checks the top image, an authenticated one: all that its newest durable root leads to opens, and no place is used twice.
    /// With `scrub`, all data is read, that of snapshots, too. No other request may be in flight. Findings go to `report` as
    /// they are made.
    ///
    /// # Errors
    /// It is no authenticated image (`Unsupported`), or the host failed.
    pub async fn check_authenticated(
        &self,
        scrub: bool,
        report: &mut dyn FnMut(&Finding),
    ) -> Result<CheckSummary> {
        let Layer::Sealed(sealed) = self.top() else {
            return Err(Error::unsupported("no authenticated image").in_file(self.top().path()));
        };
        let summary = CheckSummary::default();
        let marked = Blocks::default();
        let mut check = Check { image: sealed, scrub, report, summary, marked, last: None };
        check.run().await.map_err(|e| sealed.named(e))?;
        Ok(check.summary)
    }
}

struct Check<'c, D: Disk> {
    image: &'c Sealed<D>,
    scrub: bool,
    report: &'c mut dyn FnMut(&Finding),
    summary: CheckSummary,
    /// What anything leads to.
    marked: Blocks,
    /// The end of the cluster that was seen last.
    last: Option<HostBlock>,
}

/// What is yet to be looked at.
type Left = Vec<(u8, u64, Stored)>;

impl<D: Disk> Check<'_, D> {
    async fn run(&mut self) -> Result<()> {
        let roots = read_roots(&self.image.disk, &self.image.sealer).await?;
        for at in roots.damaged() {
            let what = format!("the copy of a root at {at}");
            self.note(&Finding::Unsealed { what, repaired: false }, 1);
        }
        let (root, _) = roots.newest()?;
        let snapshots = lock(&self.image.state).details.snapshots.clone();
        for blob in [&root.details, &root.space].into_iter().filter_map(Entry::stored) {
            self.mark(BlockRun::of(blob));
        }
        self.summary.total_clusters = root.size.div_ceil(self.image.cluster_len());
        self.walk(root.top, root.levels, true).await?;
        for snapshot in snapshots {
            self.walk(snapshot.top, snapshot.levels, false).await?;
        }
        self.summary.image_end_offset = start_of(self.marked.end().max(FIRST_BLOCK)).get();
        self.hold_against_map(&root).await
    }

    /// Looks at a tree; of the disk, its clusters are counted.
    async fn walk(&mut self, top: Entry, levels: u8, is_disk: bool) -> Result<()> {
        // What one tree leads to twice is wrong, what two lead to is shared.
        let others = self.marked.clone();
        let mut left: Left = top.stored().map(|stored| (levels, 0, *stored)).into_iter().collect();
        while !left.is_empty() {
            let batch = left.split_off(left.len().saturating_sub(IN_FLIGHT_MAX));
            let mut wanted = Vec::new();
            for (level, index, stored) in batch.into_iter().rev() {
                let run = BlockRun::of(&stored);
                if is_disk && level == 0 {
                    self.count(&stored);
                }
                if others.contains(run.first) {
                    continue;
                }
                if self.mark(run) && (level > 0 || self.scrub) {
                    wanted.push((level, index, stored));
                }
            }
            let image = self.image;
            let looks =
                wanted.iter().map(|(level, index, stored)| look(image, *level, *index, stored));
            let found = join_all(looks).await;
            // What lies first on the disk is looked at next.
            for ((level, index, stored), found) in wanted.iter().zip(found).rev() {
                match found {
                    Ok(below) => left.extend(below),
                    Err(e) if e.kind() == ErrorKind::Corrupt => {
                        let what = what_is(*level, *index, image.cluster_len());
                        let what = format!("{what}, stored at {},", start_of(stored.place));
                        self.note(&Finding::Unsealed { what, repaired: false }, 1);
                    }
                    Err(e) => return Err(e),
                }
            }
        }
        Ok(())
    }

    /// Whether nothing else leads to any of these blocks, as it has to be.
    fn mark(&mut self, run: BlockRun) -> bool {
        let is_new = self.marked.insert(run);
        if !is_new {
            let BlockRun { first, count } = run;
            self.note(&Finding::BlocksMisused { first, count, by_map: false }, count);
        }
        is_new
    }

    fn count(&mut self, stored: &Stored) {
        let run = BlockRun::of(stored);
        self.summary.allocated_clusters += 1;
        self.summary.compressed_clusters += u64::from(stored.compressed);
        let is_next = self.last.is_none_or(|last| last == run.first);
        self.summary.fragmented_clusters += u64::from(!is_next || stored.compressed);
        self.last = Some(run.end());
    }

    /// Holds what is led to against the map of blocks, if there is one.
    async fn hold_against_map(&mut self, root: &Root) -> Result<()> {
        let Some(stored) = root.space.stored() else { return Ok(()) };
        let map = self.image.read_blob(SPACE_LEVEL, stored).await;
        let end = HostBlock::new(crate::format::sealed::BLOCKS_MAX);
        let map = match map.and_then(|bytes| Blocks::parse(&bytes, end)) {
            Ok(map) => map,
            Err(e) if e.kind() == ErrorKind::Corrupt => {
                let what = format!("the map of blocks, stored at {},", start_of(stored.place));
                self.note(&Finding::Unsealed { what, repaired: false }, 1);
                return Ok(());
            }
            Err(e) => return Err(e),
        };
        if self.summary.corruptions > 0 {
            // What could not be read may lead to what looks unused.
            return Ok(());
        }
        for BlockRun { first, count } in difference(&map, &self.marked) {
            self.note(&Finding::BlocksLeaked { first, count }, count);
        }
        for BlockRun { first, count } in difference(&self.marked, &map) {
            self.note(&Finding::BlocksMisused { first, count, by_map: true }, count);
        }
        Ok(())
    }

    fn note(&mut self, finding: &Finding, count: u64) {
        let counter = match finding.severity() {
            Severity::Leak => &mut self.summary.leaks,
            _ => &mut self.summary.corruptions,
        };
        *counter += count;
        (self.report)(finding);
    }
}

/// Opens node or cluster `index` of level `level`; what it leads to.
async fn look<D: Disk>(image: &Sealed<D>, level: u8, index: u64, stored: &Stored) -> Result<Left> {
    if level == 0 {
        image.read_stored(0, index, stored).await?;
        return Ok(Left::new());
    }
    let node = image.read_node(level, index, stored).await?;
    let first = index * NODE_ENTRIES as u64;
    let entries = (first..).zip(&node.0);
    let below = entries.filter_map(|(index, entry)| entry.stored().map(|s| (level - 1, index, *s)));
    let mut below: Left = below.collect();
    // The first one is looked at next.
    below.reverse();
    Ok(below)
}

/// The runs of blocks that are in `one` and not in `other`.
fn difference(one: &Blocks, other: &Blocks) -> Vec<BlockRun> {
    let (mut found, end) = (Vec::new(), one.end());
    let mut at = FIRST_BLOCK;
    while let Some(run) = one.next_run(at, end, true) {
        let mut from = run.first;
        while let Some(missing) = other.next_run(from, run.end(), false) {
            found.push(missing);
            from = missing.end();
        }
        at = run.end();
    }
    found
}
