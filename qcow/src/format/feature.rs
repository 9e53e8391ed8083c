//! The three feature words of a version 3 header, and the feature name table.
//!
//! A reader must refuse an image with unknown incompatible bits, may ignore unknown compatible bits, and must clear
//! unknown autoclear bits before it first writes. The name table is there so that a refusal can name bits that the
//! reader does not know.

use super::bytes::until_nul;

macro_rules! feature_word {
    ($(#[$doc:meta])* $name:ident { $($(#[$bit_doc:meta])* $bit:ident = $number:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct $name(pub u64);

        impl $name {
            $($(#[$bit_doc])* pub const $bit: Self = Self(1 << $number);)*

            /// All bits that the specification defines.
            const KNOWN: u64 = 0 $(| 1 << $number)*;

            /// Whether all bits of `other` are set.
            pub const fn contains(self, other: Self) -> bool {
                self.0 & other.0 == other.0
            }

            /// These bits and those of `other`.
            #[must_use]
            pub const fn with(self, other: Self) -> Self {
                Self(self.0 | other.0)
            }

            /// These bits without those of `other`.
            #[must_use]
            pub const fn without(self, other: Self) -> Self {
                Self(self.0 & !other.0)
            }

            /// The bits among these that the specification does not define.
            #[must_use]
            pub const fn unknown(self) -> Self {
                Self(self.0 & !Self::KNOWN)
            }

            /// Whether no bit is set.
            pub const fn is_empty(self) -> bool {
                self.0 == 0
            }
        }
    };
}

feature_word!(
    /// Features without which the image cannot be read rightly.
    Incompatible {
        /// Refcounts may be out of date: whoever opens the image to write must repair them first.
        DIRTY = 0,
        /// Metadata is known to be broken: the image may be opened to read, or to be repaired.
        CORRUPT = 1,
        /// Guest data lies in a file of its own.
        EXTERNAL_DATA = 2,
        /// The compression type is not deflate.
        COMPRESSION_TYPE = 3,
        /// L2 entries are 16 bytes wide and describe 32 subclusters each.
        EXTENDED_L2 = 4,
    }
);

feature_word!(
    /// Features that a reader may ignore.
    Compatible {
        /// Refcount updates may be postponed while the dirty bit is set.
        LAZY_REFCOUNTS = 0,
    }
);

feature_word!(
    /// Statements that hold only as long as every writer knows them.
    Autoclear {
        /// The bitmaps extension agrees with the image.
        BITMAPS = 0,
        /// The external data file always equals the guest's view.
        RAW_EXTERNAL_DATA = 1,
    }
);

/// Which feature word an entry of the name table speaks of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FeatureKind {
    /// The incompatible features; on disk 0.
    Incompatible = 0,
    /// The compatible features; on disk 1.
    Compatible = 1,
    /// The autoclear features; on disk 2.
    Autoclear = 2,
}

/// Bytes of one record of the name table: kind, bit, and a name padded with zeros.
const RECORD_BYTES: usize = 48;

/// The records that QEMU 10 writes, in its order.
const STANDARD: [(FeatureKind, u8, &str); 8] = [
    (FeatureKind::Incompatible, 0, "dirty bit"),
    (FeatureKind::Incompatible, 1, "corrupt bit"),
    (FeatureKind::Incompatible, 2, "external data file"),
    (FeatureKind::Incompatible, 3, "compression type"),
    (FeatureKind::Incompatible, 4, "extended L2 entries"),
    (FeatureKind::Compatible, 0, "lazy refcounts"),
    (FeatureKind::Autoclear, 0, "bitmaps"),
    (FeatureKind::Autoclear, 1, "raw external data"),
];

/// The feature name table of an image, kept byte for byte.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FeatureNames(Vec<u8>);

impl FeatureNames {
    /// The table of a new version 3 image, or `None` where QEMU leaves it out too: in clusters below 8 KiB the rest of
    /// the header cluster is worth more to a backing file name.
    pub fn for_new_image(cluster_bits: u32) -> Option<Self> {
        (cluster_bits >= 13).then(Self::standard)
    }

    /// The eight features that the specification defines.
    pub fn standard() -> Self {
        let mut bytes = Vec::with_capacity(STANDARD.len() * RECORD_BYTES);
        for (kind, bit, name) in STANDARD {
            let end = bytes.len() + RECORD_BYTES;
            bytes.extend_from_slice(&[kind as u8, bit]);
            bytes.extend_from_slice(name.as_bytes());
            bytes.resize(end, 0);
        }
        Self(bytes)
    }

    /// The table that these extension bytes hold; anything is a table, if perhaps one without a legible record.
    pub fn from_bytes(bytes: impl Into<Vec<u8>>) -> Self {
        Self(bytes.into())
    }

    /// The extension bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The name of a feature bit, fit for a terminal.
    pub fn name_of(&self, kind: FeatureKind, bit: u32) -> Option<String> {
        self.records().find(|r| r.0 == kind as u8 && u32::from(r.1) == bit).map(|r| printable(r.2))
    }

    /// Kind, bit and name of each record, up to the first one without a name. The last one may be cut short.
    fn records(&self) -> impl Iterator<Item = (u8, u8, &[u8])> {
        let named = |record: &&[u8]| record.get(2).is_some_and(|&byte| byte != 0);
        self.0.chunks(RECORD_BYTES).take_while(named).map(|r| (r[0], r[1], until_nul(&r[2..])))
    }
}

/// Says which of the unknown incompatible bits stand in the way, by name where `names` has one.
pub(super) fn unsupported_message(unknown: Incompatible, names: Option<&FeatureNames>) -> String {
    let mut said = Vec::new();
    let mut nameless = 0_u64;
    for bit in (0..u64::BITS).filter(|bit| unknown.0 >> bit & 1 == 1) {
        match names.and_then(|names| names.name_of(FeatureKind::Incompatible, bit)) {
            Some(name) => said.push(name),
            None => nameless |= 1 << bit,
        }
    }
    if nameless != 0 {
        said.push(format!("Unknown incompatible feature: {nameless:x}"));
    }
    format!("Unsupported qcow2 feature(s): {}", said.join(", "))
}

/// Text of an image without the control characters that would reach into a terminal.
fn printable(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_bits_are_told_from_known_ones() {
        let word = Incompatible(1 << 63).with(Incompatible::DIRTY);
        assert!(word.contains(Incompatible::DIRTY) && !word.contains(Incompatible::CORRUPT));
        assert_eq!(word.unknown(), Incompatible(1 << 63));
        assert!(word.without(Incompatible::DIRTY).without(Incompatible(1 << 63)).is_empty());
        assert_eq!(Compatible(3).unknown(), Compatible(2));
        assert_eq!(Autoclear(7).unknown(), Autoclear(4));
    }

    #[test]
    fn the_last_record_may_be_cut_short() {
        let names = FeatureNames::from_bytes(*b"\0\x3fTest feature");
        assert_eq!(
            unsupported_message(Incompatible(1 << 63), Some(&names)),
            "Unsupported qcow2 feature(s): Test feature"
        );
        assert_eq!(
            FeatureNames::from_bytes(*b"\0\x3f").name_of(FeatureKind::Incompatible, 63),
            None
        );
    }

    #[test]
    fn a_refusal_names_what_the_table_names() {
        let mut bytes = FeatureNames::standard().as_bytes().to_vec();
        let mut record = vec![0, 5];
        record.extend_from_slice(b"time \x1b travel");
        record.resize(RECORD_BYTES, 0);
        bytes.extend_from_slice(&record);
        let names = FeatureNames::from_bytes(bytes);
        assert_eq!(
            unsupported_message(Incompatible(0x60), Some(&names)),
            "Unsupported qcow2 feature(s): time ? travel, Unknown incompatible feature: 40"
        );
        assert_eq!(
            unsupported_message(Incompatible(0x20), None),
            "Unsupported qcow2 feature(s): Unknown incompatible feature: 20"
        );
    }

    #[test]
    fn standard_names_are_found_by_kind_and_bit() {
        let names = FeatureNames::standard();
        assert_eq!(names.as_bytes().len(), 384);
        assert_eq!(names.name_of(FeatureKind::Autoclear, 0).unwrap(), "bitmaps");
        assert_eq!(names.name_of(FeatureKind::Compatible, 1), None);
    }

    proptest::proptest! {
        #[test]
        fn no_table_panics(bytes: Vec<u8>, bit in 0_u32..64) {
            FeatureNames::from_bytes(bytes).name_of(FeatureKind::Incompatible, bit);
        }
    }
}
