//! `qcow amend -o encrypt.*`: the passphrases of an image that is encrypted with LUKS.

use std::sync::Arc;
use std::time::Duration;

use qcow::crypt::Passphrase;
use qcow::crypt::luks::{Cost, LuksHeader, SLOT_COUNT};
use qcow::crypt::sealed_slots::{self, SlotCost, SlotState};
use qcow::disk::uring::block_on;

use crate::failure::{Failure, Outcome};
use crate::image::HostImage;
use crate::keyval::OptionValues;
use crate::new_image::not_accepted;
use crate::secrets;

/// How the names of these options begin where the image could have another encryption.
pub const PREFIX: &str = "encrypt.";

/// What is to become of key slots.
#[derive(Debug)]
pub struct SlotChange {
    state: State,
    slot: Option<usize>,
    force: bool,
}

#[derive(Debug)]
enum State {
    /// A slot gets this passphrase.
    Active { new: Arc<Passphrase>, cost: Cost },
    /// The slots with this passphrase, or the one that is named, are emptied.
    Inactive { old: Option<Arc<Passphrase>> },
}

impl SlotChange {
    /// What `values` ask for, whose names begin with `prefix`.
    ///
    /// # Errors
    /// In QEMU's words.
    pub fn parse(values: &OptionValues, prefix: &str, force: bool) -> Outcome<Self> {
        let text = |name: &str| values.text(&format!("{prefix}{name}"));
        let number = |name: &str| values.number(&format!("{prefix}{name}"));
        let secret =
            |name: &str| text(name).map(|id| secrets::find(id).map_err(Failure::new)).transpose();
        let refuse = |given: bool, name: &str, when: &str| match given {
            true => Err(Failure::new(format!("'{name}' must not be given when {when}"))),
            false => Ok(()),
        };
        let state = match text("state") {
            None => return Err(Failure::new("Parameter 'state' is missing")),
            Some("active") => {
                if text("new-secret").is_none() {
                    let what = "'new-secret' is required to activate a keyslot";
                    return Err(Failure::new(what));
                }
                refuse(text("old-secret").is_some(), "old-secret", "activating keyslots")?;
                let time = number("iter-time").map(Duration::from_millis);
                State::Active {
                    new: secret("new-secret")?.ok_or_else(|| Failure::new("no new secret"))?,
                    cost: time.map_or(Cost::default(), Cost::Time),
                }
            }
            Some("inactive") => {
                refuse(text("new-secret").is_some(), "new-secret", "erasing keyslots")?;
                refuse(number("iter-time").is_some(), "iter-time", "erasing keyslots")?;
                State::Inactive { old: secret("old-secret")? }
            }
            Some(other) => return Err(not_accepted("state", other)),
        };
        let slot = match number("keyslot") {
            None => None,
            Some(number) => {
                let slot = usize::try_from(number).ok().filter(|slot| *slot < SLOT_COUNT);
                let last = SLOT_COUNT - 1;
                let invalid = || {
                    let what =
                        format!("Invalid keyslot {number} specified, must be between 0 and {last}");
                    Failure::new(what)
                };
                Some(slot.ok_or_else(invalid)?)
            }
        };
        Ok(Self { state, slot, force })
    }

    /// Makes it so in `image`, which `passphrase` opens.
    ///
    /// # Errors
    /// In QEMU's words: it would overwrite a passphrase or take the last one away, which is only done when forced; or no slot
    /// is left, or none is meant.
    pub fn carry_out(&self, image: &HostImage, passphrase: &Passphrase) -> Outcome {
        let header = block_on(image.luks_header())?;
        match &self.state {
            State::Active { new, cost } => {
                let slot = self.slot_to_fill(&header)?;
                block_on(image.add_key(slot, passphrase, new, *cost))?;
            }
            State::Inactive { old } => {
                for slot in self.slots_to_empty(image, &header, old.as_deref())? {
                    block_on(image.erase_key(slot))?;
                }
            }
        }
        Ok(())
    }

    /// As [`Self::carry_out`], of an authenticated image.
    ///
    /// # Errors
    /// As [`Self::carry_out`]; nothing is ever forced.
    pub fn carry_out_sealed(&self, image: &HostImage, passphrase: &Passphrase) -> Outcome {
        match &self.state {
            State::Active { new, cost } => {
                let cost = match cost {
                    Cost::Time(time) => SlotCost::Time(*time),
                    Cost::Iterations(_) => SlotCost::default(),
                };
                block_on(image.add_sealed_key(self.slot, passphrase, new, cost))?;
            }
            State::Inactive { old } => {
                for slot in self.sealed_slots_to_empty(image, old.as_deref())? {
                    block_on(image.erase_sealed_key(slot))?;
                }
            }
        }
        Ok(())
    }

    fn sealed_slots_to_empty(
        &self,
        image: &HostImage,
        old: Option<&Passphrase>,
    ) -> Outcome<Vec<usize>> {
        let mut slots = block_on(image.sealed_slots())?;
        let is_active = |slot: &usize| matches!(slots.state(*slot), SlotState::Active(_));
        let active = (0..sealed_slots::SLOT_COUNT).filter(is_active).count();
        let matching = old.map(|old| {
            let mut found = Vec::new();
            while let Ok((slot, _)) = slots.unlock(old) {
                found.push(slot);
                // The last one stays, and all of them have been found.
                if slots.erase(slot).is_err() {
                    break;
                }
            }
            found
        });
        choose_to_empty(self.slot, matching, active, false)
    }

    fn slot_to_fill(&self, header: &LuksHeader) -> Outcome<usize> {
        match self.slot {
            Some(slot) if header.slots()[slot].active && !self.force => Err(Failure::new(format!(
                "Refusing to overwrite active keyslot {slot} - please erase it first"
            ))),
            Some(slot) => Ok(slot),
            None => header
                .free_slot()
                .ok_or_else(|| Failure::new("Can't add a keyslot - all keyslots are in use")),
        }
    }

    fn slots_to_empty(
        &self,
        image: &HostImage,
        header: &LuksHeader,
        old: Option<&Passphrase>,
    ) -> Outcome<Vec<usize>> {
        let matching = old.map(|old| block_on(image.slots_of(old))).transpose()?;
        let chosen = choose_to_empty(self.slot, matching, header.active_count(), self.force)?;
        match self.slot {
            Some(slot) => self.slot_to_empty(header, slot).map(|slot| vec![slot]),
            None => Ok(chosen),
        }
    }

    fn slot_to_empty(&self, header: &LuksHeader, slot: usize) -> Outcome<usize> {
        let active = header.slots()[slot].active;
        let refused = match (active, header.active_count()) {
            _ if self.force => return Ok(slot),
            (false, _) => format!("Given keyslot {slot} is already erased (inactive) "),
            (true, 1) => format!(
                "Attempt to erase the only active keyslot {slot} which will erase all the data in the image irreversibly - refusing operation"
            ),
            (true, _) => return Ok(slot),
        };
        Err(Failure::new(refused))
    }
}

/// Which slots are to be emptied: `slot` if it is given, those that the old passphrase is `matching` with if that is; all that
/// are active only where it is forced.
fn choose_to_empty(
    slot: Option<usize>,
    matching: Option<Vec<usize>>,
    active: usize,
    force: bool,
) -> Outcome<Vec<usize>> {
    match (slot, matching) {
        (None, None) => Err(Failure::new(
            "To erase keyslot(s), either explicit keyslot index or the password currently contained in them must be given",
        )),
        (Some(slot), Some(matching)) if !matching.contains(&slot) => Err(Failure::new(format!(
            "Given keyslot {slot} doesn't contain the given old password for erase operation"
        ))),
        (Some(slot), _) => Ok(vec![slot]),
        (None, Some(matching)) if matching.is_empty() => {
            Err(Failure::new("No keyslots match given (old) password for erase operation"))
        }
        (None, Some(matching)) if matching.len() == active && !force => Err(Failure::new(
            "All the active keyslots match the (old) password that was given and erasing them will erase all the data in the image irreversibly - refusing operation",
        )),
        (None, Some(matching)) => Ok(matching),
    }
}
