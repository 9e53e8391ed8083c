//! What befalls a file: by accident, or by somebody who wants something else to be read.

use std::collections::BTreeMap;
use std::fmt;

use qcow::disk::sim::Random;

use crate::reach::root_sector;
use crate::template::Template;

pub const BLOCK: usize = 4096;
/// Blocks in front of what roots lead to: the header, roots, key slots.
const FIXED: u64 = 8;

/// A file with other bytes than it had.
pub struct Corruption {
    /// What was done, for people.
    what: Vec<String>,
    /// Blocks that were touched, as they are now.
    pub blocks: BTreeMap<usize, Vec<u8>>,
    /// Where the file ends now, if that is earlier.
    pub cut: Option<usize>,
}

impl fmt::Display for Corruption {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what.join(", then "))
    }
}

impl Corruption {
    /// Nothing at all.
    pub fn none() -> Self {
        Self { what: Vec::new(), blocks: BTreeMap::new(), cut: None }
    }

    /// One bit of a byte.
    pub fn flip(template: &Template, at: usize) -> Self {
        let mut block = original(template, at / BLOCK).to_vec();
        block[at % BLOCK] ^= 1;
        Self { blocks: BTreeMap::from([(at / BLOCK, block)]), ..Self::none() }
    }

    /// One of them, or several at once.
    pub fn draw(template: &Template, random: &mut Random) -> Self {
        let mut corruption = Self::none();
        let count = if random.below(4) == 0 { 2 + random.below(3) } else { 1 };
        for _ in 0..count {
            Draw { template, random, into: &mut corruption }.one();
        }
        corruption.blocks.retain(|index, block| block != original(template, *index));
        corruption
    }

    /// Whether something changed that the newest root leads to.
    pub fn reaches(&self, template: &Template) -> bool {
        let changed = |(index, block): (&usize, &Vec<u8>)| {
            let len = template.reach.of_block(*index);
            block[..len] != original(template, *index)[..len]
        };
        let is_cut = |end: usize| {
            let behind = |place: &std::ops::Range<usize>| end.max(place.start)..place.end;
            let lost = template.reach.places.iter().map(behind).filter(|lost| !lost.is_empty());
            lost.into_iter().any(|lost| template.bytes[lost].iter().any(|byte| *byte != 0))
        };
        self.blocks.iter().any(changed) || self.cut.is_some_and(is_cut)
    }

    /// Copies of roots that have changed, and whether each is a root that was there once.
    pub fn roots<'c>(&'c self, template: &'c Template) -> impl Iterator<Item = bool> + 'c {
        (0..4).filter_map(|index| {
            let sector = &self.blocks.get(&(1 + index))?[..512];
            let changed = sector != root_sector(&template.bytes, index);
            changed.then(|| template.reach.is_root(sector, index))
        })
    }

    /// Whether the header has changed, or the only key slot.
    pub fn keeps_from_opening(&self, template: &Template) -> bool {
        let slots = template.shape.has_key.then_some(5);
        [Some(0), slots].into_iter().flatten().any(|index| {
            let block = self.blocks.get(&index);
            block.is_some_and(|block| block[..512] != original(template, index)[..512])
        })
    }
}

fn original(template: &Template, index: usize) -> &[u8] {
    &template.bytes[index * BLOCK..][..BLOCK]
}

struct Draw<'d> {
    template: &'d Template,
    random: &'d mut Random,
    into: &'d mut Corruption,
}

impl Draw<'_> {
    fn one(&mut self) {
        match self.random.below(24) {
            0..5 => self.flip(1),
            5..7 => {
                let count = 2 + self.random.below(15);
                self.flip(count);
            }
            7..9 => self.overwrite(false),
            9 => self.overwrite(true),
            10..12 => self.swap(),
            12..14 => self.copy(),
            14..17 => self.replay(1),
            17 => {
                let count = 2 + self.random.below(30);
                self.replay(count);
            }
            18 => self.replay_all_but_roots(),
            19 => self.replay_roots(),
            20 => self.roll_back(),
            21 => self.swap_roots(),
            22 => self.overwrite_sector(),
            _ => self.cut(),
        }
    }

    fn say(&mut self, what: String) {
        self.into.what.push(what);
    }

    fn block_count(&self) -> usize {
        self.template.bytes.len() / BLOCK
    }

    /// Any byte, most often one that counts.
    fn place(&mut self) -> usize {
        match self.random.below(8) {
            0 => self.random.below(self.template.bytes.len() as u64) as usize,
            1 => self.random.below(FIXED * BLOCK as u64) as usize,
            2 => {
                let sector = self.random.below(FIXED) * BLOCK as u64;
                (sector + self.random.below(512)) as usize
            }
            _ => {
                let places = &self.template.reach.places;
                if places.is_empty() {
                    return self.random.below(self.template.bytes.len() as u64) as usize;
                }
                let place = &places[self.random.below(places.len() as u64) as usize];
                place.start + self.random.below(place.len() as u64) as usize
            }
        }
    }

    fn block(&mut self, index: usize) -> &mut Vec<u8> {
        let original = original(self.template, index);
        self.into.blocks.entry(index).or_insert_with(|| original.to_vec())
    }

    fn flip(&mut self, count: u64) {
        for _ in 0..count {
            let (at, bit) = (self.place(), self.random.below(8));
            self.block(at / BLOCK)[at % BLOCK] ^= 1 << bit;
            self.say(format!("bit {bit} of {at:#x} flipped"));
        }
    }

    fn overwrite(&mut self, by_zeros: bool) {
        let at = self.place();
        let most = 1 << self.random.below(14);
        let len = 1 + self.random.below(most) as usize;
        let end = (at + len).min(self.template.bytes.len());
        for at in at..end {
            let byte = if by_zeros { 0 } else { self.random.draw() as u8 };
            self.block(at / BLOCK)[at % BLOCK] = byte;
        }
        self.say(format!("{at:#x}..{end:#x} overwritten, by zeros: {by_zeros}"));
    }

    fn two_blocks(&mut self) -> (usize, usize) {
        (self.place() / BLOCK, self.place() / BLOCK)
    }

    fn swap(&mut self) {
        let (a, b) = self.two_blocks();
        let old = self.block(a).clone();
        let other = std::mem::replace(self.block(b), old);
        *self.block(a) = other;
        self.say(format!("blocks {a} and {b} swapped"));
    }

    fn copy(&mut self) {
        let (from, to) = self.two_blocks();
        *self.block(to) = self.block(from).clone();
        self.say(format!("block {from} copied over {to}"));
    }

    /// Which of the older files.
    fn older(&mut self) -> Option<usize> {
        let count = self.template.older.len() as u64;
        (count > 0).then(|| self.random.below(count) as usize)
    }

    fn put_back(&mut self, older: usize, index: usize) {
        let bytes = &self.template.older[older];
        let mut block = bytes.get(index * BLOCK..).unwrap_or_default().to_vec();
        block.resize(BLOCK, 0);
        *self.block(index) = block;
    }

    fn replay(&mut self, count: u64) {
        let Some(older) = self.older() else { return };
        for _ in 0..count {
            let index = self.place() / BLOCK;
            self.put_back(older, index);
            self.say(format!("block {index} from the file {older}"));
        }
    }

    fn replay_all_but_roots(&mut self) {
        let Some(older) = self.older() else { return };
        (FIXED as usize..self.block_count()).for_each(|index| self.put_back(older, index));
        self.say(format!("all but the roots from the file {older}"));
    }

    fn replay_roots(&mut self) {
        let Some(older) = self.older() else { return };
        let which = 1 + self.random.below(15);
        for index in (0..4).filter(|index| which >> index & 1 == 1) {
            self.put_back(older, 1 + index);
            self.say(format!("copy {index} of the root from the file {older}"));
        }
    }

    fn roll_back(&mut self) {
        let Some(older) = self.older() else { return };
        (0..self.block_count()).for_each(|index| self.put_back(older, index));
        let len = self.template.older[older].len();
        self.into.cut = (len < self.template.bytes.len()).then_some(len);
        self.say(format!("all of the file {older}"));
    }

    fn swap_roots(&mut self) {
        let (a, b) = (1 + self.random.below(4) as usize, 1 + self.random.below(4) as usize);
        let old = self.block(a).clone();
        let other = std::mem::replace(self.block(b), old);
        *self.block(a) = other;
        self.say(format!("root blocks {a} and {b} swapped"));
    }

    fn overwrite_sector(&mut self) {
        let (block, by_zeros) = (self.random.below(6) as usize, self.random.below(2) == 0);
        for at in 0..512 {
            let byte = if by_zeros { 0 } else { self.random.draw() as u8 };
            self.block(block)[at] = byte;
        }
        self.say(format!("the sector of block {block} overwritten, by zeros: {by_zeros}"));
    }

    fn cut(&mut self) {
        let len = self.place();
        self.into.cut = Some(self.into.cut.map_or(len, |cut| cut.min(len)));
        self.say(format!("cut off at {len:#x}"));
    }
}
