//! Which internal snapshot is meant, and how a new one is numbered.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::unix::ffi::OsStrExt;

use crate::format::snapshot::{SnapshotEntry, as_shown};

/// What names an internal snapshot. Neither ids nor names have to be unique: the first that fits is meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SnapshotChoice {
    /// The one with this id or, where there is none, with this name.
    IdOrName(OsString),
    /// The one with this id.
    Id(OsString),
    /// The one with this name.
    Name(OsString),
    /// The one with this id and this name.
    IdAndName(OsString, OsString),
}

impl fmt::Display for SnapshotChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::IdOrName(either) => write!(f, "id or name '{}'", either.display()),
            Self::Id(id) => write!(f, "id '{}'", id.display()),
            Self::Name(name) => write!(f, "name '{}'", name.display()),
            Self::IdAndName(id, name) => {
                write!(f, "id '{}' and name '{}'", id.display(), name.display())
            }
        }
    }
}

impl SnapshotChoice {
    /// The place of the snapshot that is meant.
    pub fn find(&self, snapshots: &[SnapshotEntry]) -> Option<usize> {
        let has_id = |id: &OsStr| snapshots.iter().position(|s| as_shown(&s.id) == as_shown(id));
        let has_name =
            |name: &OsStr| snapshots.iter().position(|s| as_shown(&s.name) == as_shown(name));
        match self {
            Self::IdOrName(either) => has_id(either).or_else(|| has_name(either)),
            Self::Id(id) => has_id(id),
            Self::Name(name) => has_name(name),
            Self::IdAndName(id, name) => {
                let is = |s: &SnapshotEntry| {
                    (as_shown(&s.id), as_shown(&s.name)) == (as_shown(id), as_shown(name))
                };
                snapshots.iter().position(is)
            }
        }
    }
}

/// The id of the next snapshot, as QEMU counts: one more than the largest number that an id begins with.
pub fn next_id(snapshots: &[SnapshotEntry]) -> OsString {
    let largest = snapshots.iter().map(|s| leading_number(as_shown(&s.id).as_bytes())).max();
    largest.unwrap_or(0).wrapping_add(1).to_string().into()
}

/// The number at the start of `text` as C reads it: after white space, perhaps with a sign, and the largest one where it
/// is too large.
fn leading_number(text: &[u8]) -> u64 {
    let text = text.trim_ascii_start();
    let negative = text.starts_with(b"-");
    let digits = text.strip_prefix(b"-").or_else(|| text.strip_prefix(b"+")).unwrap_or(text);
    let digits = digits.iter().take_while(|byte| byte.is_ascii_digit());
    let number = digits.map(|byte| u64::from(byte - b'0')).try_fold(0_u64, |number, digit| {
        number.checked_mul(10).and_then(|number| number.checked_add(digit))
    });
    match number {
        None => u64::MAX,
        Some(number) if negative => number.wrapping_neg(),
        Some(number) => number,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::HostOffset;

    fn snapshot(id: &str, name: &str) -> SnapshotEntry {
        SnapshotEntry {
            l1_table_offset: HostOffset::new(0),
            l1_size: 0,
            id: id.into(),
            name: name.into(),
            date_seconds: 0,
            date_nanoseconds: 0,
            vm_clock_nanoseconds: 0,
            vm_state_size: 0,
            disk_size: 0,
            icount: None,
            unknown_extra: Vec::new(),
        }
    }

    #[test]
    fn an_id_comes_before_a_name_and_the_first_before_the_second() {
        let table =
            [snapshot("1", "2"), snapshot("2", "a"), snapshot("3", "a"), snapshot("3", "b")];
        let find = |choice: SnapshotChoice| choice.find(&table);
        assert_eq!(find(SnapshotChoice::IdOrName("2".into())), Some(1));
        assert_eq!(find(SnapshotChoice::IdOrName("a".into())), Some(1));
        assert_eq!(find(SnapshotChoice::Name("2".into())), Some(0));
        assert_eq!(find(SnapshotChoice::Id("3".into())), Some(2));
        assert_eq!(find(SnapshotChoice::IdAndName("3".into(), "b".into())), Some(3));
        assert_eq!(find(SnapshotChoice::IdAndName("2".into(), "b".into())), None);
        assert_eq!(find(SnapshotChoice::IdOrName("".into())), None);
    }

    #[test]
    fn ids_are_numbered_as_c_reads_numbers() {
        let next =
            |ids: &[&str]| next_id(&ids.iter().map(|id| snapshot(id, "")).collect::<Vec<_>>());
        for (ids, expected) in [
            (&[][..], "1"),
            (&["1", "7", "3"], "8"),
            (&[" +12x", "abc", ""], "13"),
            (&["-1"], "0"),
            (&["99999999999999999999"], "0"),
            (&["4\09"], "5"),
        ] {
            assert_eq!(next(ids), expected, "{ids:?}");
        }
    }
}
