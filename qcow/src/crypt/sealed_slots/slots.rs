//! All key slots of an image.

use super::cost::SlotCost;
use super::sector::{Place, SLOT_LEN, SlotSector, SlotState};
use crate::crypt::seal::{DataKey, ImageId};
use crate::crypt::secret::Passphrase;
use crate::error::{Error, ErrorKind, Result};
use crate::limits::ARGON_WORK_MAX;

/// Key slots of every image.
pub const SLOT_COUNT: usize = 8;
/// Bytes of all of them.
pub const SLOTS_LEN: usize = SLOT_COUNT * SLOT_LEN;

/// The key slots of one image. Nothing in them is secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeySlots {
    image: ImageId,
    sectors: Box<[u8; SLOTS_LEN]>,
}

impl KeySlots {
    /// Eight slots without a key.
    pub fn empty(image: ImageId) -> Self {
        let mut slots = Self { image, sectors: Box::new([0; SLOTS_LEN]) };
        (0..SLOT_COUNT).for_each(|slot| slots.put(slot, SlotSector::empty()));
        slots
    }

    /// The slots that `bytes` are. What is wrong with one of them, its [state](Self::state) says.
    ///
    /// # Errors
    /// There are not [`SLOTS_LEN`] bytes.
    pub fn parse(image: ImageId, bytes: &[u8]) -> Result<Self> {
        let sectors = bytes.try_into().map_err(|_| {
            Error::corrupt(format!("key slots of {} bytes, which have {SLOTS_LEN}", bytes.len()))
        })?;
        Ok(Self { image, sectors: Box::new(sectors) })
    }

    /// All bytes, [`SLOTS_LEN`].
    pub fn bytes(&self) -> &[u8] {
        &*self.sectors
    }

    /// The bytes of one slot, a sector.
    pub fn sector(&self, slot: usize) -> &[u8] {
        &self.sectors[slot * SLOT_LEN..][..SLOT_LEN]
    }

    /// What a slot, below [`SLOT_COUNT`], is.
    pub fn state(&self, slot: usize) -> SlotState {
        self.get(slot).state()
    }

    /// The first slot that `passphrase` opens, and the data key.
    ///
    /// # Errors
    /// It opens none (`Denied`), or those before ask for too much work or memory (`Limit`).
    pub fn unlock(&self, passphrase: &Passphrase) -> Result<(usize, DataKey)> {
        let mut work_left = ARGON_WORK_MAX;
        for slot in 0..SLOT_COUNT {
            let SlotState::Active(argon) = self.state(slot) else { continue };
            work_left = work_left.checked_sub(argon.work()).ok_or_else(|| {
                Error::limit(format!("the key slots ask for more than {ARGON_WORK_MAX} KiB"))
            })?;
            if let Some(key) = self.get(slot).open(self.place(slot), argon, passphrase)? {
                return Ok((slot, key));
            }
        }
        Err(self.wrong_passphrase())
    }

    /// Lets `passphrase` open the image: puts `key` away in `slot`, or in the first one that is empty. Which one it is; the
    /// caller writes that sector.
    ///
    /// # Errors
    /// There is no such slot, or it is active; none is left; or `cost` is beyond a limit. Nothing has changed then.
    pub fn add(
        &mut self,
        slot: Option<usize>,
        key: &DataKey,
        passphrase: &Passphrase,
        cost: SlotCost,
    ) -> Result<usize> {
        let slot = self.slot_to_fill(slot)?;
        let sector = SlotSector::sealed(self.place(slot), key, passphrase, cost.argon()?)?;
        self.put(slot, sector);
        Ok(slot)
    }

    /// Takes the key out of `slot`; the caller writes that sector.
    ///
    /// # Errors
    /// There is no such slot, it is empty, or nothing else has the key. Nothing has changed then.
    pub fn erase(&mut self, slot: usize) -> Result<()> {
        check_number(slot)?;
        match self.state(slot) {
            SlotState::Empty => {
                return Err(Error::invalid(format!(
                    "Given keyslot {slot} is already erased (inactive)"
                )));
            }
            SlotState::Active(_) if self.active_count() == 1 => {
                return Err(Error::invalid(format!(
                    "Attempt to erase the only active keyslot {slot} which will erase all the data in the image \
                     irreversibly - refusing operation"
                )));
            }
            SlotState::Active(_) | SlotState::Damaged => self.put(slot, SlotSector::empty()),
        }
        Ok(())
    }

    fn slot_to_fill(&self, slot: Option<usize>) -> Result<usize> {
        let Some(slot) = slot else {
            let mut all = 0..SLOT_COUNT;
            let found = all.find(|slot| self.state(*slot) == SlotState::Empty);
            return found
                .ok_or_else(|| Error::invalid("Can't add a keyslot - all keyslots are in use"));
        };
        check_number(slot)?;
        match self.state(slot) {
            SlotState::Active(_) => Err(Error::invalid(format!(
                "Refusing to overwrite active keyslot {slot} - please erase it first"
            ))),
            SlotState::Empty | SlotState::Damaged => Ok(slot),
        }
    }

    fn active_count(&self) -> usize {
        (0..SLOT_COUNT).filter(|slot| matches!(self.state(*slot), SlotState::Active(_))).count()
    }

    fn wrong_passphrase(&self) -> Error {
        // As with LUKS, in QEMU's words.
        let mut what = "Invalid password, cannot unlock any keyslot".to_owned();
        for slot in (0..SLOT_COUNT).filter(|slot| self.state(*slot) == SlotState::Damaged) {
            what += &format!("; keyslot {slot} is damaged");
        }
        Error::new(ErrorKind::Denied, what)
    }

    fn place(&self, slot: usize) -> Place {
        Place { image: self.image, slot }
    }

    fn get(&self, slot: usize) -> SlotSector {
        SlotSector(*self.sector(slot).first_chunk().expect("a sector"))
    }

    fn put(&mut self, slot: usize, sector: SlotSector) {
        self.sectors[slot * SLOT_LEN..][..SLOT_LEN].copy_from_slice(&sector.0);
    }
}

fn check_number(slot: usize) -> Result<()> {
    let last = SLOT_COUNT - 1;
    (slot <= last).then_some(()).ok_or_else(|| {
        Error::invalid(format!("Invalid keyslot {slot} specified, must be between 0 and {last}"))
    })
}
