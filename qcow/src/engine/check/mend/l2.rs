//! What becomes of an L2 entry that breaks a rule.

use super::super::loose::{Claim, L2Format, LooseL2, SUBCLUSTERS_ALLOCATED};
use crate::format::entry::{COPIED, L2_RESERVED, ZERO};

/// What entries are judged by.
#[derive(Clone, Copy)]
pub(super) struct L2Repair {
    pub(super) format: L2Format,
    pub(super) version2: bool,
    /// Bytes.
    pub(super) file_len: u64,
}

/// What becomes of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It stays.
    Sound,
    /// It becomes another one, which reads as the old one does wherever that can be read.
    Becomes(LooseL2),
    /// Its data cannot be anywhere.
    Lost,
}

impl L2Repair {
    pub(super) fn judge(self, entry: LooseL2) -> Verdict {
        let cleaned = self.without_reserved_bits(entry);
        match self.judge_place(cleaned) {
            Verdict::Sound if cleaned != entry => Verdict::Becomes(cleaned),
            verdict => verdict,
        }
    }

    fn without_reserved_bits(self, mut entry: LooseL2) -> LooseL2 {
        if entry.is_compressed() {
            entry.word &= !COPIED;
            entry.bitmap = 0;
            return entry;
        }
        entry.word &= !L2_RESERVED;
        if self.version2 || self.format.extended {
            entry.word &= !ZERO;
        }
        entry
    }

    fn judge_place(self, entry: LooseL2) -> Verdict {
        let geometry = self.format.geometry;
        match entry.claim(self.format) {
            Claim::Nothing if self.format.extended && entry.bitmap & SUBCLUSTERS_ALLOCATED != 0 => {
                Verdict::Becomes(entry.as_zeros(self.format))
            }
            Claim::Nothing => Verdict::Sound,
            Claim::Compressed { offset, len } => {
                match self.format.data_file || self.is_past_end(offset.saturating_add(len)) {
                    true => Verdict::Lost,
                    false => Verdict::Sound,
                }
            }
            Claim::Cluster { offset, .. } => {
                let end = offset.saturating_add(geometry.cluster_size());
                let is_outside = !self.format.data_file && self.is_past_end(end);
                if is_outside || !geometry.is_cluster_aligned(offset) {
                    return Verdict::Lost;
                }
                match entry.subclusters_contradict() {
                    true => Verdict::Becomes(entry.without_contradiction()),
                    false => Verdict::Sound,
                }
            }
        }
    }

    fn is_past_end(self, end: u64) -> bool {
        end.saturating_sub(self.file_len) >= self.format.geometry.cluster_size()
    }
}

impl LooseL2 {
    pub(super) const UNALLOCATED: Self = Self { word: 0, bitmap: 0 };

    /// An entry of version 3 without a place, of which all that was allocated reads as zeros.
    pub(super) fn as_zeros(self, format: L2Format) -> Self {
        if !format.extended {
            return Self { word: ZERO, bitmap: 0 };
        }
        let bitmap = match self.is_compressed() {
            true => u64::MAX << 32,
            false => (self.bitmap | self.bitmap << 32) & u64::MAX << 32,
        };
        Self { word: 0, bitmap }
    }

    /// The entry with those subclusters reading as zeros of which it said two things.
    fn without_contradiction(self) -> Self {
        Self { bitmap: self.bitmap & !(self.bitmap >> 32), ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::Geometry;

    const COMPRESSED: u64 = 1 << 62;

    fn repair() -> L2Repair {
        let geometry = Geometry::new(16, 4);
        let format = L2Format { geometry, extended: false, data_file: false };
        L2Repair { format, version2: false, file_len: 0x100_0000 }
    }

    fn plain(word: u64) -> LooseL2 {
        LooseL2 { word, bitmap: 0 }
    }

    #[test]
    fn what_can_be_read_stays_what_it_is() {
        let repair = repair();
        for word in [0, 1, COPIED | 0x5_0000, 0x5_0001, 0xff_0000, COMPRESSED | 0x5_0123] {
            assert_eq!(repair.judge(plain(word)), Verdict::Sound, "{word:#x}");
        }
        let becomes = |old, new| {
            assert_eq!(repair.judge(plain(old)), Verdict::Becomes(plain(new)), "{old:#x}");
        };
        becomes(0x2100_0000_0005_0008, 0x5_0000);
        becomes(COMPRESSED | COPIED | 0x5_0123, COMPRESSED | 0x5_0123);
    }

    #[test]
    fn what_cannot_be_anywhere_is_lost() {
        let repair = repair();
        for word in [0x5_0200, COPIED | 0x5_0200, 0x5_0201, 0x101_0000, COMPRESSED | 0x200_0000] {
            assert_eq!(repair.judge(plain(word)), Verdict::Lost, "{word:#x}");
        }
        let external = L2Repair { format: L2Format { data_file: true, ..repair.format }, ..repair };
        assert_eq!(external.judge(plain(COMPRESSED | 0x5_0000)), Verdict::Lost);
        assert_eq!(external.judge(plain(COPIED | 0x1000_0000)), Verdict::Sound);
    }

    #[test]
    fn subclusters_that_are_allocated_nowhere_become_zeros() {
        let repair = repair();
        let repair = L2Repair { format: L2Format { extended: true, ..repair.format }, ..repair };
        let judge = |word, bitmap| repair.judge(LooseL2 { word, bitmap });
        let becomes = |word, bitmap| Verdict::Becomes(LooseL2 { word, bitmap });
        assert_eq!(judge(COPIED | 0x5_0000, 0x2_0000_0001), Verdict::Sound);
        assert_eq!(judge(0x5_0000, 0x3_0000_0005), becomes(0x5_0000, 0x3_0000_0004));
        assert_eq!(judge(0, 0x1_0000_0004), becomes(0, 0x5_0000_0000));
        assert_eq!(judge(COMPRESSED | 0x5_0000, 7), becomes(COMPRESSED | 0x5_0000, 0));
        assert_eq!(plain(COMPRESSED | 0x5_0000).as_zeros(repair.format).bitmap, u64::MAX << 32);
    }
}
