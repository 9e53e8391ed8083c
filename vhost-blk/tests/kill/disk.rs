//! The disks that are served: kinds of images, what they hold at first, and what every sector says of itself.

use std::path::Path;
use std::process::Command;

use super::common::{Bed, Daemon, MIB, SECTOR, text};
use super::image::assert_spotless;
use super::{QUEUES, SECTORS};

/// Stretches of the disk that are used, far enough apart to need tables of their own where clusters are small.
pub const WINDOWS: usize = 8;
pub const WINDOW_SECTORS: usize = 512;
const WINDOW_DISTANCE: u64 = 8 * MIB / SECTOR as u64;

/// What kind of image is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    LargeClusters,
    SmallClusters,
    Backing,
    Snapshot,
    Raw,
}

impl Kind {
    /// The images of qcow2 in turn.
    pub fn of(seed: u64) -> Self {
        [Self::LargeClusters, Self::SmallClusters, Self::Backing, Self::Snapshot][seed as usize % 4]
    }

    pub fn bed(self) -> Bed {
        let small = ["-f", "qcow2", "-o", "cluster_size=4k"];
        match self {
            Self::LargeClusters => Bed::new(),
            Self::Raw => Bed::with_image(&["-f", "raw"]),
            Self::SmallClusters => Bed::with_image(&small),
            Self::Backing => {
                let bed = Bed::with_image(&small);
                write_base(&bed.path("base.raw"));
                qemu(&bed, &["rebase", "-u", "-b", "base.raw", "-F", "raw", "disk.img"]);
                bed
            }
            Self::Snapshot => {
                let bed = Bed::with_image(&small);
                write_base(&bed.path("base.raw"));
                qemu(&bed, &["convert", "-n", "-O", "qcow2", "base.raw", "disk.img"]);
                qemu(&bed, &["snapshot", "-c", "kept", "disk.img"]);
                bed
            }
        }
    }

    /// The daemon, serving it.
    pub fn serve(self, bed: &Bed) -> Daemon {
        let format = if self == Self::Raw { "raw" } else { "qcow2" };
        bed.serve(&["--num-queues", &QUEUES.to_string(), "--format", format])
    }

    /// What the sectors hold at first.
    pub fn initial(self) -> fn(usize) -> u64 {
        match self {
            Self::LargeClusters | Self::SmallClusters | Self::Raw => |_| 0,
            Self::Backing | Self::Snapshot => base_value,
        }
    }

    /// After a close: nothing is wrong with the image, and its snapshot is what it was.
    pub fn assert_spotless(self, bed: &Bed) {
        if self != Self::Raw {
            assert_spotless(bed);
        }
        if self == Self::Snapshot {
            qemu(bed, &["convert", "-l", "kept", "-O", "raw", "disk.img", "kept.raw"]);
            let read = |name| std::fs::read(bed.path(name)).unwrap();
            assert!(read("kept.raw") == read("base.raw"), "the snapshot has changed");
        }
    }
}

/// A raw disk whose sectors hold what [`base_value`] says.
fn write_base(path: &Path) {
    let mut bytes = vec![0; 64 * MIB as usize];
    for index in 0..SECTORS {
        let at = place(index) as usize * SECTOR;
        bytes[at..at + SECTOR].copy_from_slice(&sector_bytes(base_value(index)));
    }
    std::fs::write(path, bytes).unwrap();
}

fn base_value(index: usize) -> u64 {
    0xba5e << 48 | index as u64
}

fn qemu(bed: &Bed, args: &[&str]) {
    let mut command = Command::new("qemu-img");
    let output = command.args(args).current_dir(bed.path("")).output().unwrap();
    assert!(output.status.success(), "qemu-img {args:?}: {}", text(&output));
}

/// The sector of the disk with this index among those that are used.
pub fn place(index: usize) -> u64 {
    (index / WINDOW_SECTORS) as u64 * WINDOW_DISTANCE + (index % WINDOW_SECTORS) as u64
}

/// A sector that says on every byte what it is.
pub fn sector_bytes(value: u64) -> [u8; SECTOR] {
    std::array::from_fn(|at| value.to_le_bytes()[at % 8])
}

/// What a sector says; panics where it is torn between two.
pub fn value_of(sector: &[u8]) -> u64 {
    let (words, _) = sector.as_chunks();
    let value = u64::from_le_bytes(words[0]);
    assert!(words.iter().all(|word| *word == words[0]), "a torn sector with {value:#x}");
    value
}
