//! What an authenticated image says beside its disk: which image lies below it, and its snapshots.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use super::entry::{ENTRY_LEN, Entry, check_len_of};
use super::root::{LEVELS_MAX, Root};
use super::{Generation, check_disk_size};
use crate::addr::{HostBlock, HostOffset};
use crate::error::{Error, Result};
use crate::format::bytes::Reader;
use crate::format::snapshot::SnapshotEntry;
use crate::limits::{
    BACKING_FORMAT_BYTES_MAX, BACKING_NAME_BYTES_MAX, SECTOR_BYTES, SNAPSHOT_COUNT_MAX,
};

/// Which layout this is.
const VERSION: u8 = 1;

/// All details.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Details {
    /// Name of the backing file, and its format.
    pub backing: Option<(OsString, Option<String>)>,
    /// Snapshots, in the order in which they came.
    pub snapshots: Vec<SealedSnapshot>,
}

/// An internal snapshot: an earlier state of the tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SealedSnapshot {
    /// What is told of it; its L1 table is none.
    pub entry: SnapshotEntry,
    /// The top node it had.
    pub top: Entry,
    /// Levels of nodes.
    pub levels: u8,
    /// The root that led to it first.
    pub generation: Generation,
}

impl Details {
    /// Whether there is nothing to say.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// The bytes of the details.
    ///
    /// # Errors
    /// A name is too long, or there are too many snapshots.
    pub fn encode(&self) -> Result<Vec<u8>> {
        let mut out = vec![VERSION, u8::from(self.backing.is_some())];
        if let Some((name, format)) = &self.backing {
            if name.len() > BACKING_NAME_BYTES_MAX as usize {
                return Err(Error::invalid("the backing file's name is too long"));
            }
            put_text(&mut out, name, "the backing file's name")?;
            let format = format.as_deref().unwrap_or_default();
            if format.len() > BACKING_FORMAT_BYTES_MAX {
                return Err(Error::invalid("the backing file's format is too long"));
            }
            put_text(&mut out, OsStr::new(format), "the backing file's format")?;
        }
        if self.snapshots.len() > SNAPSHOT_COUNT_MAX as usize {
            return Err(Error::limit(format!("more than {SNAPSHOT_COUNT_MAX} snapshots")));
        }
        out.extend_from_slice(&(self.snapshots.len() as u32).to_be_bytes());
        for snapshot in &self.snapshots {
            snapshot.encode(&mut out)?;
        }
        Ok(out)
    }

    /// The details in `bytes`, of an image with such clusters, of which entries may name the blocks below `end`.
    ///
    /// # Errors
    /// They are no details, or an entry names what it must not.
    pub fn parse(bytes: &[u8], cluster_len: u64, end: HostBlock) -> Result<Self> {
        let mut reader = Reader::new(bytes);
        let found = Self::read(&mut reader, cluster_len, end)
            .ok_or_else(|| Error::corrupt("the details of the image are cut short"))??;
        match reader.remaining() {
            0 => Ok(found),
            rest => Err(Error::corrupt(format!("{rest} bytes behind the details of the image"))),
        }
    }

    fn read(reader: &mut Reader<'_>, cluster_len: u64, end: HostBlock) -> Option<Result<Self>> {
        let version = reader.u8()?;
        if version != VERSION {
            let what = format!("details of version {version}, of which only {VERSION} is known");
            return Some(Err(Error::unsupported(what)));
        }
        let backing = match reader.u8()? {
            0 => None,
            _ => {
                let (name, format) = (text(reader)?, text(reader)?);
                let format = format.into_string().ok()?;
                Some((name, Some(format).filter(|format| !format.is_empty())))
            }
        };
        let count = reader.u32()?;
        if count > SNAPSHOT_COUNT_MAX {
            return Some(Err(Error::limit(format!("{count} snapshots"))));
        }
        let mut snapshots = Vec::new();
        for _ in 0..count {
            match SealedSnapshot::read(reader, cluster_len, end)? {
                Ok(snapshot) => snapshots.push(snapshot),
                Err(e) => return Some(Err(e)),
            }
        }
        Some(Ok(Self { backing, snapshots }))
    }
}

impl SealedSnapshot {
    fn encode(&self, out: &mut Vec<u8>) -> Result<()> {
        let mut top = [0; ENTRY_LEN];
        self.top.encode(&mut top);
        out.extend_from_slice(&top);
        out.extend_from_slice(&self.generation.to_be_bytes());
        out.push(self.levels);
        let entry = &self.entry;
        out.extend_from_slice(&entry.disk_size.to_be_bytes());
        out.extend_from_slice(&entry.date_seconds.to_be_bytes());
        out.extend_from_slice(&entry.date_nanoseconds.to_be_bytes());
        out.extend_from_slice(&entry.vm_clock_nanoseconds.to_be_bytes());
        out.extend_from_slice(&entry.icount.unwrap_or(u64::MAX).to_be_bytes());
        put_text(out, &entry.id, "the snapshot's id")?;
        put_text(out, &entry.name, "the snapshot's name")
    }

    fn read(reader: &mut Reader<'_>, cluster_len: u64, end: HostBlock) -> Option<Result<Self>> {
        let top = Entry::parse(reader.take(ENTRY_LEN)?.try_into().ok()?, end);
        let (generation, levels) = (reader.u64()?, reader.u8()?);
        let disk_size = reader.u64()?;
        let (date_seconds, date_nanoseconds) = (reader.u32()?, reader.u32()?);
        let vm_clock_nanoseconds = reader.u64()?;
        let icount = Some(reader.u64()?).filter(|count| *count != u64::MAX);
        let (id, name) = (text(reader)?, text(reader)?);
        let entry = SnapshotEntry {
            l1_table_offset: HostOffset::new(0),
            l1_size: 0,
            id,
            name,
            date_seconds,
            date_nanoseconds,
            vm_clock_nanoseconds,
            vm_state_size: 0,
            disk_size,
            icount,
            unknown_extra: Vec::new(),
        };
        Some(top.and_then(|top| {
            let reach = Root::reach(levels).unwrap_or(u64::MAX);
            let covered = disk_size.div_ceil(cluster_len) <= reach;
            if !(1..=LEVELS_MAX).contains(&levels) || !covered || disk_size % SECTOR_BYTES != 0 {
                let what = format!("a snapshot of {disk_size} bytes with {levels} levels");
                return Err(Error::corrupt(what));
            }
            check_disk_size(disk_size)?;
            check_len_of(&top, levels, cluster_len)?;
            Ok(Self { entry, top, levels, generation })
        }))
    }
}

fn put_text(out: &mut Vec<u8>, text: &OsStr, what: &str) -> Result<()> {
    let len =
        u16::try_from(text.len()).map_err(|_| Error::invalid(format!("{what} is too long")))?;
    out.extend_from_slice(&len.to_be_bytes());
    out.extend_from_slice(text.as_bytes());
    Ok(())
}

fn text(reader: &mut Reader<'_>) -> Option<OsString> {
    let len = reader.u16()?;
    Some(OsString::from_vec(reader.take(len.into())?.to_vec()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypt::seal::Seal;
    use crate::format::sealed::entry::Stored;

    fn details() -> Details {
        let stored = Stored {
            place: HostBlock::new(9),
            len: 4096,
            compressed: false,
            born: 3,
            seal: Seal::default(),
        };
        let entry = SnapshotEntry {
            l1_table_offset: HostOffset::new(0),
            l1_size: 0,
            id: "1".into(),
            name: "before".into(),
            date_seconds: 5,
            date_nanoseconds: 6,
            vm_clock_nanoseconds: 7,
            vm_state_size: 0,
            disk_size: 1 << 20,
            icount: Some(0),
            unknown_extra: Vec::new(),
        };
        let snapshot =
            SealedSnapshot { entry, top: Entry::Stored(stored), levels: 2, generation: 8 };
        let backing = Some(("base.img".into(), Some("raw".into())));
        Details { backing, snapshots: vec![snapshot] }
    }

    #[test]
    fn details_come_back_as_they_were() {
        for details in [Details::default(), details()] {
            let bytes = details.encode().unwrap();
            let parse = |bytes: &[u8]| Details::parse(bytes, 16384, HostBlock::new(10));
            assert_eq!(parse(&bytes).unwrap(), details);
            for len in 0..bytes.len() {
                assert!(parse(&bytes[..len]).is_err(), "cut to {len} bytes");
            }
            assert!(parse(&[&bytes[..], &[0]].concat()).is_err(), "one byte more");
        }
    }

    #[test]
    fn snapshots_stay_inside_the_file_and_below_their_nodes() {
        let parse = |details: &Details| {
            Details::parse(&details.encode().unwrap(), 4096, HostBlock::new(10)).is_ok()
        };
        assert!(parse(&details()));
        let mut large = details();
        large.snapshots[0].entry.disk_size = (1 << 24) + 512;
        assert!(!parse(&large));
        let mut odd = details();
        odd.snapshots[0].levels = 0;
        assert!(!parse(&odd));
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_panic(mut bytes: Vec<u8>) {
            let _ = Details::parse(&bytes, 4096, HostBlock::new(100));
            if let Some(first) = bytes.first_mut() {
                *first = VERSION;
                let _ = Details::parse(&bytes, 4096, HostBlock::new(100));
            }
        }
    }
}
