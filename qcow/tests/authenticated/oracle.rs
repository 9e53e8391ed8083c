//! What has to hold of an image whose file was changed: whatever is read is what was there, or the read fails.

use std::ops::Range;

use qcow::ErrorKind;
use qcow::addr::HostOffset;
use qcow::disk::sim::{Random, SimDisk, World};
use qcow::disk::{Buffer, Disk as _};
use qcow::engine::Image;

use crate::afterwards::write_and_look_again;
use crate::corruption::{BLOCK, Corruption};
use crate::shape::Files;
use crate::state::{Disk, SECTOR};
use crate::template::Template;

/// One image in so many is written to, too.
const WRITTEN_ONE_IN: u64 = 6;

/// What was seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// It was not opened.
    pub refused: u64,
    /// Something could not be read.
    pub unread: u64,
    /// It shows an older state, as its root says.
    pub rolled_back: u64,
    /// Nothing that counts had changed.
    pub harmless: u64,
}

impl Seen {
    /// Both.
    pub fn and(self, other: Self) -> Self {
        Self {
            refused: self.refused + other.refused,
            unread: self.unread + other.unread,
            rolled_back: self.rolled_back + other.rolled_back,
            harmless: self.harmless + other.harmless,
        }
    }
}

/// A part of the disk, as it is read.
pub enum Part {
    /// Its bytes.
    Bytes(Vec<u8>),
    /// It does not open.
    Unread,
}

/// Looks at the image of `template` with `corruption`.
///
/// # Errors
/// Something was not noticed.
pub fn look(
    template: &Template,
    corruption: &Corruption,
    random: &mut Random,
) -> Result<Seen, String> {
    let world = World::new(random.draw());
    let files = Files::new(&world, template.file.clone(), template.backing.clone());
    world.block_on(async {
        corrupt(&files.image, corruption).await;
        let mut seen = Seen::default();
        let image = match files.open(false, None).await {
            Ok(image) => image,
            Err(e) => {
                seen.refused = 1;
                return expected(&e).map(|()| seen);
            }
        };
        if corruption.keeps_from_opening(template) {
            return Err("the image opens without its header or its key".to_owned());
        }
        let root = image.root_tag().expect("an authenticated image");
        let is_newest = root == template.root;
        if !is_newest && root.may_follow(&template.root) {
            return Err(format!("root {root} passes for a later one than {}", template.root));
        }
        seen.rolled_back = u64::from(!is_newest);
        let state = template.state_at(root.generation);
        let areas = template.shape.areas();
        seen.unread += read_all(&image, &state.disk, &areas).await?;
        let names: Vec<_> = state.snapshots.keys().collect();
        if !names.is_empty() {
            let name = names[random.below(names.len() as u64) as usize];
            let unread = read_snapshot(&files, name, &state.snapshots[name], &areas).await?;
            seen.unread += unread;
        }
        if is_newest {
            hold_against_check(template, corruption, &image, &mut seen).await?;
        }
        drop(image);
        if random.below(WRITTEN_ONE_IN) == 0 {
            write_and_look_again(&files, &template.shape, state, random).await?;
        }
        Ok(Seen { unread: seen.unread.min(1), ..seen })
    })
}

/// A check finds what has changed, and nothing else.
///
/// # Errors
/// It does not.
pub async fn hold_against_check(
    template: &Template,
    corruption: &Corruption,
    image: &Image<SimDisk>,
    seen: &mut Seen,
) -> Result<(), String> {
    let mut findings = Vec::new();
    let checked = image.check_authenticated(true, &mut |f| findings.push(f.to_string())).await;
    let is_damaged = corruption.reaches(template) || corruption.roots(template).any(|root| !root);
    match checked {
        Ok(summary) if is_damaged && summary.corruptions == 0 => {
            Err("a check with all data finds nothing".to_owned())
        }
        Ok(summary) if !is_damaged => {
            seen.harmless = 1;
            match summary.corruptions == 0 && seen.unread == 0 {
                true => Ok(()),
                false => Err(format!("nothing that counts has changed, but: {findings:?}")),
            }
        }
        Ok(_) => Ok(()),
        Err(e) => expected(&e),
    }
}

async fn corrupt(file: &SimDisk, corruption: &Corruption) {
    for (index, block) in &corruption.blocks {
        let at = HostOffset::new((index * BLOCK) as u64);
        file.write(at, &Buffer::from_bytes(block).payload()).await.expect("corrupt");
    }
    if let Some(len) = corruption.cut {
        file.set_len(len as u64).await.expect("cut");
    }
    file.sync().await.expect("sync");
}

/// Corruption is told as such, or as what it looks like.
pub fn expected(error: &qcow::Error) -> Result<(), String> {
    let kinds = [ErrorKind::Corrupt, ErrorKind::Denied, ErrorKind::Unsupported, ErrorKind::Limit];
    match kinds.contains(&error.kind()) {
        true => Ok(()),
        false => Err(format!("{:?}: {error}", error.kind())),
    }
}

async fn read_snapshot(
    files: &Files,
    name: &str,
    disk: &Disk,
    areas: &[Range<u64>],
) -> Result<u64, String> {
    match files.open(false, Some(name)).await {
        Ok(image) => read_all(&image, disk, areas).await,
        Err(e) => expected(&e).map(|()| 1),
    }
}

/// Reads `areas`, which have to be as `disk` says; how many parts could not be read.
pub async fn read_all(
    image: &Image<SimDisk>,
    disk: &Disk,
    areas: &[Range<u64>],
) -> Result<u64, String> {
    let mut unread = 0;
    for area in areas {
        unread += match read(image, area.clone()).await? {
            Part::Bytes(bytes) => compare(&bytes, disk, area).map(|()| 0)?,
            // Around what cannot be read.
            Part::Unread => read_pieces(image, disk, area).await?,
        };
    }
    Ok(unread)
}

async fn read_pieces(
    image: &Image<SimDisk>,
    disk: &Disk,
    area: &Range<u64>,
) -> Result<u64, String> {
    const PIECE: u64 = 13;
    let mut unread = 1;
    for start in area.clone().step_by(PIECE as usize) {
        let piece = start..(start + PIECE).min(area.end);
        match read(image, piece.clone()).await? {
            Part::Bytes(bytes) => compare(&bytes, disk, &piece)?,
            Part::Unread => unread += 1,
        }
    }
    Ok(unread)
}

/// Reads sectors.
pub async fn read(image: &Image<SimDisk>, sectors: Range<u64>) -> Result<Part, String> {
    let len = (sectors.end - sectors.start) * SECTOR;
    // What is not filled in must not look like zeros.
    let buffer = Buffer::from_bytes(&vec![0xee; len as usize]);
    match image.read(sectors.start * SECTOR, &buffer.payload()).await {
        Ok(()) => Ok(Part::Bytes(buffer.to_vec())),
        Err(e) if e.kind() == ErrorKind::Corrupt => Ok(Part::Unread),
        Err(e) => Err(format!("{:?}: {e}", e.kind())),
    }
}

fn compare(bytes: &[u8], disk: &Disk, sectors: &Range<u64>) -> Result<(), String> {
    for (sector, found) in sectors.clone().zip(bytes.chunks(SECTOR as usize)) {
        let expected = disk.get(sector).to_le_bytes();
        if !found.chunks(8).all(|word| word == expected) {
            return Err(format!(
                "sector {sector} reads as {:02x?}, and had {expected:02x?}",
                &found[..8]
            ));
        }
    }
    Ok(())
}
