//! An image that has been used for a while, what it held at each of its roots, and what its file was before.

use std::ffi::OsStr;
use std::ops::Range;
use std::time::Duration;

use qcow::disk::Buffer;
use qcow::disk::sim::{Content, Random, SimDisk, World};
use qcow::engine::{Image, SnapshotChoice, create};
use qcow::format::sealed::Generation;
use qcow::format::sealed::root::RootTag;

use crate::reach::Reach;
use crate::shape::{Files, Shape};
use crate::state::{Disk, SECTOR, State};

/// Most snapshots at a time.
const SNAPSHOTS_MAX: usize = 2;
/// Most sectors of one request.
const REQUEST_MAX: u64 = 48;

/// An image that is not in use.
pub struct Template {
    pub shape: Shape,
    pub file: Content,
    pub bytes: Vec<u8>,
    pub backing: Option<Content>,
    /// Up to which root it held what.
    states: Vec<(Generation, State)>,
    /// The newest root that was acknowledged.
    pub root: RootTag,
    /// What the file was before, the oldest first.
    pub older: Vec<Vec<u8>>,
    pub reach: Reach,
}

impl Template {
    /// The image that follows from `seed`.
    pub fn make(seed: u64) -> Self {
        let mut random = Random::new(seed ^ 0x7e3a_1a7e);
        let shape = Shape::draw(&mut random);
        let world = World::new(seed);
        let files = Files::new(&world, Content::default(), shape.backing_content());
        let states = world.block_on(async {
            create(&files.image, &shape.create_options()).await.expect("create");
            let image = files.open(true, None).await.expect("open");
            let state = State {
                disk: Disk::above(shape.backing.unwrap_or(0)),
                snapshots: Default::default(),
            };
            let mut life = Life {
                shape,
                files: files.clone(),
                image,
                random,
                state,
                states: Vec::new(),
                root: RootTag::default(),
                older: Vec::new(),
                next: 1,
            };
            life.live().await;
            (life.states, life.root, life.older)
        });
        let (states, root, older) = states;
        let file = files.image.content();
        let bytes = file.to_vec();
        let reach = Reach::of(&bytes);
        assert_eq!(reach.root, root, "the newest root is the one that was acknowledged");
        let backing = shape.backing_content();
        Self { shape, file, bytes, backing, states, root, older, reach }
    }

    /// What the image held at a root.
    pub fn state_at(&self, generation: Generation) -> &State {
        let found = self.states.iter().find(|(until, _)| *until >= generation);
        &found.expect("no root is newer than the newest one").1
    }
}

/// The life of an image.
struct Life {
    shape: Shape,
    files: Files,
    image: Image<SimDisk>,
    random: Random,
    /// What the disk holds, whether durable or not.
    state: State,
    states: Vec<(Generation, State)>,
    root: RootTag,
    older: Vec<Vec<u8>>,
    next: u64,
}

impl Life {
    async fn live(&mut self) {
        self.image.flush().await.expect("flush");
        self.note();
        for _ in 0..10 + self.random.below(20) {
            self.step().await;
        }
        if self.random.below(3) > 0 {
            self.image.close().await.expect("close");
            return self.note();
        }
        // It is not closed, and not all of it was flushed.
        self.flush().await;
        for _ in 0..self.random.below(4) {
            self.write().await;
        }
    }

    async fn step(&mut self) {
        match self.random.below(16) {
            0..6 => self.write().await,
            6 => self.zero().await,
            7 => {
                let clusters = self.clusters();
                self.discard(clusters).await;
            }
            8 | 9 => self.compress().await,
            10..13 => self.flush().await,
            13 => self.reopen().await,
            _ => self.change_snapshots().await,
        }
    }

    /// All that was done is durable: the roots up to the one that there is now have it.
    fn note(&mut self) {
        self.root = self.image.root_tag().expect("an authenticated image");
        self.states.push((self.root.generation, self.state.clone()));
        if self.random.below(3) == 0 {
            self.older.push(self.files.image.to_vec());
        }
    }

    async fn flush(&mut self) {
        self.image.flush().await.expect("flush");
        self.note();
    }

    async fn reopen(&mut self) {
        self.image.close().await.expect("close");
        self.note();
        self.image = self.files.open(true, None).await.expect("open again");
    }

    fn range(&mut self) -> Range<u64> {
        let areas = self.shape.areas();
        let area = &areas[self.random.below(areas.len() as u64) as usize];
        let start = area.start + self.random.below(area.end - area.start);
        start..(start + 1 + self.random.below(REQUEST_MAX)).min(area.end)
    }

    /// Whole clusters.
    fn clusters(&mut self) -> Range<u64> {
        let (range, unit) = (self.range(), self.shape.cluster_sectors());
        let start = range.start / unit * unit;
        start..(start + unit * (1 + self.random.below(4))).min(self.shape.sectors)
    }

    async fn write(&mut self) {
        let range = self.range();
        let stamp = self.stamp();
        self.state.disk.set(range.clone(), |sector| stamp | sector);
        let payload = Buffer::from_bytes(&self.state.disk.bytes(range.clone())).payload();
        self.image.write(range.start * SECTOR, &payload).await.expect("write");
    }

    async fn zero(&mut self) {
        let (range, unmap) = (self.range(), self.random.below(2) == 0);
        let (at, len) = (range.start * SECTOR, (range.end - range.start) * SECTOR);
        self.image.write_zeroes(at, len, unmap).await.expect("write zeroes");
        self.state.disk.set(range, |_| 0);
    }

    async fn discard(&mut self, range: Range<u64>) {
        let (at, len) = (range.start * SECTOR, (range.end - range.start) * SECTOR);
        self.image.discard(at, len).await.expect("discard");
        self.state.disk.set(range, |_| 0);
    }

    async fn compress(&mut self) {
        // Compressed clusters go where nothing is.
        let range = self.clusters();
        self.discard(range.clone()).await;
        let stamp = self.stamp();
        self.state.disk.set(range.clone(), |sector| stamp | sector);
        let payload = Buffer::from_bytes(&self.state.disk.bytes(range.clone())).payload();
        let written = self.image.write_compressed(range.start * SECTOR, &payload).await;
        written.expect("write compressed");
    }

    async fn change_snapshots(&mut self) {
        // So that no root is between this and what becomes of it.
        self.flush().await;
        let names: Vec<String> = self.state.snapshots.keys().cloned().collect();
        if names.len() < SNAPSHOTS_MAX && self.random.below(3) > 0 {
            let name = self.stamp().to_string();
            let kept = self.image.create_snapshot(OsStr::new(&name), Duration::ZERO).await;
            kept.expect("create a snapshot");
            self.state.snapshots.insert(name, self.state.disk.clone());
        } else if !names.is_empty() {
            let name = &names[self.random.below(names.len() as u64) as usize];
            let choice = SnapshotChoice::Name(name.into());
            if self.random.below(2) == 0 {
                self.image.apply_snapshot(&choice).await.expect("apply a snapshot");
                self.state.disk = self.state.snapshots[name].clone();
            } else {
                self.image.delete_snapshot(&choice).await.expect("delete a snapshot");
                self.state.snapshots.remove(name);
            }
        }
        self.note();
    }

    /// A number that no other request has.
    fn stamp(&mut self) -> u64 {
        self.next += 1;
        self.next << 32
    }
}
