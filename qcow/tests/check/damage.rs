//! Damages the metadata of an image at random.

use qcow::disk::sim::Random;

/// A table of 8-byte entries or of counts, by its place in the image.
struct Place {
    at: usize,
    len: usize,
}

/// The tables of an image.
struct Anatomy {
    cluster_size: usize,
    l1: Vec<Place>,
    l2: Vec<Place>,
    refcount_table: Place,
    refcount_blocks: Vec<Place>,
    /// Where the last table ends that the header names: without it, an image is refused as a whole.
    named_end: usize,
}

/// Damages `image` in one to four places; says how.
pub fn damage(image: &mut Vec<u8>, random: &mut Random) -> Vec<String> {
    let anatomy = Anatomy::of(image);
    let mut told = Vec::new();
    for _ in 0..=random.below(4) {
        told.push(match random.below(16) {
            0..=2 => change_entry(image, &anatomy.l1, &anatomy, "L1", random),
            3..=8 => change_entry(image, &anatomy.l2, &anatomy, "L2", random),
            9..=13 => change_counts(image, &anatomy, random),
            14 => {
                let table = std::slice::from_ref(&anatomy.refcount_table);
                change_entry(image, table, &anatomy, "refcount table", random)
            }
            _ => change_length(image, &anatomy, random),
        });
    }
    told
}

/// Damages counts and COPIED flags of `image` and nothing else, in a few places or many; says how.
pub fn damage_counts(image: &mut [u8], random: &mut Random) -> Vec<String> {
    let anatomy = Anatomy::of(image);
    let mut told = Vec::new();
    for _ in 0..=random.below(20) {
        told.push(match random.below(16) {
            0 => lose_blocks(image, &anatomy, random),
            1 => zero_block(image, &anatomy, random),
            2 => shorten_refcount_table(image),
            3..=5 => turn_flag(image, &anatomy, random),
            _ => change_counts(image, &anatomy, random),
        });
    }
    told
}

/// Takes some blocks or all out of the refcount table.
fn lose_blocks(image: &mut [u8], anatomy: &Anatomy, random: &mut Random) -> String {
    let table = &anatomy.refcount_table;
    let used: Vec<usize> = entries(image, table).filter(|&at| read(image, at) != 0).collect();
    let one_in = 1 + random.below(4);
    let lost: Vec<usize> = used.into_iter().filter(|_| random.below(one_in) == 0).collect();
    for &at in &lost {
        image[at..at + 8].fill(0);
    }
    format!("{} refcount blocks lost", lost.len())
}

/// Turns the COPIED flag of an entry round that names a table or a cluster; compressed ones must not have it.
fn turn_flag(image: &mut [u8], anatomy: &Anatomy, random: &mut Random) -> String {
    let tables = if random.below(4) == 0 { &anatomy.l1 } else { &anatomy.l2 };
    let Some(table) = pick(tables, random) else { return "no table".into() };
    let has_flag = |at: &usize| {
        let entry = read(image, *at);
        entry & 1 << 62 == 0 && entry & 0x00ff_ffff_ffff_fe00 != 0
    };
    let named: Vec<usize> = entries(image, table).filter(has_flag).collect();
    let Some(&at) = pick(&named, random) else { return "no entry".into() };
    image[at] ^= 0x80;
    format!("COPIED flag at {at:#x}")
}

fn zero_block(image: &mut [u8], anatomy: &Anatomy, random: &mut Random) -> String {
    let Some(block) = pick(&anatomy.refcount_blocks, random) else { return "no block".into() };
    image[block.at..block.at + block.len].fill(0);
    format!("zeros in the block at {:#x}", block.at)
}

/// Makes the refcount table too short, if it is longer than it can be.
fn shorten_refcount_table(image: &mut [u8]) -> String {
    let clusters = read32(image, 56).div_ceil(2);
    image[56..60].copy_from_slice(&clusters.to_be_bytes());
    format!("a refcount table of {clusters} clusters")
}

fn change_entry(
    image: &mut [u8],
    tables: &[Place],
    anatomy: &Anatomy,
    name: &str,
    random: &mut Random,
) -> String {
    let Some(table) = pick(tables, random) else { return format!("no {name} to change") };
    let used: Vec<usize> = entries(image, table).filter(|&at| read(image, at) != 0).collect();
    let any = table.at + random.below(table.len as u64 / 8) as usize * 8;
    // Mostly entries in use: there are few, and they are where damage hurts.
    let at = if random.below(4) == 0 { any } else { pick(&used, random).copied().unwrap_or(any) };
    let old = read(image, at);
    let cluster = anatomy.cluster_size as u64;
    let clusters = image.len() as u64 / cluster;
    let new = match random.below(10) {
        0 => 0,
        1 => old ^ 1 << random.below(64),
        2 => old ^ 1 << 63,
        3 => old ^ 1,
        4 => old ^ (1 << 62 | random.draw() >> 8),
        5 => old ^ 1 << (9 + random.below(8)),
        6 => (1 << 63) | (random.below(clusters + 3) * cluster),
        7 => random.below(clusters) * cluster,
        8 => random.draw(),
        _ => pick(&used, random).map_or(old, |&other| read(image, other)),
    };
    image[at..at + 8].copy_from_slice(&new.to_be_bytes());
    format!("{name} entry at {at:#x}: {old:#x} -> {new:#x}")
}

fn change_counts(image: &mut [u8], anatomy: &Anatomy, random: &mut Random) -> String {
    let Some(block) = pick(&anatomy.refcount_blocks, random) else { return "no counts".into() };
    // Counts of clusters that exist, mostly.
    let used = (image.len() / anatomy.cluster_size).clamp(1, block.len);
    let reach = if random.below(8) == 0 { block.len } else { used };
    let at = block.at + random.below(reach as u64) as usize;
    let old = image[at];
    image[at] = match random.below(4) {
        0 => 0,
        1 => old ^ 1 << random.below(8),
        2 => old.wrapping_add(1),
        _ => random.draw() as u8,
    };
    format!("count byte at {at:#x}: {old:#x} -> {:#x}", image[at])
}

/// Cuts off less than half a cluster, but nothing that the header names, or adds a few clusters.
fn change_length(image: &mut Vec<u8>, anatomy: &Anatomy, random: &mut Random) -> String {
    let cluster = anatomy.cluster_size as u64;
    let len = match random.below(2) {
        0 => {
            let cut = image.len() - random.below(cluster / 2) as usize;
            cut.max(anatomy.named_end).min(image.len())
        }
        _ => image.len() + random.below(3 * cluster) as usize,
    };
    image.resize(len, 0);
    format!("length {len:#x}")
}

impl Anatomy {
    fn of(image: &[u8]) -> Self {
        let cluster_size = 1 << read32(image, 20);
        let table = |at: u64, len: usize| Place { at: at as usize, len };
        let mut l1 = vec![table(read(image, 40), read32(image, 36) as usize * 8)];
        l1.extend(snapshot_l1s(image));
        let refcount_table = table(read(image, 48), read32(image, 56) as usize * cluster_size);
        let snapshots = table(read(image, 64), if l1.len() > 1 { cluster_size } else { 0 });
        let ends = [&l1[0], &refcount_table, &snapshots].map(|table| table.at + table.len);
        let named_end = ends.into_iter().max().unwrap();
        let whole = |at: u64| table(at, cluster_size);
        let inside = |place: &Place| place.at > 0 && place.at + place.len <= image.len();
        let below = |tables: &[Place]| -> Vec<Place> {
            let entries = tables.iter().flat_map(|table| entries(image, table));
            let tables = entries.map(|at| whole(read(image, at) & 0x00ff_ffff_ffff_fe00));
            tables.filter(inside).collect()
        };
        let l2 = below(&l1);
        let refcount_blocks = below(std::slice::from_ref(&refcount_table));
        Self { cluster_size, l1, l2, refcount_table, refcount_blocks, named_end }
    }
}

fn snapshot_l1s(image: &[u8]) -> Vec<Place> {
    let mut at = read(image, 64) as usize;
    let mut places = Vec::new();
    for _ in 0..read32(image, 60) {
        let names: usize = [12, 14]
            .map(|field| usize::from(image[at + field]) << 8 | usize::from(image[at + field + 1]))
            .iter()
            .sum();
        places
            .push(Place { at: read(image, at) as usize, len: read32(image, at + 8) as usize * 8 });
        at = (at + 40 + read32(image, at + 36) as usize + names).next_multiple_of(8);
    }
    places
}

fn entries(image: &[u8], table: &Place) -> impl Iterator<Item = usize> + use<> {
    let end = (table.at + table.len).min(image.len() / 8 * 8);
    (table.at..end).step_by(8)
}

fn pick<'a, T>(from: &'a [T], random: &mut Random) -> Option<&'a T> {
    (!from.is_empty()).then(|| &from[random.below(from.len() as u64) as usize])
}

fn read(image: &[u8], at: usize) -> u64 {
    image.get(at..at + 8).map_or(0, |bytes| u64::from_be_bytes(bytes.try_into().unwrap()))
}

fn read32(image: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(image[at..at + 4].try_into().unwrap())
}
