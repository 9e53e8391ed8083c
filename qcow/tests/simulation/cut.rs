//! What a power cut leaves of an image's files together: the image, and its external data file where it has one.

use qcow::disk::sim::{Content, Outcome, PowerCut, Random, SimDisk};

use crate::drive::SimGate;
use crate::start::Files;

/// All states that one power cut may leave.
pub struct Cut {
    image: PowerCut,
    data: Option<PowerCut>,
    backing: Option<Content>,
}

/// One of them.
pub struct State {
    image: Outcome,
    data: Option<Outcome>,
}

impl Cut {
    /// What a power cut at this moment may leave.
    pub fn now(gate: &SimGate) -> Self {
        Self {
            image: gate.image.power_cut(),
            data: gate.data.as_ref().map(SimDisk::power_cut),
            backing: gate.backing.as_ref().map(SimDisk::content),
        }
    }

    /// How many states there are, as far as a number can tell.
    pub fn count(&self) -> u64 {
        self.image.count().saturating_mul(self.data.as_ref().map_or(1, PowerCut::count))
    }

    /// The state with number `index` below [`Self::count`].
    pub fn state(&self, index: u64) -> State {
        let data = self.data.as_ref().map(|data| data.outcome(index % data.count()));
        let index = index / self.data.as_ref().map_or(1, PowerCut::count);
        State { image: self.image.outcome(index), data }
    }

    /// Some state.
    pub fn sample(&self, random: &mut Random) -> State {
        let image = self.image.sample(random);
        State { image, data: self.data.as_ref().map(|data| data.sample(random)) }
    }

    /// The files in that state.
    pub fn files(&self, state: &State) -> Files {
        let data = self.data.as_ref().zip(state.data.as_ref());
        Files {
            image: self.image.content(&state.image),
            data: data.map(|(data, outcome)| data.content(outcome)),
            backing: self.backing.clone(),
        }
    }

    /// Gives equal states of this and other cuts of the same files the same number, and others hardly ever.
    pub fn fingerprints(&self) -> impl Fn(&State) -> u64 {
        let image = self.image.fingerprints();
        let data = self.data.as_ref().map(PowerCut::fingerprints);
        move |state| {
            let data = data.as_ref().zip(state.data.as_ref());
            let data = data.map_or(0, |(data, outcome)| data.of(outcome));
            image.of(&state.image) ^ data.rotate_left(17)
        }
    }
}
