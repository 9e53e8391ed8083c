//! Damages an image at random, in any field of its metadata and in whole clusters.

use std::ops::Range;

use qcow::disk::sim::Random;

use super::anatomy::{Anatomy, word, words};

/// Damages `image` in one to eight places; says how.
pub fn damage(image: &mut Vec<u8>, data_is_elsewhere: bool, random: &mut Random) -> Vec<String> {
    let anatomy = Anatomy::of(image);
    let mut damage = Damage { image, anatomy, random, data_is_elsewhere };
    let count = 1 + damage.random.below(8).min(damage.random.below(8));
    (0..count).map(|_| damage.once()).collect()
}

struct Damage<'i> {
    image: &'i mut Vec<u8>,
    /// Of the sound image.
    anatomy: Anatomy,
    random: &'i mut Random,
    data_is_elsewhere: bool,
}

impl Damage<'_> {
    fn once(&mut self) -> String {
        match self.random.below(40) {
            0..=2 => self.change_entry(vec![self.anatomy.l1.clone()], "L1"),
            3 => self.change_entry(self.anatomy.snapshot_l1.clone(), "snapshot L1"),
            4..=14 => self.change_entry(self.anatomy.l2.clone(), "L2"),
            15..=17 => {
                self.change_entry(vec![self.anatomy.refcount_table.clone()], "refcount table")
            }
            18..=25 => self.change_count(),
            26..=28 => self.change_snapshot(),
            29 => self.change_bitmap(),
            30..=31 => self.change_header(),
            32..=34 => self.change_clusters(),
            35 => self.change_length(),
            36 => self.flip_bit(),
            _ => self.change_flag(),
        }
    }

    fn change_entry(&mut self, tables: Vec<Range<usize>>, name: &str) -> String {
        let tables: Vec<Range<usize>> = tables.into_iter().filter(|t| t.len() >= 8).collect();
        let Some(table) = self.pick(&tables) else { return format!("no {name}") };
        let used: Vec<usize> = words(self.image, table.clone())
            .filter(|&(_, entry)| entry != 0)
            .map(|(at, _)| at)
            .collect();
        let any = table.start + self.below(table.len() / 8) * 8;
        let at = if self.random.below(4) == 0 { any } else { self.pick(&used).unwrap_or(any) };
        let old = word(self.image, at, 8);
        let other = self.pick(&used).map_or(0, |at| word(self.image, at, 8));
        let new = self.boundary(old, other);
        self.put(at, 8, new);
        format!("{name} entry at {at:#x}: {old:#x} -> {new:#x}")
    }

    /// Something that `old` should not be.
    fn boundary(&mut self, old: u64, other: u64) -> u64 {
        let cluster = self.anatomy.cluster as u64;
        let clusters = self.image.len() as u64 / cluster;
        let flag = self.random.below(2) << 63;
        match self.random.below(18) {
            0 => 0,
            1 => old ^ 1 << self.random.below(64),
            2 => old ^ 1 << 63,
            3 => old ^ 1,
            4 => old ^ 1 << 62,
            5 => old ^ 1 << (9 + self.random.below(8)),
            6 => flag | (self.random.below(clusters + 3) * cluster),
            7 => flag | (self.random.below(clusters) * cluster),
            8 => self.random.draw(),
            9 => other,
            10 => other ^ 1 << 63,
            11 => u64::MAX,
            12 => flag | (clusters * cluster),
            13 => flag | (clusters.saturating_sub(1) * cluster),
            14 => old.wrapping_add(cluster),
            15 => flag | 1 << (9 + self.random.below(47)),
            16 => 1,
            _ => old.wrapping_sub(512),
        }
    }

    fn change_count(&mut self) -> String {
        let blocks = self.anatomy.refcount_blocks.clone();
        let Some(block) = self.pick(&blocks) else { return "no block".into() };
        let clusters = self.image.len() / self.anatomy.cluster;
        let used = (clusters * self.anatomy.refcount_bits).div_ceil(8).clamp(1, block.len());
        let reach = if self.random.below(8) == 0 { block.len() } else { used };
        let at = block.start + self.below(reach);
        let old = self.image.get(at).copied().unwrap_or(0);
        let new = match self.random.below(5) {
            0 => 0,
            1 => old ^ 1 << self.random.below(8),
            2 => old.wrapping_add(1),
            3 => 0xff,
            _ => self.random.draw() as u8,
        };
        self.put(at, 1, new.into());
        format!("count byte at {at:#x}: {old:#x} -> {new:#x}")
    }

    fn change_snapshot(&mut self) -> String {
        let entries = self.anatomy.snapshots.clone();
        let Some(entry) = self.pick(&entries) else { return self.change_count() };
        // L1 offset and size, sizes of the names, times, VM state, extra data and what is in it.
        let fields = [
            (0, 8),
            (8, 4),
            (12, 2),
            (14, 2),
            (16, 4),
            (20, 4),
            (24, 8),
            (32, 4),
            (36, 4),
            (40, 8),
            (48, 8),
        ];
        let (field, len) = self.pick(&fields).unwrap_or((0, 8));
        self.change_field(entry + field, len, "snapshot")
    }

    fn change_bitmap(&mut self) -> String {
        let directory = self.anatomy.bitmap_directory.clone();
        if directory.is_empty() {
            return self.change_count();
        }
        if self.random.below(2) == 0 {
            return self.change_entry(self.anatomy.bitmap_tables.clone(), "bitmap table");
        }
        let fields = [(0, 8), (8, 4), (12, 4), (16, 1), (17, 1), (18, 2), (20, 4)];
        let (field, len) = self.pick(&fields).unwrap_or((0, 8));
        self.change_field(directory.start + field, len, "bitmap")
    }

    fn change_header(&mut self) -> String {
        // L1 size and offset, refcount table offset and size, number of snapshots and their table.
        let fields = [(36, 4), (40, 8), (48, 8), (56, 4), (60, 4), (64, 8)];
        let (field, len) = self.pick(&fields).unwrap_or((36, 4));
        self.change_field(field, len, "header")
    }

    fn change_field(&mut self, at: usize, len: usize, name: &str) -> String {
        let old = word(self.image, at, len);
        let other = self.random.below(4);
        let new = match self.random.below(4) {
            0 => old.wrapping_add(1),
            1 => old.wrapping_sub(1),
            _ => self.boundary(old, other),
        };
        let new = if len == 8 { new } else { new & ((1 << (len * 8)) - 1) };
        self.put(at, len, new);
        format!("{name} field at {at:#x}: {old:#x} -> {new:#x}")
    }

    /// Swaps, copies or zeroes whole clusters, but for the header's.
    fn change_clusters(&mut self) -> String {
        let cluster = self.anatomy.cluster;
        let count = self.image.len() / cluster;
        if count < 3 {
            return "no clusters".into();
        }
        let (a, b) = (1 + self.below(count - 1), 1 + self.below(count - 1));
        let of = |image: &[u8], n: usize| image[n * cluster..(n + 1) * cluster].to_vec();
        let (bytes_a, bytes_b) = (of(self.image, a), of(self.image, b));
        let mut set = |n: usize, bytes: &[u8]| {
            self.image[n * cluster..(n + 1) * cluster].copy_from_slice(bytes);
        };
        match self.random.below(3) {
            0 => {
                set(a, &bytes_b);
                set(b, &bytes_a);
                format!("clusters {a} and {b} swapped")
            }
            1 => {
                set(b, &bytes_a);
                format!("cluster {a} copied to {b}")
            }
            _ => {
                set(a, &vec![0; cluster]);
                format!("cluster {a} zeroed")
            }
        }
    }

    fn change_length(&mut self) -> String {
        let cluster = self.anatomy.cluster;
        let old = self.image.len();
        let len = match self.random.below(4) {
            0 => old - self.below(cluster).min(old - cluster),
            1 => old + self.below(3 * cluster),
            2 => cluster + self.below(old - cluster + 1),
            _ => old - cluster.min(old - cluster),
        };
        self.image.resize(len, 0);
        format!("length {old:#x} -> {len:#x}")
    }

    /// A bit of anything but the header's cluster; often of data, which nobody notices.
    fn flip_bit(&mut self) -> String {
        let cluster = self.anatomy.cluster;
        let at = cluster + self.below(self.image.len().saturating_sub(cluster).max(1));
        let old = word(self.image, at, 1);
        let new = old ^ 1 << self.random.below(8);
        self.put(at, 1, new);
        format!("byte at {at:#x}: {old:#x} -> {new:#x}")
    }

    fn change_flag(&mut self) -> String {
        let table = if self.random.below(4) == 0 {
            vec![self.anatomy.l1.clone()]
        } else {
            self.anatomy.l2.clone()
        };
        let Some(table) = self.pick(&table) else { return "no table".into() };
        let used: Vec<(usize, u64)> =
            words(self.image, table).filter(|&(_, entry)| entry != 0).collect();
        let Some((at, entry)) = self.pick(&used) else { return "no entry".into() };
        let bits: &[u32] =
            if self.data_is_elsewhere { &[63, 63, 0] } else { &[63, 63, 63, 0, 56, 1] };
        let bit = self.pick(bits).unwrap_or(63);
        self.put(at, 8, entry ^ 1 << bit);
        format!("bit {bit} of the entry at {at:#x}")
    }

    fn put(&mut self, at: usize, len: usize, value: u64) {
        if at + len <= self.image.len() {
            self.image[at..at + len].copy_from_slice(&value.to_be_bytes()[8 - len..]);
        }
    }

    fn pick<T: Clone>(&mut self, from: &[T]) -> Option<T> {
        (!from.is_empty()).then(|| from[self.random.below(from.len() as u64) as usize].clone())
    }

    fn below(&mut self, count: usize) -> usize {
        self.random.below(count.max(1) as u64) as usize
    }
}
