//! Authenticated images: the verbs on a tree of seals.
//!
//! ```text
//! write   claim blocks -> seal into them -> say in the tree where they are
//! read    ask the tree -> read -> open with the seal that the tree has
//! flush   capture the dirty nodes -> seal and write them, lower ones first -> barrier -> both copies of the root -> barrier
//! ```
//!
//! Nothing is overwritten, so there is nothing to be ordered but the root behind what it leads to, and a crash leaves the last
//! root that was acknowledged, or the one that was being written. Blocks that the disk has left behind become free when a root
//! is durable that does not lead to them ([`crate::meta::sealed`]).
//!
//! What the guest has in its memory is copied once and sealed from there, and what comes out of the file gets into its memory
//! only after it has opened: a guest that changes its buffers meanwhile changes what it has written, never what it reads.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use crate::addr::{GuestCluster, HostBlock};
use crate::crypt::seal::{Label, Seal, Sealer};
use crate::disk::{Buffer, Disk};
use crate::error::{Error, ErrorKind, Result};
use crate::format::sealed::details::Details;
use crate::format::sealed::entry::{Entry, Stored};
use crate::format::sealed::header::SealedHeader;
use crate::format::sealed::root::RootTag;
use crate::format::sealed::{BLOCK_LEN, Generation, start_of};
use crate::limits::{SEALED_DIRTY_NODES_MAX, SEALED_PENDING_BLOCKS_MAX};
use crate::meta::drain::Drain;
use crate::meta::order::Sequencer;
use crate::meta::redo::SharedWords;
use crate::meta::sealed::pending::{Pending, Space as Freed};
use crate::meta::sealed::space::Space;
use crate::meta::sealed::tree::{AskedTree, Tree};
use crate::seeded_bugs::Bug;
use crate::sync::{Exclusive, WaitQueue, lock};

mod blob;
mod buffers;
pub(super) mod check;
mod claim;
mod close;
pub(super) mod create;
pub(super) mod describe;
mod flush;
mod key_slots;
mod kill;
mod load;
mod open;
mod parts;
mod read;
mod resize;
mod snapshot;
mod sweep;
mod write;
mod zero;

pub(super) use parts::{is_sealed, read_sealed_header};

/// An open authenticated image.
#[derive(Debug)]
pub(super) struct Sealed<D: Disk> {
    pub disk: D,
    pub path: PathBuf,
    pub header: SealedHeader,
    sealer: Sealer,
    /// Bytes of the disk; only a resize and a snapshot that is applied change it.
    size: AtomicU64,
    /// Whether it has a backing file, opened or not.
    names_backing: AtomicBool,
    /// Whether flushes reach the disk.
    flushes: bool,
    /// Which opening of an image this is: a random number.
    session: u64,
    state: Mutex<State>,
    /// Woken on every change in `state` that somebody may wait for.
    changed: WaitQueue,
    /// Requests that may read blocks.
    pub drain: Drain,
    /// Held by whoever writes a root.
    rooting: Exclusive,
}

/// What changes.
#[derive(Debug)]
struct State {
    tree: Tree,
    space: Space,
    pending: Pending,
    /// Clusters whose entries somebody is about to change.
    busy: Vec<Range<u64>>,
    details: Details,
    /// Where the details are.
    details_at: Entry,
    /// Where the map of blocks is that was written when the image was closed; the next root does not lead to it.
    space_at: Entry,
    /// No block from here on has ever been led to.
    linked_end: HostBlock,
    newest_snapshot: Generation,
    /// Whether the disk leads to something that is older than that and that no snapshot has.
    has_older: bool,
    /// The newest root that is durable.
    root: RootTag,
    /// What it says of the top node, and of how many levels there are.
    rooted: (Entry, u8),
    flush: Sequencer,
    /// Whether blocks may be in use that nothing leads to.
    has_strays: bool,
    /// Whether somebody looks for them.
    sweeping: bool,
    /// What says for as long as this image is in use that this session has it.
    memory: Option<Arc<dyn SharedWords>>,
    /// Why this image takes no more writes, once that is so.
    failure: Option<Error>,
}

impl State {
    fn check_writable(&self) -> Result<()> {
        self.failure.clone().map_or(Ok(()), Err)
    }

    /// Notes that the disk does not lead to `stored` any more.
    fn unlink(&mut self, stored: &Stored, space: Freed) {
        let is_kept = stored.born <= self.newest_snapshot;
        if is_kept && !Bug::SealedSnapshotFreed.is_seeded() {
            // A snapshot leads to it, or perhaps nothing does any more.
            self.has_strays |= self.has_older;
            return;
        }
        self.pending.unlink(stored, self.tree.generation(), space);
    }

    fn wants_flush(&self) -> bool {
        self.tree.dirty() >= SEALED_DIRTY_NODES_MAX
            || self.pending.blocks() >= SEALED_PENDING_BLOCKS_MAX && self.pending.waits_for_root()
    }
}

/// The bytes of `clusters` that a change has to itself, until dropped.
#[derive(Debug)]
struct Held<'a, D: Disk> {
    image: &'a Sealed<D>,
    clusters: Range<u64>,
}

impl<D: Disk> Drop for Held<'_, D> {
    fn drop(&mut self) {
        let mut state = lock(&self.image.state);
        let at = state.busy.iter().position(|busy| *busy == self.clusters);
        state.busy.swap_remove(at.expect("what is held is busy"));
        drop(state);
        self.image.changed.wake_all();
    }
}

impl<D: Disk> Sealed<D> {
    /// Bytes of the disk.
    pub fn size(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }

    /// Bytes of a cluster.
    pub fn cluster_len(&self) -> u64 {
        self.header.cluster_len()
    }

    /// Blocks of a cluster that is not compressed.
    fn cluster_blocks(&self) -> u64 {
        self.cluster_len() / BLOCK_LEN
    }

    /// The clusters that `len` bytes at `at` touch.
    fn clusters(&self, at: u64, len: u64) -> Range<u64> {
        let bits = self.header.cluster_bits;
        at >> bits..(at + len).div_ceil(self.cluster_len())
    }

    /// Where `clusters` start, and where they end, in bytes of the disk.
    fn bytes_of(&self, clusters: &Range<u64>) -> (u64, u64) {
        (clusters.start * self.cluster_len(), clusters.end * self.cluster_len())
    }

    /// Whether it has a backing file, opened or not.
    pub fn has_backing(&self) -> bool {
        self.names_backing.load(Ordering::Acquire)
    }

    /// From now on zeros are said where they are written, whether anything shows through or not.
    pub fn expect_backing(&self) {
        self.names_backing.store(true, Ordering::Release);
    }

    /// What is said of clusters that read as zeros and lie nowhere.
    fn void(&self) -> Entry {
        if self.has_backing() { Entry::Zeros } else { Entry::Unallocated }
    }

    /// Fails once the image takes no more writes, with the reason.
    pub fn health(&self) -> Result<()> {
        lock(&self.state).check_writable()
    }

    /// `error`, said of this image's file.
    fn named(&self, error: Error) -> Error {
        error.in_file(&self.path)
    }

    /// Asks the tree a question, loading the nodes that it takes to answer it.
    async fn ask<T>(&self, mut question: impl FnMut(&mut State) -> AskedTree<T>) -> Result<T> {
        loop {
            let answer = question(&mut lock(&self.state));
            match answer {
                Ok(answer) => return Ok(answer),
                Err(need) => Box::pin(self.load(need)).await.map_err(|e| self.named(e))?,
            }
        }
    }

    /// Waits until nobody else is about to change `clusters`, and keeps others from it.
    async fn hold(&self, clusters: Range<u64>) -> Held<'_, D> {
        let free = || {
            let mut state = lock(&self.state);
            let overlaps =
                |busy: &Range<u64>| busy.start < clusters.end && clusters.start < busy.end;
            if state.busy.iter().any(overlaps) {
                return None;
            }
            state.busy.push(clusters.clone());
            Some(())
        };
        self.changed.until(free).await;
        Held { image: self, clusters }
    }

    /// Makes everything that has been written durable; after a failure the image takes no more writes.
    async fn barrier(&self) -> Result<()> {
        if !self.flushes {
            return Ok(());
        }
        let synced = self.disk.sync().await;
        synced.map_err(|e| {
            // The kernel has dropped what it could not write and will not say so again.
            self.fail(Error::io("a flush failed, the image is read-only now", &e))
        })
    }

    /// Turns the image read-only for good; the error that says so.
    fn fail(&self, error: Error) -> Error {
        let error = self.named(error);
        lock(&self.state).failure.get_or_insert(error).clone()
    }

    /// Seals `bytes` as node or cluster `index` of level `level`.
    fn seal(&self, level: u8, index: u64, bytes: &mut [u8]) -> Seal {
        self.sealer.seal(Label { level, index, len: bytes.len() as u32 }, bytes)
    }

    /// Reads what is `stored` as node or cluster `index` of level `level`, and opens it.
    ///
    /// # Errors
    /// It does not open: somebody or something has changed it (`Corrupt`); or the host failed.
    async fn read_stored(&self, level: u8, index: u64, stored: &Stored) -> Result<Buffer> {
        let at = start_of(stored.place);
        let mut buffer = Buffer::scratch(stored.len as usize);
        let read = self.disk.read(at, &buffer.payload()).await;
        read.map_err(|e| self.named(Error::io(format!("read at {at}"), &e)))?;
        match self.open_stored(level, index, stored, buffer.make_mut()) {
            true => Ok(buffer),
            false => Err(self.does_not_open(level, index, stored)),
        }
    }

    /// Opens `bytes`, what is `stored` as node or cluster `index` of level `level`.
    fn open_stored(&self, level: u8, index: u64, stored: &Stored, bytes: &mut [u8]) -> bool {
        self.sealer.open(Label { level, index, len: stored.len }, &stored.seal, bytes)
    }

    /// The error for what does not open, which is logged, too: it says that the file has been changed.
    fn does_not_open(&self, level: u8, index: u64, stored: &Stored) -> Error {
        let what = what_is(level, index, self.cluster_len());
        let error = self.named(Error::new(
            ErrorKind::Corrupt,
            format!("{what}, stored at {}, is not what was written there", start_of(stored.place)),
        ));
        tracing::error!("{error}");
        error
    }
}

/// What stands under such a label, for people.
fn what_is(level: u8, index: u64, cluster_len: u64) -> String {
    use crate::format::sealed::{DETAILS_LEVEL, SPACE_LEVEL};
    let start = |clusters: u64| clusters.saturating_mul(cluster_len);
    match level {
        0 => format!("the data at {:#x}", start(index)),
        DETAILS_LEVEL => "the details of the image".to_owned(),
        SPACE_LEVEL => "the map of blocks".to_owned(),
        level => {
            let id = crate::meta::sealed::tree::NodeId { level, index };
            format!(
                "the node of level {level} for the data from {:#x} on",
                start(id.clusters().start)
            )
        }
    }
}

/// A cluster of the disk.
fn cluster(index: u64) -> GuestCluster {
    GuestCluster::new(index)
}

/// Writes whole blocks.
async fn write_blocks<D: Disk>(
    disk: &D,
    at: HostBlock,
    buffer: &Buffer,
    path: &Path,
) -> Result<()> {
    let at = start_of(at);
    let written = disk.write(at, &buffer.payload()).await;
    written.map_err(|e| Error::io(format!("write at {at}"), &e).in_file(path))
}
