//! Random images with holes in them.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use qcow::addr::Geometry;
use qcow::crypt::Hash;
use qcow::crypt::cipher::{Aes, CipherSpec, Iv, Mode};
use qcow::crypt::luks::{Cost, NewLuks};
use qcow::disk::Buffer;
use qcow::disk::sim::{Content, Random, SimDisk, World};
use qcow::engine::{CreateOptions, Image, NewEncryption, SnapshotChoice, create};
use qcow::format::compression::CompressionType;
use qcow::format::header::Version;
use qcow::format::mark::MARK_TYPE;

use crate::layers::{KEY, Layers, open_to_write};

/// An image, and what it shows.
pub struct Made {
    pub content: Content,
    pub layers: Layers,
    pub geometry: Geometry,
    /// Whether it may have units of several clusters.
    pub has_runs: bool,
    /// Whether it has the close mark from the start.
    pub is_marked: bool,
    pub is_encrypted: bool,
    recipe: Recipe,
}

impl fmt::Debug for Made {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}, {} bytes", self.recipe, self.content.len())
    }
}

#[derive(Clone, Debug)]
struct Recipe {
    options: CreateOptions,
    /// Requests.
    length: u64,
    packs: bool,
    bitmaps: bool,
    snapshots: bool,
}

impl Recipe {
    fn random(random: &mut Random, clusters_max: u64, length_max: u64) -> Self {
        let extended_l2 = random.below(6) == 0;
        let is_v2 = !extended_l2 && random.below(5) == 0;
        let cluster_bits = if extended_l2 { 14 } else { 9 + random.below(4) as u32 };
        let zstd = !is_v2 && random.below(3) == 0;
        let clusters = 4 + random.below(if extended_l2 { clusters_max / 4 } else { clusters_max });
        let options = CreateOptions {
            size: clusters << cluster_bits,
            version: if is_v2 { Version::V2 } else { Version::V3 },
            cluster_bits,
            refcount_order: if is_v2 { 4 } else { random.below(7) as u32 },
            extended_l2,
            compression: if zstd { CompressionType::Zstd } else { CompressionType::Deflate },
            ..CreateOptions::default()
        };
        Self {
            options,
            length: 5 + random.below(length_max),
            packs: random.below(3) == 0,
            bitmaps: !is_v2 && random.below(6) == 0,
            snapshots: random.below(2) == 0,
        }
        .encrypted(random.below(4) == 0)
    }

    fn encrypted(mut self, encrypted: bool) -> Self {
        if encrypted {
            // The cipher with the shortest header.
            let cipher = CipherSpec::new(Aes::Aes128, Mode::Cbc, Iv::Plain64).unwrap();
            let new = NewLuks { cipher, hash: Hash::Sha256, cost: Cost::Iterations(1000) };
            self.options.encryption = Some(NewEncryption::Luks(new, Arc::clone(&KEY)));
        }
        self
    }
}

impl Made {
    pub fn new(seed: u64) -> Self {
        Self::of_size(seed, 300, 60)
    }

    /// One on which every event can be looked at.
    pub fn small(seed: u64) -> Self {
        Self::of_size(seed, 24, 16)
    }

    /// The image as a program leaves it that does not know the close mark, which is an extension like any other to it.
    pub fn without_mark(mut self) -> Self {
        let mut bytes = self.content.to_vec();
        let cluster0 = self.geometry.cluster_size() as usize;
        let is_mark = |at: &usize| bytes[*at..*at + 4] == MARK_TYPE.to_be_bytes();
        let at = (0..cluster0 - 4).step_by(8).find(is_mark).unwrap();
        bytes[at + 3] = 0xff;
        self.content = Content::from_bytes(&bytes);
        self.is_marked = false;
        self
    }

    fn of_size(seed: u64, clusters_max: u64, length_max: u64) -> Self {
        let mut random = Random::new(seed);
        let recipe = Recipe::random(&mut random, clusters_max, length_max);
        let world = World::new(seed);
        let disk = world.add_file(&[]);
        let layers = world.block_on(async {
            create(&disk, &recipe.options).await.unwrap();
            Maker { disk: &disk, recipe: &recipe, random, snapshots: 0 }.run().await;
            Layers::read(&disk).await
        });
        let options = &recipe.options;
        let geometry = Geometry::new(options.cluster_bits, options.refcount_order)
            .with_extended_l2(options.extended_l2);
        let (has_runs, is_encrypted) = (recipe.packs, recipe.options.encryption.is_some());
        let content = disk.content();
        Self { content, layers, geometry, has_runs, is_marked: true, is_encrypted, recipe }
    }
}

struct Maker<'m> {
    disk: &'m SimDisk,
    recipe: &'m Recipe,
    random: Random,
    snapshots: u64,
}

impl Maker<'_> {
    async fn run(&mut self) {
        let mut image = open_to_write(self.disk).await.unwrap();
        for _ in 0..self.recipe.length {
            if self.random.below(12) == 0 {
                image.close().await.unwrap();
                image = open_to_write(self.disk).await.unwrap();
            }
            // What narrow counts or a version cannot tell is refused, and changes nothing.
            let _ = self.request(&image).await;
        }
        // So that there is something to give back.
        let (at, len) = self.place(&image, 8);
        image.discard(at, len).await.unwrap();
        image.close().await.unwrap();
    }

    async fn request(&mut self, image: &Image<SimDisk>) -> qcow::Result<()> {
        let (at, len) = self.place(image, 8);
        match self.random.below(16) {
            6..=8 => image.discard(at, len).await,
            9 => image.write_zeroes(at, len, self.random.below(2) == 0).await,
            10..=12 if self.recipe.packs => {
                let cluster = 1 << self.recipe.options.cluster_bits;
                let at = at / cluster * cluster;
                let len = cluster.min(image.virtual_size() - at);
                image.write_compressed(at, &self.data(len).payload()).await
            }
            13 if self.recipe.bitmaps => {
                let name = ["one", "two"][self.random.below(2) as usize];
                match self.random.below(2) {
                    0 => image.add_bitmap(name.as_ref(), Some(512), true).await,
                    _ => image.remove_bitmap(name.as_ref()).await,
                }
            }
            14..=15 if self.recipe.snapshots => self.snapshot(image).await,
            _ => image.write(at, &self.data(len).payload()).await,
        }
    }

    async fn snapshot(&mut self, image: &Image<SimDisk>) -> qcow::Result<()> {
        let all = image.snapshots().await?;
        if all.len() < 3 && self.random.below(3) != 0 {
            self.snapshots += 1;
            let name = format!("snapshot {}", self.snapshots);
            return image.create_snapshot(name.as_ref(), Duration::ZERO).await.map(drop);
        }
        let Some(one) = all.get(self.random.below(all.len().max(1) as u64) as usize) else {
            return Ok(());
        };
        let choice = SnapshotChoice::Id(one.id.clone());
        match self.random.below(3) {
            0 => image.apply_snapshot(&choice).await,
            _ => image.delete_snapshot(&choice).await,
        }
    }

    fn place(&mut self, image: &Image<SimDisk>, clusters_max: u64) -> (u64, u64) {
        let size = image.virtual_size();
        let cluster = 1 << self.recipe.options.cluster_bits;
        let at = self.random.below(size / 512) * 512;
        let at = if self.random.below(2) == 0 { at / cluster * cluster } else { at };
        let len = (1 + self.random.below(clusters_max * cluster / 512)) * 512;
        (at, len.min(size - at))
    }

    /// Data that can be compressed, more or less, and differs from one request to the next.
    fn data(&mut self, len: u64) -> Buffer {
        let noise = self.random.below(100);
        let step = self.random.below(256) as u8;
        let byte = |at: u64, random: &mut Random| match random.below(100) < noise {
            true => random.below(256) as u8,
            false => step ^ (at / 64) as u8,
        };
        let bytes: Vec<u8> = (0..len).map(|at| byte(at, &mut self.random)).collect();
        Buffer::from_bytes(&bytes)
    }
}
