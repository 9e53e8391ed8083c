//! Making writes durable: a new root.
//!
//! ```text
//! capture       the dirty nodes, at one moment
//! nodes         sealed and written, lower levels first, so that each says where those below it are; then the details
//! barrier
//! root          both copies, to the pair that does not have the newest one
//! barrier       -> the flush is acknowledged, and what only older roots lead to may become free
//! ```

use std::collections::HashMap;

use super::claim::Claimed;
use super::{Freed, Sealed, State};
use crate::addr::HostBlock;
use crate::disk::{Buffer, Disk};
use crate::error::{Error, ErrorKind, Result};
use crate::exec::try_join_all;
use crate::format::sealed::details::Details;
use crate::format::sealed::entry::{Entry, NODE_LEN, Node, Stored};
use crate::format::sealed::root::Root;
use crate::format::sealed::{DETAILS_LEVEL, Generation, blocks_for};
use crate::limits::IN_FLIGHT_MAX;
use crate::meta::order::Turn;
use crate::meta::sealed::BlockRun;
use crate::meta::sealed::tree::{Capture, NodeId, slot_above};
use crate::seeded_bugs::Bug;
use crate::sync::lock;

/// Changes the details that go with a root, which is given but for them.
pub(super) type ChangeDetails<'a> = Box<dyn FnOnce(&mut Details, &Root) + 'a>;

/// What a flush changes beside what requests have changed.
pub(super) struct Change<'a> {
    /// Called at the moment of the capture, in front of it.
    pub before: Box<dyn FnOnce(&mut State) + 'a>,
    /// Called with the root that is to be written, but for the details.
    pub details: ChangeDetails<'a>,
    /// Whether the root is kept as a snapshot: what it leads to is never freed as long as that may be there.
    pub keeps_root: bool,
}

impl<D: Disk> Sealed<D> {
    /// Makes every write, zeroing and discard that completed before this call durable, and frees what may be freed after
    /// that. Whoever asks while that is under way shares the next round. To be called outside of the drain.
    pub async fn flush(&self) -> Result<()> {
        let ticket = lock(&self.state).flush.ticket();
        let turn = self.changed.until(|| match lock(&self.state).flush.turn(ticket) {
            Turn::Wait => None,
            turn => Some(turn),
        });
        match turn.await {
            Turn::Done(result) => result?,
            Turn::Lead | Turn::Wait => {
                let mut lead = Lead { image: self, result: Err(cut_short()) };
                lead.result = self.write_root(None).await;
                lead.result.clone()?;
            }
        }
        self.reclaim().await
    }

    /// Writes a root, if it would differ from the last one or `change` asks for one.
    pub(super) async fn write_root(&self, change: Option<Change<'_>>) -> Result<()> {
        let _rooting = self.rooting.acquire().await;
        let (before, details, keeps_root) = match change {
            Some(change) => (Some(change.before), Some(change.details), change.keeps_root),
            None => (None, None, false),
        };
        let mut rooting = {
            let mut state = lock(&self.state);
            state.check_writable()?;
            if let Some(before) = before {
                before(&mut state);
            }
            let is_asked = details.is_some();
            if !state.tree.is_changed() && !state.pending.waits_for_root() && !is_asked {
                return Ok(());
            }
            Rooting::begin(self, &mut state, keeps_root)
        };
        let root = rooting.write(details).await;
        rooting.end(root)
    }

    /// Gives back what is free now.
    pub(super) async fn reclaim(&self) -> Result<()> {
        let leaving = {
            let mut state = lock(&self.state);
            // A sweep goes by an older root, and may still be reading what it leads to.
            if state.sweeping { None } else { state.pending.begin_leaving(&self.drain) }
        };
        let Some((batch, free)) = leaving else { return Ok(()) };
        for (run, space) in &free {
            if *space == Freed::Punched {
                let (at, len) = (super::start_of(run.first), run.count * super::BLOCK_LEN);
                // Nobody leads there, so it is no matter if this fails.
                let _ = self.disk.punch_hole(at, len).await;
            }
        }
        let mut state = lock(&self.state);
        let free = state.pending.end_leaving(batch);
        let sound = free.iter().fold(true, |sound, (run, _)| state.space.free(*run) && sound);
        drop(state);
        if sound {
            return Ok(());
        }
        Err(self.fail(Error::corrupt(
            "the tree has led to one place twice: the image takes no more writes; copy what can be read to another one",
        )))
    }
}

/// The one who flushes for all. However it ends, the others learn of it.
struct Lead<'a, D: Disk> {
    image: &'a Sealed<D>,
    result: Result<()>,
}

impl<D: Disk> Drop for Lead<'_, D> {
    fn drop(&mut self) {
        lock(&self.image.state).flush.end(&self.result);
        self.image.changed.wake_all();
    }
}

fn cut_short() -> Error {
    Error::new(ErrorKind::Io, "a flush was cut short")
}

/// A root on its way. Dropped before its end, none came of it.
struct Rooting<'a, D: Disk> {
    image: &'a Sealed<D>,
    capture: Option<Capture>,
    /// Which nodes are captured.
    ids: Vec<NodeId>,
    /// Where they are now.
    places: Vec<(NodeId, Entry)>,
    claimed: Vec<Claimed<'a, D>>,
    details: Option<(Details, Entry)>,
    /// The newest root with a snapshot, in front of this one.
    newest_snapshot: Generation,
    is_over: bool,
}

impl<'a, D: Disk> Rooting<'a, D> {
    fn begin(image: &'a Sealed<D>, state: &mut State, keeps_root: bool) -> Self {
        let capture = state.tree.capture();
        state.pending.begin_flush();
        let newest_snapshot = state.newest_snapshot;
        if keeps_root {
            // From this moment on: what requests leave behind now is in the snapshot.
            state.newest_snapshot = capture.generation;
        }
        Self {
            image,
            ids: capture.nodes.iter().map(|(id, _)| *id).collect(),
            capture: Some(capture),
            places: Vec::new(),
            claimed: Vec::new(),
            details: None,
            newest_snapshot,
            is_over: false,
        }
    }

    /// Writes the root and all that it leads to and no root before; both durable.
    async fn write(&mut self, change: Option<ChangeDetails<'_>>) -> Result<Root> {
        let image = self.image;
        let capture = self.capture.take().expect("a root is written once");
        let (generation, size, levels) = (capture.generation, capture.size, capture.levels);
        let top = self.write_nodes(capture).await?;
        let mut root = {
            let state = lock(&image.state);
            Root {
                generation,
                size,
                cluster_bits: image.header.cluster_bits,
                levels,
                end: state.linked_end.max(self.end_of_claimed()),
                newest_snapshot: state.newest_snapshot,
                has_older: state.has_older,
                top,
                details: state.details_at,
                space: Entry::Unallocated,
            }
        };
        if let Some(change) = change {
            root.details = self.write_details(change, &root).await?;
            root.end = root.end.max(self.end_of_claimed());
        }
        image.commit_root(&root).await?;
        Ok(root)
    }

    fn end_of_claimed(&self) -> HostBlock {
        let runs = self.claimed.iter().flat_map(Claimed::runs);
        runs.map(BlockRun::end).max().unwrap_or_default()
    }

    /// Writes the captured nodes; what the root says of the top one.
    async fn write_nodes(&mut self, capture: Capture) -> Result<Entry> {
        if capture.nodes.is_empty() {
            return Ok(capture.top);
        }
        let image = self.image;
        let mut claimed = image.claim(1, capture.nodes.len() as u64)?;
        let runs = claimed.runs().to_vec();
        let mut buffer = Buffer::zeroed(capture.nodes.len() * NODE_LEN);
        // What captured nodes say of those below them, as far as it is known.
        let mut said: HashMap<NodeId, Vec<(usize, Entry)>> = HashMap::new();
        let (mut used, mut top) = (0, capture.top);
        let mut next = runs.iter().flat_map(|run| run.first.get()..run.end().get());
        for (id, node) in &capture.nodes {
            let mut node: Node = (**node).clone();
            for (slot, entry) in said.remove(id).unwrap_or_default() {
                node.0[slot] = entry;
            }
            let entry = match node.void() {
                Some(void) => void,
                None => {
                    let place = HostBlock::new(next.next().expect("a block for each node"));
                    let bytes = &mut buffer.make_mut()[used * NODE_LEN..(used + 1) * NODE_LEN];
                    bytes.copy_from_slice(&node.encode());
                    used += 1;
                    let seal = image.seal(id.level, id.index, bytes);
                    let (len, born) = (NODE_LEN as u32, capture.generation);
                    Entry::Stored(Stored { place, len, compressed: false, born, seal })
                }
            };
            self.places.push((*id, entry));
            if id.level == capture.levels {
                top = entry;
            } else {
                let (parent, slot) = slot_above(*id);
                said.entry(parent).or_default().push((slot, entry));
            }
        }
        drop(next);
        assert!(said.is_empty(), "all above a node that is captured is captured, too");
        self.write_used(&runs, &buffer, used).await?;
        // Those of nodes that say nothing are not needed.
        claimed.truncate(used as u64);
        self.claimed.push(claimed);
        Ok(top)
    }

    /// Writes the first `used` nodes of `buffer` to `runs`, one behind the other.
    async fn write_used(&self, runs: &[BlockRun], buffer: &Buffer, used: usize) -> Result<()> {
        let (image, payload) = (self.image, buffer.payload());
        let (mut writes, mut done) = (Vec::new(), 0);
        for run in runs {
            let count = run.count.min(used as u64 - done);
            if count > 0 {
                let part = payload.slice(done * NODE_LEN as u64, count * NODE_LEN as u64);
                writes.push((super::start_of(run.first), part));
            }
            done += count;
        }
        let writes = writes.into_iter().map(|(at, part)| async move {
            let written = image.disk.write(at, &part).await;
            written.map_err(|e| image.named(Error::io(format!("write metadata at {at}"), &e)))
        });
        try_join_all(IN_FLIGHT_MAX, writes).await
    }

    async fn write_details(&mut self, change: ChangeDetails<'_>, root: &Root) -> Result<Entry> {
        let image = self.image;
        let mut details = lock(&image.state).details.clone();
        change(&mut details, root);
        let at = if details.is_empty() {
            Entry::Unallocated
        } else {
            let bytes = details.encode().map_err(|e| image.named(e))?;
            let claimed = image.claim(blocks_for(bytes.len() as u64), 1)?;
            let first = claimed.runs()[0].first;
            self.claimed.push(claimed);
            image.write_blob(DETAILS_LEVEL, &bytes, first, root.generation).await?
        };
        self.details = Some((details, at));
        Ok(at)
    }

    /// Takes over what came of it.
    fn end(mut self, root: Result<Root>) -> Result<()> {
        // Where none came of it, what has been captured is put back.
        let root = root?;
        let mut state = lock(&self.image.state);
        for claimed in &mut self.claimed {
            claimed.keep_all();
        }
        for old in state.tree.finish(&self.places) {
            if old.born > self.newest_snapshot {
                state.pending.unlink_by_flush(&old);
            } else {
                state.has_strays |= state.has_older;
            }
        }
        let mut blobs = vec![std::mem::take(&mut state.space_at)];
        if let Some((details, at)) = self.details.take() {
            state.details = details;
            blobs.push(std::mem::replace(&mut state.details_at, at));
        }
        for blob in blobs.iter().filter_map(Entry::stored) {
            // No snapshot leads to them.
            state.pending.unlink_by_flush(blob);
        }
        state.pending.end_flush(true);
        state.linked_end = state.linked_end.max(root.end);
        self.is_over = true;
        Ok(())
    }
}

impl<D: Disk> Drop for Rooting<'_, D> {
    fn drop(&mut self) {
        if self.is_over {
            return;
        }
        let mut state = lock(&self.image.state);
        for claimed in self.claimed.drain(..) {
            claimed.give_back(&mut state);
        }
        state.tree.put_back(self.ids.drain(..));
        state.pending.end_flush(false);
    }
}

impl<D: Disk> Sealed<D> {
    /// Makes `root` the newest one. What it leads to has been written.
    pub(super) async fn commit_root(&self, root: &Root) -> Result<()> {
        if !Bug::NoBarrierBeforeRoot.is_seeded() {
            self.barrier().await?;
        }
        let (sector, tag) = root.encode(&self.sealer);
        let sector = Buffer::from_bytes(&sector);
        for at in root.places() {
            let written = self.disk.write(at, &sector.payload()).await;
            // Which root the file has now is not known, so nothing may be written any more that only one of both shows.
            written.map_err(|e| {
                let lost = Error::io(format!("write the root at {at}"), &e);
                self.fail(lost.context("the image is read-only now"))
            })?;
        }
        if !Bug::NoBarrierAfterRoot.is_seeded() {
            self.barrier().await?;
        }
        let mut state = lock(&self.state);
        (state.root, state.rooted) = (tag, (root.top, root.levels));
        Ok(())
    }
}
