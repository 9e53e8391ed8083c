//! Writing to an image whose file was changed: what is read afterwards is what was there or what was written, or fails.

use std::collections::BTreeMap;
use std::ops::Range;

use qcow::disk::Buffer;
use qcow::disk::sim::{Random, SimDisk};
use qcow::engine::Image;

use crate::oracle::{Part, expected, read, read_all};
use crate::shape::{Files, Shape};
use crate::state::{SECTOR, State, bytes};

/// Most requests.
const STEPS_MAX: u64 = 6;
/// Most sectors of one.
const REQUEST_MAX: u64 = 40;

/// Opens the image, which holds `state` where it can be read, for writing, and uses it.
///
/// # Errors
/// Something else is read than was there or has been written.
pub async fn write_and_look_again(
    files: &Files,
    shape: &Shape,
    state: &State,
    random: &mut Random,
) -> Result<(), String> {
    let image = match files.open(true, None).await {
        Ok(image) => image,
        Err(e) => return expected(&e),
    };
    let mut use_of = Use { image, shape, state, random, may_be: BTreeMap::new(), next: 1 << 50 };
    for _ in 0..1 + use_of.random.below(STEPS_MAX) {
        use_of.step().await;
    }
    use_of.look(&use_of.image, false).await?;
    let is_lost = use_of.image.close().await.is_err();
    match files.open(false, None).await {
        Ok(image) => use_of.look(&image, is_lost).await?,
        Err(e) => expected(&e)?,
    }
    for (name, disk) in &state.snapshots {
        match files.open(false, Some(name)).await {
            Ok(image) => drop(read_all(&image, disk, &shape.areas()).await?),
            Err(e) => expected(&e)?,
        }
    }
    Ok(())
}

struct Use<'u> {
    image: Image<SimDisk>,
    shape: &'u Shape,
    state: &'u State,
    random: &'u mut Random,
    /// What a sector may hold, the latest last, and how many of these, from the end, while nothing is lost; of others, what
    /// `state` says.
    may_be: BTreeMap<u64, (Vec<u64>, usize)>,
    next: u64,
}

impl Use<'_> {
    async fn step(&mut self) {
        let areas = self.shape.areas();
        let area = &areas[self.random.below(areas.len() as u64) as usize];
        let start = area.start + self.random.below(area.end - area.start);
        let range = start..(start + 1 + self.random.below(REQUEST_MAX)).min(area.end);
        let (at, len) = (range.start * SECTOR, (range.end - range.start) * SECTOR);
        match self.random.below(6) {
            0..3 => {
                self.next += 1 << 32;
                let stamp = self.next;
                let content = bytes(range.clone().map(|sector| stamp | sector));
                let written = self.image.write(at, &Buffer::from_bytes(&content).payload()).await;
                self.note(range, |sector| stamp | sector, written.is_ok());
            }
            3 => {
                let zeroed = self.image.write_zeroes(at, len, self.random.below(2) == 0).await;
                self.note(range, |_| 0, zeroed.is_ok());
            }
            4 => {
                let discarded = self.image.discard(at, len).await;
                let unit = self.shape.cluster_sectors();
                let is_last = range.end == self.shape.sectors;
                let end = if is_last { range.end } else { range.end / unit * unit };
                self.note(range.start.div_ceil(unit) * unit..end, |_| 0, discarded.is_ok());
            }
            _ => drop(self.image.flush().await),
        }
    }

    /// Notes that sectors were given something else, or perhaps were.
    fn note(&mut self, range: Range<u64>, stamp: impl Fn(u64) -> u64, done: bool) {
        for sector in range {
            let first = || (vec![self.state.disk.get(sector)], 1);
            let (stamps, now) = self.may_be.entry(sector).or_insert_with(first);
            stamps.push(stamp(sector));
            *now = if done { 1 } else { *now + 1 };
        }
    }

    async fn look(&self, image: &Image<SimDisk>, is_lost: bool) -> Result<(), String> {
        for area in self.shape.areas() {
            for start in area.clone().step_by(8) {
                let piece = start..(start + 8).min(area.end);
                if let Part::Bytes(found) = read(image, piece.clone()).await? {
                    piece
                        .zip(found.chunks(SECTOR as usize))
                        .try_for_each(|(sector, found)| self.compare(sector, found, is_lost))?;
                }
            }
        }
        Ok(())
    }

    fn compare(&self, sector: u64, found: &[u8], is_lost: bool) -> Result<(), String> {
        let (stamps, now) = match self.may_be.get(&sector) {
            Some((stamps, now)) => (stamps.clone(), *now),
            None => (vec![self.state.disk.get(sector)], 1),
        };
        let count = if is_lost { stamps.len() } else { now };
        let may_be = &stamps[stamps.len() - count..];
        let is = |stamp: &u64| found.chunks(8).all(|word| word == stamp.to_le_bytes());
        match may_be.iter().any(is) {
            true => Ok(()),
            false => Err(format!(
                "after writing, sector {sector} reads as {:02x?}, and may be {may_be:x?}",
                &found[..8]
            )),
        }
    }
}
