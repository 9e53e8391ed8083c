//! Changes an authenticated image, makes its checksums right again, and uses it as a program would: no input may panic, hang, or
//! ask for memory without bound, however its entries lead to each other.

use std::ffi::OsStr;
use std::path::Path;
use std::sync::OnceLock;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use qcow::crypt::seal::{ImageId, Label, Sealer};
use qcow::disk::Buffer;
use qcow::disk::sim::{SimDisk, World};
use qcow::engine::{
    CreateOptions, Format, Image, NewIntegrity, OpenOptions, SnapshotChoice, create,
};
use qcow::format::sealed::header::SealedHeader;
use qcow::format::sealed::root::Root;
use qcow::format::sealed::{DETAILS_LEVEL, ROOT_LEVEL, SPACE_LEVEL};
use qcow::gate::OneFile;

const BLOCK: usize = 4096;
const ENTRY_LEN: usize = 64;
const ENTRIES: usize = BLOCK / ENTRY_LEN;
/// Where the sealed bytes of a root start, and where its fields and entries do.
const BODY: usize = 56;
const LEVELS_AT: usize = BODY + 25;
const FIELDS: [usize; 8] =
    [8, BODY, BODY + 8, BODY + 16, BODY + 24, LEVELS_AT, BODY + 26, BODY + 32];
const ROOT_ENTRIES: usize = BODY + 32;
const ROOT_LEN: usize = 512;
/// Bytes of one change.
const CHANGE_LEN: usize = 12;
/// Changes that are made of one input.
const CHANGES_MAX: usize = 32;
/// Parts that get a new checksum: entries can lead to each other in rings.
const SEALED_MAX: usize = 2000;
/// Space that a hostile image can make us use.
const CAPACITY: u64 = 16 << 20;

/// The first of `bytes` says what gets right checksums again; each twelve that follow are a change: what, which, where, and the
/// eight bytes to be put there.
pub fn run(bytes: &[u8]) {
    let Some((flags, changes)) = bytes.split_first() else { return };
    let mut file = Hostile { bytes: template().to_vec(), root: newest_root(template()), left: 0 };
    let (changes, _) = changes.as_chunks::<CHANGE_LEN>();
    changes.iter().take(CHANGES_MAX).for_each(|change| file.change(change));
    if flags & 1 == 0 {
        file.seal();
    }
    use_it(&file.bytes);
    crate::open_any_image::run(&file.bytes);
}

/// A small image with all there is, the same for each input: closed, with data, zeros, compressed clusters and a snapshot.
fn template() -> &'static [u8] {
    static MADE: OnceLock<Vec<u8>> = OnceLock::new();
    MADE.get_or_init(|| {
        let world = World::new(1);
        let file = world.add_file(&[]);
        world.block_on(async { fill(&file).await.expect("a new image") });
        let mut bytes = file.to_vec();
        // The identity is the only thing about it that is random.
        let header = SealedHeader::parse(&bytes).expect("a header");
        let header = SealedHeader { image: ImageId::default(), ..header };
        bytes[..ROOT_LEN].copy_from_slice(&header.encode());
        let root = newest_root(&bytes);
        let mut image = Hostile { bytes, root, left: 0 };
        image.seal();
        image.bytes
    })
}

async fn fill(file: &SimDisk) -> qcow::Result<()> {
    let options = CreateOptions {
        size: 5 << 20,
        cluster_bits: 12,
        integrity: Some(NewIntegrity::Crc32c),
        ..CreateOptions::default()
    };
    create(file, &options).await?;
    let image = open(file, true, None).await?;
    image.write(0, &filled(5, 20_000)).await?;
    image.write_compressed(64 << 10, &filled(6, 8192)).await?;
    image.create_snapshot(OsStr::new("one"), Duration::ZERO).await?;
    image.write(3000, &filled(7, 9000)).await?;
    image.write((4 << 20) + 100, &filled(8, 5000)).await?;
    image.close().await
}

fn filled(byte: u8, len: usize) -> qcow::disk::Payload {
    Buffer::from_bytes(&vec![byte; len]).payload()
}

/// The sector of the newest root of a sound image.
fn newest_root(bytes: &[u8]) -> [u8; ROOT_LEN] {
    let sectors = (1..5).map(|block| &bytes[block * BLOCK..][..ROOT_LEN]);
    let newest = sectors.max_by_key(|sector| sector[8..16].to_vec()).expect("four copies");
    newest.try_into().expect("a sector")
}

/// An image that is being changed.
struct Hostile {
    bytes: Vec<u8>,
    /// The newest root.
    root: [u8; ROOT_LEN],
    /// Parts that may still get a checksum.
    left: usize,
}

impl Hostile {
    fn change(&mut self, change: &[u8; CHANGE_LEN]) {
        let (what, which) = (change[0] % 8, usize::from(change[1]));
        let at = usize::from(u16::from_be_bytes([change[2], change[3]]));
        let value = &change[4..];
        let number = u64::from_be_bytes(value.try_into().expect("eight bytes"));
        match what {
            0 => {
                let (field, len) = (which % FIELDS.len(), [8, 8, 8, 8, 1, 1, 1, 8]);
                let len = len[field];
                self.root[FIELDS[field]..][..len].copy_from_slice(&value[8 - len..]);
                if field == 1 && which >= 128 {
                    // Whole sectors, and as many levels as such a disk has.
                    self.root[BODY + 7] = 0;
                    self.root[BODY + 6] &= 0xfe;
                    self.root[LEVELS_AT] = Root::levels_for(number.div_ceil(BLOCK as u64));
                }
            }
            1 => {
                let at = ROOT_ENTRIES + which % 3 * ENTRY_LEN + at % 8 * 8;
                self.root[at..at + 8].copy_from_slice(value);
            }
            // An entry of a node leads to another block, most often one of those that there are.
            2 => {
                let block = number % (self.bytes.len() / BLOCK + 2) as u64;
                let kind = u64::from(which as u8 >> 6);
                self.put(
                    which % 64 * BLOCK + at % ENTRIES * ENTRY_LEN,
                    &(kind << 56 | block).to_be_bytes(),
                );
            }
            3 => self.put(which * BLOCK + at % (BLOCK / 8) * 8, value),
            4 => self.put(which * BLOCK + at % BLOCK, &value[7..]),
            // A block in place of another.
            5 => {
                let from = number as usize % (self.bytes.len() / BLOCK) * BLOCK;
                let block = self.bytes[from..from + BLOCK].to_vec();
                self.put(which * BLOCK, &block);
            }
            6 => {
                let len = number as usize % (2 * self.bytes.len()) + 8 * BLOCK;
                self.bytes.resize(len, 0);
            }
            _ => {
                let len = usize::from(self.header().cluster_bits as u8);
                let header =
                    SealedHeader { size: number, cluster_bits: len as u32, ..self.header() };
                self.bytes[..ROOT_LEN].copy_from_slice(&header.encode());
            }
        }
    }

    fn header(&self) -> SealedHeader {
        SealedHeader::parse(&self.bytes).unwrap_or_else(|_| {
            SealedHeader::parse(template()).expect("the header of the template")
        })
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        if at >= 8 * BLOCK
            && let Some(place) = self.bytes.get_mut(at..at + bytes.len())
        {
            place.copy_from_slice(bytes);
        }
    }

    /// Makes the checksums right of all that the root leads to, as far as they can be, and writes the root.
    fn seal(&mut self) {
        self.left = SEALED_MAX;
        let sealer = Sealer::crc32c(ImageId::default());
        let mut root = self.root;
        let (levels, entries) = (root[LEVELS_AT], &mut root[ROOT_ENTRIES..]);
        let (entries, _) = entries.as_chunks_mut::<ENTRY_LEN>();
        let labels = [(levels, 0), (DETAILS_LEVEL, 0), (SPACE_LEVEL, 0)];
        if let Some((first, len)) = self.place_of(&entries[1]) {
            self.seal_snapshots(&sealer, first * BLOCK, len);
        }
        for (entry, (level, index)) in entries.iter_mut().zip(labels) {
            self.seal_entry(&sealer, entry, level, index);
        }
        let generation = u64::from_be_bytes(root[8..16].try_into().expect("eight bytes"));
        let older = generation.wrapping_sub(1);
        for generation in [older, generation] {
            let sector = sealed_root(&sealer, &root, generation);
            for copy in 0..2 {
                let block = 1 + (generation % 2) as usize * 2 + copy;
                self.bytes[block * BLOCK..][..ROOT_LEN].copy_from_slice(&sector);
            }
        }
    }

    /// The first block and the length of what an entry leads to, if that lies in the file.
    fn place_of(&self, entry: &[u8; ENTRY_LEN]) -> Option<(usize, usize)> {
        let place = u64::from_be_bytes(entry[..8].try_into().ok()?) & ((1 << 56) - 1);
        let len = u32::from_be_bytes(entry[56..60].try_into().ok()?) as usize;
        let first = usize::try_from(place).ok()?;
        let inside = first.checked_mul(BLOCK)?.checked_add(len)? <= self.bytes.len();
        (matches!(entry[0], 2 | 3) && first >= 8 && inside).then_some((first, len))
    }

    fn seal_entry(&mut self, sealer: &Sealer, entry: &mut [u8; ENTRY_LEN], level: u8, index: u64) {
        let Some((first, len)) = self.place_of(entry) else { return };
        if self.left == 0 {
            return;
        }
        self.left -= 1;
        let start = first * BLOCK;
        if (1..SPACE_LEVEL).contains(&level) && len == BLOCK {
            for slot in 0..ENTRIES {
                let at = start + slot * ENTRY_LEN;
                let mut below: [u8; ENTRY_LEN] =
                    self.bytes[at..at + ENTRY_LEN].try_into().expect("an entry");
                let index = index.wrapping_mul(ENTRIES as u64).wrapping_add(slot as u64);
                self.seal_entry(sealer, &mut below, level - 1, index);
                self.bytes[at..at + ENTRY_LEN].copy_from_slice(&below);
            }
        }
        let mut content = self.bytes[start..start + len].to_vec();
        let seal = sealer.seal(Label { level, index, len: len as u32 }, &mut content);
        entry[16..40].copy_from_slice(&seal.nonce);
        entry[40..56].copy_from_slice(&seal.tag);
    }

    /// The details of the template have one snapshot and no backing file: its top node stands behind the count.
    fn seal_snapshots(&mut self, sealer: &Sealer, start: usize, len: usize) {
        const TOP: usize = 6;
        const LEVELS: usize = TOP + ENTRY_LEN + 8;
        if len <= LEVELS {
            return;
        }
        let at = start + TOP;
        let mut top: [u8; ENTRY_LEN] = self.bytes[at..at + ENTRY_LEN].try_into().expect("an entry");
        let levels = self.bytes[start + LEVELS];
        self.seal_entry(sealer, &mut top, levels, 0);
        self.bytes[at..at + ENTRY_LEN].copy_from_slice(&top);
    }
}

fn sealed_root(sealer: &Sealer, root: &[u8; ROOT_LEN], generation: u64) -> [u8; ROOT_LEN] {
    let mut sector = *root;
    sector[8..16].copy_from_slice(&generation.to_be_bytes());
    let label = Label { level: ROOT_LEVEL, index: generation, len: (ROOT_LEN - BODY) as u32 };
    let seal = sealer.seal(label, &mut sector[BODY..]);
    sector[16..40].copy_from_slice(&seal.nonce);
    sector[40..56].copy_from_slice(&seal.tag);
    sector
}

async fn open(file: &SimDisk, writable: bool, at: Option<&OsStr>) -> qcow::Result<Image<SimDisk>> {
    let options = OpenOptions {
        writable,
        backing: false,
        format: Some(Format::Qcow2),
        snapshot: at.map(|name| SnapshotChoice::Name(name.into())),
        ..OpenOptions::default()
    };
    Image::open(&OneFile(file.clone()), Path::new("image"), &options).await
}

/// Does what is done with authenticated images only, or otherwise than with others.
fn use_it(bytes: &[u8]) {
    let world = World::new(1);
    let file = world.add_file(bytes);
    file.set_capacity(bytes.len() as u64 + CAPACITY);
    world.block_on(async {
        let Ok(image) = open(&file, false, None).await else { return };
        let _ = image.check_authenticated(true, &mut |_| {}).await;
        let snapshots = image.snapshots().await.unwrap_or_default();
        for snapshot in &snapshots {
            if let Ok(then) = open(&file, false, Some(&snapshot.name)).await {
                let buffer = Buffer::zeroed(then.virtual_size().min(100_000) as usize);
                let _ = then.read(0, &buffer.payload()).await;
            }
        }
        drop(image);
        change(&file).await;
        if let Ok(image) = open(&file, true, None).await {
            let _ = image.sweep_authenticated().await;
            if let Some(snapshot) = snapshots.first() {
                let choice = SnapshotChoice::Name(snapshot.name.clone());
                let _ = image.apply_snapshot(&choice).await;
                let _ = image.write(0, &filled(9, 512.min(image.virtual_size() as usize))).await;
                let _ = image.delete_snapshot(&choice).await;
            }
            let _ = image.close().await;
        }
        if let Ok(image) = open(&file, false, None).await {
            let _ = image.check_authenticated(true, &mut |_| {}).await;
        }
    });
}

/// Writes and changes the size, then leaves the image as a process does that ends early.
async fn change(file: &SimDisk) {
    let Ok(image) = open(file, true, None).await else { return };
    let _ = image.create_snapshot(OsStr::new("another"), Duration::ZERO).await;
    let size = image.virtual_size();
    for at in [0, 64 << 10, 4 << 20, size / 2, size.saturating_sub(5000)] {
        let len = size.saturating_sub(at).min(5000);
        let _ = image.write(at.min(size), &filled(1, len as usize)).await;
        let _ = image.discard(at.min(size), len).await;
    }
    let _ = image.resize(size / 2 / 512 * 512, true).await;
    let _ = image.resize(size.saturating_add(100 << 20) / 512 * 512, true).await;
    let _ = image.recover_leaks(&AtomicBool::new(false)).await;
    let _ = image.flush().await;
}
