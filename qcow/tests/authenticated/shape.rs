//! What images there are: of both kinds, with nodes on several levels, with and without a backing file.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use qcow::crypt::Passphrase;
use qcow::crypt::sealed_slots::SlotCost;
use qcow::disk::sim::{Content, Random, SimDisk, World};
use qcow::engine::{CreateOptions, Format, Image, NewIntegrity, OpenOptions, SnapshotChoice};
use qcow::format::compression::CompressionType;
use qcow::gate::Gate;

use crate::state::{SECTOR, backing_stamp, bytes};

/// What an image is like.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub cluster_bits: u32,
    /// Sectors of the disk.
    pub sectors: u64,
    pub has_key: bool,
    /// Sectors of the backing file, if there is one.
    pub backing: Option<u64>,
    pub zstd: bool,
}

impl Shape {
    /// Any of them.
    pub fn draw(random: &mut Random) -> Self {
        let (cluster_bits, sectors) = match random.below(4) {
            // Two levels of nodes: 70 to 100 clusters of 4 KiB.
            0 | 1 => (12, (70 + random.below(31)) * 8 - random.below(8)),
            // Three: more than 64 * 64 clusters.
            2 => (12, (64 * 64 + 5 + random.below(2000)) * 8 - random.below(8)),
            _ => (13 + random.below(2) as u32, (65 + random.below(100)) * 32 - random.below(8)),
        };
        Self {
            cluster_bits,
            sectors,
            has_key: random.below(2) == 0,
            backing: (random.below(4) == 0).then(|| 20 + random.below(sectors.min(400))),
            zstd: random.below(2) == 0,
        }
    }

    pub fn cluster_sectors(&self) -> u64 {
        (1 << self.cluster_bits) / SECTOR
    }

    /// The parts of the disk that are used; what lies between has never been written.
    pub fn areas(&self) -> Vec<Range<u64>> {
        const AREA: u64 = 240;
        if self.sectors <= 4 * AREA {
            return std::iter::once(0..self.sectors).collect();
        }
        // Where one node ends, there is another one behind it.
        let node = 64 * self.cluster_sectors();
        let starts = [0, node - 40, 64 * node - 80, self.sectors - 100];
        let area = |start: u64| start..(start + AREA).min(self.sectors);
        let mut areas: Vec<Range<u64>> = Vec::new();
        for start in starts.into_iter().filter(|start| *start < self.sectors) {
            let start = start.max(areas.last().map_or(0, |last| last.end));
            areas.extend(Some(area(start)).filter(|area| !area.is_empty()));
        }
        areas
    }

    /// How an image of this shape is made.
    pub fn create_options(&self) -> CreateOptions {
        CreateOptions {
            size: self.sectors * SECTOR,
            cluster_bits: self.cluster_bits,
            compression: if self.zstd { CompressionType::Zstd } else { CompressionType::Deflate },
            backing: self.backing.map(|_| ("backing".into(), Some("raw".into()))),
            integrity: Some(match self.has_key {
                true => NewIntegrity::Aes256Gcm(key(), SlotCost::TINY),
                false => NewIntegrity::Crc32c,
            }),
            ..CreateOptions::default()
        }
    }

    /// The backing file, if there is one.
    pub fn backing_content(&self) -> Option<Content> {
        self.backing.map(|count| Content::from_bytes(&bytes((0..count).map(backing_stamp))))
    }
}

/// The passphrase of images that have one.
pub fn key() -> Arc<Passphrase> {
    static KEY: OnceLock<Arc<Passphrase>> = OnceLock::new();
    let new = || Arc::new(Passphrase::read(&b"authentic"[..]).expect("a passphrase"));
    Arc::clone(KEY.get_or_init(new))
}

/// An image and its backing file.
#[derive(Clone, Debug)]
pub struct Files {
    pub image: SimDisk,
    pub backing: Option<SimDisk>,
}

impl Files {
    /// Puts an image into `world`.
    pub fn new(world: &World, image: Content, backing: Option<Content>) -> Self {
        let add = |content| world.add_content(content);
        Self { image: add(image), backing: backing.map(add) }
    }

    /// Opens the image, as it was at a snapshot if one is given.
    pub async fn open(&self, writable: bool, at: Option<&str>) -> qcow::Result<Image<SimDisk>> {
        let options = OpenOptions {
            writable,
            format: Some(Format::Qcow2),
            keys: vec![Some(key())],
            snapshot: at.map(|name| SnapshotChoice::Name(name.into())),
            ..OpenOptions::default()
        };
        Image::open(self, Path::new("image"), &options).await
    }
}

impl Gate for Files {
    type Disk = SimDisk;

    fn open_image(&self, _: &Path, _: bool) -> qcow::Result<SimDisk> {
        Ok(self.image.clone())
    }

    fn open_backing(&self, _: &Path, name: &std::ffi::OsStr) -> qcow::Result<(PathBuf, SimDisk)> {
        Ok((PathBuf::from(name), self.backing.clone().expect("only where there is one")))
    }

    fn open_data(
        &self,
        _: &Path,
        _: &std::ffi::OsStr,
        _: bool,
    ) -> qcow::Result<(PathBuf, SimDisk)> {
        unreachable!("an authenticated image has no data file")
    }
}
