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
/// Where the session stands: the rest of the data, in which programs that did not know it kept what they found.
const SESSION_AT: usize = 2;

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

/// The number of a session: of one opening of an image, from its first change to its close. It ties a redo log to the image
/// that it is of (`meta::redo`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Session(u64);

impl Session {
    /// The session that a random number makes; 48 bits of it count.
    pub fn of(number: u64) -> Self {
        Self((number & Self::MAX).max(1))
    }

    /// The session of this number, if it is one.
    pub fn from_number(number: u64) -> Option<Self> {
        (1..=Self::MAX).contains(&number).then_some(Self(number))
    }

    /// Its number, which is not zero.
    pub fn number(self) -> u64 {
        self.0
    }

    const MAX: u64 = (1 << 48) - 1;
}

/// The extension's data, kept byte for byte but for the state and the session.
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

    /// The session that changed the image last, where it is known.
    pub fn session(&self) -> Option<Session> {
        let mut word = [0; 8];
        word[SESSION_AT..].copy_from_slice(self.0.get(SESSION_AT..).filter(|_| self.is_legible())?);
        Session::from_number(u64::from_be_bytes(word))
    }

    /// Notes which session changes the image, or that nobody knows; nothing in an illegible mark.
    pub fn set_session(&mut self, session: Option<Session>) {
        if self.is_legible() {
            let number = session.map_or(0, Session::number).to_be_bytes();
            self.0[SESSION_AT..].copy_from_slice(&number[SESSION_AT..]);
        }
    }

    /// The bytes that a change writes, at the start of the data.
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
    fn a_session_is_told_and_set_beside_the_state() {
        let mut mark = Mark::new(MarkState::Unclean);
        assert_eq!(mark.session(), None, "as in all marks of those who did not know it");
        let session = Session::of(0xfedc_ba98_7654_3210);
        mark.set_session(Some(session));
        assert_eq!(mark.session(), Some(session));
        assert_eq!(mark.as_bytes(), [1, 1, 0xba, 0x98, 0x76, 0x54, 0x32, 0x10]);
        assert!(mark.set(MarkState::Clean));
        assert_eq!((mark.state(), mark.session()), (MarkState::Clean, Some(session)));
        mark.set_session(None);
        assert_eq!(mark, Mark::new(MarkState::Clean));
        let mut later = Mark::from_bytes([2, 1, 1, 1, 1, 1, 1, 1]);
        later.set_session(None);
        assert_eq!((later.session(), later.as_bytes()), (None, &[2, 1, 1, 1, 1, 1, 1, 1][..]));
        assert_eq!(Session::of(0).number(), 1, "there is always one");
        assert_eq!([0, 1 << 48].map(Session::from_number), [None, None]);
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
