//! The redo log: the changes of mappings that no flush has written yet, in memory that outlives the process.
//!
//! A change of the disk that is acknowledged has its data in the file, which is the page cache at least, but its L2 entry is
//! only in memory until a flush: the order on disk demands that. Whoever kills the process takes the entry away. So each
//! change of an L2 entry is also noted here, before anybody hears of it, and the next process carries it out again
//! (`engine::redo`). The log does not survive the host, and need not: a power cut may take what was not flushed.
//!
//! ```text
//! word 0   magic and version of all this                         0: nothing has been here
//!      1   session of the image that the records are of          0: the records mean nothing
//!      2   how many records there is room for
//!      3   head: number of the first record that no flush has written
//!      4   tail: number of the record that comes next
//!      5-7 0
//!      8   room for the records, three words each: number n is in place n modulo the room
//!             guest cluster (bits 0-47), how many from there on (bits 48-63)
//!             first word of the L2 entry of the first one; the place it names, if any, goes up cluster by cluster
//!             second word of all these entries: the subclusters, with extended entries
//! ```
//!
//! What it rests on:
//!
//! * **A record is whole or not there.** Its words are stored before the tail, which is one word. Stores that a process has
//!   made stay in shared memory when it is killed, in their order.
//! * **A record is there before the acknowledgement.** It is made under the lock under which the mapping changes in memory.
//!   Where there is no room, the clusters stay held until a flush has written their entries
//!   ([`Meta::is_redo_lacking`]), so nobody can build on them before; and a compressed write is always one of those.
//! * **The last record of a cluster is its mapping**, or it is an older one whose successor has not been acknowledged. The
//!   head passes a record only when the flush has ended that captured the table after it was made, and never one record
//!   without all before it.
//! * **What a record names is still there.** A cluster that is unlinked is freed after the flush that carries the unlink,
//!   which also drops all records that name it ([`super::order`]).
//! * **Where the host may have lost what was written, the log is void**: its session becomes 0 when a flush fails.
//!
//! Nothing in the memory is trusted when it is read ([`Contents::read`]), and while the log is written nothing is read back.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::Meta;
use crate::addr::{Geometry, GuestCluster};
use crate::error::{Error, Result};
use crate::format::entry::{Mapping, OFFSET_MASK};
use crate::format::mark::Session;
use crate::limits::REDO_CLUSTERS_MAX;
use crate::seeded_bugs::Bug;

pub mod replay;

/// "qcowred" and the version of the layout.
const MAGIC: u64 = u64::from_be_bytes(*b"qcowred\x01");
const MAGIC_AT: usize = 0;
const SESSION_AT: usize = 1;
const ROOM_AT: usize = 2;
const HEAD_AT: usize = 3;
const TAIL_AT: usize = 4;
const HEADER_WORDS: usize = 8;
const RECORD_WORDS: usize = 3;
/// Where in a record's first word the number of clusters begins.
const COUNT_SHIFT: u32 = 48;
const COUNT_MAX: u64 = u64::MAX >> COUNT_SHIFT;

/// Memory that a process shares with somebody who keeps it.
///
/// Others may change it at any time; that harms nobody but the log.
pub trait SharedWords: Debug + Send + Sync {
    /// The memory, as words.
    fn words(&self) -> &[AtomicU64];
}

impl SharedWords for Box<[AtomicU64]> {
    fn words(&self) -> &[AtomicU64] {
        self
    }
}

/// Words that a log with room for `records` takes.
pub const fn words_for(records: u64) -> u64 {
    HEADER_WORDS as u64 + RECORD_WORDS as u64 * records
}

/// Records that there is room for in so many words.
fn room_in(words: &[AtomicU64]) -> Result<u64> {
    match words.len().saturating_sub(HEADER_WORDS) / RECORD_WORDS {
        0 => Err(Error::invalid(format!("{} words hold no redo log", words.len()))),
        room => Ok(room as u64),
    }
}

/// Consecutive guest clusters and their entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Record {
    first: GuestCluster,
    count: u64,
    /// The entry of the first cluster.
    entry: [u64; 2],
}

impl Record {
    /// The entry of the cluster `index` places after the first; `None` where its place would be no host offset.
    fn entry_at(&self, geometry: Geometry, index: u64) -> Option<[u64; 2]> {
        let [word, bitmap] = self.entry;
        if word & OFFSET_MASK == 0 {
            return Some(self.entry);
        }
        let next = word.checked_add(index.checked_mul(geometry.cluster_size())?)?;
        (next & !OFFSET_MASK == word & !OFFSET_MASK).then_some([next, bitmap])
    }

    /// Takes in the cluster behind the last one, if its entry goes on like theirs.
    fn extend(&mut self, geometry: Geometry, guest: GuestCluster, entry: [u64; 2]) -> bool {
        let follows = self.count < COUNT_MAX
            && self.first.plus(self.count) == guest
            && self.entry_at(geometry, self.count) == Some(entry);
        self.count += u64::from(follows);
        follows
    }

    fn words(&self) -> [u64; RECORD_WORDS] {
        let [word, bitmap] = self.entry;
        [self.first.get() | self.count << COUNT_SHIFT, word, bitmap]
    }

    fn from_words([place, word, bitmap]: [u64; RECORD_WORDS]) -> Self {
        let first = GuestCluster::new(place & ((1 << COUNT_SHIFT) - 1));
        Self { first, count: place >> COUNT_SHIFT, entry: [word, bitmap] }
    }
}

/// What is found in a log's memory.
#[derive(Debug, Default)]
pub struct Contents {
    session: Option<Session>,
    records: Vec<Record>,
}

impl Contents {
    /// Reads all records, once: what somebody changes later is not seen.
    ///
    /// # Errors
    /// The memory is too small (`Invalid`), or holds no log (`Corrupt`).
    pub fn read(memory: &dyn SharedWords) -> Result<Self> {
        let words = memory.words();
        let room = room_in(words)?;
        let word = |at: usize| words[at].load(Ordering::Acquire);
        if word(MAGIC_AT) == 0 || word(SESSION_AT) == 0 {
            return Ok(Self::default());
        }
        let damaged = |what: &str| Error::corrupt(format!("a damaged redo log: {what}"));
        if word(MAGIC_AT) != MAGIC {
            return Err(damaged("its first word is another one"));
        }
        if word(ROOM_AT) != room {
            return Err(damaged("it was made for memory of another size"));
        }
        let (tail, head) = (word(TAIL_AT), word(HEAD_AT));
        if tail.checked_sub(head).is_none_or(|count| count > room) {
            return Err(damaged("it has more records than there is room for"));
        }
        let session = Session::from_number(word(SESSION_AT));
        let session = session.ok_or_else(|| damaged("its session is no number of one"))?;
        let mut contents = Self { session: Some(session), records: Vec::new() };
        let mut clusters = 0;
        for number in head..tail {
            let at = place_of(number, room);
            let record = Record::from_words([0, 1, 2].map(|i| word(at + i)));
            clusters += record.count;
            if record.count == 0 || clusters > REDO_CLUSTERS_MAX {
                return Err(damaged("a record stands for no clusters, or for too many"));
            }
            contents.records.push(record);
        }
        Ok(contents)
    }

    /// The session that the records are of; `None` where there are none.
    pub fn session(&self) -> Option<Session> {
        self.session.filter(|_| !self.records.is_empty())
    }

    /// The last entry of each cluster.
    ///
    /// # Errors
    /// A record names what is no host offset.
    pub fn last_entries(&self, geometry: Geometry) -> Result<BTreeMap<GuestCluster, [u64; 2]>> {
        let mut last = BTreeMap::new();
        for record in &self.records {
            for index in 0..record.count {
                let entry = record.entry_at(geometry, index);
                let entry = entry.ok_or_else(|| {
                    Error::corrupt("a damaged redo log: a record reaches past all host offsets")
                })?;
                last.insert(record.first.plus(index), entry);
            }
        }
        Ok(last)
    }
}

/// The index of the first word of a record.
fn place_of(number: u64, room: u64) -> usize {
    HEADER_WORDS + (number % room) as usize * RECORD_WORDS
}

/// A log that is being written.
#[derive(Debug)]
pub struct Redo {
    memory: Arc<dyn SharedWords>,
    /// Tells this log from one that was begun in the same memory before.
    identity: Arc<()>,
    room: u64,
    head: u64,
    tail: u64,
    /// Clusters that all records ever made stand for ...
    clusters: u64,
    /// ... and those before the head.
    clusters_flushed: u64,
    /// The record that the next change may go on with.
    open: Option<Record>,
    /// Whether a change has found no room, and no flush has captured it yet ...
    lacks: bool,
    /// ... or the flush that has is still running.
    flushing_lack: bool,
}

/// What a flush covers of a log.
#[derive(Debug)]
pub struct Covered {
    log: Arc<()>,
    tail: u64,
    clusters: u64,
}

impl Redo {
    /// An empty log of `session` in `memory`. What was there before is gone: somebody else has seen to it.
    ///
    /// # Errors
    /// The memory is too small.
    pub fn start(memory: Arc<dyn SharedWords>, session: Session) -> Result<Self> {
        let room = room_in(memory.words())?;
        // Killed in between, it leaves no session, and so a log that says nothing.
        let words =
            [(SESSION_AT, 0), (MAGIC_AT, MAGIC), (ROOM_AT, room), (HEAD_AT, 0), (TAIL_AT, 0)];
        for (at, word) in words.into_iter().chain([(SESSION_AT, session.number())]) {
            memory.words()[at].store(word, Ordering::Release);
        }
        Ok(Self {
            memory,
            identity: Arc::default(),
            room,
            head: 0,
            tail: 0,
            clusters: 0,
            clusters_flushed: 0,
            open: None,
            lacks: false,
            flushing_lack: false,
        })
    }

    /// Notes that `guest` is mapped to `mapping` from now on. To be followed by [`Self::publish`], under the same lock.
    fn note(&mut self, geometry: Geometry, guest: GuestCluster, mapping: Mapping) {
        let entry = mapping.words(geometry);
        if let Some(open) = &mut self.open
            && open.extend(geometry, guest, entry)
        {
            return;
        }
        self.store_open();
        self.open = Some(Record { first: guest, count: 1, entry });
    }

    /// Makes what has been noted count.
    fn publish(&mut self) {
        self.store_open();
        self.memory.words()[TAIL_AT].store(self.tail, Ordering::Release);
    }

    fn store_open(&mut self) {
        let Some(record) = self.open.take() else { return };
        let clusters = self.clusters - self.clusters_flushed + record.count;
        if self.tail - self.head == self.room || clusters > REDO_CLUSTERS_MAX {
            self.lacks = true;
            return;
        }
        let at = place_of(self.tail, self.room);
        for (i, word) in record.words().into_iter().enumerate() {
            self.memory.words()[at + i].store(word, Ordering::Relaxed);
        }
        self.tail += 1;
        self.clusters += record.count;
    }

    /// Whether a change is missing that no flush has written.
    fn is_lacking(&self) -> bool {
        self.lacks || self.flushing_lack
    }

    /// Whether writers should start a flush, so that there is room.
    fn wants_flush(&self) -> bool {
        let clusters = self.clusters - self.clusters_flushed;
        (self.tail - self.head) * 2 >= self.room || clusters * 2 >= REDO_CLUSTERS_MAX
    }

    /// What a flush that captures all tables now will have written.
    fn cover(&mut self) -> Covered {
        self.flushing_lack |= std::mem::take(&mut self.lacks);
        let log = Arc::clone(&self.identity);
        let covered = Covered { log, tail: self.tail, clusters: self.clusters };
        if Bug::RedoEmptiedTooEarly.is_seeded() {
            self.drop_records(&covered);
        }
        covered
    }

    /// The flush has ended; after a failure everything waits for the next one.
    fn end_flush(&mut self, covered: &Covered, success: bool) {
        if !Arc::ptr_eq(&self.identity, &covered.log) {
            // Another log was attached meanwhile.
            return;
        }
        self.lacks |= std::mem::take(&mut self.flushing_lack) && !success;
        if success {
            self.drop_records(covered);
        }
    }

    fn drop_records(&mut self, covered: &Covered) {
        (self.head, self.clusters_flushed) = (covered.tail, covered.clusters);
        self.memory.words()[HEAD_AT].store(self.head, Ordering::Release);
    }

    /// Makes all records mean nothing.
    fn void(&self) {
        self.memory.words()[SESSION_AT].store(0, Ordering::Release);
    }
}

impl Meta {
    /// Goes on with `redo` as the log of all changes.
    pub fn attach_redo(&mut self, redo: Redo) {
        self.redo = Some(redo);
    }

    /// Goes on without a log. What it records means nothing any more.
    pub fn void_redo(&mut self) {
        if let Some(redo) = self.redo.take() {
            redo.void();
        }
    }

    /// Whether changes are being recorded.
    pub fn has_redo(&self) -> bool {
        self.redo.is_some()
    }

    /// Whether a change has found no room in the log, and no flush has written it yet. It must not be acknowledged, nor its
    /// clusters released, before one has.
    pub fn is_redo_lacking(&self) -> bool {
        self.redo.as_ref().is_some_and(Redo::is_lacking) && !Bug::UnrecordedAcknowledged.is_seeded()
    }

    /// Whether the log, if there is one, is filling up.
    pub(super) fn redo_wants_flush(&self) -> bool {
        self.redo.as_ref().is_some_and(Redo::wants_flush)
    }

    /// Whether no change waits in a log.
    pub(super) fn is_redo_empty(&self) -> bool {
        self.redo.as_ref().is_none_or(|redo| redo.head == redo.tail && !redo.is_lacking())
    }

    /// Records that `guest` is mapped to `mapping` now. To be followed by [`Self::publish_redo`], under the same lock.
    pub(super) fn note_redo(&mut self, geometry: Geometry, guest: GuestCluster, mapping: Mapping) {
        if let Some(redo) = &mut self.redo {
            redo.note(geometry, guest, mapping);
        }
    }

    /// Makes what has been recorded count.
    pub(super) fn publish_redo(&mut self) {
        if let Some(redo) = &mut self.redo {
            redo.publish();
        }
    }

    /// Leaves a change out of the log, which a flush has to write instead.
    pub(super) fn leave_out_of_redo(&mut self) {
        if let Some(redo) = &mut self.redo {
            redo.lacks = true;
        }
    }

    /// What a flush that captures all tables now covers of the log.
    pub(super) fn cover_redo(&mut self) -> Option<Covered> {
        self.redo.as_mut().map(Redo::cover)
    }

    /// Drops the records that a flush has written, if it has succeeded.
    pub(super) fn end_redo_flush(&mut self, covered: Option<&Covered>, success: bool) {
        if let (Some(redo), Some(covered)) = (&mut self.redo, covered) {
            redo.end_flush(covered, success);
        }
    }
}

#[cfg(test)]
mod tests;
