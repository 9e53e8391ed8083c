//! Where everything lies in an image, read without a doubt: of sound images, and of damaged ones as far as it goes.

use std::ops::Range;

pub const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
const BITMAPS_EXTENSION: u64 = 0x2385_2875;

pub struct Anatomy {
    pub cluster: usize,
    pub version: u8,
    pub extended: bool,
    pub refcount_bits: usize,
    pub l1: Range<usize>,
    /// Of the snapshots, in their order.
    pub snapshot_l1: Vec<Range<usize>>,
    pub l2: Vec<Range<usize>>,
    pub refcount_table: Range<usize>,
    pub refcount_blocks: Vec<Range<usize>>,
    /// First bytes of the entries of the snapshot table.
    pub snapshots: Vec<usize>,
    pub snapshot_table: Range<usize>,
    pub bitmap_directory: Range<usize>,
    pub bitmap_tables: Vec<Range<usize>>,
    pub len: usize,
}

impl Anatomy {
    pub fn of(image: &[u8]) -> Self {
        let cluster = 1 << word(image, 20, 4).min(21);
        let version = image[7];
        let l1_at = word(image, 40, 8) as usize;
        let l1 = clip(image, l1_at, word(image, 36, 4) as usize * 8);
        let refcount_table =
            clip(image, word(image, 48, 8) as usize, word(image, 56, 4) as usize * cluster);
        let order = if version == 3 { word(image, 96, 4).min(6) } else { 4 };
        let (snapshots, snapshot_table) = snapshot_table(image);
        let l1_of = |&at: &usize| {
            clip(image, word(image, at, 8) as usize, word(image, at + 8, 4) as usize * 8)
        };
        let snapshot_l1: Vec<Range<usize>> = snapshots.iter().map(l1_of).collect();
        let below = |table: &Range<usize>| {
            let entries = words(image, table.clone()).map(|(_, entry)| (entry & OFFSET) as usize);
            let inside = |at: &usize| *at > 0 && at + cluster <= image.len();
            entries.filter(inside).map(|at| at..at + cluster).collect::<Vec<_>>()
        };
        let mut l2: Vec<Range<usize>> = below(&l1);
        l2.extend(snapshot_l1.iter().flat_map(below));
        let refcount_blocks = below(&refcount_table);
        let (bitmap_directory, bitmap_tables) = bitmaps(image);
        Self {
            cluster,
            version,
            extended: version == 3 && image[79] & 16 != 0,
            refcount_bits: 1 << order,
            l1,
            snapshot_l1,
            l2,
            refcount_table,
            refcount_blocks,
            snapshots,
            snapshot_table,
            bitmap_directory,
            bitmap_tables,
            len: image.len(),
        }
    }

    /// Everything that is not guest data.
    pub fn metadata(&self) -> Vec<Range<usize>> {
        let mut all = vec![0..self.cluster, self.l1.clone(), self.refcount_table.clone()];
        all.extend([self.snapshot_table.clone(), self.bitmap_directory.clone()]);
        let lists = [&self.snapshot_l1, &self.l2, &self.refcount_blocks, &self.bitmap_tables];
        all.extend(lists.into_iter().flatten().cloned());
        all
    }
}

fn snapshot_table(image: &[u8]) -> (Vec<usize>, Range<usize>) {
    let start = word(image, 64, 8) as usize;
    let mut at = start;
    let mut entries = Vec::new();
    for _ in 0..word(image, 60, 4).min(100) {
        if at.saturating_add(40) > image.len() {
            break;
        }
        entries.push(at);
        let rest = word(image, at + 12, 2) + word(image, at + 14, 2) + word(image, at + 36, 4);
        at = (at + 40 + rest as usize).next_multiple_of(8);
    }
    (entries, start.min(image.len())..at.min(image.len()).max(start.min(image.len())))
}

fn bitmaps(image: &[u8]) -> (Range<usize>, Vec<Range<usize>>) {
    let mut at = if image[7] == 3 { word(image, 100, 4) as usize } else { 72 };
    let (mut directory, mut tables) = (0..0, Vec::new());
    while at + 8 <= image.len().min(4096) && word(image, at, 4) != 0 {
        if word(image, at, 4) == BITMAPS_EXTENSION {
            directory =
                clip(image, word(image, at + 24, 8) as usize, word(image, at + 16, 8) as usize);
        }
        at += 8 + (word(image, at + 4, 4) as usize).next_multiple_of(8);
    }
    let mut at = directory.start;
    while at + 24 <= directory.end {
        tables.push(clip(image, word(image, at, 8) as usize, word(image, at + 8, 4) as usize * 8));
        at = (at + 24 + word(image, at + 18, 2) as usize + word(image, at + 20, 4) as usize)
            .next_multiple_of(8);
    }
    (directory, tables)
}

fn clip(image: &[u8], at: usize, len: usize) -> Range<usize> {
    let start = at.min(image.len());
    start..start.saturating_add(len).min(image.len())
}

/// The whole words in `range`, each with its place.
pub fn words(image: &[u8], range: Range<usize>) -> impl Iterator<Item = (usize, u64)> + '_ {
    range
        .clone()
        .step_by(8)
        .filter(move |at| at + 8 <= range.end)
        .map(|at| (at, word(image, at, 8)))
}

/// The big-endian number of `len` bytes at `at`; bytes behind the end are zeros.
pub fn word(image: &[u8], at: usize, len: usize) -> u64 {
    (at..at.saturating_add(len))
        .fold(0, |value, i| value << 8 | u64::from(image.get(i).copied().unwrap_or(0)))
}
