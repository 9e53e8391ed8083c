//! One queue's record, by the layout of the specification.
//!
//! ```text
//! word 0              features: 0
//!      1              version: 1, or 0 where nothing has been here; descriptors; head of the last batch; used index
//!      2 + 2 x head   in flight: 1 or 0; 5 bytes unused; next in the last batch
//!      3 + 2 x head   number in the order of taking
//! ```
//!
//! Fields have the byte order of the machine. While a ring runs, its record is only written; what has to be known of it is
//! kept here, too, so that whoever scribbles into the memory hurts nobody but the next start.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::region::{ENTRY_WORDS, HEADER_WORDS, Region};

/// The version of the layout.
const VERSION: u16 = 1;

/// A record that is not this ring's, or not one that is understood.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    #[error("the record of requests in flight has {0} queues and so none with the number {1}")]
    NoQueue(usize, usize),
    #[error(
        "the record of requests in flight is for {recorded} descriptors, and the ring has {size}"
    )]
    Size { recorded: u16, size: u16 },
    #[error(
        "the record of requests in flight is none that is understood: features {features:#x}, version {version}, \
         {recorded} descriptors where {size} were announced"
    )]
    Foreign { features: u64, version: u16, recorded: u16, size: u16 },
}

/// The second word of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Header {
    version: u16,
    size: u16,
    /// The request that joined the last batch last.
    last_batch_head: u16,
    /// The used ring's index after the last batch that is wholly noted here.
    used_index: u16,
}

impl Header {
    fn from_word(word: u64) -> Self {
        let [a, b, c, d, e, f, g, h] = word.to_ne_bytes();
        let field = |low, high| u16::from_ne_bytes([low, high]);
        Self {
            version: field(a, b),
            size: field(c, d),
            last_batch_head: field(e, f),
            used_index: field(g, h),
        }
    }

    fn word(self) -> u64 {
        let [[a, b], [c, d], [e, f], [g, h]] =
            [self.version, self.size, self.last_batch_head, self.used_index].map(u16::to_ne_bytes);
        u64::from_ne_bytes([a, b, c, d, e, f, g, h])
    }
}

/// The first word of a descriptor's entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry {
    in_flight: bool,
    /// In the last batch, the request that joined it before this one.
    next: u16,
}

impl Entry {
    fn from_word(word: u64) -> Self {
        let [flag, _, _, _, _, _, low, high] = word.to_ne_bytes();
        Self { in_flight: flag == 1, next: u16::from_ne_bytes([low, high]) }
    }

    fn word(self) -> u64 {
        let [low, high] = self.next.to_ne_bytes();
        u64::from_ne_bytes([self.in_flight.into(), 0, 0, 0, 0, 0, low, high])
    }
}

/// The record of a ring that runs.
#[derive(Debug)]
pub struct Record {
    region: Arc<Region>,
    queue: usize,
    header: Header,
    /// The number of the request that is taken next.
    next_number: u64,
    /// Requests that have ended since the guest was shown the last ones, each with the one before it.
    batch: Vec<(u16, u16)>,
}

impl Record {
    /// The record of queue `queue` in `region`, for a ring of `size` descriptors whose used index is `used_index`. What a
    /// kill has left half noted is noted.
    ///
    /// Returns what is in flight, too: the heads, the first that was taken last.
    pub fn resume(
        region: Arc<Region>,
        queue: usize,
        size: u16,
        used_index: u16,
    ) -> Result<(Self, Vec<u16>), RecordError> {
        let queues = region.queues();
        if queue >= queues {
            return Err(RecordError::NoQueue(queues, queue));
        }
        let recorded = region.queue_size();
        if size > recorded {
            return Err(RecordError::Size { recorded, size });
        }
        let header = load_header(&region, queue)?;
        // No batch is larger than that, and a ring holds no more requests than it has descriptors.
        let batch = Vec::with_capacity(size.into());
        let mut record = Self { region, queue, header, next_number: 0, batch };
        record.end_last_batch(size, used_index);
        let unfinished = record.unfinished(size);
        Ok((record, unfinished))
    }

    /// Notes that the request at `head` is taken.
    pub fn take(&mut self, head: u16) {
        let [state, number] = self.entry(head);
        store(number, self.next_number);
        store(state, Entry { in_flight: true, next: 0 }.word());
        self.next_number = self.next_number.wrapping_add(1);
    }

    /// Notes that the request at `head` has ended, and is about to be shown to the guest.
    pub fn end(&mut self, head: u16) {
        let next = self.header.last_batch_head;
        let entry = Entry { in_flight: true, next };
        store(&self.entry(head)[0], entry.word());
        self.header.last_batch_head = head;
        self.store_header();
        self.batch.push((head, next));
    }

    /// Notes that the guest is shown all that has ended: the used ring's index is `used_index` now.
    pub fn show(&mut self, used_index: u16) {
        self.batch.iter().for_each(|&(head, next)| self.forget(head, next));
        self.batch.clear();
        self.header.used_index = used_index;
        self.store_header();
    }

    /// Where the used ring has gone further than the record, the guest has been shown the last batch, and its requests are
    /// not in flight any more, whatever the record says.
    fn end_last_batch(&mut self, size: u16, used_index: u16) {
        let shown = used_index.wrapping_sub(self.header.used_index);
        if shown > size {
            // No ring shows so many at a time. It is another one, or has started anew, and has offered nothing of this.
            (0..self.header.size).for_each(|head| self.forget(head, 0));
        } else {
            self.forget_batch(shown);
        }
        self.header.used_index = used_index;
        self.store_header();
    }

    fn forget_batch(&self, len: u16) {
        let mut head = self.header.last_batch_head;
        for _ in 0..len {
            if head >= self.header.size {
                return;
            }
            let next = Entry::from_word(self.entry(head)[0].load(Ordering::Acquire)).next;
            self.forget(head, next);
            head = next;
        }
    }

    /// Notes that the request at `head` is not in flight. Who comes after a kill still follows the batch through it.
    fn forget(&self, head: u16, next: u16) {
        store(&self.entry(head)[0], Entry { in_flight: false, next }.word());
    }

    /// What is in flight, and so was taken by who was here before; the first that was taken last.
    fn unfinished(&mut self, size: u16) -> Vec<u16> {
        let mut found: Vec<(u64, u16)> = (0..size)
            .filter_map(|head| {
                let [state, number] = self.entry(head);
                let entry = Entry::from_word(state.load(Ordering::Acquire));
                entry.in_flight.then(|| (number.load(Ordering::Acquire), head))
            })
            .collect();
        found.sort_unstable_by(|a, b| b.cmp(a));
        self.next_number = found.first().map_or(0, |(number, _)| number.wrapping_add(1));
        found.into_iter().map(|(_, head)| head).collect()
    }

    fn entry(&self, head: u16) -> &[AtomicU64; ENTRY_WORDS] {
        let (_, entries) = self.region.queue(self.queue).split_at(HEADER_WORDS);
        let (entries, _) = entries.as_chunks();
        &entries[usize::from(head)]
    }

    fn store_header(&self) {
        store(&self.region.queue(self.queue)[1], self.header.word());
    }
}

/// Sets a word. No store before it comes after it.
fn store(word: &AtomicU64, value: u64) {
    word.store(value, Ordering::Release);
    #[cfg(test)]
    super::tests::note(word, value);
}

/// What the record of queue `queue` says; a fresh one is made one of this version.
fn load_header(region: &Region, queue: usize) -> Result<Header, RecordError> {
    let words = region.queue(queue);
    let (size, features) = (region.queue_size(), words[0].load(Ordering::Acquire));
    let header = Header::from_word(words[1].load(Ordering::Acquire));
    match header {
        Header { version: 0, .. } => {
            words.iter().for_each(|word| store(word, 0));
            Ok(Header { version: VERSION, size, last_batch_head: 0, used_index: 0 })
        }
        Header { version: VERSION, size: recorded, .. } if recorded == size && features == 0 => {
            Ok(header)
        }
        Header { version, size: recorded, .. } => {
            Err(RecordError::Foreign { features, version, recorded, size })
        }
    }
}
