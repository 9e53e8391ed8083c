//! A repair that is cut short at any write, with any part of what was not durable lost: the image is still dirty and no
//! worse, and the next open repairs the rest.

use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex};

use qcow::addr::HostOffset;
use qcow::disk::sim::{Random, SimDisk, World};
use qcow::disk::{Buffer, Disk, FileExtent, Identity, Payload};
use qcow::engine::check::{CheckSummary, Repair, check};
use qcow::engine::{Format, Image, OpenOptions};
use qcow::gate::OneFile;
use tempfile::TempDir;

use crate::damage::damage_counts;
use crate::images::RECIPES;
use crate::{INCOMPATIBLE_AT, each_seed};

const DAMAGED_IMAGES: u64 = 40;
const SECTOR: usize = 512;

/// A disk that fails from its n-th write on, and knows what of the others a crash may lose.
#[derive(Clone, Debug)]
struct Mortal {
    disk: SimDisk,
    life: Arc<Mutex<Life>>,
}

#[derive(Debug)]
struct Life {
    writes_left: u64,
    durable: Vec<u8>,
    /// Written since the last sync.
    volatile: Vec<(usize, Vec<u8>)>,
}

impl Mortal {
    fn new(world: &World, image: &[u8], writes_left: u64) -> Self {
        let life = Life { writes_left, durable: image.to_vec(), volatile: Vec::new() };
        Self { disk: world.add_file(image), life: Arc::new(Mutex::new(life)) }
    }

    /// The file after a crash, which takes any of the sectors that no sync made durable.
    fn crash(&self, random: &mut Random) -> Vec<u8> {
        let life = self.life.lock().unwrap();
        let mut image = life.durable.clone();
        for (at, bytes) in &life.volatile {
            for (i, sector) in bytes.chunks(SECTOR).enumerate() {
                if random.below(2) == 0 {
                    put(&mut image, at + i * SECTOR, sector);
                }
            }
        }
        image
    }
}

fn put(image: &mut Vec<u8>, at: usize, bytes: &[u8]) {
    let end = at + bytes.len();
    image.resize(image.len().max(end), 0);
    image[at..end].copy_from_slice(bytes);
}

impl Disk for Mortal {
    async fn read(&self, at: HostOffset, into: &Payload) -> io::Result<()> {
        self.disk.read(at, into).await
    }

    async fn write(&self, at: HostOffset, from: &Payload) -> io::Result<()> {
        {
            let mut life = self.life.lock().unwrap();
            // The write that fails may have reached the disk in part.
            life.volatile.push((at.get() as usize, from.to_vec()));
            if life.writes_left == 0 {
                return Err(io::Error::other("the disk is gone"));
            }
            life.writes_left -= 1;
        }
        self.disk.write(at, from).await
    }

    async fn write_zeroes(&self, _: HostOffset, _: u64) -> io::Result<()> {
        unreachable!("a repair only writes")
    }

    async fn punch_hole(&self, _: HostOffset, _: u64) -> io::Result<bool> {
        unreachable!("a repair only writes")
    }

    async fn allocate(&self, _: HostOffset, _: u64) -> io::Result<()> {
        unreachable!("a repair only writes")
    }

    async fn set_len(&self, _: u64) -> io::Result<()> {
        unreachable!("a repair only writes")
    }

    async fn sync(&self) -> io::Result<()> {
        self.disk.sync().await?;
        let mut life = self.life.lock().unwrap();
        let life = &mut *life;
        for (at, bytes) in life.volatile.drain(..) {
            put(&mut life.durable, at, &bytes);
        }
        Ok(())
    }

    fn drop_cache(&self, _: std::ops::Range<u64>) -> io::Result<()> {
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        self.disk.len()
    }

    fn allocated_len(&self) -> io::Result<u64> {
        self.disk.allocated_len()
    }

    fn extent_at(&self, at: HostOffset) -> io::Result<FileExtent> {
        self.disk.extent_at(at)
    }

    fn is_writable(&self) -> bool {
        true
    }

    fn identity(&self) -> Identity {
        self.disk.identity()
    }

    fn random_number(&self) -> u64 {
        self.disk.random_number()
    }
}

async fn open<D: Disk + Clone>(disk: &D, writable: bool) -> qcow::Result<Image<D>> {
    let options = OpenOptions { writable, format: Some(Format::Qcow2), ..OpenOptions::default() };
    Image::open(&OneFile(disk.clone()), Path::new("image"), &options).await
}

async fn content<D: Disk + Clone>(disk: &D) -> Vec<u8> {
    let image = open(disk, false).await.unwrap();
    let buffer = Buffer::zeroed(image.virtual_size() as usize);
    image.read(0, &buffer.payload()).await.unwrap();
    buffer.to_vec()
}

async fn look<D: Disk>(disk: &D) -> CheckSummary {
    check(disk, Path::new("image"), Repair::None, &mut |_| ()).await.unwrap()
}

#[test]
fn a_repair_cut_short_is_finished_by_the_next_open() {
    let directory = TempDir::new().unwrap();
    let scratch = directory.path().join("sound");
    // Version 2 has no dirty bit, and what is encrypted is not served.
    let served = RECIPES.iter().filter(|r| r.name != "version 2" && r.name != "LUKS");
    let sound: Vec<(&str, Vec<u8>)> = served.map(|r| (r.name, r.make(&scratch))).collect();
    each_seed(DAMAGED_IMAGES, |seed| {
        let mut random = Random::new(seed);
        let (name, image) = &sound[random.below(sound.len() as u64) as usize];
        let mut image = image.clone();
        let damage = damage_counts(&mut image, &mut random);
        image[INCOMPATIBLE_AT] |= 1;
        println!("seed {seed}, {name}: {damage:#?}");
        cut_short_everywhere(&image, seed, &mut random);
    });
}

fn cut_short_everywhere(image: &[u8], seed: u64, random: &mut Random) {
    let world = World::new(seed);
    world.block_on(async {
        let intact = world.add_file(image);
        let (before, expected) = (look(&intact).await, content(&intact).await);
        for writes in 0.. {
            let disk = Mortal::new(&world, image, writes);
            let is_repaired = open(&disk, true).await.is_ok();
            let crashed = world.add_file(&disk.crash(random));
            println!("after {writes} writes");
            if is_repaired {
                assert!(look(&crashed).await.is_clean());
                break;
            }
            let after = look(&crashed).await;
            assert!(after.corruptions <= before.corruptions, "{before:?} -> {after:?}");
            assert_eq!(after.check_errors, 0);
            if crashed.to_vec()[INCOMPATIBLE_AT] & 1 == 0 {
                // The very last write reached the disk, although it was told to have failed.
                assert!(after.is_clean(), "{after:?}");
            }
            drop(open(&crashed, true).await.unwrap());
            assert!(look(&crashed).await.is_clean());
            assert_eq!(crashed.to_vec()[INCOMPATIBLE_AT] & 1, 0);
            assert!(content(&crashed).await == expected, "what it reads as");
        }
    });
}
