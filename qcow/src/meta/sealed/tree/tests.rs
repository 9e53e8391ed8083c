//! The tree against a plain list of entries, with all nodes on a disk that is a map: whatever is said, flushed, put back, evicted
//! and loaded again, what the tree says is what was said last.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::addr::HostBlock;
use crate::crypt::seal::Seal;
use crate::format::sealed::entry::NODE_LEN;

/// Clusters of the disk at first, and after it has grown: one level more.
const CLUSTERS: u64 = 300;
const CLUSTERS_GROWN: u64 = 5000;

#[derive(Clone, Debug)]
enum Step {
    Store {
        cluster: u64,
    },
    Clear {
        first: u64,
        count: u64,
        zeros: bool,
    },
    Flush {
        fails: bool,
    },
    /// A change between the capture of a flush and its end.
    FlushBesideStore {
        cluster: u64,
        fails: bool,
    },
    Grow,
}

fn step() -> impl Strategy<Value = Step> {
    let cluster = prop_oneof![0..CLUSTERS, 0..CLUSTERS_GROWN];
    let range = (cluster.clone(), prop_oneof![1_u64..5, 1_u64..200, 1_u64..5000]);
    prop_oneof![
        6 => cluster.clone().prop_map(|cluster| Step::Store { cluster }),
        3 => (range, any::<bool>())
            .prop_map(|((first, count), zeros)| Step::Clear { first, count, zeros }),
        3 => prop::bool::weighted(0.2).prop_map(|fails| Step::Flush { fails }),
        2 => (cluster, prop::bool::weighted(0.3))
            .prop_map(|(cluster, fails)| Step::FlushBesideStore { cluster, fails }),
        1 => Just(Step::Grow),
    ]
}

/// A tree, what it was told, and the nodes that were written.
struct Model {
    tree: Tree,
    said: Vec<Entry>,
    disk: BTreeMap<HostBlock, Node>,
    next: u64,
}

impl Model {
    fn new(resident_max: usize) -> Self {
        let root = Root {
            generation: 1,
            size: CLUSTERS << 12,
            cluster_bits: 12,
            levels: Root::levels_for(CLUSTERS),
            end: HostBlock::new(8),
            newest_snapshot: 0,
            has_older: false,
            top: Entry::Unallocated,
            details: Entry::Unallocated,
            space: Entry::Unallocated,
        };
        let said = vec![Entry::Unallocated; CLUSTERS as usize];
        Self { tree: Tree::new(&root, resident_max), said, disk: BTreeMap::new(), next: 8 }
    }

    /// Asks the tree, loading what is missing.
    fn ask<T>(&mut self, mut question: impl FnMut(&mut Tree) -> AskedTree<T>) -> T {
        loop {
            match question(&mut self.tree) {
                Ok(answer) => return answer,
                Err(need) => {
                    assert_eq!(self.tree.begin_load(&need), Some(true), "{need:?}");
                    let node = self.disk[&need.stored.place].clone();
                    self.tree.end_load(&need, Some(node));
                }
            }
        }
    }

    fn stored(&mut self) -> Stored {
        let place = HostBlock::new(self.next);
        self.next += 1;
        let born = self.tree.generation();
        Stored { place, len: NODE_LEN as u32, compressed: false, born, seal: Seal::default() }
    }

    fn store(&mut self, cluster: u64) {
        let cluster = cluster % self.said.len() as u64;
        let entry = Entry::Stored(self.stored());
        let old = self.ask(|tree| tree.set(GuestCluster::new(cluster), entry));
        assert_eq!(old, self.said[cluster as usize], "what was said of cluster {cluster}");
        self.said[cluster as usize] = entry;
    }

    fn clear(&mut self, first: u64, count: u64, void: Entry) {
        let len = self.said.len() as u64;
        let range = first % len..(first % len + count).min(len);
        let mut next = range.start;
        while next < range.end {
            let (done, old) = self.ask(|tree| tree.clear(next..range.end, void));
            assert!(done > 0 && next + done <= range.end);
            let said = &mut self.said[next as usize..(next + done) as usize];
            let before: Vec<Stored> = said.iter().filter_map(|e| e.stored().copied()).collect();
            assert_eq!(old, before, "what lay in {next}..{}", next + done);
            said.fill(void);
            next += done;
        }
    }

    fn flush(&mut self, beside: Option<u64>, fails: bool) {
        let capture = self.tree.capture();
        if let Some(cluster) = beside {
            self.store(cluster);
        }
        let mut said: BTreeMap<NodeId, Vec<(usize, Entry)>> = BTreeMap::new();
        let mut places = Vec::new();
        for (id, node) in &capture.nodes {
            let mut node = (**node).clone();
            for (slot, entry) in said.remove(id).unwrap_or_default() {
                node.0[slot] = entry;
            }
            let entry = node.void().unwrap_or_else(|| {
                let stored = self.stored();
                self.disk.insert(stored.place, node);
                Entry::Stored(stored)
            });
            places.push((*id, entry));
            let (parent, slot) = slot_above(*id);
            said.entry(parent).or_default().push((slot, entry));
        }
        let ids: Vec<NodeId> = capture.nodes.iter().map(|(id, _)| *id).collect();
        drop(capture);
        if fails {
            return self.tree.put_back(ids);
        }
        for old in self.tree.finish(&places) {
            // Nobody reads what no root leads to any more.
            assert!(self.disk.remove(&old.place).is_some(), "{old:?} goes once");
        }
    }

    fn grow(&mut self) {
        self.tree.reach_for(CLUSTERS_GROWN);
        self.tree.set_size(CLUSTERS_GROWN << 12);
        self.said.resize(CLUSTERS_GROWN as usize, Entry::Unallocated);
    }

    fn check(&mut self) {
        let (mut at, len) = (0, self.said.len() as u64);
        while at < len {
            let found = self.ask(|tree| tree.find(GuestCluster::new(at), len - at));
            let entries = match found {
                Found::Void(entry, count) => vec![entry; count as usize],
                Found::Entries(entries) => entries,
            };
            assert!(!entries.is_empty() && at + entries.len() as u64 <= len);
            let end = at as usize + entries.len();
            assert_eq!(entries, self.said[at as usize..end], "clusters from {at} on");
            at = end as u64;
        }
    }
}

proptest! {
    #[test]
    fn the_tree_says_what_was_said_last(
        steps in prop::collection::vec(step(), 1..60),
        resident_max in prop::sample::select(vec![4_usize, 8, 1000]),
    ) {
        let mut model = Model::new(resident_max);
        for step in steps {
            match step {
                Step::Store { cluster } => model.store(cluster),
                Step::Clear { first, count, zeros } => {
                    model.clear(first, count, if zeros { Entry::Zeros } else { Entry::Unallocated });
                }
                Step::Flush { fails } => model.flush(None, fails),
                Step::FlushBesideStore { cluster, fails } => model.flush(Some(cluster), fails),
                Step::Grow => model.grow(),
            }
        }
        model.check();
        model.flush(None, false);
        prop_assert!(!model.tree.is_changed());
        model.check();
    }
}

#[test]
fn a_flush_with_nothing_new_captures_nothing() {
    let mut model = Model::new(1000);
    model.store(5);
    model.flush(None, false);
    assert_eq!(model.tree.capture().nodes.len(), 0);
}

#[test]
fn zeroing_what_nobody_has_written_takes_no_node_of_the_lowest_level() {
    let mut model = Model::new(1000);
    model.grow();
    model.clear(0, CLUSTERS_GROWN, Entry::Zeros);
    assert!(model.tree.nodes.keys().all(|id| id.level > 1 || id.index == CLUSTERS_GROWN / 64));
    model.check();
}
