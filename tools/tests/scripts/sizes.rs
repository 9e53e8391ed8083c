//! Sizes and places of data.

use crate::random::Random;

/// Writes go below this, so that images stay small.
const BUSY_MAX: u64 = 4 << 20;

/// The size of a new disk: small, odd, none, or large.
pub fn disk(random: &mut Random, cluster: u64) -> u64 {
    match random.below(20) {
        0 => 0,
        1 => 512 * (1 + random.below(20)),
        2 => 1000 + random.below(100_000),
        3 | 4 => cluster * (1 + random.below(8)) + 512 * random.below(3),
        // Some of QEMU's commands take minutes for disks that are much larger.
        5 if cluster >= 4096 => (64 << 20) * (1 + random.below(3)) + 512 * random.below(3),
        7..=12 => 1024 * (1 + random.below(4096)),
        _ => (1 << 20) * (1 + random.below(4)),
    }
}

/// Start and length of a request to a disk of `size`; rarely beyond its end.
pub fn request(random: &mut Random, size: u64, cluster: u64) -> (u64, u64) {
    let unit = *random.pick(&[1, 512, 512, 4096, 4096, cluster, cluster, 65536]);
    let busy = size.min(BUSY_MAX);
    let start = match random.below(10) {
        // The end of a disk is where things go wrong.
        0 if size > 0 => size - random.below(2 * cluster).min(size),
        1 => random.below(size),
        _ => random.below(busy),
    } / unit
        * unit;
    let longest = *random.pick(&[512, 4096, 65536, 300_000]);
    let mut len = (1 + random.below(longest)).next_multiple_of(unit);
    if !random.chance(3) {
        len = len.min(size.saturating_sub(start));
    }
    (start, len)
}

/// `bytes` as one might type it.
pub fn typed(random: &mut Random, bytes: u64) -> String {
    match bytes {
        0 => "0".to_owned(),
        _ if bytes.is_multiple_of(1 << 20) && random.chance(60) => format!("{}M", bytes >> 20),
        _ if bytes.is_multiple_of(1024) && random.chance(60) => format!("{}k", bytes >> 10),
        _ => bytes.to_string(),
    }
}
