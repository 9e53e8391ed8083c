//! The tree of entries from the root down to the clusters of the disk, as much of it as is in memory.
//!
//! A node in memory is the truth; what its parent says of it is what the last root that wrote it said. All nodes above one that
//! is in memory are in memory, too. A node that has changed is dirty, and so are all above it, up to the root: a capture takes
//! these and nothing else, and afterwards they are clean, so that the next capture takes what changes from then on.
//!
//! Only captures change what a node says of a node below that is in memory, so a node that is being written can be changed by
//! requests at the same time.

use std::collections::{HashSet, VecDeque};
use std::ops::Range;
use std::sync::Arc;

use crate::addr::{AddressMap, GuestCluster};
use crate::format::sealed::Generation;
use crate::format::sealed::entry::{Entry, NODE_BITS, NODE_ENTRIES, Node, Stored};
use crate::format::sealed::root::{LEVELS_MAX, Root};

/// Which node: level 1 is next to the data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId {
    /// How many levels above the data.
    pub level: u8,
    /// Which one of that level, counted from the start of the disk.
    pub index: u64,
}

impl NodeId {
    /// The node of level `level` above `cluster`.
    pub fn above(cluster: GuestCluster, level: u8) -> Self {
        let shift = NODE_BITS * u32::from(level);
        Self { level, index: cluster.get().checked_shr(shift).unwrap_or(0) }
    }

    fn parent(self) -> Self {
        Self { level: self.level + 1, index: self.index >> NODE_BITS }
    }

    /// Where its parent speaks of it.
    fn slot(self) -> usize {
        (self.index % NODE_ENTRIES as u64) as usize
    }

    /// The clusters below it.
    pub fn clusters(self) -> Range<u64> {
        let shift = NODE_BITS * u32::from(self.level);
        self.index << shift..(self.index + 1) << shift
    }
}

/// A node that has to be in memory before a question can be answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NeedNode {
    /// Which one.
    pub id: NodeId,
    /// Where it lies.
    pub stored: Stored,
}

/// The answer to a question, or the node that is missing to give it.
pub type AskedTree<T> = Result<T, NeedNode>;

/// A node in memory.
#[derive(Debug)]
struct Resident {
    node: Arc<Node>,
    dirty: bool,
    /// It is being written.
    captured: bool,
    /// Nodes right below it that are in memory.
    children: u32,
    /// It has been used since the search for something to evict came by.
    used: bool,
}

/// Entries of consecutive clusters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// So many clusters that lie nowhere, all alike.
    Void(Entry, u64),
    /// Those of clusters of one node.
    Entries(Vec<Entry>),
}

/// What a root needs: taken at one moment.
#[derive(Debug)]
pub struct Capture {
    /// The root's generation.
    pub generation: Generation,
    /// The disk's size.
    pub size: u64,
    /// Levels of nodes.
    pub levels: u8,
    /// What the root says of the top node, if that is not among `nodes`.
    pub top: Entry,
    /// The dirty nodes, lower levels first.
    pub nodes: Vec<(NodeId, Arc<Node>)>,
}

/// The tree of one disk.
#[derive(Debug)]
pub struct Tree {
    /// The generation of the next root.
    generation: Generation,
    size: u64,
    levels: u8,
    top: Entry,
    nodes: AddressMap<NodeId, Resident>,
    loading: HashSet<NodeId>,
    /// The nodes in memory, in the order in which they are looked at for eviction.
    clock: VecDeque<NodeId>,
    resident_max: usize,
    dirty: Vec<NodeId>,
    /// Whether the next root differs from the last one though no node does.
    changed: bool,
}

impl Tree {
    /// The tree that `root` leads to, of which so many nodes are kept in memory.
    pub fn new(root: &Root, resident_max: usize) -> Self {
        Self {
            generation: root.generation + 1,
            size: root.size,
            levels: root.levels,
            top: root.top,
            nodes: AddressMap::default(),
            loading: HashSet::new(),
            clock: VecDeque::new(),
            resident_max,
            dirty: Vec::new(),
            changed: false,
        }
    }

    /// The generation of the next root.
    pub fn generation(&self) -> Generation {
        self.generation
    }

    /// Bytes of the disk.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// How many nodes wait to be written.
    pub fn dirty(&self) -> usize {
        self.dirty.len()
    }

    /// Whether the next root would differ from the last one.
    pub fn is_changed(&self) -> bool {
        self.changed || !self.dirty.is_empty()
    }

    /// Gets ready for so many clusters: with as many levels as that takes.
    pub fn reach_for(&mut self, clusters: u64) {
        while self.levels < Root::levels_for(clusters) {
            self.add_level();
        }
    }

    /// Makes the disk `size` bytes large, which the tree reaches for.
    pub fn set_size(&mut self, size: u64) {
        self.size = size;
        self.changed = true;
    }

    fn add_level(&mut self) {
        let old = NodeId { level: self.levels, index: 0 };
        self.levels += 1;
        if self.top == Entry::Unallocated && !self.nodes.contains_key(&old) {
            return;
        }
        let mut node = Node::filled(Entry::Unallocated);
        node.0[0] = std::mem::take(&mut self.top);
        let top = NodeId { level: self.levels, index: 0 };
        self.insert(top, node);
        if self.nodes.contains_key(&old) {
            self.resident(top).children += 1;
        }
        self.mark_dirty(top);
    }

    /// Goes on with another tree, of which nothing is in memory. Nothing may be captured.
    pub fn replace(&mut self, top: Entry, levels: u8, size: u64) {
        assert!(self.nodes.values().all(|node| !node.captured), "a tree goes while it is written");
        (self.top, self.levels, self.size) = (top, levels, size);
        self.nodes.clear();
        self.clock.clear();
        self.loading.clear();
        self.dirty.clear();
        self.changed = true;
    }

    /// Makes the next root differ from the last one.
    pub fn touch(&mut self) {
        self.changed = true;
    }

    /// What is said of up to `count` clusters from `first` on.
    pub fn find(&mut self, first: GuestCluster, count: u64) -> AskedTree<Found> {
        match self.descend(NodeId::above(first, 1), false)? {
            Some((entry, id)) => {
                let left = id.clusters().end.saturating_sub(first.get());
                Ok(Found::Void(entry, left.min(count).max(1)))
            }
            None => {
                let node = &self.nodes[&NodeId::above(first, 1)].node;
                let slot = (first.get() % NODE_ENTRIES as u64) as usize;
                let end = (slot as u64 + count).min(NODE_ENTRIES as u64) as usize;
                Ok(Found::Entries(node.0[slot..end].to_vec()))
            }
        }
    }

    /// Says something else of a cluster; what was said of it before.
    pub fn set(&mut self, cluster: GuestCluster, entry: Entry) -> AskedTree<Entry> {
        let leaf = NodeId::above(cluster, 1);
        self.descend(leaf, true)?;
        let slot = (cluster.get() % NODE_ENTRIES as u64) as usize;
        let node = Arc::make_mut(&mut self.resident(leaf).node);
        let old = std::mem::replace(&mut node.0[slot], entry);
        if old != entry {
            self.mark_dirty(leaf);
        }
        Ok(old)
    }

    /// Says `void` of the first of `clusters` whose node, or the lowest one above that is there, can say so at once: how many,
    /// and what lay there.
    pub fn clear(&mut self, clusters: Range<u64>, void: Entry) -> AskedTree<(u64, Vec<Stored>)> {
        assert!(void.is_void() && !clusters.is_empty());
        let first = GuestCluster::new(clusters.start);
        let leaf = NodeId::above(first, 1);
        if let Some((entry, id)) = self.descend(leaf, false)? {
            let end = id.clusters().end.min(clusters.end);
            if entry == void {
                return Ok((end - clusters.start, Vec::new()));
            }
            if id.clusters().start == clusters.start && end == id.clusters().end {
                self.set_void(id, void);
                return Ok((end - clusters.start, Vec::new()));
            }
            self.descend_to_smaller(id, first, clusters.end)?;
            return self.clear(clusters, void);
        }
        let end = leaf.clusters().end.min(clusters.end);
        let slots = (clusters.start - leaf.clusters().start) as usize..;
        let node = Arc::make_mut(&mut self.resident(leaf).node);
        let (mut old, mut changed) = (Vec::new(), false);
        for entry in node.0[slots].iter_mut().take((end - clusters.start) as usize) {
            old.extend(entry.stored());
            changed |= *entry != void;
            *entry = void;
        }
        if changed {
            self.mark_dirty(leaf);
        }
        Ok((end - clusters.start, old))
    }

    /// Brings the node `id`, of which its parent says that all of it is alike, into memory, and further ones below it towards
    /// `first`, until one is no larger than what is left in front of `end`.
    fn descend_to_smaller(&mut self, id: NodeId, first: GuestCluster, end: u64) -> AskedTree<()> {
        let mut level = id.level;
        loop {
            self.descend(NodeId::above(first, level), true)?;
            level -= 1;
            let below = NodeId::above(first, level);
            let fits = below.clusters().start == first.get() && below.clusters().end <= end;
            if level == 0 || fits {
                return Ok(());
            }
        }
    }

    /// Says of a node that is not in memory that all below it is `void`.
    fn set_void(&mut self, id: NodeId, void: Entry) {
        if id.level == self.levels {
            self.top = void;
            self.changed = true;
            return;
        }
        let parent = id.parent();
        Arc::make_mut(&mut self.resident(parent).node).0[id.slot()] = void;
        self.mark_dirty(parent);
    }

    /// Looks for the node `to`: `None` where it is in memory, else what is said of it or of a node above it, and of which,
    /// where all below that is alike. With `make`, it is brought into memory then.
    fn descend(&mut self, to: NodeId, make: bool) -> AskedTree<Option<(Entry, NodeId)>> {
        if let Some(resident) = self.nodes.get_mut(&to) {
            resident.used = true;
            return Ok(None);
        }
        let mut id = to;
        let mut above = Vec::new();
        while id.level < self.levels && !self.nodes.contains_key(&id) {
            above.push(id);
            id = id.parent();
        }
        if !self.nodes.contains_key(&id) {
            above.push(id);
        }
        for id in above.into_iter().rev() {
            match self.said_of(id) {
                Entry::Stored(stored) => return Err(NeedNode { id, stored }),
                void if make => self.add(id, Node::filled(void)),
                void => return Ok(Some((void, id))),
            }
        }
        Ok(None)
    }

    /// What its parent, which is in memory, says of a node.
    fn said_of(&self, id: NodeId) -> Entry {
        match id.level == self.levels {
            true => self.top,
            false => self.nodes[&id.parent()].node.0[id.slot()],
        }
    }

    /// Whether the caller is to load `need`; `None` while somebody else does, `false` where it is there or not needed any more.
    pub fn begin_load(&mut self, need: &NeedNode) -> Option<bool> {
        let parent_is_there = need.id.level == self.levels
            || need.id.level < self.levels && self.nodes.contains_key(&need.id.parent());
        let is_asked = !self.nodes.contains_key(&need.id)
            && parent_is_there
            && self.said_of(need.id) == Entry::Stored(need.stored);
        if !is_asked {
            return Some(false);
        }
        self.loading.insert(need.id).then_some(true)
    }

    /// Ends a load, with the node that came of it.
    pub fn end_load(&mut self, need: &NeedNode, node: Option<Node>) {
        self.loading.remove(&need.id);
        let parent_is_there =
            need.id.level >= self.levels || self.nodes.contains_key(&need.id.parent());
        if let Some(node) = node
            && need.id.level <= self.levels
            && !self.nodes.contains_key(&need.id)
            && parent_is_there
            && self.said_of(need.id) == Entry::Stored(need.stored)
        {
            self.add(need.id, node);
        }
    }

    /// Puts a node into memory whose parent is there.
    fn add(&mut self, id: NodeId, node: Node) {
        if id.level < self.levels {
            // Before anything is evicted: the parent stays.
            self.resident(id.parent()).children += 1;
        }
        self.evict();
        self.insert(id, node);
    }

    fn insert(&mut self, id: NodeId, node: Node) {
        let (node, used) = (Arc::new(node), true);
        let resident = Resident { node, dirty: false, captured: false, children: 0, used };
        self.nodes.insert(id, resident);
        self.clock.push_back(id);
    }

    fn resident(&mut self, id: NodeId) -> &mut Resident {
        self.nodes.get_mut(&id).expect("a node that is in memory")
    }

    /// Makes room for one more node, where there are clean ones that nobody has used for long. The one that is above what is
    /// being looked for has been used a moment ago.
    fn evict(&mut self) {
        let mut looks = 2 * self.clock.len();
        while self.nodes.len() >= self.resident_max && looks > 0 {
            looks -= 1;
            let Some(id) = self.clock.pop_front() else { return };
            let node = self.resident(id);
            let stays = node.dirty || node.captured || node.children > 0;
            if stays || std::mem::take(&mut node.used) {
                self.clock.push_back(id);
                continue;
            }
            self.nodes.remove(&id);
            if id.level < self.levels {
                self.resident(id.parent()).children -= 1;
            }
        }
    }

    fn mark_dirty(&mut self, id: NodeId) {
        let mut id = id;
        loop {
            let resident = self.resident(id);
            if std::mem::replace(&mut resident.dirty, true) {
                return;
            }
            self.dirty.push(id);
            if id.level == self.levels {
                return;
            }
            id = id.parent();
        }
    }

    /// Takes what the next root needs. [`Self::finish`] or [`Self::put_back`] must follow before the next one.
    pub fn capture(&mut self) -> Capture {
        let dirty = std::mem::take(&mut self.dirty);
        let mut nodes = Vec::with_capacity(dirty.len());
        for id in dirty {
            let resident = self.resident(id);
            (resident.dirty, resident.captured) = (false, true);
            nodes.push((id, Arc::clone(&resident.node)));
        }
        nodes.sort_unstable_by_key(|(id, _)| *id);
        self.changed = false;
        let generation = self.generation;
        self.generation += 1;
        Capture { generation, size: self.size, levels: self.levels, top: self.top, nodes }
    }

    /// The captured nodes are where `places` says, and a durable root leads to them; where they were before.
    pub fn finish(&mut self, places: &[(NodeId, Entry)]) -> Vec<Stored> {
        let mut old = Vec::new();
        for (id, entry) in places {
            self.resident(*id).captured = false;
            let before = match id.level == self.levels {
                true => std::mem::replace(&mut self.top, *entry),
                false => {
                    let parent = self.resident(id.parent());
                    std::mem::replace(&mut Arc::make_mut(&mut parent.node).0[id.slot()], *entry)
                }
            };
            old.extend(before.stored());
        }
        old
    }

    /// No root came of a capture: its nodes are dirty again.
    pub fn put_back(&mut self, nodes: impl IntoIterator<Item = NodeId>) {
        for id in nodes {
            self.resident(id).captured = false;
            self.mark_dirty(id);
        }
        self.changed = true;
    }
}

/// The parent of a captured node, and where it speaks of it.
pub fn slot_above(id: NodeId) -> (NodeId, usize) {
    (id.parent(), id.slot())
}

/// Levels are few enough for every shift.
const _: () = assert!(NODE_BITS * (LEVELS_MAX as u32) < 64);

#[cfg(test)]
mod tests;
