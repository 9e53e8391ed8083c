//! The close mark: a header extension of our own that tells whether the image was closed cleanly.
//!
//! Programs that do not know it keep it (QEMU) or pass over it. Bytes, states and the order of writes:
//! `docs/FORMAT-EXTENSIONS.md`.

/// Type of the extension.
pub const MARK_TYPE: u32 = 0x7a1c_95e3;
/// Bytes of its data. They start at a multiple of 8, so that one sector holds them all and no write tears them.
pub const MARK_BYTES: usize = 8;

const VERSION: u8 = 1;
const CLEAN: u8 = 0;
const UNCLEAN: u8 = 1;
const UNSETTLED: u8 = 2;
/// Where the state stands, in every version.
const STATE_AT: usize = 1;

/// What a mark says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MarkState {
    /// Closed after the last change: nothing is leaked that was not leaked before.
    Clean,
    /// Open for writing, or left so by a crash: clusters may be leaked.
    Unclean,
    /// As unclean; and COPIED flags may contradict the counts, of which none is too low, or would once leaks are given back.
    /// While snapshots change in version 2 of the format, which has no dirty bit, and while an image is compacted.
    Unsettled,
}

/// The extension's data, kept byte for byte but for the state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mark(Vec<u8>);

impl Mark {
    /// The mark of an image in that state.
    pub fn new(state: MarkState) -> Self {
        let mut data = vec![0; MARK_BYTES];
        data[0] = VERSION;
        let mut mark = Self(data);
        mark.set(state);
        mark
    }

    /// The mark that these extension bytes hold; anything is one, if perhaps not a legible one.
    pub fn from_bytes(bytes: impl Into<Vec<u8>>) -> Self {
        Self(bytes.into())
    }

    /// The extension bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// What it says. A damaged mark, or one of a later version, vouches for nothing.
    pub fn state(&self) -> MarkState {
        match self.0.get(STATE_AT) {
            Some(&CLEAN) if self.is_legible() => MarkState::Clean,
            Some(&UNSETTLED) if self.is_legible() => MarkState::Unsettled,
            _ => MarkState::Unclean,
        }
    }

    /// Whether all of it is known here, so that it may be set to clean.
    pub fn is_legible(&self) -> bool {
        self.0.len() == MARK_BYTES && self.0[0] == VERSION
    }

    /// Changes the state, of an illegible mark only to unclean or unsettled, which are the same there. Returns whether that changed a byte.
    pub fn set(&mut self, state: MarkState) -> bool {
        let legible = self.is_legible();
        let byte = match state {
            MarkState::Clean if !legible => return false,
            MarkState::Clean => CLEAN,
            MarkState::Unclean => UNCLEAN,
            MarkState::Unsettled => UNSETTLED,
        };
        match self.0.get_mut(STATE_AT) {
            Some(stored) => std::mem::replace(stored, byte) != byte,
            None => false,
        }
    }

    /// The bytes that a change of state writes, at the start of the data.
    pub fn head(&self) -> &[u8] {
        &self.0[..self.0.len().min(MARK_BYTES)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_are_told_and_set_and_the_rest_is_kept() {
        let mut mark = Mark::from_bytes([1, 0, 9, 8, 7, 6, 5, 4]);
        assert_eq!(mark.state(), MarkState::Clean);
        assert!(mark.set(MarkState::Unclean));
        assert!(!mark.set(MarkState::Unclean));
        assert_eq!(mark.state(), MarkState::Unclean);
        assert_eq!(mark.as_bytes(), [1, 1, 9, 8, 7, 6, 5, 4]);
        assert!(mark.set(MarkState::Unsettled));
        assert_eq!(mark.state(), MarkState::Unsettled);
        assert!(mark.set(MarkState::Clean));
        assert_eq!(mark.as_bytes(), [1, 0, 9, 8, 7, 6, 5, 4]);
    }

    #[test]
    fn what_is_damaged_or_of_another_version_is_unclean_and_stays_so() {
        for bytes in [&[][..], &[1], &[1, 0], &[2, 0, 0, 0, 0, 0, 0, 0], &[1; 9], &[0; 8]] {
            let mut mark = Mark::from_bytes(bytes);
            assert_eq!(mark.state(), MarkState::Unclean, "{bytes:?}");
            assert!(!mark.set(MarkState::Clean));
            mark.set(MarkState::Unclean);
            assert_eq!(mark.as_bytes().len(), bytes.len());
            assert_ne!(mark.as_bytes().get(1), Some(&0));
        }
        assert_eq!(Mark::from_bytes([1, 77, 0, 0, 0, 0, 0, 0]).state(), MarkState::Unclean);
    }
}
