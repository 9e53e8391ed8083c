//! The parts of a disk that may hold file systems: by GPT, by MBR, or the disk as a whole.

use gpt::GptConfig;
use gpt::disk::LogicalBlockSize;

use super::view::View;

const SECTOR: u64 = 512;
/// Most partitions that are looked at.
const COUNT_MAX: usize = 128;

/// The MBR: its table of four, its signature.
const TABLE_AT: usize = 446;
const ENTRY_LEN: usize = 16;
const SIGNATURE: [u8; 2] = [0x55, 0xaa];
/// Types of partitions that are lists of others, and of the one that stands for a GPT.
const EXTENDED: [u8; 3] = [0x05, 0x0f, 0x85];
const PROTECTIVE: u8 = 0xee;

/// A part of the disk.
#[derive(Clone, Debug)]
pub struct Partition {
    /// What people know it by: its number, or "the disk".
    pub name: String,
    /// Its bytes.
    pub view: View,
}

/// All partitions of `disk`, in order. One without a table is one partition.
pub fn find(disk: &View) -> Vec<Partition> {
    let mut found = gpt_partitions(disk);
    if found.is_empty() {
        found = mbr_partitions(disk);
    }
    if found.is_empty() {
        found.push(Partition { name: "the disk".to_owned(), view: disk.clone() });
    }
    found.truncate(COUNT_MAX);
    found
}

fn gpt_partitions(disk: &View) -> Vec<Partition> {
    let config = GptConfig::new().writable(false).logical_block_size(LogicalBlockSize::Lb512);
    let Ok(table) = config.open_from_device(disk.clone()) else { return Vec::new() };
    let partition = |(number, partition): (&u32, &gpt::partition::Partition)| {
        let start = partition.first_lba.checked_mul(SECTOR)?;
        let count = partition.last_lba.checked_sub(partition.first_lba)?.checked_add(1)?;
        let view = disk.part(start, count.checked_mul(SECTOR)?)?;
        partition.is_used().then(|| Partition { name: format!("partition {number}"), view })
    };
    table.partitions().iter().filter_map(partition).collect()
}

fn mbr_partitions(disk: &View) -> Vec<Partition> {
    let mut found = Vec::new();
    let Some(entries) = table(disk, 0) else { return found };
    for (entry, number) in entries.iter().zip(1..) {
        if EXTENDED.contains(&entry.kind) {
            follow_chain(disk, entry.start, &mut found);
        } else if entry.kind != PROTECTIVE {
            push(disk, entry.start, entry.count, number, &mut found);
        }
    }
    found
}

/// Partitions 5 and on: each has a table of its own, which names it and the next table.
fn follow_chain(disk: &View, base: u64, found: &mut Vec<Partition>) {
    let mut at = base;
    for number in 5..COUNT_MAX as u32 {
        let Some([own, next, ..]) = table(disk, at) else { return };
        push(disk, at + own.start, own.count, number, found);
        if !EXTENDED.contains(&next.kind) {
            return;
        }
        at = base + next.start;
    }
}

fn push(disk: &View, start: u64, count: u64, number: u32, found: &mut Vec<Partition>) {
    if let Some(view) = disk.part(start * SECTOR, count * SECTOR) {
        found.push(Partition { name: format!("partition {number}"), view });
    }
}

/// An entry of a table; start and count are in sectors and have 32 bits.
#[derive(Clone, Copy, Debug)]
struct MbrEntry {
    kind: u8,
    start: u64,
    count: u64,
}

/// The table in sector `at`; `None` if there is none.
fn table(disk: &View, at: u64) -> Option<[MbrEntry; 4]> {
    let mut sector = [0; SECTOR as usize];
    disk.clone().read_at(at.checked_mul(SECTOR)?, &mut sector).ok()?;
    if sector[510..] != SIGNATURE {
        return None;
    }
    let entry = |index: usize| {
        let bytes = &sector[TABLE_AT + index * ENTRY_LEN..][..ENTRY_LEN];
        let word = |at: usize| {
            u64::from(u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]))
        };
        MbrEntry { kind: bytes[4], start: word(8), count: word(12) }
    };
    let entries = std::array::from_fn(entry);
    // The first sector of a file system has the same signature; what would be its table makes no sense.
    let makes_sense = |entry: &MbrEntry| {
        let is_empty = entry.kind == 0 && entry.count == 0;
        is_empty || (entry.start + entry.count) * SECTOR <= disk.len() && entry.count > 0
    };
    let is_table = entries.iter().all(makes_sense) && entries.iter().any(|entry| entry.kind != 0);
    (is_table || at > 0).then_some(entries)
}
